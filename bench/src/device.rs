// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon that is measured: any program with the command line of
//! `vhost-device-vsock`, started with its own defaults, and what the kernel says of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use tempfile::TempDir;

use crate::guest::CID;

/// How long a daemon may take to make its sockets.
const START: Duration = Duration::from_secs(20);

/// A running daemon; it ends when dropped.
pub struct Device {
    directory: TempDir,
    child: Child,
    vms: usize,
}

impl Device {
    /// Starts `program` with `vms` VMs, from [`CID`] on.
    pub fn start(program: &Path, vms: usize) -> Result<Self> {
        let directory = TempDir::new()?;
        let at = directory.path().display();
        let mut command = Command::new(program);
        for index in 0..vms {
            let cid = CID + index as u64;
            command.arg("--vm").arg(format!(
                "guest-cid={cid},socket={at}/vhost{index},uds-path={at}/vm{index}"
            ));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut device = Self {
            directory,
            child,
            vms,
        };
        let began = Instant::now();
        // Looked at, not connected to: it may serve its first connection only.
        while !(0..device.vms).all(|vm| device.socket(vm).exists() && device.host(vm).exists()) {
            if let Some(status) = device.child.try_wait()? {
                bail!("{} ended at once: {status}", program.display());
            }
            if began.elapsed() > START {
                bail!("{} makes no sockets", program.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(device)
    }

    /// Where the VMM of a VM connects.
    pub fn socket(&self, vm: usize) -> PathBuf {
        self.directory.path().join(format!("vhost{vm}"))
    }

    /// Where host clients of a VM connect.
    pub fn host(&self, vm: usize) -> PathBuf {
        self.directory.path().join(format!("vm{vm}"))
    }

    /// Where the requests of a VM's guest for `port` go.
    pub fn port(&self, vm: usize, port: u32) -> PathBuf {
        self.directory.path().join(format!("vm{vm}_{port}"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory of its own in bytes: `RssAnon`, which guest memory is no part of.
    pub fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: u64 = line
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .with_context(|| format!("no RssAnon in {path}"))?
            .parse()?;
        Ok(kib << 10)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that the process has used so far: all of its threads, user and system.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let nanoseconds = text
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        total += Duration::from_nanos(nanoseconds.parse()?);
    }
    Ok(total)
}
