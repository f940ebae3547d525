// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run of the lab found: rows, the verdict, the table for people.
//!
//! Silence is never a pass: a planned cell without a row, a machine without a
//! plan and a machine that did not say that it was done all count as failed
//! rows.

use std::fmt::Write;

use serde_json::Value;

use crate::kernels::Kernel;
use crate::protocol::Row;

/// What one machine reported.
#[derive(Clone, Debug)]
pub struct Report {
    kernel: Kernel,
    plan: Vec<String>,
    rows: Vec<Row>,
    /// Measurements as they came.
    pub bench: Vec<Value>,
}

impl Report {
    /// An empty report.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            plan: Vec::new(),
            rows: Vec::new(),
            bench: Vec::new(),
        }
    }

    /// Takes the announced cells in.
    pub fn plan(&mut self, cells: Vec<String>) {
        self.plan.extend(cells);
    }

    /// Takes a row in. One that speaks for another kernel, or for a cell that
    /// has spoken, is a failure of the machine itself.
    pub fn row(&mut self, row: Row) {
        if row.kernel != self.kernel.name {
            let found = format!("a row of kernel {:?}", row.kernel);
            self.fail("protocol", "rows of this kernel", &found, &row.cell);
        } else if self.rows.iter().any(|known| known.cell == row.cell) {
            self.fail("protocol", "one row a cell", "a second row", &row.cell);
        } else {
            self.rows.push(row);
        }
    }

    /// Adds a failure that the host saw.
    pub fn fail(&mut self, cell: &str, expected: &str, got: &str, detail: &str) {
        self.rows.push(Row {
            kernel: self.kernel.name.to_owned(),
            kind: self.kernel.kind.to_string(),
            cell: cell.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
            ok: false,
            detail: detail.to_owned(),
        });
    }

    /// Closes the report: every planned cell that sent no row fails. Returns
    /// whether all went as expected.
    pub fn close(&mut self) -> bool {
        let silent: Vec<String> = self
            .plan
            .iter()
            .filter(|cell| !self.rows.iter().any(|row| row.cell == **cell))
            .cloned()
            .collect();
        for cell in silent {
            self.fail(
                &cell,
                "a result",
                "no row",
                "planned, but nothing was reported",
            );
        }
        if self.rows.is_empty() && self.bench.is_empty() {
            self.fail(
                "plan",
                "cells",
                "none",
                "the machine reported nothing at all",
            );
        }
        self.rows.iter().all(|row| row.ok)
    }

    /// The kernel that this is about.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The rows so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// The table of cells (down) by kernels (across), then every failure with its
/// detail.
pub fn render(reports: &[Report]) -> String {
    let mut cells: Vec<&str> = Vec::new();
    for row in reports.iter().flat_map(Report::rows) {
        if !cells.contains(&row.cell.as_str()) {
            cells.push(&row.cell);
        }
    }
    let mut text = String::new();
    let first = cells
        .iter()
        .map(|cell| cell.len())
        .max()
        .unwrap_or(0)
        .max(6);
    let headers: Vec<[String; 2]> = reports
        .iter()
        .map(|r| [r.kernel.name.to_owned(), r.kernel.kind.to_string()])
        .collect();
    let widths: Vec<usize> = reports
        .iter()
        .zip(&headers)
        .map(|(report, header)| {
            let marks = report
                .rows()
                .iter()
                .map(|row| mark(Some(row)).chars().count());
            let heads = header.iter().map(String::len);
            marks.chain(heads).max().unwrap_or(0)
        })
        .collect();
    let mut line = |name: &str, columns: &mut dyn Iterator<Item = String>| {
        let mut out = format!("{name:<first$}");
        for (column, width) in columns.zip(&widths) {
            // Writing into a string cannot fail.
            let _ = write!(out, "  {column:<width$}");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line("kernel", &mut headers.iter().map(|h| h[0].clone()));
    line("kind", &mut headers.iter().map(|h| h[1].clone()));
    for cell in cells {
        let mut marks = reports.iter().map(|report| {
            let rows = report.rows();
            mark(
                rows.iter()
                    .find(|row| row.cell == cell && !row.ok)
                    .or_else(|| rows.iter().find(|row| row.cell == cell)),
            )
        });
        line(cell, &mut marks);
    }
    for row in reports.iter().flat_map(Report::rows).filter(|row| !row.ok) {
        let _ = write!(
            text,
            "\n{} / {}: expected {}, got {}\n",
            row.kernel, row.cell, row.expected, row.got
        );
        for line in row.detail.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// What stands in the table: the outcome, and whether it was to be.
fn mark(row: Option<&Row>) -> String {
    const LONGEST: usize = 18;
    match row {
        None => "-".to_owned(),
        Some(row) => {
            let got: String = row.got.chars().take(LONGEST).collect();
            let verdict = if row.ok { "" } else { "FAILED: " };
            format!("{verdict}{got}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::KERNELS;

    fn row(cell: &str, got: &str, ok: bool) -> Row {
        Row {
            kernel: KERNELS[0].name.to_owned(),
            kind: "NoIotlb".to_owned(),
            cell: cell.to_owned(),
            expected: "works".to_owned(),
            got: got.to_owned(),
            ok,
            detail: String::new(),
        }
    }

    fn report(cells: &[&str]) -> Report {
        let mut report = Report::new(KERNELS[0]);
        report.plan(cells.iter().map(|&cell| cell.to_owned()).collect());
        report
    }

    #[test]
    fn all_as_expected_passes() {
        let mut report = report(&["off"]);
        report.row(row("off", "works", true));
        assert!(report.close());
        assert_eq!(report.rows().len(), 1);
    }

    #[test]
    fn a_planned_cell_without_a_row_fails() {
        let mut report = report(&["off", "identity"]);
        report.row(row("off", "works", true));
        assert!(!report.close());
        assert_eq!(report.rows()[1].cell, "identity");
    }

    #[test]
    fn nothing_at_all_fails() {
        assert!(!report(&[]).close());
    }

    #[test]
    fn a_failed_or_doubled_or_strange_row_fails() {
        let mut failed = report(&["off"]);
        failed.row(row("off", "EFAULT", false));
        assert!(!failed.close());

        let mut doubled = report(&["off"]);
        doubled.row(row("off", "works", true));
        doubled.row(row("off", "works", true));
        assert!(!doubled.close());

        let mut strange = report(&["off"]);
        strange.row(Row {
            kernel: "another".to_owned(),
            ..row("off", "works", true)
        });
        assert!(!strange.close());
    }

    #[test]
    fn table_shows_outcomes_and_explains_failures() {
        let mut report = report(&["off", "raw"]);
        report.row(row("off", "works", true));
        report.row(Row {
            detail: "first\nsecond".to_owned(),
            ..row("raw", "hang", false)
        });
        report.close();
        let text = render(&[report]);
        assert!(text.contains("off     works"), "{text}");
        assert!(text.contains("raw     FAILED: hang"), "{text}");
        assert!(
            text.contains("5.10 / raw: expected works, got hang\n    first\n    second"),
            "{text}"
        );
    }
}
