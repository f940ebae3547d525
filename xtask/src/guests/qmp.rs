// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's machine protocol (QMP), as much of it as pausing a machine takes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a machine's monitor.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects and says hello.
    ///
    /// # Errors
    /// When QEMU is not there or does not answer.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("cannot reach QEMU's monitor")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self {
            reader: BufReader::new(stream),
        };
        monitor.message().context("QEMU's monitor does not greet")?;
        monitor.run("qmp_capabilities")?;
        Ok(monitor)
    }

    /// Runs a command that takes no arguments.
    ///
    /// # Errors
    /// When QEMU refuses it or does not answer.
    pub fn run(&mut self, command: &str) -> Result<()> {
        let request = format!("{}\n", json!({ "execute": command }));
        let answer = self.reader.get_mut().write_all(request.as_bytes());
        answer.with_context(|| format!("cannot send {command} to QEMU"))?;
        loop {
            let message = self.message()?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            // Events come in between.
            if message.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU has closed its monitor");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor says {line:?}"))
    }
}
