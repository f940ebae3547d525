// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is measured: one line a row.

use std::fmt::Write as _;

use anyhow::{bail, Result};

/// What a row's figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Megabytes (10^6 bytes) a second.
    Throughput,
    /// Microseconds from question to answer, half of them faster.
    Latency,
    /// Connections or messages a second.
    Rate,
}

impl Figure {
    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "MB/s",
            Self::Latency => "us",
            Self::Rate => "/s",
        }
    }

    /// What the daemon's CPU time is told for.
    pub fn cpu_unit(self) -> &'static str {
        match self {
            Self::Throughput => "s/GiB",
            Self::Latency | Self::Rate => "us each",
        }
    }

    /// CPU seconds for one byte or one event, in that unit.
    pub fn cpu(self, each: f64) -> f64 {
        match self {
            Self::Throughput => each * f64::from(1 << 30),
            Self::Latency | Self::Rate => each * 1e6,
        }
    }
}

/// A workload that all contenders are put to.
#[derive(Debug)]
pub struct Row {
    /// For `--rows`.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is measured.
    pub figure: Figure,
    /// For `vsock_bench measure`.
    pub arguments: &'static [&'static str],
    /// Ours to a plain socket: at least, or for latencies at most.
    pub goal: f64,
    /// Our CPU time to our rival's, at most.
    pub cpu_goal: Option<f64>,
}

/// Every row.
pub const ROWS: &[Row] = &[
    Row {
        name: "to-host-64",
        title: "guest to host, 64 B",
        figure: Figure::Throughput,
        arguments: &["to-host", "--size", "64"],
        goal: 4.0,
        cpu_goal: Some(0.25),
    },
    Row {
        name: "to-host-4k",
        title: "guest to host, 4 KiB",
        figure: Figure::Throughput,
        arguments: &["to-host", "--size", "4096"],
        goal: 2.0,
        cpu_goal: Some(0.25),
    },
    Row {
        name: "to-host-64k",
        title: "guest to host, 64 KiB",
        figure: Figure::Throughput,
        arguments: &["to-host", "--size", "65536"],
        goal: 0.85,
        cpu_goal: Some(0.4),
    },
    Row {
        name: "to-guest-64",
        title: "host to guest, 64 B",
        figure: Figure::Throughput,
        arguments: &["to-guest", "--size", "64"],
        goal: 0.85,
        cpu_goal: Some(0.9),
    },
    Row {
        name: "to-guest-4k",
        title: "host to guest, 4 KiB",
        figure: Figure::Throughput,
        arguments: &["to-guest", "--size", "4096"],
        goal: 0.7,
        cpu_goal: Some(0.25),
    },
    Row {
        name: "to-guest-64k-in-4k",
        title: "host to guest, 64 KiB in 4 KiB buffers",
        figure: Figure::Throughput,
        arguments: &["to-guest", "--size", "65536"],
        goal: 0.5,
        cpu_goal: Some(0.25),
    },
    Row {
        name: "to-guest-64k",
        title: "host to guest, 64 KiB in 64 KiB buffers",
        figure: Figure::Throughput,
        // A header and 64 KiB.
        arguments: &["to-guest", "--size", "65536", "--buffer", "65580"],
        goal: 0.6,
        cpu_goal: Some(0.5),
    },
    Row {
        name: "ping",
        title: "one byte there and back, median",
        figure: Figure::Latency,
        arguments: &["ping"],
        goal: 2.0,
        cpu_goal: None,
    },
    Row {
        name: "connect-from-guest",
        title: "connect, one byte, close; from the guest",
        figure: Figure::Rate,
        arguments: &["connect-from-guest"],
        goal: 0.33,
        cpu_goal: None,
    },
    Row {
        name: "connect-from-host",
        title: "connect, one byte, close; from the host",
        figure: Figure::Rate,
        arguments: &["connect-from-host"],
        goal: 0.27,
        cpu_goal: None,
    },
    Row {
        name: "many",
        title: "64 B there and back on 1000 connections",
        figure: Figure::Rate,
        arguments: &["many", "--connections", "1000"],
        goal: 0.17,
        cpu_goal: None,
    },
];

