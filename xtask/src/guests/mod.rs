// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask guests`: real Linux guests against the daemon, as a matrix.
//!
//! A column ([`setting`]) is a guest on a host behind a backend, with bit 33 offered or
//! not; it is booted once ([`stage`]) and runs all rows ([`rows`]). Nested hosts are lab
//! kernels that run the daemon and a guest of their own. [`table`] is what comes out.

mod daemon;
mod machine;
mod peer;
mod program_rows;
mod programs;
mod qmp;
mod rows;
mod setting;
mod stage;
mod table;
mod workshop;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use clap::Args;

use self::rows::{Row, ROWS};
use self::setting::Setting;
use self::stage::Stage;
use self::table::{Column, Found, Made};
use self::workshop::Workshop;
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
    /// Writes the rows to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes docs/guests.md.
    #[arg(long)]
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
/// When nothing can be run at all, or a file cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    let settings = setting::select(&options.guests, &options.hosts)?;
    let rows = choose(&options.rows)?;
    if options.list {
        settings.iter().for_each(|setting| println!("{setting}"));
        rows.iter().for_each(|row| println!("  {}", row.name));
        return Ok(true);
    }
    let mut workshop = Workshop::open(options.refresh)?;
    let columns: Vec<Column> = settings
        .into_iter()
        .map(|setting| column(&mut workshop, setting, &rows))
        .collect();
    println!("\n{}", table::render(&columns));
    let found: Vec<&Found> = columns.iter().flat_map(|column| &column.found).collect();
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&found)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if options.docs {
        write_page(&columns, &workshop)?;
    }
    Ok(found.iter().all(|found| found.ok))
}

fn choose(names: &[String]) -> Result<Vec<Row>> {
    let fits = |row: &&Row| names.is_empty() || names.iter().any(|name| row.name.contains(name));
    let rows: Vec<Row> = ROWS.iter().filter(fits).copied().collect();
    if rows.is_empty() {
        bail!("no row is named like that; see --list");
    }
    Ok(rows)
}

/// Boots a column and runs its rows. Whatever goes wrong is a failed row.
fn column(workshop: &mut Workshop, setting: Setting, rows: &[Row]) -> Column {
    eprintln!("{setting}:");
    let start = Instant::now();
    let mut found = Vec::new();
    let mut stage = match Stage::open(workshop, setting) {
        Ok(stage) => stage,
        Err(error) => {
            let got = ("no boot".to_owned(), format!("{error:#}"));
            found.push(judge(&setting, ("", ""), "boot", "a guest", got, start));
            eprintln!("  FAILED boot: {error:#}");
            return Column { setting, found };
        }
    };
    let guest = stage.about.kernel.clone();
    let host = stage.host_kernel.clone();
    eprintln!(
        "  [{:>5.1} s] guest {guest} is up, host {host}",
        start.elapsed().as_secs_f32()
    );
    let mut gone = false;
    for row in rows {
        let Some(expected) = (row.expected)(&setting) else {
            continue;
        };
        let start = Instant::now();
        let got = if gone {
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
        let one = judge(&setting, (&guest, &host), row.name, expected, got, start);
        let mark = if one.ok { "ok    " } else { "FAILED" };
        eprintln!(
            "  {mark} {:<26} {:<20} {:>5.1} s",
            one.row, one.got, one.seconds
        );
        if !one.ok {
            eprintln!("         {}", one.detail.lines().next().unwrap_or_default());
        }
        found.push(one);
    }
    Column { setting, found }
}

fn judge(
    setting: &Setting,
    (guest_kernel, host_kernel): (&str, &str),
    row: &'static str,
    expected: &str,
    (got, detail): (String, String),
    start: Instant,
) -> Found {
    Found {
        guest: setting.guest.name,
        guest_kernel: guest_kernel.to_owned(),
        host: setting.host_name(),
        host_kernel: host_kernel.to_owned(),
        backend: setting.backend.to_string(),
        platform_access: setting.platform_access,
        row,
        expected: expected.to_owned(),
        ok: got == expected,
        got,
        detail,
        seconds: start.elapsed().as_secs_f32(),
    }
}

fn write_page(columns: &[Column], workshop: &Workshop) -> Result<()> {
    let version = process::output(Command::new(qemu::PROGRAM).arg("--version"))?;
    let date = process::output(Command::new("date").args(["-u", "+%F"]))?;
    let made = Made {
        date: date.trim().to_owned(),
        qemu: version
            .split_whitespace()
            .nth(3)
            .unwrap_or("of unknown version")
            .to_owned(),
        kernels: workshop.versions().to_vec(),
    };
    let file = workspace().join("docs/guests.md");
    fs::write(&file, table::page(columns, &made))
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("written: {}", file.display());
    Ok(())
}
