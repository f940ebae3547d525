// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The init of the kernel lab's machines.
//!
//! Boots as PID 1 of a kernel under QEMU, runs the real device against that
//! kernel's `/dev/vhost-vsock`, with the in-process guest driver on one side and
//! ordinary `AF_VSOCK` sockets on the other, reports and switches off.

mod bench;
mod boot;
mod cells;
mod conversation;
mod counting;
mod daemon_rig;
mod host;
mod plugin_rig;
mod rig;
mod story;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use crosvm_vsock::compat::IotlbBit;
use crosvm_vsock::kernel::ioctl::VhostFd;
use crosvm_vsock::kernel::probe::{probe, Report};
use crosvm_vsock::kernel::{Error, Vhost, VhostVsock};

use boot::{Reporter, Request, Row};
use cells::{Cell, Host};

/// The cell that holds the probe's finding against the lab's table.
const PROBE: &str = "probe";

fn main() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let reporter = match boot::start() {
        Ok((request, reporter)) => {
            if let Err(error) = run(&request, &reporter) {
                eprintln!("lab: {error:#}");
            }
            Some(reporter)
        }
        Err(error) => {
            eprintln!("lab: {error:#}");
            None
        }
    };
    if std::process::id() == 1 {
        boot::power_off(reporter.as_ref());
    }
    std::process::exit(1);
}

fn run(request: &Request, reporter: &Reporter) -> Result<()> {
    if request.probe {
        return reporter.done();
    }
    let report = probe_host()?;
    let host = Host {
        kind: report.kind,
        features: report.features,
    };
    if request.demo {
        story::tell(&report, &host, request, reporter)?;
    } else if request.bench {
        bench::run(&host, reporter)?;
    } else {
        check(&report, &host, request, reporter)?;
    }
    reporter.done()
}

fn probe_host() -> Result<Report, Error> {
    let open = || {
        let path = Path::new(VhostVsock::PATH);
        VhostFd::open(path)
            .map(|fd| Arc::new(fd) as Arc<dyn Vhost>)
            .map_err(|source| Error::Open {
                path: path.to_owned(),
                source,
            })
    };
    probe(open, IotlbBit::default())
}

fn check(report: &Report, host: &Host, request: &Request, reporter: &Reporter) -> Result<()> {
    let wanted = |cell: &Cell| match cell.mode {
        Some(mode) if !request.modes.is_empty() => request.modes.contains(&mode.to_string()),
        _ => true,
    };
    let cells: Vec<Cell> = cells::all(host).into_iter().filter(wanted).collect();
    let names: Vec<&str> = [PROBE]
        .into_iter()
        .chain(cells.iter().map(|cell| cell.name))
        .collect();
    reporter.plan(&names)?;

    let found = report.kind.to_string();
    let detail = format!("offers {:?}", report.features);
    reporter.row(&row(request, report, PROBE, &request.kind, found, detail))?;
    for cell in &cells {
        reporter.note(cell.name)?;
        let outcome = cell.run(host);
        let (got, detail) = (outcome.got, outcome.detail);
        reporter.row(&row(request, report, cell.name, cell.expected, got, detail))?;
    }
    Ok(())
}

fn row(
    request: &Request,
    report: &Report,
    cell: &str,
    expected: &str,
    got: String,
    detail: String,
) -> Row {
    Row {
        kernel: request.kernel.clone(),
        kind: report.kind.to_string(),
        cell: cell.to_owned(),
        expected: expected.to_owned(),
        ok: got == expected,
        got,
        detail,
    }
}
