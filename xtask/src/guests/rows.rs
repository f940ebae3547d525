// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows of the matrix: what a guest and its host do with each other.
//!
//! A row is a function and a line in [`ROWS`]. The function gets a stage where everything
//! is up, and leaves it so; what it returns is held against what the line expects.

use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use guest_agent::protocol::{Command, Failure, Kind};

use super::program_rows;
use super::setting::Setting;
use super::stage::{Connection, Side, Stage};

/// What most rows come to.
pub const WORKS: &str = "works";
/// Of a socket that a kernel does not have.
const NO_SUCH_SOCKET: &str = "not in this kernel";
/// Bit 33 of the features, `VIRTIO_F_ACCESS_PLATFORM` (VIRTIO 1.2, 6).
pub const ACCESS_PLATFORM: u64 = 1 << 33;

const MIB: u64 = 1 << 20;
/// Linux's numbers, since the agents are Linux's.
const ECONNRESET: i32 = 104;
const ESOCKTNOSUPPORT: i32 = 94;
const ENODEV: i32 = 19;

/// One row.
#[derive(Clone, Copy)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// What is done, in a sentence for the documentation.
    pub what: &'static str,
    /// What is to come out; `None`: there is no such row for this setting.
    pub expected: fn(&Setting) -> Option<&'static str>,
    /// What does it.
    pub run: fn(&mut Stage) -> Result<String>,
    /// Whether the short set has it.
    pub short: bool,
}

const fn row(
    name: &'static str,
    expected: fn(&Setting) -> Option<&'static str>,
    run: fn(&mut Stage) -> Result<String>,
    what: &'static str,
) -> Row {
    Row {
        name,
        what,
        expected,
        run,
        short: false,
    }
}

const fn short(row: Row) -> Row {
    Row { short: true, ..row }
}

/// All rows, in the order in which they run.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    short(row("bit 33", negotiation, negotiated,
        "What the guest's kernel has acknowledged of VIRTIO_F_ACCESS_PLATFORM. QEMU tells the daemon of it only behind a vIOMMU.")),
    short(row("the guest calls", works, guest_calls,
        "A connection from the guest to a program of the host, data in both directions, one after the other and at once.")),
    short(row("the host calls", works, host_calls,
        "The same from the host to a program of the guest.")),
    short(row("a port without listener", works, refused,
        "Whoever calls hears of a reset at once, on either side.")),
    short(row("half-close", works, half_close,
        "One side closes its sending half; the other one's data still arrives, whole. In both orders.")),
    row("64 MiB each way", works, volume,
        "At once on one connection, with checksums."),
    row("500 connections each way", here, crowds,
        "Open at the same time, each with data that must come back."),
    short(row("sequenced packets", seqpacket, messages,
        "SOCK_SEQPACKET: messages of 1 byte to 200000 keep their boundaries. Linux has it since 5.14.")),
    row("pause and resume", here, paused,
        "QEMU's stop and cont in the middle of a transfer: nothing is lost, and no connection ends."),
    row("socat and netcat", programs, program_rows::socat,
        "socat in the guest, socat and OpenBSD's netcat on the host, as Debian has them: lines both ways, and a file."),
    row("Python", programs, program_rows::python,
        "Python's own AF_VSOCK in the guest, Unix sockets on the host: each side's server answers after the client's half-close."),
    row("systemd-notify", programs, program_rows::systemd_notify,
        "systemd's readiness message to the host: it closes its sending half and waits for the receiver to close."),
    row("the guest boots again", reboots, guest_reboots,
        "The host's programs see their connections end; the guest is served again."),
    row("the VMM restarts", here, vmm_restarts,
        "It goes without a word: the host's programs see their connections end; the next VMM is served."),
    row("behind a vIOMMU", viommu, behind_a_viommu,
        "QEMU's intel-iommu translates for the device: the daemon is told of bit 33, and asks QEMU where addresses lead."),
    row("the daemon restarts, then the VMM", here, daemon_restarts,
        "SIGTERM, and another daemon: the host's programs see their connections end and the guest goes on, but without \
         sockets, since QEMU's vhost-user-vsock does not reconnect; the next VMM is served."),
];

fn works(_: &Setting) -> Option<&'static str> {
    Some(WORKS)
}

/// For rows that need this machine's QEMU.
fn here(setting: &Setting) -> Option<&'static str> {
    setting.host.is_none().then_some(WORKS)
}

/// A nested guest takes long to boot: once on each host is enough.
fn reboots(setting: &Setting) -> Option<&'static str> {
    (setting.host.is_none() || setting.platform_access).then_some(WORKS)
}

/// For the row that boots the guest with a vIOMMU.
fn viommu(setting: &Setting) -> Option<&'static str> {
    here(setting).filter(|_| setting.platform_access)
}

/// For rows that need more than the agent in the guest.
fn programs(setting: &Setting) -> Option<&'static str> {
    setting.has_programs().then_some(WORKS)
}

