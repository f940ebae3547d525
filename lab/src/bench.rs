// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the IOTLB costs: ratios within one boot, modes taken in turn, medians.

use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::Addressing;
use guest_driver::SocketType;
use serde_json::json;

use crate::boot::Reporter;
use crate::cells::Host;
use crate::conversation::{from_guest, End};
use crate::rig::{Rig, Spec};

/// Repetitions of each measurement.
const RUNS: usize = 7;
/// Bytes of one throughput run.
const VOLUME: usize = 32 << 20;

/// One mode's figures over all runs.
#[derive(Default)]
struct Figures {
    to_host: Vec<f64>,
    to_guest: Vec<f64>,
    activation: Vec<f64>,
    ioctls: u64,
    messages: u64,
    misses: u64,
    misses_after_activation: u64,
    miss_to_update: Vec<f64>,
}

/// Measures every mode that the kernel has, and reports medians and ratios.
pub fn run(host: &Host, reporter: &Reporter) -> Result<()> {
    reporter.plan(&[])?;
    let modes: Vec<Mode> = Mode::ALL
        .into_iter()
        .filter(|mode| {
            !mode.wants_iotlb() || host.kind != crosvm_vsock::compat::KernelKind::NoIotlb
        })
        .collect();
    let mut figures: Vec<Figures> = modes.iter().map(|_| Figures::default()).collect();
    for run in 0..RUNS {
        for (mode, figures) in modes.iter().zip(&mut figures) {
            reporter.note(&format!("run {} of {RUNS}, {mode}", run + 1))?;
            measure(*mode, figures).with_context(|| mode.to_string())?;
        }
    }
    let base = (median(&figures[0].to_host), median(&figures[0].to_guest));
    for (mode, figures) in modes.iter().zip(&figures) {
        let (to_host, to_guest) = (median(&figures.to_host), median(&figures.to_guest));
        reporter.bench(&json!({
            "mode": mode.to_string(),
            "runs": RUNS,
            "to_host_mb_s": round(to_host),
            "to_guest_mb_s": round(to_guest),
            "to_host_against_off": round(to_host / base.0),
            "to_guest_against_off": round(to_guest / base.1),
            "activation_us": round(median(&figures.activation)),
            "activation_ioctls": figures.ioctls,
            "activation_messages": figures.messages,
            "misses_after_activation": figures.misses_after_activation,
            "miss_to_update_us": figures.misses.gt(&0).then(|| round(median(&figures.miss_to_update))),
        }))?;
    }
    let idle = idle_cpu()?;
    reporter.bench(&json!({ "idle_seconds": 2, "idle_cpu_ms": idle.as_millis() as u64 }))
}

fn measure(mode: Mode, figures: &mut Figures) -> Result<()> {
    let (mut rig, addressing) = Rig::in_mode(mode)?;
    let before = (rig.kernel.ioctls(), rig.kernel.messages());
    let start = Instant::now();
    rig.activate(addressing)?;
    figures.activation.push(start.elapsed().as_secs_f64() * 1e6);
    figures.ioctls = rig.kernel.ioctls() - before.0;
    figures.messages = rig.kernel.messages() - before.1;

    let (stream, socket) = from_guest(&rig.guest, SocketType::STREAM)?;
    figures.to_host.push(throughput(&stream, &socket)?);
    figures.to_guest.push(throughput(&socket, &stream)?);
    rig.check_quiet()?;
    if let Some(iotlb) = rig.device.iotlb() {
        figures.misses_after_activation = iotlb.stats().misses;
        figures.misses += iotlb.stats().misses;
        figures.miss_to_update.extend(rig.kernel.miss_to_update());
    }
    Ok(())
}

/// Megabytes a second from one end to the other.
fn throughput(from: &dyn End, to: &dyn End) -> Result<f64> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let piece = [0x5a; 64 << 10];
            let mut sent = 0;
            while sent < VOLUME {
                sent += from.write(&piece[..piece.len().min(VOLUME - sent)])?;
            }
            std::io::Result::Ok(())
        });
        let mut piece = [0; 64 << 10];
        let mut received = 0;
        while received < VOLUME {
            match to.read(&mut piece)? {
                0 => return Err(anyhow!("the stream ended after {received} bytes")),
                some => received += some,
            }
        }
        sending.join().map_err(|_| anyhow!("sending panicked"))??;
        Ok(())
    })?;
    Ok(VOLUME as f64 / 1e6 / start.elapsed().as_secs_f64())
}

/// CPU time that an active but idle device takes in two seconds.
fn idle_cpu() -> Result<Duration> {
    let mut rig = Rig::new(Spec::protected())?;
    rig.activate(Addressing::Off)?;
    std::thread::sleep(Duration::from_millis(500));
    let before = process_cpu()?;
    std::thread::sleep(Duration::from_secs(2));
    Ok(process_cpu()?.saturating_sub(before))
}

/// User and system time of this process, from `/proc/self/stat` (in ticks of 10 ms).
fn process_cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().context("a process name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("a field")?.parse()?) };
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
