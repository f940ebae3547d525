// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that an agent runs: to their end, or until they are told to stop.
//!
//! What a program writes goes to files in the directory for temporary files, so that a
//! program that writes much waits for nobody.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sockets::TIMEOUT;

const GLANCE: Duration = Duration::from_millis(20);

/// A program that runs, and where it writes.
#[derive(Debug)]
struct Running {
    child: Child,
    log: PathBuf,
}

/// The programs of one agent, by name.
#[derive(Debug, Default)]
pub struct Programs {
    running: Mutex<HashMap<String, Running>>,
}

/// How a program ended: its exit code, and what it wrote.
pub type End = (Option<i32>, String);

impl Programs {
    /// Runs a program to its end; one that takes longer than [`TIMEOUT`] is killed.
    ///
    /// # Errors
    /// When it cannot be started, or was killed.
    pub fn run(&self, program: &str, arguments: &[String], input: &str) -> io::Result<End> {
        let mut running = Self::spawn(program, arguments, Stdio::piped())?;
        if let Some(mut stdin) = running.child.stdin.take() {
            // A program that does not read it has ended, or has no use for it.
            let _ = stdin.write_all(input.as_bytes());
        }
        running.end()
    }

    /// Starts a program under a name.
    ///
    /// # Errors
    /// When it cannot be started, or one of this name runs.
    pub fn start(&self, name: &str, program: &str, arguments: &[String]) -> io::Result<()> {
        let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if all.contains_key(name) {
            return Err(io::Error::other(format!("{name} runs already")));
        }
        all.insert(
            name.to_owned(),
            Self::spawn(program, arguments, Stdio::null())?,
        );
        Ok(())
    }

    /// Asks a program to end and waits for it.
    ///
    /// # Errors
    /// When none of this name was started, or it had to be killed.
    pub fn stop(&self, name: &str) -> io::Result<End> {
        let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = all.remove(name).ok_or_else(|| unknown(name))?;
        drop(all);
        crate::machine::terminate(&mut running.child)?;
        running.end()
    }

    /// What a program has written so far.
    ///
    /// # Errors
    /// When none of this name was started.
    pub fn log(&self, name: &str) -> io::Result<String> {
        let all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        read(&all.get(name).ok_or_else(|| unknown(name))?.log)
    }

    fn spawn(program: &str, arguments: &[String], stdin: Stdio) -> io::Result<Running> {
        // Of the process, not of the agent: a process may have several.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("agent-{}-{number}", std::process::id()));
        let file = File::create(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(stdin)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start {program}: {e}")))?;
        Ok(Running { child, log })
    }
}

impl Running {
    fn end(mut self) -> io::Result<End> {
        let status = self.wait()?;
        let output = read(&self.log)?;
        let Some(status) = status else {
            return Err(io::Error::other(format!(
                "it did not end within {} s and was killed; it wrote: {output}",
                TIMEOUT.as_secs()
            )));
        };
        Ok((status.code(), output))
    }

    /// `None`: it had to be killed.
    fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(GLANCE);
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(None)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // All three fail only for what has been done already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}

fn read(log: &PathBuf) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(log)?).into_owned())
}

fn unknown(name: &str) -> io::Error {
    io::Error::other(format!("{name} was not started"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_program_reads_writes_and_ends() {
        let script = words(&["-c", "cat; echo error >&2; exit 3"]);
        let end = Programs::default()
            .run("/bin/sh", &script, "input ")
            .unwrap();
        assert_eq!(end, (Some(3), String::from("input error\n")));
        assert!(Programs::default()
            .run("/no/such/program", &[], "")
            .is_err());
    }

    #[test]
    fn a_program_goes_on_until_it_is_stopped() {
        let programs = Programs::default();
        let script = words(&["-c", "echo up; exec sleep 600"]);
        programs.start("p", "/bin/sh", &script).unwrap();
        assert!(programs.start("p", "/bin/sh", &script).is_err());
        let deadline = Instant::now() + TIMEOUT;
        while programs.log("p").unwrap() != "up\n" {
            assert!(Instant::now() < deadline);
            thread::sleep(GLANCE);
        }
        assert_eq!(programs.stop("p").unwrap(), (None, String::from("up\n")));
        assert!(programs.stop("p").is_err());
        assert!(programs.log("p").is_err());
    }
}
