// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the IOTLB service owes the kernel and the guest: eviction survived,
//! remaps seen, nothing outside of the window touched.

use std::io::Write;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use crosvm_vsock::address::{Address, Gpa, Iova, Range};
use crosvm_vsock::compat::Mode;
use crosvm_vsock::kernel::{Addressing, Failure, Window};
use crosvm_vsock::memory::PAGE;
use guest_driver::bus::Segment;
use guest_driver::packet::{Header, Op, HEADER_SIZE};
use guest_driver::queues::Queue;
use guest_driver::SocketType;

use super::{unavailable, Cell, Host, UNAVAILABLE, WORKS};
use crate::rig::{driver_range, Rig, Spec, Viommu};
use crate::{conversation, host};

pub(super) fn cells(host: &Host) -> Vec<Cell> {
    vec![
        host.cell("2048 entries and more", Mode::Translated, |_| eviction()),
        host.cell("remap under traffic", Mode::Translated, |_| remap()),
        host.cell("denied, then reset", Mode::Translated, |_| denied()),
        host.cell("outside of the window", Mode::Restricted, |_| outside()),
        host.cell("share and unshare", Mode::Restricted, |_| {
            share_and_unshare()
        }),
    ]
}

/// More pages than the kernel's table has entries, all in turn, and again.
fn eviction() -> Result<&'static str> {
    const PAGES: usize = 4000;
    let mut spec = Spec::translated(7);
    spec.guest.ring_sizes = [4096, 256, 16];
    spec.guest.rx.buffers = PAGES;
    let mut rig = Rig::new(spec)?;
    let viommu = Viommu::of(&rig.guest);
    match rig.activate(Addressing::Translated(viommu)) {
        Err(error) if unavailable(&error) => return Ok(UNAVAILABLE),
        result => result?,
    }
    conversation::volume(&rig.guest, 40 << 20, 50)?;
    rig.check_quiet()?;
    let stats = rig.device.iotlb().context("the IOTLB service")?.stats();
    ensure!(
        stats.evictions > 2048,
        "the table was not exceeded: {stats:?}"
    );
    ensure!(
        stats.entries <= 2048,
        "the mirror outgrew the kernel: {stats:?}"
    );
    Ok(WORKS)
}

/// A page of the guest moves to other memory at the same IOVA, again and again,
/// while traffic flows. It holds the header of a connection request: a device that
/// still reads the old memory asks for the old connection.
fn remap() -> Result<&'static str> {
    const MOVES: u32 = 30;
    let mut rig = Rig::new(Spec::translated(8))?;
    let viommu = Viommu::of(&rig.guest);
    match rig.activate(Addressing::Translated(viommu)) {
        Err(error) if unavailable(&error) => return Ok(UNAVAILABLE),
        result => result?,
    }
    let iotlb = rig.device.iotlb().context("the IOTLB service")?;
    let guest = &rig.guest;
    let port = host::fresh_port();
    let listener = host::listen(port, SocketType::STREAM)?;
    let page = guest.raw().alloc(PAGE as usize, None)?;
    let iova = page.addr();
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| conversation::volume(guest, 8 << 20, 60));
        for number in 0..MOVES {
            let request = Header {
                src_cid: guest.cid(),
                dst_cid: conversation::HOST,
                src_port: 100 + number,
                dst_port: port,
                socket_type: SocketType::STREAM,
                op: Op::REQUEST,
                buf_alloc: 4096,
                ..Header::default()
            };
            guest.space().write(iova, &request.to_bytes())?;
            let raw = guest.raw();
            let segment = Segment {
                addr: iova,
                len: HEADER_SIZE as u32,
            };
            let head = raw.post(Queue::Tx, &[segment], &[])?;
            while raw.wait_used(Queue::Tx, host::TIMEOUT)?.head != head {}
            drop(raw);
            let (_, from) = listener.accept()?;
            let (_, seen) = from.as_vsock_address().context("a vsock address")?;
            ensure!(
                seen == request.src_port,
                "move {number}: the device read port {seen}"
            );

            let (old, _new) = guest.space().move_page(iova, None)?;
            iotlb.changed(Range::new(Iova(iova.0), PAGE)?)?;
            guest.space().free_page(old);
        }
        traffic
            .join()
            .map_err(|_| anyhow::anyhow!("the traffic panicked"))?
    })?;
    if let Some(failure) = rig.failure(Duration::ZERO) {
        bail!("the device reported: {failure}");
    }
    Ok(WORKS)
}

