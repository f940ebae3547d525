// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first and only program of a test machine: an agent that takes its commands from a
//! serial port.
//!
//! `agent.cid=N` on the kernel's command line names the other side; without it that is
//! the host. The kernel's console is another port.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use guest_agent::agent::{Agent, ReplyTo};
use guest_agent::machine;
use guest_agent::protocol::{Command, Line, Request};
use guest_agent::sockets::{Place, HOST};

/// The port for commands and replies; the kernel's console is `ttyS0`.
const PORT: &str = "/dev/ttyS1";

/// The sending half of the port. A line is written in one piece.
#[derive(Clone)]
struct Lines(Arc<Mutex<File>>);

impl Lines {
    fn say(&self, line: &Line) -> Result<()> {
        let line = line.write()?;
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        port.write_all(line.as_bytes())
            .with_context(|| format!("cannot write to {PORT}"))
    }

    fn drain(&self) {
        machine::drain(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("guest_agent is the init of a test machine: run `cargo xtask guests` instead");
        return ExitCode::from(2);
    }
    if let Err(error) = run() {
        // The console is all that is left.
        eprintln!("agent: {error:#}");
    }
    machine::power_off()
}

fn run() -> Result<()> {
    machine::mount_all()?;
    let port = machine::open_port(PORT)?;
    let lines = Lines(Arc::new(Mutex::new(port.try_clone()?)));
    let served = serve(port, &lines);
    if let Err(error) = &served {
        lines.say(&Line::Fatal(format!("{error:#}")))?;
    }
    lines.drain();
    served
}

fn serve(port: File, lines: &Lines) -> Result<()> {
    machine::load_modules()?;
    let words = fs::read_to_string("/proc/cmdline").context("cannot read the command line")?;
    let agent = Agent::new(Place::Vsock(other_side(&words)?));
    lines.say(&Line::Hello(machine::about()?))?;
    let reply: ReplyTo = {
        let lines = lines.clone();
        Arc::new(move |reply| {
            // Without its port the machine is out of reach, which the other end sees.
            let _ = lines.say(&Line::Reply(reply));
        })
    };
    for line in BufReader::new(port).lines() {
        let line = line.with_context(|| format!("cannot read from {PORT}"))?;
        let request: Request = serde_json::from_str(&line)
            .with_context(|| format!("a command that cannot be read: {line:?}"))?;
        match request.command {
            Command::Reboot => {
                lines.drain();
                machine::reboot()
            }
            Command::PowerOff => return Ok(()),
            _ => agent.start(request, &reply),
        }
    }
    Ok(())
}

fn other_side(command_line: &str) -> Result<u32> {
    let word = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("agent.cid="));
    match word {
        None => Ok(HOST),
        Some(cid) => cid
            .parse()
            .with_context(|| format!("agent.cid={cid}: not a CID")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_side_is_the_host_unless_it_is_named() {
        assert_eq!(other_side("quiet console=ttyS0").unwrap(), HOST);
        assert_eq!(other_side("quiet agent.cid=42").unwrap(), 42);
        assert!(other_side("agent.cid=x").is_err());
    }
}
