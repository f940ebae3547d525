// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lab machine says on its second serial port, one line at a time.
//!
//! `@plan ["cell",...]`, `@row {json}`, `@note text`, `@say text`,
//! `@bench {json}`, `@done`. Anything else is not the lab's.

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A finished cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The lab's name of the kernel.
    pub kernel: String,
    /// The kernel kind that the device found.
    pub kind: String,
    /// The cell's name; unique within a kernel.
    pub cell: String,
    /// What should have come out.
    pub expected: String,
    /// What came out.
    pub got: String,
    /// Whether the cell is as expected.
    pub ok: bool,
    /// What a person needs to understand a failure.
    pub detail: String,
}

/// One line of the protocol.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// The cells that will come.
    Plan(Vec<String>),
    /// A cell that is finished.
    Row(Row),
    /// Progress.
    Note(String),
    /// The demo's story.
    Say(String),
    /// A measurement.
    Bench(Value),
    /// All was reported.
    Done,
}

impl Line {
    /// Reads a line; `None` for one that is not of the protocol.
    ///
    /// # Errors
    /// A line that begins with `@` and cannot be understood.
    pub fn parse(line: &str) -> Result<Option<Self>> {
        let line = line.trim_end_matches(['\r', '\n']);
        let Some(line) = line.strip_prefix('@') else {
            return Ok(None);
        };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let broken = || format!("the lab machine sent a broken line: @{line}");
        Ok(Some(match word {
            "plan" => Self::Plan(serde_json::from_str(rest).with_context(broken)?),
            "row" => Self::Row(serde_json::from_str(rest).with_context(broken)?),
            "bench" => Self::Bench(serde_json::from_str(rest).with_context(broken)?),
            "note" => Self::Note(rest.to_owned()),
            "say" => Self::Say(rest.to_owned()),
            "done" => Self::Done,
            _ => bail!(broken()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let parse = |line| Line::parse(line).unwrap();
        assert_eq!(parse("@done \r\n"), Some(Line::Done));
        assert_eq!(parse("@say \n"), Some(Line::Say(String::new())));
        assert_eq!(
            parse("@say  indented"),
            Some(Line::Say(" indented".to_owned()))
        );
        let plan = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(parse(r#"@plan ["a","b"]"#), Some(Line::Plan(plan)));
        assert_eq!(parse("[    0.0] Linux version"), None);
        let row = parse(
            r#"@row {"kernel":"7","kind":"Split","cell":"c","expected":"1","got":"1","ok":true,"detail":""}"#,
        );
        assert!(matches!(row, Some(Line::Row(row)) if row.ok && row.cell == "c"));
    }

    #[test]
    fn broken_lines_are_errors() {
        for line in ["@row {", "@row {}", "@plan 3", "@pl", "@"] {
            assert!(Line::parse(line).is_err(), "{line}");
        }
    }
}
