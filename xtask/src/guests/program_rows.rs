// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows with programs that exist already: they use vsock, or Unix sockets, in their own
//! way, and know nothing of this device.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use guest_agent::protocol::{Answer, Command};

use super::programs::{Programs, NETCAT, PYTHON, SOCAT};
use super::rows::WORKS;
use super::stage::Stage;

/// How long a program may take; emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(200);

const ECHO: &str = include_str!("scripts/echo.py");
const CLIENT: &str = include_str!("scripts/client.py");
const NOTIFY: &str = include_str!("scripts/notify.py");
const READY: &str = include_str!("scripts/ready.py");

/// A program of this machine that goes on; it ends when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// socat in the guest, socat and netcat on the host: text both ways, and a file.
pub fn socat(stage: &mut Stage) -> Result<String> {
    let port = stage.port();
    start(
        stage,
        "socat",
        SOCAT,
        &[&format!("VSOCK-LISTEN:{port},fork"), "PIPE"],
    )?;
    let said = format!("CONNECT {port}\nhello\n");
    let expected = format!("OK {port}\nhello\n");
    let path = uds_path(stage)?;
    let unix = format!("UNIX-CONNECT:{}", path.display());
    let path = path.display().to_string();
    for (program, arguments) in [
        (SOCAT, vec!["-t10", "-", unix.as_str()]),
        (NETCAT, vec!["-U", "-N", path.as_str()]),
    ] {
        until(|| {
            let heard = here(programs(stage)?.command(program).args(&arguments), &said)?;
            ensure!(heard == expected, "{program} heard {heard:?}");
            Ok(())
        })?;
    }
    stop(stage, "socat")?;

    let port = stage.port();
    let listen = format!("UNIX-LISTEN:{},fork", host_port(stage, port)?);
    let _echo = listening(programs(stage)?.command(SOCAT).args([&listen, "PIPE"]))?;
    let connect = format!("VSOCK-CONNECT:2:{port}");
    until(|| {
        let heard = there(stage, SOCAT, &["-t10", "-", &connect], "hello\n")?;
        ensure!(heard == "hello\n", "socat in the guest heard {heard:?}");
        Ok(())
    })?;

    // A file that both sides have: the program itself.
    let port = stage.port();
    let place = host_port(stage, port)?;
    let copy = PathBuf::from(format!("{place}.copy"));
    let create = format!("CREATE:{}", copy.display());
    let listen = format!("UNIX-LISTEN:{place}");
    let mut copying = listening(
        programs(stage)?
            .command(SOCAT)
            .args(["-u", &listen, &create]),
    )?;
    let (open, connect) = (format!("OPEN:{SOCAT}"), format!("VSOCK-CONNECT:2:{port}"));
    until(|| there(stage, SOCAT, &["-u", &open, &connect], "").map(drop))?;
    ended(&mut copying.0)?;
    let original = fs::read(programs(stage)?.file(SOCAT))?;
    let arrived = fs::read(&copy).with_context(|| format!("no {}", copy.display()))?;
    ensure!(
        arrived == original,
        "a file of {} bytes arrived as {} bytes, or others",
        original.len(),
        arrived.len()
    );
    Ok(WORKS.to_owned())
}

/// Python's own sockets on both sides. The server answers only once it has seen the
/// client's end of data, so half-close is part of it.
pub fn python(stage: &mut Stage) -> Result<String> {
    let port = stage.port();
    start(
        stage,
        "python",
        PYTHON,
        &["-c", ECHO, "vsock", &port.to_string()],
    )?;
    let path = uds_path(stage)?;
    until(|| {
        let mut client = programs(stage)?.command(PYTHON);
        client.args(["-c", CLIENT, "unix"]).arg(&path);
        let heard = here(client.arg(port.to_string()), "")?;
        ensure!(heard == "same\n", "the host's Python heard {heard:?}");
        Ok(())
    })?;
    stop(stage, "python")?;

    let port = stage.port();
    let place = host_port(stage, port)?;
    let mut server = programs(stage)?.command(PYTHON);
    let _echo = listening(server.args(["-c", ECHO, "unix", &place]))?;
    until(|| {
        let client = ["-c", CLIENT, "vsock", &port.to_string()];
        let heard = there(stage, PYTHON, &client, "")?;
        ensure!(heard == "same\n", "the guest's Python heard {heard:?}");
        Ok(())
    })?;
    Ok(WORKS.to_owned())
}

/// systemd's readiness protocol over vsock: the sender closes its half and waits until the
/// receiver has closed, so that no message is lost.
pub fn systemd_notify(stage: &mut Stage) -> Result<String> {
    let port = stage.port();
    let place = host_port(stage, port)?;
    let mut ready = programs(stage)?.command(PYTHON);
    ready.args(["-c", READY, &place]).stdout(Stdio::piped());
    let mut ready = listening(&mut ready)?;
    until(|| there(stage, PYTHON, &["-c", NOTIFY, &port.to_string()], "").map(drop))?;
    ended(&mut ready.0)?;
    let mut said = String::new();
    let mut output = ready.0.stdout.take().context("no output")?;
    output.read_to_string(&mut said)?;
    ensure!(said == "READY=1", "systemd-notify said {said:?}");
    Ok(WORKS.to_owned())
}

fn programs(stage: &Stage) -> Result<&Programs> {
    stage
        .programs
        .as_ref()
        .context("this guest has no programs")
}

fn uds_path(stage: &Stage) -> Result<PathBuf> {
    let path = stage.uds_path().context("host programs are elsewhere")?;
    Ok(path.to_owned())
}

/// Where a host program listens for the guest's connections to a port.
fn host_port(stage: &Stage, port: u32) -> Result<String> {
    Ok(format!("{}_{port}", uds_path(stage)?.display()))
}

/// Tries again until it works: a program that was just started does not listen yet.
fn until(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(GLANCE),
        }
    }
}

/// Runs a program of this machine to its end; what it wrote.
fn here(command: &mut Process, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    ended(&mut child).with_context(|| format!("{command:?}"))?;
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {complaint}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for a program of this machine; one that does not end is killed.
fn ended(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("it does not end");
        }
        thread::sleep(GLANCE / 10);
    }
    Ok(())
}

/// Starts a program of this machine that listens.
fn listening(command: &mut Process) -> Result<Running> {
    let child = command.stdin(Stdio::null()).spawn();
    let child = child.with_context(|| format!("cannot start {command:?}"))?;
    Ok(Running(child))
}

/// Runs a program in the guest to its end; what it wrote.
fn there(stage: &mut Stage, program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let ended = stage.guest.call(Command::Run {
        program: program.to_owned(),
        arguments: words(arguments),
        input: input.to_owned(),
    })?;
    match ended {
        Answer::Ended {
            code: Some(0),
            output,
        } => Ok(output),
        other => bail!("{program} in the guest: {other:?}"),
    }
}

fn start(stage: &mut Stage, name: &str, program: &str, arguments: &[&str]) -> Result<()> {
    let command = Command::Start {
        name: name.to_owned(),
        program: program.to_owned(),
        arguments: words(arguments),
    };
    stage.guest.call(command).map(drop)
}

fn stop(stage: &mut Stage, name: &str) -> Result<()> {
    let name = name.to_owned();
    stage.guest.call(Command::Stop { name }).map(drop)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
