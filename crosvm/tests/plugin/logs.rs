// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was logged, for tests that run side by side: by the thread that logged it,
//! or by a word that only one test's lines have.

use std::sync::{Mutex, Once, PoisonError};
use std::thread::{self, ThreadId};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Collector;

static LINES: Mutex<Vec<(ThreadId, String)>> = Mutex::new(Vec::new());

impl Log for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = (thread::current().id(), record.args().to_string());
            LINES
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    }

    fn flush(&self) {}
}

/// Collects from now on.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Collector).unwrap();
        log::set_max_level(LevelFilter::Warn);
    });
}

/// The warnings and errors of this thread since the last look.
pub fn taken() -> Vec<String> {
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let ours = thread::current().id();
    let (taken, left) = lines.drain(..).partition(|(thread, _)| *thread == ours);
    *lines = left;
    taken.into_iter().map(|(_, line)| line).collect()
}

/// The warnings and errors of any thread that hold `word`.
pub fn with(word: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = lines.iter().map(|(_, line)| line);
    lines.filter(|line| line.contains(word)).cloned().collect()
}