fn negotiation(setting: &Setting) -> Option<&'static str> {
    Some(if setting.platform_access {
        "acknowledged"
    } else {
        "not offered"
    })
}

fn seqpacket(setting: &Setting) -> Option<&'static str> {
    Some(if setting.has_seqpacket() {
        WORKS
    } else {
        NO_SUCH_SOCKET
    })
}

/// What the guest's kernel has acknowledged; the daemon must not claim more.
fn negotiated(stage: &mut Stage) -> Result<String> {
    let acked = stage.about.acked.context("the guest has no vsock device")?;
    let has = acked & ACCESS_PLATFORM != 0;
    let log = stage.daemon_log()?;
    let said = log.lines().rev().find(|line| line.contains("features: "));
    let said = said.context("the daemon does not say what the guest acknowledged")?;
    // The other way round is QEMU's doing: without a vIOMMU it keeps the bit to itself.
    ensure!(
        has || !said.contains("ACCESS_PLATFORM"),
        "the guest has acknowledged {acked:#x}, but the daemon says: {said}"
    );
    Ok(if has { "acknowledged" } else { "not offered" }.to_owned())
}

fn guest_calls(stage: &mut Stage) -> Result<String> {
    conversation(stage, Side::Guest)
}

fn host_calls(stage: &mut Stage) -> Result<String> {
    conversation(stage, Side::Host)
}

/// A connection with data in both directions, one after the other and at once.
fn conversation(stage: &mut Stage, from: Side) -> Result<String> {
    let connection = stage.connect(from, Kind::Stream)?;
    stage.transfer(connection, Side::Guest, MIB)?;
    stage.transfer(connection, Side::Host, MIB)?;
    stage.exchange(connection, MIB)?;
    stage.close(connection)?;
    Ok(WORKS.to_owned())
}

fn volume(stage: &mut Stage) -> Result<String> {
    const VOLUME: u64 = 64 * MIB;
    let connection = stage.connect(Side::Guest, Kind::Stream)?;
    stage.exchange(connection, VOLUME)?;
    stage.close(connection)?;
    Ok(WORKS.to_owned())
}

/// Nobody listens: the caller hears it at once, on either side.
fn refused(stage: &mut Stage) -> Result<String> {
    for side in [Side::Guest, Side::Host] {
        let port = stage.port();
        let kind = Kind::Stream;
        let refused = stage.peer(side).socket(Command::Connect { port, kind });
        match refused {
            Err(error) if errno(&error) == Some(ECONNRESET) => {}
            Err(error) => return Err(error.context("another error than a reset")),
            Ok(_) => bail!("{side:?}: a connection to a port without listener"),
        }
    }
    Ok(WORKS.to_owned())
}

/// The kernel's error number behind an error, if it is one of an agent's.
fn errno(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<Failure>()?.errno
}

/// One side has no more to say and still listens, in both orders.
fn half_close(stage: &mut Stage) -> Result<String> {
    for first in [Side::Guest, Side::Host] {
        let last = first.other();
        let connection = stage.connect(first, Kind::Stream)?;
        for (from, to) in [(first, last), (last, first)] {
            let receiving = stage.peer(to).start(Command::Receive {
                socket: connection.of(to),
                bytes: None,
            })?;
            let sent = stage.peer(from).send(connection.of(from), MIB, 3)?;
            stage.peer(from).close_half(connection.of(from))?;
            let received = stage.peer(to).finish_moved(receiving)?;
            ensure!(
                sent == received,
                "{from:?} closed its half: sent {sent:?}, received {received:?}"
            );
        }
        stage.close(connection)?;
    }
    Ok(WORKS.to_owned())
}

fn crowds(stage: &mut Stage) -> Result<String> {
    const CONNECTIONS: u32 = 500;
    const BYTES: u32 = 1000;
    for from in [Side::Guest, Side::Host] {
        let port = stage.port();
        let kind = Kind::Stream;
        stage
            .peer(from.other())
            .call(Command::Echo { port, kind })?;
        stage.peer(from).call(Command::Crowd {
            port,
            connections: CONNECTIONS,
            bytes: BYTES,
        })?;
    }
    Ok(WORKS.to_owned())
}

/// Messages arrive whole, each as long as it was.
fn messages(stage: &mut Stage) -> Result<String> {
    for from in [Side::Guest, Side::Host] {
        let connection = match stage.connect(from, Kind::Seqpacket) {
            Ok(connection) => connection,
            Err(error) if matches!(errno(&error), Some(ESOCKTNOSUPPORT | ENODEV)) => {
                return Ok(NO_SUCH_SOCKET.to_owned());
            }
            Err(error) => return Err(error),
        };
        for side in [from, from.other()] {
            let sizes = vec![1, 7, 4096, 65536, 100, 200_000, 2];
            let to = side.other();
            let receiving = stage.peer(to).start(Command::ReceiveMessages {
                socket: connection.of(to),
                count: sizes.len(),
            })?;
            let sent = stage.peer(side).call(Command::SendMessages {
                socket: connection.of(side),
                sizes,
                seed: 4,
            })?;
            let received = stage.peer(to).finish(receiving)?;
            ensure!(sent == received, "sent {sent:?}, received {received:?}");
        }
        stage.close(connection)?;
    }
    Ok(WORKS.to_owned())
}

