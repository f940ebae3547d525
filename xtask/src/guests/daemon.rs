// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon of a guest, on this machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::process;

const PATIENCE: Duration = Duration::from_secs(20);
const GLANCE: Duration = Duration::from_millis(20);

/// What the daemon is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program.
    pub program: PathBuf,
    /// Its vhost-user socket.
    pub socket: PathBuf,
    /// The guest's CID.
    pub cid: u32,
    /// Where host programs are; `None` with the kernel's vhost-vsock.
    pub uds_path: Option<PathBuf>,
}

impl Settings {
    /// The arguments, as anybody would type them.
    pub fn arguments(&self) -> Vec<String> {
        let mut vm = format!("guest-cid={},socket={}", self.cid, self.socket.display());
        let backend = match &self.uds_path {
            Some(path) => {
                vm += &format!(",uds-path={}", path.display());
                "userspace"
            }
            None => "kernel",
        };
        ["--backend", backend, "--vm", &vm]
            .map(str::to_owned)
            .into()
    }
}

/// A running daemon; it ends when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it and waits until its socket is there. What it says is added to `log`.
    ///
    /// # Errors
    /// When it cannot be started or ends at once; the error is what it said.
    pub fn start(settings: &Settings, log: &Path) -> Result<Self> {
        let said = File::options().create(true).append(true).open(log);
        let said = said.with_context(|| format!("cannot write {}", log.display()))?;
        let child = process::bound(&settings.program)
            .args(settings.arguments())
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .context("cannot start the daemon through setpriv (util-linux)")?;
        let mut daemon = Self { child };
        let deadline = Instant::now() + PATIENCE;
        while !settings.socket.exists() {
            let ended = daemon.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                bail!("the daemon does not serve: {last}");
            }
            thread::sleep(GLANCE);
        }
        Ok(daemon)
    }

    /// Asks it to end, as systemd would.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn stop(mut self) -> Result<()> {
        guest_agent::machine::terminate(&mut self.child)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("the daemon ended with {status} on SIGTERM");
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the daemon does not end on SIGTERM");
            }
            thread::sleep(GLANCE);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
