// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs inside a nested host: its agent starts them and tells what they say.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use guest_agent::protocol::{Answer, Command};

use super::daemon::Settings;
use super::logs::LINES;
use super::peer::Peer;
use crate::process::tail;

/// By these names the agent knows them.
pub const DAEMON: &str = "daemon";
/// The guest's VMM.
pub const VMM: &str = "qemu";

/// The ends of the logs inside a nested host.
pub fn last_words(host: &mut Peer) -> String {
    let mut words = String::new();
    for name in [VMM, DAEMON] {
        let log = host.call(Command::Log {
            name: name.to_owned(),
        });
        let end = match log {
            Ok(Answer::Text(text)) => tail(&text, LINES),
            other => format!("{other:?}"),
        };
        words += &format!("inside, {name} said:\n{end}\n");
    }
    words
}

/// The daemon inside a nested host.
pub struct InnerDaemon<'a> {
    /// The agent of the nested host.
    pub host: &'a mut Peer,
}

impl InnerDaemon<'_> {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it does not; the error is what it said.
    pub fn start(&mut self, settings: &Settings) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        const GLANCE: Duration = Duration::from_millis(200);
        self.host.call(Command::Start {
            name: DAEMON.to_owned(),
            program: settings.program.display().to_string(),
            arguments: settings.arguments(),
        })?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let name = DAEMON.to_owned();
            let log = self.host.call(Command::Log { name })?;
            let Answer::Text(log) = log else {
                bail!("the nested host answers {log:?}, not with a log");
            };
            // The daemon's sockets are there once it says so.
            if log.contains("serving") {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the daemon does not serve; it said: {}", tail(&log, LINES));
            }
            thread::sleep(GLANCE);
        }
    }
}