/// QEMU stops the machine while data is under way. Nothing is lost, nothing is reset.
fn paused(stage: &mut Stage) -> Result<String> {
    const VOLUME: u64 = 24 * MIB;
    const PAUSE: Duration = Duration::from_millis(1500);
    let mut monitor = stage.monitor()?;
    let idle = stage.connect(Side::Host, Kind::Stream)?;
    let busy = stage.connect(Side::Guest, Kind::Stream)?;
    for from in [Side::Guest, Side::Host] {
        let to = from.other();
        let receiving = stage.peer(to).start(Command::Receive {
            socket: busy.of(to),
            bytes: Some(VOLUME),
        })?;
        let sending = stage.peer(from).start(Command::Send {
            socket: busy.of(from),
            bytes: VOLUME,
            seed: 5,
        })?;
        thread::sleep(Duration::from_millis(100));
        monitor.run("stop")?;
        thread::sleep(PAUSE);
        monitor.run("cont")?;
        let sent = stage.peer(from).finish_moved(sending)?;
        let received = stage.peer(to).finish_moved(receiving)?;
        ensure!(sent == received, "sent {sent:?}, received {received:?}");
    }
    stage
        .exchange(idle, MIB)
        .context("on the connection that was idle meanwhile")?;
    stage.close(busy)?;
    stage.close(idle)?;
    Ok(WORKS.to_owned())
}

/// The host's programs see the end of their connections, and the guest is there again.
fn guest_reboots(stage: &mut Stage) -> Result<String> {
    let connection = stage.connect(Side::Host, Kind::Stream)?;
    stage.transfer(connection, Side::Host, MIB)?;
    let acked = stage.about.acked;
    stage.reboot_guest()?;
    ended(stage, connection)?;
    ensure!(
        stage.about.acked == acked,
        "acknowledged {acked:x?} before and {:x?} after",
        stage.about.acked
    );
    for from in [Side::Guest, Side::Host] {
        conversation(stage, from).context("after the guest has booted again")?;
    }
    Ok(WORKS.to_owned())
}

/// The host's end of a connection has ended: by a close or by a reset.
fn ended(stage: &mut Stage, connection: Connection) -> Result<()> {
    match stage.host.receive(connection.host, None) {
        Ok(_) => {}
        Err(error) if errno(&error) == Some(ECONNRESET) => {}
        Err(error) => return Err(error.context("the host's end did not end")),
    }
    stage.host.close(connection.host)
}

/// The guest's addresses are I/O virtual: none of them is one that the daemon could use by
/// mistake and be right.
fn behind_a_viommu(stage: &mut Stage) -> Result<String> {
    const VOLUME: u64 = 8 * MIB;
    stage.restart_vmm_with_viommu()?;
    let log = stage.daemon_log()?;
    let said = log.lines().rev().find(|line| line.contains("features: "));
    let said = said.context("the daemon does not say what the guest acknowledged")?;
    ensure!(
        said.contains("ACCESS_PLATFORM"),
        "QEMU translates nothing: the daemon says {said}"
    );
    for from in [Side::Guest, Side::Host] {
        let connection = stage.connect(from, Kind::Stream)?;
        stage.exchange(connection, VOLUME)?;
        stage.close(connection)?;
    }
    stage.restart_vmm()?;
    Ok(WORKS.to_owned())
}

/// The VMM goes without a word and comes back: the daemon serves the next one.
fn vmm_restarts(stage: &mut Stage) -> Result<String> {
    let connection = stage.connect(Side::Host, Kind::Stream)?;
    stage.transfer(connection, Side::Host, MIB)?;
    stage.restart_vmm()?;
    ended(stage, connection)?;
    for from in [Side::Guest, Side::Host] {
        conversation(stage, from).context("behind the next VMM")?;
    }
    Ok(WORKS.to_owned())
}

/// The guest goes on, but its socket device is gone until its VMM starts again: QEMU's
/// vhost-user-vsock does not reconnect.
fn daemon_restarts(stage: &mut Stage) -> Result<String> {
    let connection = stage.connect(Side::Host, Kind::Stream)?;
    stage.transfer(connection, Side::Host, MIB)?;
    stage.restart_daemon()?;
    ended(stage, connection)?;
    stage.guest.about().context("the guest does not go on")?;
    stage.restart_vmm()?;
    for from in [Side::Guest, Side::Host] {
        conversation(stage, from).context("behind the next VMM")?;
    }
    Ok(WORKS.to_owned())
}
