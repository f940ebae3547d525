// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One virtual machine: started, listened to, and never left behind.
//!
//! The kernel's console goes to a log file, the lab's results come over a
//! second serial port as lines. QEMU dies with this process, however that
//! ends: `setpriv --pdeathsig` asks the kernel for it, and dropping a
//! [`Machine`] kills it at once.
//!
//! Limits: x86-64 hosts; 2 processors and 1 GiB a machine.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{self, tail};

/// QEMU's program; package `qemu-system-x86` in Debian.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor, by `/dev/kvm`.
    Kvm,
    /// QEMU's translator, one thread a processor.
    Emulation,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Emulation => "software emulation",
        })
    }
}

impl Accel {
    /// QEMU's options for it.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without five-level paging, which only costs time in emulation.
            Self::Emulation => ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"],
        }
    }

    /// QEMU's options for a machine that is to run machines itself.
    pub fn host_arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => self.arguments(),
            // Of all that QEMU emulates, AMD's SVM is what it does completely.
            Self::Emulation => ["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm"],
        }
    }

    /// How long the kernel may take from power-on to init.
    pub fn boot_limit(self) -> Duration {
        match self {
            Self::Kvm => Duration::from_secs(60),
            Self::Emulation => Duration::from_secs(240),
        }
    }
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The kernel.
    pub vmlinuz: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// The lab's words on the kernel command line.
    pub request: &'a str,
    /// Where the console's text goes.
    pub console: &'a Path,
    /// What executes it.
    pub accel: Accel,
    /// Longest silence after the first line of results.
    pub silence: Duration,
    /// Longest life.
    pub life: Duration,
}

impl Boot<'_> {
    /// Where QEMU's own messages go.
    fn own_words(&self) -> PathBuf {
        self.console.with_extension("qemu.log")
    }

    /// The end of the console, where a panic says what it was, and what QEMU
    /// itself had to say.
    pub fn last_words(&self, lines: usize) -> String {
        let end = |path: &Path| {
            let text = fs::read(path).unwrap_or_default();
            tail(&String::from_utf8_lossy(&text), lines)
        };
        let console = end(self.console);
        let mut words = match console.as_str() {
            "" => "its console is empty".to_owned(),
            console => format!("the end of its console:\n{console}"),
        };
        let own = end(&self.own_words());
        if !own.is_empty() {
            words += &format!("\nQEMU said:\n{own}");
        }
        words
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    boot: Duration,
    silence: Duration,
    end_of_life: Instant,
    heard: bool,
}

/// Why no further line comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine switched itself off, or QEMU ended.
    Exited,
    /// Nothing was heard within the time to boot.
    NoBoot,
    /// Nothing was heard for too long.
    Silent,
    /// The machine lived too long.
    TooLong,
}

impl End {
    /// The sentence for a person.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Exited => "the machine ended before it said that it was done",
            Self::NoBoot => "the kernel did not reach init in time",
            Self::Silent => "the machine said nothing for too long",
            Self::TooLong => "the machine took too long as a whole",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exited => "ended early",
            Self::NoBoot => "no boot",
            Self::Silent => "silence",
            Self::TooLong => "no end",
        })
    }
}

impl Machine {
    /// Starts QEMU.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(boot: &Boot<'_>) -> Result<Self> {
        let words = boot.own_words();
        let said =
            File::create(&words).with_context(|| format!("cannot write {}", words.display()))?;
        let mut qemu = process::bound(PROGRAM)
            .args(boot.accel.arguments())
            .args(["-smp", "2", "-m", "1024", "-nodefaults", "-display", "none"])
            .args(["-no-reboot", "-no-user-config"])
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", escape(boot.console)))
            .args(["-chardev", "stdio,id=results,signal=off"])
            .args(["-serial", "chardev:console", "-serial", "chardev:results"])
            .arg("-kernel")
            .arg(boot.vmlinuz)
            .arg("-initrd")
            .arg(boot.initramfs)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 quiet panic=-1 oops=panic random.trust_cpu=on {}",
                boot.request
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .context("cannot start QEMU through setpriv (util-linux)")?;
        let lines = match qemu.stdout.take() {
            Some(stdout) => listen(stdout),
            None => mpsc::channel().1,
        };
        Ok(Self {
            qemu,
            lines,
            boot: boot.accel.boot_limit(),
            silence: boot.silence,
            end_of_life: Instant::now() + boot.life,
            heard: false,
        })
    }

    /// Waits for the next line of results.
    ///
    /// # Errors
    /// When none comes any more, and why.
    pub fn next_line(&mut self) -> Result<String, End> {
        let left = self.end_of_life.saturating_duration_since(Instant::now());
        let patience = if self.heard { self.silence } else { self.boot };
        match self.lines.recv_timeout(patience.min(left)) {
            Ok(line) => {
                self.heard = true;
                Ok(line)
            }
            Err(RecvTimeoutError::Disconnected) => Err(End::Exited),
            Err(RecvTimeoutError::Timeout) if left <= patience => Err(End::TooLong),
            Err(RecvTimeoutError::Timeout) if self.heard => Err(End::Silent),
            Err(RecvTimeoutError::Timeout) => Err(End::NoBoot),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn listen(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// QEMU's options separate their parts by commas; a comma itself is doubled.
pub fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
