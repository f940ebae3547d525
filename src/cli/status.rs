// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock status`: how the devices of a running daemon are.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{json, Map, Value};

use super::asking::{ask_each, finish, guest_cid, Answer, AskError, Where, EXIT_CODES};
use super::date::date;
use super::prometheus;
use crosvm_vsock::control::binder::{
    IotlbMode, KernelKind, Strong, VsockBackend, VsockDevice, VsockDeviceState, VsockFeatures,
    VsockStatistics, UNKNOWN,
};
use crosvm_vsock::control::client::ClientError;

const AFTER: &str = "\
Examples:
  crosvm-vsock status --control $XDG_RUNTIME_DIR/vsock.control
  crosvm-vsock status 3 --json | jq '.[0].state'
  crosvm-vsock status --prometheus > /var/lib/node_exporter/vsock.prom.new";

/// Show how the devices of a running daemon are, all or one.
#[derive(Args, Debug)]
#[command(after_help = AFTER, after_long_help = format!("{AFTER}\n\n{EXIT_CODES}"))]
pub struct Arguments {
    /// Only the guest with this CID.
    #[arg(value_parser = guest_cid)]
    cid: Option<i64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Print the text format that Prometheus reads.
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,

    #[command(flatten)]
    place: Where,
}

/// A device's answers.
pub struct Report {
    pub cid: i64,
    pub backend: &'static str,
    reason: String,
    pub kernel_kind: &'static str,
    pub mode: &'static str,
    pub state: &'static str,
    features: VsockFeatures,
    /// When the daemon began to serve it, in milliseconds since 1970.
    pub since: i64,
    /// All numbers that the device knows.
    pub numbers: Vec<(&'static Number, i64)>,
}

/// A number of [`VsockStatistics`].
pub struct Number {
    /// Its name in JSON, and in Prometheus behind a prefix.
    pub name: &'static str,
    /// Whether it only grows.
    pub counter: bool,
    /// Whether it is worth a line for people while it is 0.
    shown_at_zero: bool,
    /// What it says, for people.
    pub meaning: &'static str,
    get: fn(&VsockStatistics) -> i64,
}

macro_rules! numbers {
    ($($kind:ident $name:literal $field:ident $meaning:literal;)*) => {
        &[$(Number {
            name: $name,
            counter: numbers!(@grows $kind),
            shown_at_zero: numbers!(@shown $kind),
            meaning: $meaning,
            get: |statistics| statistics.$field,
        },)*]
    };
    (@grows gauge) => { false };
    (@grows $kind:ident) => { true };
    (@shown trouble) => { false };
    (@shown $kind:ident) => { true };
}

const NUMBERS: &[Number] = numbers! {
    gauge "connections_open" connectionsOpen "connections at present";
    counter "connections" connectionsTotal "connections established";
    counter "bytes_from_guest" bytesFromGuest "payload bytes taken from the guest";
    counter "bytes_to_guest" bytesToGuest "payload bytes given to the guest";
    counter "packets_from_guest" packetsFromGuest "packets taken from the guest";
    counter "packets_to_guest" packetsToGuest "packets given to the guest";
    trouble "refused" refused "requests refused: nobody listens, or answers";
    trouble "refused_connections" refusedConnections "refused by max-connections";
    trouble "refused_half_open" refusedHalfOpen "refused by max-half-open";
    trouble "refused_pending_bytes" refusedPendingBytes "reset by max-pending-bytes";
    trouble "refused_pending_resets" refusedPendingResets "answers dropped by max-pending-resets";
    trouble "refused_descriptors" refusedDescriptors "failed for want of descriptors";
    trouble "stray_packets" strayPackets "answers to packets of no connection";
    trouble "wrong_source" wrongSource "packets with another guest's CID";
    trouble "malformed" malformed "chains and headers that made no sense";
    trouble "violations" violations "connections ended for breaking the protocol";
    trouble "resets" resets "times that all connections were ended";
    trouble "accesses_denied" accessesDenied "denied accesses to memory not shared";
    gauge "iotlb_misses" iotlbMisses "IOTLB misses since the queues were set up";
    gauge "iotlb_entries" iotlbEntries "IOTLB mappings at present";
    gauge "callbacks" callbacks "clients that watch";
    trouble "callbacks_dropped" callbacksDropped "events that watchers missed";
};

/// Prints the report and returns the exit code.
pub fn run(arguments: &Arguments) -> ExitCode {
    let report = || -> Result<Answer, AskError> {
        let client = arguments.place.client()?;
        let (reports, failures) = ask_each(&client, arguments.cid, ask)?;
        let text = if arguments.json {
            let all: Vec<Value> = reports.iter().map(json).collect();
            format!("{:#}\n", Value::from(all))
        } else if arguments.prometheus {
            prometheus::text(&reports)
        } else {
            let texts: Vec<String> = reports.iter().map(text).collect();
            texts.join("\n")
        };
        Ok(Answer {
            text,
            failures,
            ..Answer::default()
        })
    };
    finish("status", report())
}

fn ask(cid: i64, device: &Strong<dyn VsockDevice>) -> Result<Report, ClientError> {
    let statistics = device.getStatistics()?;
    let numbers = NUMBERS
        .iter()
        .map(|number| (number, (number.get)(&statistics)));
    Ok(Report {
        cid,
        backend: match device.getBackend()? {
            VsockBackend::USERSPACE => "userspace",
            VsockBackend::KERNEL => "kernel",
            _ => "unknown",
        },
        reason: device.getBackendReason()?,
        kernel_kind: kind(device.getKernelKind()?),
        mode: mode(device.getIotlbMode()?),
        state: state(device.getState()?),
        features: device.getFeatures()?,
        since: statistics.sinceMillis,
        numbers: numbers.filter(|(_, value)| *value != UNKNOWN).collect(),
    })
}

fn kind(kind: KernelKind) -> &'static str {
    match kind {
        KernelKind::NOT_APPLICABLE => "none",
        KernelKind::NO_IOTLB => "NoIotlb",
        KernelKind::OVERLOADED => "Overloaded",
        KernelKind::SPLIT => "Split",
        KernelKind::SPLIT_COMPAT => "SplitCompat",
        _ => "unknown",
    }
}

