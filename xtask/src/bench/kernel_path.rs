// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `cargo xtask kernels --bench` measures, as a table: every IOTLB mode beside `off`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::grid::Table;

/// What is measured on each kernel: a line a mode, and one of an idle device.
pub type Measurements<'a> = BTreeMap<&'a str, &'a [Value]>;

/// Column heads, and where the figures are in a line of the lab.
const COLUMNS: [(&str, &str); 9] = [
    ("to host MB/s", "to_host_mb_s"),
    ("/off", "to_host_against_off"),
    ("to guest MB/s", "to_guest_mb_s"),
    ("/off", "to_guest_against_off"),
    ("activation us", "activation_us"),
    ("ioctls", "activation_ioctls"),
    ("messages", "activation_messages"),
    ("misses after", "misses_after_activation"),
    ("miss to update us", "miss_to_update_us"),
];

/// A figure of a line; a dash where there is none.
fn figure(line: &Value, key: &str) -> String {
    match line.get(key) {
        Some(Value::Null) | None => "-".to_owned(),
        Some(value) => value.to_string(),
    }
}

fn table(all: &Measurements<'_>) -> Table {
    let heads: Vec<&str> = COLUMNS.iter().map(|(head, _)| *head).collect();
    let mut table = Table::new(&[&["kernel", "mode"], heads.as_slice()].concat());
    for (kernel, measurements) in all {
        for line in *measurements {
            let Some(mode) = line.get("mode").and_then(Value::as_str) else {
                continue;
            };
            let mut cells = vec![(*kernel).to_owned(), mode.to_owned()];
            cells.extend(COLUMNS.iter().map(|(_, key)| figure(line, key)));
            table.0.push(cells);
        }
    }
    table
}

/// What an idle device costs, a sentence a kernel.
fn idle(all: &Measurements<'_>) -> Vec<String> {
    let of_kernel = |kernel: &str, line: &Value| {
        line.get("idle_cpu_ms")?;
        let (ms, seconds) = (figure(line, "idle_cpu_ms"), figure(line, "idle_seconds"));
        Some(format!("{kernel}: {ms} ms of CPU in {seconds} s idle"))
    };
    all.iter()
        .flat_map(|(kernel, lines)| lines.iter().filter_map(|line| of_kernel(kernel, line)))
        .collect()
}

/// For a terminal.
pub fn terminal(all: &Measurements<'_>) -> String {
    format!("{}\n{}\n", table(all).terminal(), idle(all).join("\n"))
}

/// In Markdown, measured on that `date`.
pub fn markdown(all: &Measurements<'_>, date: &str) -> String {
    let runs = all.values().flat_map(|lines| lines.iter());
    let runs = runs.filter_map(|line| line.get("runs")?.as_u64()).max();
    format!(
        "{date}; medians of {} runs of each mode, in turn.\n\n{}\n{}.\n",
        runs.unwrap_or(0),
        table(all).markdown(),
        idle(all).join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_in_their_columns_and_missing_ones_are_dashes() {
        let lines = [
            json!({"mode": "off", "runs": 7, "to_host_mb_s": 12.5, "miss_to_update_us": null}),
            json!({"idle_seconds": 2, "idle_cpu_ms": 0}),
        ];
        let all = Measurements::from([("6.1", lines.as_slice())]);
        let text = terminal(&all);
        assert!(text.contains("off") && text.contains("12.5"), "{text}");
        assert!(text.contains("6.1: 0 ms of CPU in 2 s"), "{text}");
        assert_eq!(text.matches(" -").count(), 8, "{text}");
        let page = markdown(&all, "2026-11-29");
        assert!(page.starts_with("2026-11-29; medians of 7 runs"), "{page}");
        assert!(page.contains("| 6.1 | off | 12.5 | - |"), "{page}");
    }
}
