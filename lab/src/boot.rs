// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Being init: mounts, kernel modules, the request and the way out.
//!
//! The lab's initramfs holds one program, this one, as `/init`, and the kernel
//! modules it is to load. [`start`] makes the machine usable and returns what
//! the host asked for together with a [`Reporter`] for the answers;
//! [`power_off`] ends the machine. Nothing here knows what a cell is.
//!
//! Limits: made for PID 1 of a throw-away machine; run elsewhere it refuses.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::{bail, Context, Result};
use guest_agent::machine;
use serde::Serialize;

/// The serial port that carries results; the kernel's console is `ttyS0`.
const RESULTS: &str = "/dev/ttyS1";

/// What the host wants, from the `lab.*` words of the kernel command line.
///
/// The kernel itself ignores parameters with a dot whose module it does not
/// know, so the words only reach this program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The lab's name of this kernel, repeated in every row.
    pub kernel: String,
    /// The kernel kind that the lab's table expects here.
    pub kind: String,
    /// The modes to run; empty means all.
    pub modes: Vec<String>,
    /// Run the benchmark instead of the cells.
    pub bench: bool,
    /// Tell the demo's story instead of running the cells.
    pub demo: bool,
    /// Only show that the machine boots; no modules, no cells.
    pub probe: bool,
}

impl Request {
    /// Reads a kernel command line; words that are not the lab's are skipped.
    pub fn parse(command_line: &str) -> Self {
        let mut request = Self::default();
        for word in command_line.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            match name {
                "lab.kernel" => request.kernel = value.to_owned(),
                "lab.kind" => request.kind = value.to_owned(),
                "lab.modes" => request.modes = value.split(',').map(str::to_owned).collect(),
                "lab.bench" => request.bench = value == "1",
                "lab.demo" => request.demo = value == "1",
                "lab.probe" => request.probe = value == "1",
                _ => {}
            }
        }
        request
    }
}

/// One finished cell, as the host's table and JSON file hold it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The lab's name of the kernel.
    pub kernel: String,
    /// The kernel kind, found by behaviour.
    pub kind: String,
    /// The cell's name; unique within a kernel.
    pub cell: String,
    /// What should have come out.
    pub expected: String,
    /// What came out.
    pub got: String,
    /// Whether the cell is as expected.
    pub ok: bool,
    /// What a person needs to understand a failure; may be empty.
    pub detail: String,
}

/// The line protocol to the host: every line begins with `@` and a word.
///
/// Shared between threads; a line is written in one piece.
#[derive(Debug)]
pub struct Reporter {
    port: Mutex<File>,
}

impl Reporter {
    fn open() -> Result<Self> {
        let port = OpenOptions::new()
            .write(true)
            .open(RESULTS)
            .with_context(|| format!("cannot open {RESULTS}, the port for results"))?;
        Ok(Self {
            port: Mutex::new(port),
        })
    }

    /// Announces the cells to come; a cell that is planned and sends no row
    /// counts as failed on the host.
    pub fn plan(&self, cells: &[&str]) -> Result<()> {
        self.line("plan", &serde_json::to_string(cells)?)
    }

    /// Reports a finished cell.
    pub fn row(&self, row: &Row) -> Result<()> {
        self.line("row", &serde_json::to_string(row)?)
    }

    /// Reports progress; also tells the host that the machine is alive.
    pub fn note(&self, text: &str) -> Result<()> {
        self.text("note", text)
    }

    /// Tells a line of the demo's story, shown as it is.
    pub fn say(&self, text: &str) -> Result<()> {
        self.text("say", text)
    }

    /// Reports a measurement.
    pub fn bench(&self, measurement: &impl Serialize) -> Result<()> {
        self.line("bench", &serde_json::to_string(measurement)?)
    }

    /// Says that everything asked for was reported. Must be the last line.
    pub fn done(&self) -> Result<()> {
        self.line("done", "")
    }

    fn text(&self, word: &str, text: &str) -> Result<()> {
        if text.is_empty() {
            return self.line(word, "");
        }
        text.lines().try_for_each(|line| self.line(word, line))
    }

    fn line(&self, word: &str, rest: &str) -> Result<()> {
        let line = format!("@{word} {rest}\n");
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        port.write_all(line.as_bytes())
            .with_context(|| format!("cannot write to {RESULTS}"))
    }

    /// Waits until the port has sent everything.
    fn drain(&self) {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        machine::drain(&port);
    }
}

/// Makes the machine usable: file systems, the request, the modules.
///
/// # Errors
/// When this is not PID 1, or when a mount, the port for results or a module
/// fails; the error names it.
pub fn start() -> Result<(Request, Reporter)> {
    if std::process::id() != 1 {
        bail!("this program is the init of the kernel lab; run `cargo xtask kernels` instead");
    }
    machine::mount_all()?;
    let command_line =
        fs::read_to_string("/proc/cmdline").context("cannot read the kernel command line")?;
    let request = Request::parse(&command_line);
    let reporter = Reporter::open()?;
    reporter.note("init is running")?;
    if !request.probe {
        machine::load_modules()?;
    }
    Ok((request, reporter))
}

/// Sends what the reporter still holds and switches the machine off.
pub fn power_off(reporter: Option<&Reporter>) -> ! {
    if let Some(reporter) = reporter {
        reporter.drain();
    }
    machine::power_off()
}

#[cfg(test)]
mod tests {
    use super::Request;

    #[test]
    fn request_is_read_from_among_other_words() {
        let request = Request::parse(
            "console=ttyS0 quiet lab.kernel=6.1-split lab.kind=Split lab.modes=off,identity \
             lab.bench=1 lab.unknown=7 nokaslr\n",
        );
        assert_eq!(request.kernel, "6.1-split");
        assert_eq!(request.kind, "Split");
        assert_eq!(request.modes, ["off", "identity"]);
        assert!(request.bench);
        assert!(!request.demo && !request.probe);
    }

    #[test]
    fn nothing_asked_is_everything() {
        assert_eq!(Request::parse("quiet"), Request::default());
    }
}