/// How something grows.
#[derive(Debug)]
pub struct Curve {
    /// For `--rows`, and its chart's file name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What grows.
    pub grows: &'static str,
    /// The figure.
    pub figure: Figure,
    /// Whether a plain socket has it, too.
    pub plain: bool,
    /// For `vsock_bench measure`; the number comes last.
    pub arguments: &'static [&'static str],
    /// The numbers.
    pub steps: &'static [u64],
}

const SIZES: &[u64] = &[1, 8, 64, 512, 4096, 16_384, 65_536, 262_144, 1_048_576];

/// Every curve.
pub const CURVES: &[Curve] = &[
    Curve {
        name: "sizes-to-host",
        title: "Guest to host, by message size",
        grows: "bytes a message",
        figure: Figure::Throughput,
        plain: true,
        arguments: &["to-host", "--size"],
        steps: SIZES,
    },
    Curve {
        name: "sizes-to-guest",
        title: "Host to guest (4 KiB buffers), by message size",
        grows: "bytes a message",
        figure: Figure::Throughput,
        plain: true,
        arguments: &["to-guest", "--size"],
        steps: SIZES,
    },
    Curve {
        name: "connections",
        title: "64 B there and back, by connections",
        grows: "connections",
        figure: Figure::Rate,
        plain: true,
        arguments: &["many", "--connections"],
        steps: &[1, 10, 100, 1000, 5000, 15_000],
    },
    Curve {
        name: "vms",
        title: "Guest to host, 4 KiB, one VM, by VMs of the process",
        grows: "VMs",
        figure: Figure::Throughput,
        plain: false,
        arguments: &["to-host", "--size", "4096", "--vms"],
        steps: &[1, 10, 50, 100, 200],
    },
];

/// What something costs that does nothing.
#[derive(Debug)]
pub struct Cost {
    /// For `--rows`.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// One of them.
    pub one: &'static str,
    /// For `vsock_bench measure`.
    pub arguments: &'static [&'static str],
    /// Bytes each, at most.
    pub goal: f64,
}

/// Every cost.
pub const COSTS: &[Cost] = &[
    Cost {
        name: "idle-connections",
        title: "15,000 connections that say nothing",
        one: "connection",
        arguments: &["idle", "--connections", "15000", "--window", "1000"],
        goal: 1024.0,
    },
    Cost {
        name: "idle-vms",
        title: "200 VMs that do nothing",
        one: "VM",
        arguments: &["vms", "--vms", "200", "--window", "1000"],
        goal: 262_144.0,
    },
];

/// What one run measures.
#[derive(Debug, Default)]
pub struct Selection {
    /// Of [`ROWS`].
    pub rows: Vec<&'static Row>,
    /// Of [`CURVES`].
    pub curves: Vec<&'static Curve>,
    /// Of [`COSTS`].
    pub costs: Vec<&'static Cost>,
}

/// What is named; everything, if nothing is.
///
/// # Errors
/// When a name is unknown; the error lists those that are.
pub fn select(names: &[String]) -> Result<Selection> {
    for name in names {
        let known = all_names().any(|known| known == name);
        if !known {
            let known: Vec<&str> = all_names().collect();
            bail!("there is no row `{name}`; there are: {}", known.join(", "));
        }
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    Ok(Selection {
        rows: ROWS.iter().filter(|row| wanted(row.name)).collect(),
        curves: CURVES.iter().filter(|curve| wanted(curve.name)).collect(),
        costs: COSTS.iter().filter(|cost| wanted(cost.name)).collect(),
    })
}

fn all_names() -> impl Iterator<Item = &'static str> {
    let rows = ROWS.iter().map(|row| row.name);
    let curves = CURVES.iter().map(|curve| curve.name);
    rows.chain(curves).chain(COSTS.iter().map(|cost| cost.name))
}

/// All rows for people.
pub fn list() -> String {
    let mut text = String::new();
    let rows = ROWS.iter().map(|row| (row.name, row.title));
    let curves = CURVES.iter().map(|curve| (curve.name, curve.title));
    let costs = COSTS.iter().map(|cost| (cost.name, cost.title));
    for (name, title) in rows.chain(curves).chain(costs) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<20} {title}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_unknown_ones_are_refused() {
        let mut names: Vec<&str> = all_names().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(select(&["ping".to_owned()]).unwrap().rows.len(), 1);
        let error = select(&["pong".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("`pong`") && error.contains("ping"),
            "{error}"
        );
    }
}
