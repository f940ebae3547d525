// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask guests`: real Linux guests against the daemon, as a matrix.
//!
//! A column ([`setting`]) is a guest on a host behind a backend, with bit 33 offered or
//! not; it is booted once ([`stage`]) and runs all rows ([`rows`]). Nested hosts are lab
//! kernels that run the daemon and a guest of their own. [`table`] is what comes out.

mod daemon;
mod inner;
mod logs;
mod machine;
mod peer;
mod program_rows;
mod programs;
mod qmp;
mod rows;
pub mod setting;
pub mod stage;
mod table;
pub mod workshop;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use clap::Args;

use self::rows::{Row, ROWS};
use self::setting::{Backend, Setting};
use self::stage::Stage;
pub use self::table::Found;
use self::workshop::Workshop;
use crate::generated;
use crate::kernels::NEWEST;
use crate::lab::workspace;
use crate::process;
use crate::qemu;

/// What to run.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// Only this guest; may be repeated.
    #[arg(long = "guest", value_name = "KERNEL")]
    guests: Vec<String>,
    /// Only this host: a kernel, or `here`; may be repeated.
    #[arg(long = "host", value_name = "KERNEL")]
    hosts: Vec<String>,
    /// Only rows whose name contains this; may be repeated.
    #[arg(long = "row", value_name = "TEXT")]
    rows: Vec<String>,
    /// Takes rows that --json has written, in place of running them; may be repeated.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guests", "hosts", "rows", "refresh"])]
    from: Vec<PathBuf>,
    /// Writes the rows to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes docs/guests.md, and the table of README.md; needs all guests, hosts and rows.
    #[arg(long, conflicts_with_all = ["guests", "hosts", "rows"])]
    docs: bool,
    /// Lists columns and rows and ends.
    #[arg(long)]
    list: bool,
    /// Looks for newer kernel packages than the cached ones.
    #[arg(long)]
    refresh: bool,
}

/// Runs the matrix. Returns whether every row is as expected.
///
/// # Errors
/// When nothing can be run at all, or a file cannot be read or written.
pub fn run(options: &Options) -> Result<bool> {
    let settings = setting::select(&options.guests, &options.hosts)?;
    let rows = choose(&options.rows)?;
    if options.list {
        settings.iter().for_each(|setting| println!("{setting}"));
        rows.iter()
            .for_each(|row| println!("  {}: {}", row.name, row.what));
        return Ok(true);
    }
    let found = if options.from.is_empty() {
        let mut matrix = Matrix::open(options.refresh)?;
        for setting in settings {
            matrix.column(setting, &rows);
            // A matrix that is interrupted has its first columns.
            write_rows(options, &matrix.found)?;
        }
        matrix.found
    } else {
        read(&options.from)?
    };
    println!("\n{}", table::render(&found));
    write_rows(options, &found)?;
    if options.docs {
        let file = workspace().join("docs/guests.md");
        write(&file, &table::page(&found))?;
        println!("written: {}", file.display());
        let readme = workspace().join("README.md");
        generated::update(&readme, "guests", &table::summary(&found))?;
    }
    Ok(found.iter().all(|found| found.ok))
}

/// The short set: what every guest does first, on two guests, one of which acknowledges
/// bit 33. Returns what was found.
///
/// # Errors
/// When nothing can be run at all.
pub fn short_set() -> Result<Vec<Found>> {
    const GUESTS: [(&str, bool); 2] = [("5.10", true), (NEWEST, false)];
    let rows: Vec<Row> = ROWS.iter().filter(|row| row.short).copied().collect();
    let mut matrix = Matrix::open(false)?;
    for (name, platform_access) in GUESTS {
        let setting = Setting {
            guest: setting::stock_kernel(name)?,
            host: None,
            backend: Backend::Userspace,
            platform_access,
        };
        matrix.column(setting, &rows);
    }
    println!("\n{}", table::render(&matrix.found));
    Ok(matrix.found)
}

fn choose(names: &[String]) -> Result<Vec<Row>> {
    let fits = |row: &&Row| names.is_empty() || names.iter().any(|name| row.name.contains(name));
    let rows: Vec<Row> = ROWS.iter().filter(fits).copied().collect();
    if rows.is_empty() {
        bail!("no row is named like that; see --list");
    }
    Ok(rows)
}

