// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a stage writes while it is up, for when something fails.

use std::fs;
use std::path::{Path, PathBuf};

use super::setting::Setting;
use crate::process::tail;

/// Lines of a log that are shown with a failure.
pub const LINES: usize = 12;

/// Where it is written.
#[derive(Clone, Debug)]
pub struct Logs {
    /// The console of the machine that runs here.
    pub console: PathBuf,
    /// What its QEMU says.
    pub qemu: PathBuf,
    /// What the daemon says, if it runs here.
    pub daemon: PathBuf,
}

impl Logs {
    /// The logs of a setting, emptied.
    pub fn new(directory: &Path, setting: &Setting) -> Self {
        let file = |what: &str| directory.join(format!("{}.{what}.log", setting.file_name()));
        let logs = Self {
            console: file("console"),
            qemu: file("qemu"),
            daemon: file("daemon"),
        };
        for log in [&logs.console, &logs.qemu, &logs.daemon] {
            // Of an earlier run; without it the log is longer, no worse.
            let _ = fs::remove_file(log);
        }
        logs
    }

    /// The end of each, for whoever has to find out.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for (what, log) in [
            ("console", &self.console),
            ("QEMU", &self.qemu),
            ("daemon", &self.daemon),
        ] {
            let text = fs::read(log).unwrap_or_default();
            let end = tail(&String::from_utf8_lossy(&text), LINES);
            if !end.is_empty() {
                words += &format!("the end of the {what}'s log ({}):\n{end}\n", log.display());
            }
        }
        words
    }
}
