// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running other programs so that a failure says which, with what, and why.
//!
//! [`output`] and [`run`] keep what a program says for the error, [`show`] lets
//! it be seen as it comes, for programs that take long.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

/// A command that ends with this process, however that ends: where Ctrl-C reaches the
/// whole of a terminal, SIGTERM reaches one process. For the main thread only, since it is
/// the end of the thread that counts (`PR_SET_PDEATHSIG`).
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut words = BOUND.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).arg(program);
    command
}

const BOUND: &str = "setpriv --pdeathsig KILL -- ";

/// Runs a command to its end and returns what it wrote to standard output.
///
/// # Errors
/// When the program cannot be started or does not exit with 0; the error holds
/// the command and the end of what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            let program = command.get_program();
            format!("cannot start {program:?}; is it installed?")
        })?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        let said = format!("{stdout}{}", String::from_utf8_lossy(&result.stderr));
        bail!(
            "{} ended with {}:\n{}",
            describe(command),
            result.status,
            tail(&said, 20)
        );
    }
    Ok(stdout)
}

/// The date, as `2026-11-29`, for what is generated.
///
/// # Errors
/// When `date` cannot be run.
pub fn today() -> Result<String> {
    Ok(output(Command::new("date").args(["-u", "+%F"]))?
        .trim()
        .to_owned())
}

/// Runs a command to its end, for what it does.
///
/// # Errors
/// As [`output`].
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command to its end; all that it says goes to standard error, so that
/// standard output stays for results.
///
/// # Errors
/// When the program cannot be started or does not exit with 0.
pub fn show(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let status = command
        .stdin(Stdio::null())
        .stdout(stderr)
        .status()
        .with_context(|| format!("cannot start {program:?}; is it installed?"))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// The command as a person would name it: apt's many `-o` settings are left
/// out, since they tell nothing about what went wrong.
fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    let mut arguments = command.get_args();
    while let Some(argument) = arguments.next() {
        if argument == "-o" {
            arguments.next();
        } else {
            words.push(argument.to_string_lossy());
        }
    }
    let words = words.join(" ");
    words.strip_prefix(BOUND).unwrap_or(&words).to_owned()
}

/// The last lines of a text, without blank ones.
pub fn tail(text: &str, lines: usize) -> String {
    let lines_of_text: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines_of_text[lines_of_text.len().saturating_sub(lines)..].join("\n")
}

/// Whether a program of this name is in `PATH` (or in an `sbin`, which a
/// user's `PATH` may lack).
pub fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| Path::new(&directory).join(program).is_file())
}

/// The version of a kernel's release, without what whoever built it has called it.
pub fn kernel_version(release: &str) -> &str {
    release.trim().split('-').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_named_by_its_version() {
        assert_eq!(kernel_version("6.12.9-1-cloud-amd64\n"), "6.12.9");
        assert_eq!(kernel_version("7.0\n"), "7.0");
    }

    #[test]
    fn failure_names_the_command_and_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo reason >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("reason"), "{text}");
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program-here"));
    }

    #[test]
    fn settings_are_not_part_of_the_name() {
        let mut command = Command::new("apt-get");
        command.args(["-o", "Dir::Cache=/x", "-q", "update"]);
        assert_eq!(describe(&command), "apt-get -q update");
        let mut command = bound("cargo");
        command.arg("build");
        assert_eq!(describe(&command), "cargo build");
    }

    #[test]
    fn tail_takes_the_end() {
        assert_eq!(tail("a\n\nb\r\nc\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
