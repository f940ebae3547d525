// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where log lines go: on Android to its log, under the tag `crosvm-vsock`; elsewhere
//! to standard error.
//!
//! What is logged is said by `RUST_LOG`, and by `--log-level` on top of it. Nothing here
//! fails: a wrong `RUST_LOG` is told on standard error and left out, and a second logger is
//! none. Panics are logged too, since nobody reads a daemon's standard error on Android.
//!
//! Once [`in_background`] was called, standard error holds nobody up.

mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use log::{error, log_enabled, Level};

use self::queue::Queue;

/// How long the end may wait for the last lines to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a thread of its own writes to standard error.
static BACKGROUND: OnceLock<Arc<Queue>> = OnceLock::new();

/// Sets the log up; any call but the first does nothing. `default` is logged when nobody
/// says it.
pub fn init(default: &str, level: Option<&str>) {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        let environment = std::env::var("RUST_LOG");
        let environment = environment.as_deref().unwrap_or(default);
        install([Some(environment), level].into_iter().flatten());
        log_panics();
    });
}

/// Has standard error written by a thread of its own, from now on. It inherits the caller's
/// signal mask.
pub fn in_background() -> io::Result<()> {
    let queue = Arc::<Queue>::default();
    let lines = queue.clone();
    let thread = std::thread::Builder::new().name("log".to_owned());
    thread.spawn(move || lines.write_to(&mut io::stderr()))?;
    // A second one would have nothing to write.
    let _ = BACKGROUND.set(queue);
    Ok(())
}

/// Says on standard error, logged or not, why the program ends.
pub fn tell(error: &anyhow::Error) {
    write(format!("crosvm-vsock: {error:#}\n").as_bytes());
}

/// Waits for the thread that writes to standard error, but not for ever.
pub fn flush() {
    if let Some(queue) = BACKGROUND.get() {
        queue.flush(PATIENCE);
    }
}

fn write(line: &[u8]) {
    match BACKGROUND.get() {
        Some(queue) => queue.push(line),
        None => {
            // There is nobody to tell that this fails.
            let _ = io::stderr().write_all(line);
        }
    }
}

#[cfg(target_os = "android")]
fn install<'a>(filters: impl Iterator<Item = &'a str>) {
    use android_logger::{Config, FilterBuilder};

    let mut builder = FilterBuilder::new();
    for filter in filters {
        builder.parse(filter);
    }
    let filter = builder.build();
    let config = Config::default()
        .with_tag("crosvm-vsock")
        .with_max_level(filter.filter())
        .with_filter(filter);
    android_logger::init_once(config);
}

#[cfg(not(target_os = "android"))]
fn install<'a>(filters: impl Iterator<Item = &'a str>) {
    /// Takes a line at a time, as env_logger writes them.
    struct Lines;

    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            write(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut builder = env_logger::Builder::new();
    builder.target(env_logger::Target::Pipe(Box::new(Lines)));
    for filter in filters {
        builder.parse_filters(filter);
    }
    if let Err(error) = builder.try_init() {
        eprintln!("crosvm-vsock: {error}");
    }
}

/// Logs panics in place of printing them, unless errors are not logged.
fn log_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if log_enabled!(Level::Error) {
            error!("{}", describe(panic, &Backtrace::capture()));
        } else {
            print(panic);
        }
    }));
}

/// One line, and the backtrace if `RUST_BACKTRACE` asks for it.
fn describe(panic: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let mut text = format!("thread {name} has panicked: {message}");
    if let Some(location) = panic.location() {
        text += &format!(", at {location}");
    }
    if backtrace.status() == BacktraceStatus::Captured {
        text += &format!("\n{backtrace}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::panic::{self, catch_unwind};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// One test, since a process has one panic hook.
    #[test]
    fn set_up_once_it_logs_panics_by_thread_message_and_place() {
        init("info", Some("no=such=filter"));
        init("info", Some("trace"));
        assert!(log::max_level() < log::LevelFilter::Trace);

        let described = Arc::new(Mutex::new(Vec::new()));
        let into = described.clone();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let line = describe(panic, &Backtrace::disabled());
            into.lock().unwrap().push(line);
        }));
        let thread = std::thread::Builder::new().name("worker".to_owned());
        let thread = thread.spawn(|| {
            let number = 7;
            let caught = [
                catch_unwind(|| panic!("plain")).is_err(),
                catch_unwind(|| panic!("number {number}")).is_err(),
                catch_unwind(|| panic::panic_any(number)).is_err(),
            ];
            assert_eq!(caught, [true; 3]);
        });
        thread.unwrap().join().unwrap();
        panic::set_hook(before);
        let lines = described.lock().unwrap();
        for message in ["plain", "number 7", "no message"] {
            let start = format!("thread worker has panicked: {message}, at src/logging.rs:");
            let found = lines.iter().any(|line| line.starts_with(&start));
            assert!(found, "{start}: {lines:?}");
        }
    }
}
