// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A table of text, for a terminal and in Markdown.

use std::fmt::Write as _;

/// A table: the first line is its head.
pub struct Table(pub Vec<Vec<String>>);

impl Table {
    /// A table that has only its head.
    pub fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|&cell| cell.to_owned()).collect()])
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }

    /// For a terminal: the first column to the left, numbers to the right.
    pub fn terminal(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        for line in &self.0 {
            let mut row = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Writing to a string cannot fail.
                let _ = match column {
                    0 => write!(row, "{cell:<width$}"),
                    _ => write!(row, "  {cell:>width$}"),
                };
            }
            text += row.trim_end();
            text.push('\n');
        }
        text
    }

    /// In Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (index, line) in self.0.iter().enumerate() {
            let _ = writeln!(text, "| {} |", line.join(" | "));
            if index == 0 {
                let rule: Vec<&str> = line
                    .iter()
                    .enumerate()
                    .map(|(column, _)| if column == 0 { "---" } else { "--:" })
                    .collect();
                let _ = writeln!(text, "| {} |", rule.join(" | "));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", "n"]);
        table.0.push(vec!["a".to_owned(), "100".to_owned()]);
        assert_eq!(table.terminal(), "name    n\na     100\n");
        assert_eq!(
            table.markdown(),
            "| name | n |\n| --- | --: |\n| a | 100 |\n"
        );
    }
}
