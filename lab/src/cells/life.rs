// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The life of a device: stop and resume, reset, other modes on the same
//! descriptor, and neighbours.

use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Result};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::{Addressing, Error};

use super::{unavailable, Cell, Host, UNAVAILABLE, WORKS};
use crate::conversation;
use crate::rig::{fresh_cid, Rig, Spec};

pub(super) fn cells(host: &Host) -> Vec<Cell> {
    vec![
        host.cell("resume, off", Mode::Off, |_| resume(Mode::Off)),
        host.cell("resume, identity", Mode::Identity, |_| {
            resume(Mode::Identity)
        }),
        host.cell("resume, restricted", Mode::Restricted, |_| {
            resume(Mode::Restricted)
        }),
        host.cell("resume, translated", Mode::Translated, |_| {
            resume(Mode::Translated)
        }),
        host.any_mode("modes on one descriptor", one_descriptor),
        host.any_mode("CID in use", |_| cid_in_use()),
        host.any_mode("side by side", side_by_side),
    ]
}

/// Stopped and resumed again and again while both sides send: nothing is lost.
fn resume(mode: Mode) -> Result<&'static str> {
    const STOPS: usize = 10;
    let (mut rig, addressing) = Rig::in_mode(mode)?;
    match rig.activate(addressing.clone()) {
        Err(error) if unavailable(&error) => return Ok(UNAVAILABLE),
        result => result?,
    }
    let (stream, socket) = conversation::from_guest(&rig.guest, guest_driver::SocketType::STREAM)?;
    let stops = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| conversation::exchange(&stream, &socket, 8 << 20, 3));
        let mut stops = 0;
        while !traffic.is_finished() && stops < STOPS {
            std::thread::sleep(Duration::from_millis(20));
            let bases = rig.stop()?;
            std::thread::sleep(Duration::from_millis(20));
            rig.activate_from(addressing.clone(), bases)?;
            stops += 1;
        }
        let traffic = traffic
            .join()
            .map_err(|_| anyhow!("the traffic panicked"))?;
        traffic.with_context(|| {
            let stats = rig.device.iotlb().map(|iotlb| iotlb.stats());
            let failure = rig.failure(Duration::ZERO);
            format!("after {stops} stops, with {stats:?} and {failure:?}")
        })?;
        anyhow::Ok(stops)
    })?;
    ensure!(
        stops >= 3,
        "the traffic ended after {stops} stops: nothing was shown"
    );
    rig.check_quiet()?;
    Ok(WORKS)
}

/// Reset and activated again in each mode after each other mode. On some kernels
/// the IOTLB of a descriptor stays on once it was.
fn one_descriptor(host: &Host) -> Result<&'static str> {
    let (spec, window) = Spec::windowed()?;
    let mut rig = Rig::new(spec)?;
    let tour = [
        Addressing::Off,
        Addressing::Identity,
        Addressing::Off,
        Addressing::Restricted(window.clone()),
        Addressing::Off,
        Addressing::Restricted(window),
        Addressing::Identity,
        Addressing::Off,
    ];
    for (step, addressing) in tour.into_iter().enumerate() {
        let mode = addressing.mode();
        let at = || format!("step {step}, {mode}");
        match rig.activate(addressing) {
            Err(error) if unavailable(&error) => {
                ensure!(host.expected(mode) == UNAVAILABLE, "{error}");
                continue;
            }
            result => result.with_context(at)?,
        }
        conversation::brief(&rig.guest, 20 + step as u64).with_context(at)?;
        rig.check_quiet().with_context(at)?;
        rig.reset().with_context(at)?;
    }
    Ok(WORKS)
}

/// A CID that another device has is refused by name, and free when that is gone.
fn cid_in_use() -> Result<&'static str> {
    let cid = fresh_cid();
    let mut first = Rig::with_cid(Spec::protected(), cid)?;
    first.activate(Addressing::Off)?;
    let mut second = Rig::with_cid(Spec::protected(), cid)?;
    match second.activate(Addressing::Off) {
        Err(Error::CidInUse(taken)) => ensure!(taken.raw() == cid, "{taken} is not {cid}"),
        Err(error) => return Err(error.into()),
        Ok(()) => bail!("two devices run with CID {cid}"),
    }
    conversation::brief(&first.guest, 30).context("the first device, afterwards")?;
    drop(first);
    second.activate(Addressing::Off)?;
    conversation::brief(&second.guest, 31).context("the second device, at last")?;
    Ok(WORKS)
}

/// Two devices on one kernel, each in a mode of its own, at the same time.
fn side_by_side(host: &Host) -> Result<&'static str> {
    let mut plain = Rig::new(Spec::protected())?;
    let (spec, window) = Spec::windowed()?;
    let mut confined = Rig::new(spec)?;
    plain.activate(Addressing::Off)?;
    let restricted = Addressing::Restricted(window);
    let addressing = match host.expected(Mode::Restricted) {
        UNAVAILABLE => Addressing::Off,
        _ => restricted,
    };
    confined.activate(addressing)?;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| conversation::volume(&plain.guest, 4 << 20, 40));
        conversation::volume(&confined.guest, 4 << 20, 41)?;
        other
            .join()
            .map_err(|_| anyhow!("a conversation panicked"))?
    })?;
    plain.check_quiet()?;
    confined.check_quiet()?;
    Ok(WORKS)
}
