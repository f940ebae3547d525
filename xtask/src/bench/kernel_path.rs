// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `cargo xtask kernels --bench` measures, as a table: every IOTLB mode beside `off`.

use serde_json::Value;

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

/// One kernel's measurements.
pub fn table(kernel: &str, measurements: &[Value]) -> String {
    let mut text = format!("{kernel:<12}");
    for (head, _) in COLUMNS {
        text += &format!("  {head:>13}");
    }
    text.push('\n');
    for line in measurements {
        match line.get("mode").and_then(Value::as_str) {
            Some(mode) => {
                text += &format!("  {mode:<10}");
                for (_, key) in COLUMNS {
                    let cell = match line.get(key) {
                        Some(Value::Null) | None => "-".to_owned(),
                        Some(value) => value.to_string(),
                    };
                    text += &format!("  {cell:>13}");
                }
                text.push('\n');
            }
            None => {
                let figure = |key| {
                    line.get(key)
                        .map_or_else(|| "-".to_owned(), Value::to_string)
                };
                let (ms, seconds) = (figure("idle_cpu_ms"), figure("idle_seconds"));
                text += &format!("  idle: {ms} ms of CPU in {seconds} s\n");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_in_their_columns_and_missing_ones_are_dashes() {
        let lines = [
            json!({"mode": "off", "to_host_mb_s": 12.5, "miss_to_update_us": null}),
            json!({"idle_seconds": 2, "idle_cpu_ms": 0}),
        ];
        let table = table("6.1", &lines);
        assert!(table.contains("off") && table.contains("12.5"), "{table}");
        assert!(table.contains("idle: 0 ms of CPU in 2 s"), "{table}");
        assert_eq!(table.matches(" -").count(), 8, "{table}");
    }
}
