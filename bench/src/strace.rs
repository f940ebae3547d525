// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counts a process's system calls with strace(1). That slows it down, so it is done in
//! a run of its own whose times mean nothing.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{ensure, Context, Result};
use tempfile::NamedTempFile;

/// An strace at work; it ends when dropped.
pub struct Strace {
    child: Child,
    output: NamedTempFile,
}

impl Strace {
    /// Attaches to all threads of a process.
    pub fn attach(pid: u32) -> Result<Self> {
        let output = NamedTempFile::new()?;
        let mut child = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(output.path())
            .args(["-p", &pid.to_string()])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start strace; is it installed?")?;
        let said = child.stderr.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        ensure!(line.contains("attached"), "strace: {}", line.trim());
        Ok(Self { child, output })
    }

    /// Detaches; how many system calls there were.
    pub fn calls(mut self) -> Result<u64> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status()?;
        self.child.wait()?;
        let text = std::fs::read_to_string(self.output.path())?;
        let total = text.lines().find(|line| line.ends_with("total"));
        total
            .and_then(|line| line.split_whitespace().next())
            .context("strace has counted nothing")?
            .parse()
            .context("strace's total is no number")
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
