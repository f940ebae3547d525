// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Results as tables: for a terminal, and in Markdown.

use std::fmt::Write as _;

use super::grid::Table;
use super::results::{CostResult, Results, RowResult, Side};
use super::rows::{Cost, Figure, Row, COSTS, ROWS};
use crate::rival;

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => {
            let digits = format!("{value:.0}");
            let split = digits.len().saturating_sub(3);
            match split {
                0 => digits,
                _ => format!("{},{}", &digits[..split], &digits[split..]),
            }
        }
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

/// Whether a row is as good as it is wanted to be.
fn meets(row: &Row, result: &RowResult) -> bool {
    let fast = result.ours.ratio.is_some_and(|ratio| match row.figure {
        Figure::Latency => ratio <= row.goal,
        Figure::Throughput | Figure::Rate => ratio >= row.goal,
    });
    let cheap = row.cpu_goal.is_none_or(|goal| {
        let both = result.ours.cpu.zip(result.theirs.cpu);
        both.is_none_or(|(ours, theirs)| ours <= goal * theirs)
    });
    fast && cheap
}

fn found(results: &Results) -> impl Iterator<Item = (&'static Row, &RowResult)> {
    results.rows.iter().filter_map(|result| {
        let row = ROWS.iter().find(|row| row.name == result.name)?;
        Some((row, result))
    })
}

fn speed(results: &Results) -> Table {
    let mut table = Table::new(&[
        "",
        "unit",
        "socket",
        "theirs",
        "ours",
        "theirs/socket",
        "ours/socket",
        "wanted",
    ]);
    for (row, result) in found(results) {
        let with_p99 = |side: &Side| match side.p99 {
            Some(p99) => format!("{} (p99 {})", maybe(side.value), number(p99)),
            None => maybe(side.value),
        };
        let sign = match row.figure {
            Figure::Latency => "<=",
            Figure::Throughput | Figure::Rate => ">=",
        };
        table.0.push(vec![
            row.title.to_owned(),
            row.figure.unit().to_owned(),
            maybe(result.plain),
            with_p99(&result.theirs),
            with_p99(&result.ours),
            maybe(result.theirs.ratio),
            maybe(result.ours.ratio),
            format!("{sign} {}", row.goal),
        ]);
    }
    table
}

fn price(results: &Results) -> Table {
    let mut table = Table::new(&[
        "",
        "CPU in",
        "theirs",
        "ours",
        "ours/theirs",
        "wanted",
        "calls a packet: theirs",
        "ours",
    ]);
    for (row, result) in found(results) {
        let both = result.ours.cpu.zip(result.theirs.cpu);
        let wanted = row.cpu_goal.map(|goal| format!("<= {goal}"));
        table.0.push(vec![
            row.title.to_owned(),
            row.figure.cpu_unit().to_owned(),
            maybe(result.theirs.cpu),
            maybe(result.ours.cpu),
            maybe(both.map(|(ours, theirs)| ours / theirs)),
            wanted.unwrap_or_default(),
            maybe(result.theirs.calls),
            maybe(result.ours.calls),
        ]);
    }
    table
}

fn costs(results: &Results) -> Table {
    let mut table = Table::new(&["", "theirs", "ours", "wanted", "idle CPU: theirs", "ours"]);
    let found = |result: &CostResult| COSTS.iter().find(|cost| cost.name == result.name);
    for result in &results.costs {
        let Some(cost) = found(result) else { continue };
        let memory = |idle: Option<f64>, cost: &Cost| match idle {
            Some(bytes) => format!("{} B a {}", number(bytes), cost.one),
            None => "fails".to_owned(),
        };
        let cpu = |share: Option<f64>| {
            share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
        };
        table.0.push(vec![
            cost.title.to_owned(),
            memory(result.theirs.map(|idle| idle.memory), cost),
            memory(result.ours.map(|idle| idle.memory), cost),
            format!("<= {}", number(cost.goal)),
            cpu(result.theirs.map(|idle| idle.cpu)),
            cpu(result.ours.map(|idle| idle.cpu)),
        ]);
    }
    table
}

fn about(results: &Results) -> String {
    let machine = &results.machine;
    format!(
        "{}: {} processors ({}), Linux {}, load {:.2} before; {} repetitions in {} s; \
         theirs is {} {}",
        machine.date,
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.load_before,
        results.reps,
        machine.seconds,
        rival::NAME,
        rival::VERSION,
    )
}

/// What is kept and shown of a run that people look at.
pub fn terminal(results: &Results) -> String {
    let mut text = String::new();
    if !results.rows.is_empty() {
        text += &format!(
            "{}\n{}\n",
            speed(results).terminal(),
            price(results).terminal()
        );
        let met = found(results).filter(|(row, result)| meets(row, result));
        let _ = writeln!(
            text,
            "{} of {} rows as wanted\n",
            met.count(),
            results.rows.len()
        );
    }
    for curve in &results.curves {
        let mut table = Table::new(&[&curve.name, "socket", "theirs", "ours"]);
        for point in &curve.points {
            let cells = [point.plain, point.theirs, point.ours].map(maybe);
            let mut line = vec![point.at.to_string()];
            line.extend(cells);
            table.0.push(line);
        }
        text += &format!("{}\n", table.terminal());
    }
    if !results.costs.is_empty() {
        text += &format!("{}\n", costs(results).terminal());
    }
    text + &about(results) + "\n"
}

/// The same in Markdown, without the curves, which are charts there.
pub fn markdown(results: &Results) -> String {
    format!(
        "{}.\n\n{}\n{}\n{}",
        about(results),
        speed(results).markdown(),
        price(results).markdown(),
        costs(results).markdown()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in [
            (12_345.6, "12,346"),
            (123.4, "123"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.01234, "0.012"),
            (0.0, "0.00"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_row_must_be_fast_and_cheap() {
        let row = &ROWS[0];
        let mut result = RowResult {
            name: row.name.to_owned(),
            plain: Some(1.0),
            theirs: Side {
                cpu: Some(1.0),
                ..Side::default()
            },
            ours: Side {
                ratio: Some(row.goal),
                cpu: Some(0.01),
                ..Side::default()
            },
        };
        assert!(meets(row, &result));
        result.ours.cpu = Some(2.0);
        assert!(!meets(row, &result));
        result.ours = Side {
            ratio: Some(row.goal - 0.1),
            ..result.ours
        };
        result.ours.cpu = Some(0.01);
        assert!(!meets(row, &result));
    }
}