/// The guest names an address that its vIOMMU does not map. After the reset every
/// page is asked for again: a kernel that still waits for the denied one asks for
/// nothing.
fn denied() -> Result<&'static str> {
    const UNMAPPED: u64 = 0x5000;
    let mut rig = Rig::new(Spec::translated(9))?;
    let viommu = Viommu::of(&rig.guest);
    match rig.activate(Addressing::Translated(viommu.clone())) {
        Err(error) if unavailable(&error) => return Ok(UNAVAILABLE),
        result => result?,
    }
    conversation::brief(&rig.guest, 90)?;
    let raw = rig.guest.raw();
    let segment = Segment {
        addr: guest_driver::bus::BusAddr(UNMAPPED),
        len: HEADER_SIZE as u32,
    };
    for queue in [Queue::Tx, Queue::Rx] {
        let (readable, writable) = match queue {
            Queue::Tx => (&[segment][..], &[][..]),
            _ => (&[][..], &[segment][..]),
        };
        raw.post(queue, readable, writable)?;
    }
    drop(raw);
    match rig.failure(Duration::from_secs(1)) {
        Some(Failure::Denied(denial)) => {
            ensure!(denial.iova == Iova(UNMAPPED), "denied {denial:?}")
        }
        other => bail!("the queue did not fail visibly: {other:?}"),
    }
    rig.reset()?;
    rig.activate(Addressing::Translated(viommu))?;
    conversation::brief(&rig.guest, 91).context("after the reset")?;
    rig.check_quiet().context("after the reset")?;
    Ok(WORKS)
}

/// Fills the second region with a pattern, and hands the device a receive buffer
/// there that was not shared.
fn outside() -> Result<&'static str> {
    let (mut spec, window) = Spec::windowed()?;
    spec.guest.rx.buffers = 2;
    let mut rig = Rig::new(spec)?;
    match rig.activate(Addressing::Restricted(window.clone())) {
        Err(error) if unavailable(&error) => return Ok(UNAVAILABLE),
        result => result?,
    }
    conversation::brief(&rig.guest, 70)?;

    let region = rig.memory()?.regions()[1].gpa();
    let forbidden = driver_range(region);
    rig.guest.fill_pattern(forbidden.clone(), 71)?;
    let (_stream, socket) = conversation::from_guest(&rig.guest, SocketType::STREAM)?;
    let raw = rig.guest.raw();
    let buffer = raw.alloc(PAGE as usize, Some(&forbidden))?;
    raw.post(Queue::Rx, &[], buffer.segments())?;
    (&socket).write_all(&[0x55; 32 << 10])?;
    match rig.failure(Duration::from_secs(1)) {
        Some(Failure::Denied(denial)) => {
            ensure!(
                region.contains(Gpa(denial.iova.raw())),
                "denied at {}, not in {region}",
                denial.iova
            );
        }
        Some(other) => bail!("the queue failed otherwise: {other}"),
        None => bail!("the queue did not fail visibly within a second"),
    }
    rig.guest
        .check_pattern(forbidden, 71)
        .context("memory that was not shared was touched")?;
    drop(raw);

    rig.reset()?;
    rig.activate(Addressing::Restricted(window))?;
    conversation::brief(&rig.guest, 72).context("after the reset")?;
    rig.check_quiet().context("after the reset")?;
    Ok(WORKS)
}

/// A range is opened while the device runs and carries data, then closed, and the
/// device cannot reach it any more.
fn share_and_unshare() -> Result<&'static str> {
    let (spec, window) = Spec::windowed()?;
    let mut rig = Rig::new(spec)?;
    match rig.activate(Addressing::Restricted(window.clone())) {
        Err(error) if unavailable(&error) => return Ok(UNAVAILABLE),
        result => result?,
    }
    let region = rig.memory()?.regions()[1].gpa();
    share_by_pages(&window, region)?;
    let entries = rig
        .device
        .iotlb()
        .context("the IOTLB service")?
        .stats()
        .entries;
    ensure!(
        entries == 2,
        "{entries} entries for two ranges: neighbours did not merge"
    );
    rig.guest.buffers_from(Some(driver_range(region)));
    conversation::volume(&rig.guest, 8 << 20, 80)?;
    rig.check_quiet()?;
    let misses = rig.device.iotlb().map_or(0, |iotlb| iotlb.stats().misses);
    ensure!(misses == 0, "{misses} misses although all was shared");

    window.unshare(region)?;
    let limit = Duration::from_secs(1);
    let stream = SocketType::STREAM;
    let connected =
        rig.guest
            .connect_from(None, conversation::HOST, host::fresh_port(), stream, limit);
    let error = connected.expect_err("a connection to a port nobody listens on");
    ensure!(
        error.kind() == std::io::ErrorKind::TimedOut,
        "an answer came through memory that is not shared any more: {error}"
    );
    match rig.failure(Duration::from_secs(1)) {
        Some(Failure::Denied(_)) => Ok(WORKS),
        other => bail!("the queue did not fail visibly: {other:?}"),
    }
}

/// In small steps and out of order, as a guest's driver does.
fn share_by_pages(window: &Window, region: Range<Gpa>) -> Result<()> {
    const STEP: u64 = 1 << 20;
    let steps = region.size().context("a region")?.get() / STEP;
    let even = (0..steps).step_by(2);
    let odd = (1..steps).step_by(2);
    for step in even.chain(odd) {
        let first = region.first().checked_add(step * STEP).context("a step")?;
        window.share(Range::new(first, STEP)?)?;
    }
    Ok(())
}