fn mode(mode: IotlbMode) -> &'static str {
    match mode {
        IotlbMode::OFF => "off",
        IotlbMode::IDENTITY => "identity",
        IotlbMode::RESTRICTED => "restricted",
        IotlbMode::TRANSLATED => "translated",
        _ => "unknown",
    }
}

fn state(state: VsockDeviceState) -> &'static str {
    match state {
        VsockDeviceState::NO_VMM => "no-vmm",
        VsockDeviceState::NO_DRIVER => "no-driver",
        VsockDeviceState::RUNNING => "running",
        VsockDeviceState::NEEDS_RESET => "needs-reset",
        _ => "unknown",
    }
}

fn explain(state: &str) -> &'static str {
    match state {
        "no-vmm" => "no VMM is connected",
        "no-driver" => "a VMM is connected, the guest's driver is not there",
        "needs-reset" => "the queues were given up: see the log, then `reset`",
        _ => "",
    }
}

fn text(report: &Report) -> String {
    let mut text = format!("guest CID {}\n", report.cid);
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<24}{value}");
    };
    match explain(report.state) {
        "" => line("state", &report.state),
        why => line("state", &format!("{} ({why})", report.state)),
    }
    match report.reason.as_str() {
        "" => line("backend", &report.backend),
        why => line("backend", &format!("{} ({why})", report.backend)),
    }
    line("kernel kind", &report.kernel_kind);
    line("IOTLB mode", &report.mode);
    line("offered", &format!("{:#x}", report.features.offered));
    let names = report.features.acknowledgedNames.join(" ");
    let acknowledged = format!("{:#x} {names}", report.features.acknowledged);
    line("acknowledged", &acknowledged.trim_end());
    line("served since", &date(report.since));
    let worth_a_line = |(number, value): &&(&Number, i64)| *value != 0 || number.shown_at_zero;
    for (number, value) in report.numbers.iter().filter(worth_a_line) {
        let name = number.name.replace('_', " ");
        line(&name, &format!("{value:<14}{}", number.meaning));
    }
    text
}

fn json(report: &Report) -> Value {
    let mut statistics = Map::new();
    for (number, value) in &report.numbers {
        statistics.insert(number.name.to_owned(), Value::from(*value));
    }
    json!({
        "cid": report.cid,
        "state": report.state,
        "backend": report.backend,
        "backend_reason": report.reason,
        "kernel_kind": report.kernel_kind,
        "iotlb_mode": report.mode,
        "features": {
            "offered": format!("{:#x}", report.features.offered),
            "acknowledged": format!("{:#x}", report.features.acknowledged),
            "names": report.features.acknowledgedNames,
        },
        "since_ms": report.since,
        "statistics": statistics,
    })
}