fn read(files: &[PathBuf]) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for file in files {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        let rows: Vec<Found> = serde_json::from_str(&text)
            .with_context(|| format!("{name} is not what --json writes"))?;
        all.extend(rows);
    }
    Ok(all)
}

fn write_rows(options: &Options, found: &[Found]) -> Result<()> {
    match &options.json {
        Some(file) => write(file, &(serde_json::to_string_pretty(found)? + "\n")),
        None => Ok(()),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// A matrix under way.
struct Matrix {
    workshop: Workshop,
    found: Vec<Found>,
    date: String,
    qemu: String,
}

/// What came of a row: the word for the table, and the detail of a failure.
type Outcome = (String, String);

impl Matrix {
    fn open(refresh: bool) -> Result<Self> {
        let workshop = Workshop::open(refresh)?;
        let version = process::output(Command::new(qemu::PROGRAM).arg("--version"))?;
        Ok(Self {
            workshop,
            found: Vec::new(),
            date: process::today()?,
            // `QEMU emulator version 10.0.2 (Debian ...)`
            qemu: version.split_whitespace().nth(3).unwrap_or("?").to_owned(),
        })
    }

    /// Runs a column, on a nested host that is emulated once more if it fails: the emulation
    /// does at times ([`table`] says so).
    fn column(&mut self, setting: Setting, rows: &[Row]) {
        let before = self.found.len();
        self.try_column(setting, rows);
        let failed = self.found[before..].iter().find(|found| !found.ok);
        let Some(failed) = failed.filter(|_| setting.host.is_some() && self.workshop.emulates())
        else {
            return;
        };
        let why = failed.detail.lines().next().unwrap_or_default();
        let why = format!("{}: {} ({why})", failed.row, failed.got);
        eprintln!("once more, since an emulated nested host fails at times by itself");
        self.found.truncate(before);
        self.try_column(setting, rows);
        for found in &mut self.found[before..] {
            found.first_try = Some(why.clone());
        }
    }

    /// Boots a column and runs its rows. Whatever goes wrong is a failed row.
    fn try_column(&mut self, setting: Setting, rows: &[Row]) {
        eprintln!("{setting}:");
        let start = Instant::now();
        let mut stage = match Stage::open(&mut self.workshop, setting) {
            Ok(stage) => stage,
            Err(error) => {
                let outcome = ("no boot".to_owned(), format!("{error:#}"));
                self.judge(&setting, "?", "boot", "a guest", outcome, start);
                return;
            }
        };
        let host = match setting.host {
            Some(host) => self.workshop.version(&host),
            None => process::kernel_version(&stage.host_kernel).to_owned(),
        };
        eprintln!(
            "  [{:>5.1} s] guest {} is up, host {}",
            start.elapsed().as_secs_f32(),
            stage.about.kernel,
            stage.host_kernel
        );
        let mut gone = false;
        for row in rows {
            let Some(expected) = (row.expected)(&setting) else {
                continue;
            };
            let start = Instant::now();
            let outcome = if gone {
                ("not run".to_owned(), "the guest is gone".to_owned())
            } else {
                match (row.run)(&mut stage) {
                    Ok(got) => (got, String::new()),
                    Err(error) => {
                        let detail = format!("{error:#}\n{}", stage.last_words());
                        gone = stage.guest.about().is_err();
                        ("error".to_owned(), detail)
                    }
                }
            };
            self.judge(&setting, &host, row.name, expected, outcome, start);
        }
    }

    fn judge(
        &mut self,
        setting: &Setting,
        host_version: &str,
        row: &str,
        expected: &str,
        (got, detail): Outcome,
        start: Instant,
    ) {
        let ok = got == expected;
        let seconds = start.elapsed().as_secs_f32();
        let mark = if ok { "ok    " } else { "FAILED" };
        eprintln!("  {mark} {row:<34} {got:<20} {seconds:>5.1} s");
        if !ok {
            eprintln!("         {}", detail.lines().next().unwrap_or_default());
        }
        self.found.push(Found {
            guest: setting.guest.name.to_owned(),
            guest_version: self.workshop.version(&setting.guest),
            host: setting.host_name().to_owned(),
            host_version: host_version.to_owned(),
            backend: setting.backend.to_string(),
            platform_access: setting.platform_access,
            row: row.to_owned(),
            expected: expected.to_owned(),
            got,
            ok,
            detail,
            seconds,
            date: self.date.clone(),
            qemu: self.qemu.clone(),
            first_try: None,
        });
    }
}
