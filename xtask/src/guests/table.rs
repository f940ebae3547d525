// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the matrix found: the table for people, the rows for programs, the page of the
//! documentation. A row says all of itself, so that a matrix can be run in parts.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::rows::ROWS;
use super::setting::HERE;

/// A row that was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The guest's name in the table of kernels.
    pub guest: String,
    /// Debian's version of its kernel.
    pub guest_version: String,
    /// The host's name; `here` is the machine that ran the matrix.
    pub host: String,
    /// Debian's version of its kernel, or the release of this machine's.
    pub host_version: String,
    /// `userspace` or `kernel`.
    pub backend: String,
    /// Whether bit 33 was offered.
    pub platform_access: bool,
    /// The row's name.
    pub row: String,
    /// What should have come out.
    pub expected: String,
    /// What came out.
    pub got: String,
    /// Whether it is as expected.
    pub ok: bool,
    /// What a person needs to understand a failure.
    pub detail: String,
    /// How long it took.
    pub seconds: f32,
    /// The day, as YYYY-MM-DD.
    pub date: String,
    /// QEMU's version.
    pub qemu: String,
    /// What failed when its column was tried first, if this is the second try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_try: Option<String>,
}

impl Found {
    fn same_column(&self, other: &Self) -> bool {
        let key = |found: &Self| {
            let (guest, host) = (found.guest.clone(), found.host.clone());
            (guest, host, found.backend.clone(), found.platform_access)
        };
        key(self) == key(other)
    }
}

/// The rows of one setting.
struct Column<'a> {
    found: Vec<&'a Found>,
}

impl Column<'_> {
    /// Any row tells of the setting.
    fn first(&self) -> &Found {
        self.found[0]
    }

    /// The three lines of its head.
    fn head(&self) -> [String; 3] {
        let first = self.first();
        let offered = if first.platform_access { "yes" } else { "no" };
        let host = format!("{} ({})", first.host, first.backend);
        [first.guest.clone(), host, offered.to_owned()]
    }

    /// What there is to say of a second try: for whom it was, and why.
    fn second_try(&self) -> Option<String> {
        let Found {
            guest,
            host,
            platform_access,
            first_try,
            ..
        } = self.first();
        let offered = if *platform_access { ", bit 33" } else { "" };
        let why = first_try.as_ref()?;
        Some(format!(
            "host {host}, guest {guest}{offered}: second try; at first, {why}"
        ))
    }

    fn mark(&self, row: &str) -> String {
        match self.found.iter().find(|found| found.row == row) {
            None => "-".to_owned(),
            Some(found) if found.ok => found.got.clone(),
            Some(found) => format!("FAILED: {}", found.got),
        }
    }
}

/// In the order of their first rows; none is empty.
fn columns(all: &[Found]) -> Vec<Column<'_>> {
    let mut columns: Vec<Column<'_>> = Vec::new();
    for found in all {
        let known = columns
            .iter_mut()
            .find(|column| column.first().same_column(found));
        match known {
            Some(column) => column.found.push(found),
            None => columns.push(Column { found: vec![found] }),
        }
    }
    columns
}

/// Columns that are printed beside each other.
const ABREAST: usize = 4;

/// The table for a terminal, then every failure with its detail.
pub fn render(all: &[Found]) -> String {
    let mut text = String::new();
    for columns in columns(all).chunks(ABREAST) {
        let mut lines: Vec<Vec<String>> = Vec::new();
        for (number, name) in ["guest", "host", "bit 33 offered"].iter().enumerate() {
            let mut line = vec![(*name).to_owned()];
            line.extend(columns.iter().map(|column| column.head()[number].clone()));
            lines.push(line);
        }
        for row in rows(columns) {
            let mut line = vec![row.to_owned()];
            line.extend(columns.iter().map(|column| column.mark(row)));
            lines.push(line);
        }
        align(&lines, &mut text);
        text.push('\n');
    }
    for again in columns(all).iter().filter_map(Column::second_try) {
        let _ = writeln!(text, "{again}");
    }
    for found in all.iter().filter(|found| !found.ok) {
        let platform = if found.platform_access { "" } else { "not " };
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "guest {}, host {}, 33 {platform}offered / {}: expected {}, got {}",
            found.guest, found.host, found.row, found.expected, found.got
        );
        for line in found.detail.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn rows<'a>(columns: &[Column<'a>]) -> Vec<&'a str> {
    let mut rows = Vec::new();
    for found in columns.iter().flat_map(|column| &column.found) {
        if !rows.contains(&found.row.as_str()) {
            rows.push(found.row.as_str());
        }
    }
    rows
}

fn align(lines: &[Vec<String>], text: &mut String) {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    for line in lines {
        let mut out = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(out, "{cell:<width$}  ");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
}

/// The table of README.md: a line for each guest on each host, the details are the page's.
pub fn summary(all: &[Found]) -> String {
    let mut text = String::from(
        "| guest | host | backend | bit 33 | rows as expected |\n|---|---|---|---|---|\n",
    );
    for column in columns(all) {
        let first = column.first();
        let offered = match first.platform_access {
            true => "offered",
            false => "not offered",
        };
        let good = column.found.iter().filter(|found| found.ok).count();
        let again = match first.first_try {
            Some(_) => ", second try",
            None => "",
        };
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {offered} | {good} of {}{again} |",
            first.guest_version,
            first.host_version,
            first.backend,
            column.found.len()
        );
    }
    if let Some(last) = all.last() {
        let (date, qemu) = (&last.date, &last.qemu);
        let _ = writeln!(
            text,
            "\nMade on {date} with QEMU {qemu}: [docs/guests.md](docs/guests.md)."
        );
    }
    text
}

