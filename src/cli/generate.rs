// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock generate`: the man page and shell completions, for packagers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::roff::{roman, Roff};
use clap_mangen::Man;

/// Write man pages and shell completions into a directory.
#[derive(Args, Debug)]
#[command(hide = true)]
pub struct Arguments {
    /// The directory, which must exist.
    directory: PathBuf,
}

/// Writes everything.
pub fn run(arguments: &Arguments) -> ExitCode {
    match write(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crosvm-vsock: {}: {error}", arguments.directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &Arguments) -> std::io::Result<()> {
    let directory = &arguments.directory;
    let mut command = super::Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "crosvm-vsock", directory)?;
    }
    command.build();
    pages(&command, directory)
}

/// The man page of `command`, and of each of its subcommands.
fn pages(command: &Command, directory: &Path) -> std::io::Result<()> {
    let shown = |sub: &&Command| !sub.is_hide_set();
    for sub in command.get_subcommands().filter(shown) {
        pages(sub, directory)?;
    }
    let man = Man::new(command.clone()).source(concat!("crosvm-vsock ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|sub| shown(&sub)) {
        man.render_subcommands_section(&mut page)?;
    }
    let after = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    sections(&after.map(ToString::to_string).unwrap_or_default()).to_writer(&mut page)?;
    std::fs::write(directory.join(man.get_filename()), page)
}

/// What the help says last, as sections of a man page: `Examples:` and what is indented
/// below it is EXAMPLES.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut is_open = false;
    for line in help.lines() {
        let heading = line.strip_suffix(':').filter(|_| !line.starts_with(' '));
        if heading.is_some() && is_open {
            roff.control("fi", []);
        }
        match heading {
            Some(heading) => {
                let heading = match heading {
                    "Exit codes" => "EXIT STATUS".to_owned(),
                    other => other.to_uppercase(),
                };
                roff.control("SH", [heading.as_str()]).control("nf", []);
                is_open = true;
            }
            None => {
                roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
            }
        }
    }
    if is_open {
        roff.control("fi", []);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_help_says_last_becomes_sections() {
        let page = sections("Examples:\n  a\n    b\n\nExit codes:\n  0  done").render();
        for expected in [
            ".SH EXAMPLES\n.nf\na\n  b\n\n.fi\n",
            ".SH \"EXIT STATUS\"\n.nf\n0  done\n.fi\n",
        ] {
            assert!(page.contains(expected), "{page}");
        }
    }

    #[test]
    fn every_page_has_the_version_and_its_sections() {
        let dir = tempfile::tempdir().unwrap();
        let arguments = Arguments {
            directory: dir.path().to_owned(),
        };
        write(&arguments).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        for (name, wanted) in [
            (
                "crosvm-vsock.1",
                &[".SH EXAMPLES", ".SH \"EXIT STATUS\"", ".SH ENVIRONMENT"][..],
            ),
            (
                "crosvm-vsock-probe.1",
                &[".SH EXAMPLES", ".SH \"EXIT STATUS\""],
            ),
        ] {
            let page = page(name);
            let version = concat!("crosvm-vsock ", env!("CARGO_PKG_VERSION"));
            assert!(page.contains(version), "{page}");
            for section in wanted {
                assert!(page.contains(section), "{section}: {page}");
            }
            assert!(!page.contains("EXTRA"), "{page}");
        }
        assert!(!dir.path().join("crosvm-vsock-generate.1").exists());
    }
}
