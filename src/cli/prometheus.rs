// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Statistics as Prometheus reads them (its text format, version 0.0.4).

use std::fmt::Write;

use super::status::Report;

const PREFIX: &str = "crosvm_vsock_";

/// Everything that is a number, with the guest's CID as a label.
pub fn text(reports: &[Report]) -> String {
    let mut text = String::new();
    head(&mut text, "info", "gauge", "what serves a guest");
    for report in reports {
        let Report {
            cid,
            backend,
            kernel_kind,
            mode,
            state,
            ..
        } = report;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{PREFIX}info{{cid=\"{cid}\",backend=\"{backend}\",kernel_kind=\"{kernel_kind}\",\
             iotlb_mode=\"{mode}\",state=\"{state}\"}} 1"
        );
    }
    head(&mut text, "up", "gauge", "whether the queues are served");
    for report in reports {
        let up = u8::from(report.state == "running");
        let _ = writeln!(text, "{PREFIX}up{{cid=\"{}\"}} {up}", report.cid);
    }
    let name = "start_time_seconds";
    head(&mut text, name, "gauge", "when the daemon began to serve");
    for report in reports {
        let (seconds, millis) = (report.since / 1000, report.since % 1000);
        let cid = report.cid;
        let _ = writeln!(
            text,
            "{PREFIX}{name}{{cid=\"{cid}\"}} {seconds}.{millis:03}"
        );
    }
    // All samples of a name stand together.
    let mut names: Vec<(&str, bool, &str)> = Vec::new();
    for (number, _) in reports.iter().flat_map(|report| &report.numbers) {
        if !names.iter().any(|(name, ..)| *name == number.name) {
            names.push((number.name, number.counter, number.meaning));
        }
    }
    for (name, counter, meaning) in names {
        let (suffix, kind) = match counter {
            true => ("_total", "counter"),
            false => ("", "gauge"),
        };
        let full = format!("{name}{suffix}");
        head(&mut text, &full, kind, meaning);
        for report in reports {
            let found = report
                .numbers
                .iter()
                .find(|(number, _)| number.name == name);
            if let Some((_, value)) = found {
                let _ = writeln!(text, "{PREFIX}{full}{{cid=\"{}\"}} {value}", report.cid);
            }
        }
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, meaning: &str) {
    let _ = writeln!(text, "# HELP {PREFIX}{name} {meaning}");
    let _ = writeln!(text, "# TYPE {PREFIX}{name} {kind}");
}