/// Of nested hosts, for the page.
const SECOND_TRIES: &str = "Without KVM the nested hosts are emulated, SVM included, and QEMU's emulation of that is \
     at fault at times: a host's kernel that finds the stack of a thread overwritten, a guest that stands still. \
     So what fails on an emulated nested host is tried once more, and what took that is named here.";

/// The page `docs/guests.md`.
pub fn page(all: &[Found]) -> String {
    let mut text = String::from(
        "# Guests and hosts that are tested\n\n\
         Generated by `cargo xtask guests --docs`. Every guest is a stock Debian kernel whose own driver talks to\n\
         `crosvm-vsock` under QEMU (`vhost-user-vsock-pci`); both sides are ordinary programs.\n\n",
    );
    let each = |name: fn(&Found) -> &String| -> String {
        let all: BTreeSet<&str> = all.iter().map(|found| name(found).as_str()).collect();
        Vec::from_iter(all).join(", ")
    };
    let (date, qemu) = (each(|found| &found.date), each(|found| &found.qemu));
    let _ = writeln!(text, "Made on {date} with QEMU {qemu}.\n");
    let _ = writeln!(text, "| kernel | version |\n|---|---|");
    let mut kernels = Vec::new();
    for found in all {
        for kernel in [
            (&found.guest, &found.guest_version),
            (&found.host, &found.host_version),
        ] {
            if !kernels.contains(&kernel) {
                kernels.push(kernel);
            }
        }
    }
    for (name, version) in kernels {
        let _ = writeln!(text, "| {name} | {version} |");
    }
    let _ = writeln!(text, "\n## What is done\n\n| row | |\n|---|---|");
    for row in ROWS {
        let _ = writeln!(text, "| {} | {} |", row.name, row.what);
    }
    for (here, title) in [
        (true, "Guests on this machine"),
        (false, "Hosts, each with a guest of its own (nested)"),
    ] {
        let some = columns(all).into_iter();
        let some: Vec<Column<'_>> = some
            .filter(|column| (column.first().host == HERE) == here)
            .collect();
        if some.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n## {title}\n");
        let mut head = String::from("| ");
        for column in &some {
            let Found {
                guest,
                host,
                backend,
                ..
            } = column.first();
            let who = if here {
                format!("{guest}, {backend}")
            } else {
                format!("{host}, {backend}, guest {guest}")
            };
            let offered = if column.first().platform_access {
                ", bit 33"
            } else {
                ""
            };
            let _ = write!(head, "| {who}{offered} ");
        }
        let _ = writeln!(text, "{head}|\n|---{}|", "|---".repeat(some.len()));
        for row in rows(&some) {
            let marks: Vec<String> = some.iter().map(|column| column.mark(row)).collect();
            let _ = writeln!(text, "| {row} | {} |", marks.join(" | "));
        }
        if !here {
            let _ = writeln!(text, "\n{SECOND_TRIES}");
            for again in some.iter().filter_map(Column::second_try) {
                let _ = writeln!(text, "\n- {again}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(host: &str, row: &str, ok: bool) -> Found {
        Found {
            guest: "6.1".into(),
            guest_version: "6.1.1-1".into(),
            host: host.into(),
            host_version: "6.12".into(),
            backend: "userspace".into(),
            platform_access: true,
            row: row.into(),
            expected: "works".into(),
            got: if ok { "works" } else { "error" }.into(),
            ok,
            detail: "first\nsecond".into(),
            seconds: 1.0,
            date: "2026-01-02".into(),
            qemu: "10.0".into(),
            first_try: None,
        }
    }

    #[test]
    fn a_second_try_is_owned_up_to() {
        let again = Found {
            first_try: Some("half-close: error".into()),
            ..found("7", "half-close", true)
        };
        let rows = [again];
        let says = "host 7, guest 6.1, bit 33: second try; at first, half-close: error";
        assert!(render(&rows).contains(says));
        assert!(page(&rows).contains(says));
        assert!(summary(&rows).contains("| 1 of 1, second try |"));
    }

    #[test]
    fn a_failure_is_marked_and_explained() {
        let good = render(&[found(HERE, "half-close", true)]);
        assert!(good.contains("half-close      works"), "{good}");
        assert!(!good.contains("FAILED"));
        let bad = render(&[
            found(HERE, "half-close", true),
            found("7", "half-close", false),
        ]);
        assert!(
            bad.contains("half-close      works             FAILED: error"),
            "{bad}"
        );
        assert!(bad.contains("\n    second\n"), "{bad}");
    }

    #[test]
    fn the_page_is_dated_and_has_the_rows() {
        let page = page(&[found(HERE, "a", true), found(HERE, "b", true)]);
        for expected in [
            "Made on 2026-01-02 with QEMU 10.0.",
            "| 6.1 | 6.1.1-1 |\n| here | 6.12 |",
            "| | 6.1, userspace, bit 33 |\n|---|---|\n| a | works |\n| b | works |",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        assert!(!page.contains("## Hosts"));
    }

    #[test]
    fn the_summary_has_a_line_for_each_column() {
        let rows = [
            found(HERE, "a", true),
            found(HERE, "b", false),
            found("7", "a", true),
        ];
        let summary = summary(&rows);
        assert!(summary.contains("| 6.1.1-1 | 6.12 | userspace | offered | 1 of 2 |"));
        assert!(summary.contains("| 1 of 1 |"), "{summary}");
    }

    #[test]
    fn rows_come_back_from_json() {
        let rows = vec![found(HERE, "a", true), found("7", "a", false)];
        let text = serde_json::to_string(&rows).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Found>>(&text).unwrap(), rows);
    }
}
