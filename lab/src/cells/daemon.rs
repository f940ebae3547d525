// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon behind vhost-user, on either backend: a whole conversation, stops in the
//! middle of one, front ends that leave, the same guest behind the next one, another
//! guest behind the one after it. And its userspace path, forwarded to the host's vsock.

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Result};
use crosvm_vsock::address::{Cid, Port};
use crosvm_vsock::compat::{IotlbBit, Mode};
use crosvm_vsock::features::FeatureSet;
use crosvm_vsock::userspace::listener::HostPlace;
use guest_driver::packet::Event;
use guest_driver::vhost_user::{Vmm, ACCESS_PLATFORM};
use guest_driver::{Guest, GuestConfig, SocketType};

use super::{Cell, Host, WORKS};
use crate::conversation::{self, Sides};
use crate::daemon_rig::Daemon;
use crate::host::{self, fresh_port, Programs, TIMEOUT};
use crate::rig::fresh_cid;

pub(super) fn cells(host: &Host) -> Vec<Cell> {
    vec![
        host.cell("daemon, backend kernel", Mode::Off, |host| kernel(host, 0)),
        host.cell(
            "daemon, backend kernel, frontend acks 33",
            Mode::Off,
            |host| kernel(host, ACCESS_PLATFORM),
        ),
        host.any_mode("daemon, backend userspace", |_| userspace()),
        host.any_mode("daemon, forwarded to the host's vsock", forwarded),
    ]
}

fn kernel(host: &Host, platform: u64) -> Result<&'static str> {
    let cid = fresh_cid();
    let daemon = Daemon::kernel(cid)?;
    let vm = Vm {
        cid,
        daemon: &daemon,
        platform,
        programs: Programs::Vsock,
        seqpacket: host.seqpacket(),
    };
    vm.live()?;
    daemon.end()?;
    Ok(WORKS)
}

fn userspace() -> Result<&'static str> {
    let cid = fresh_cid();
    let uds_path: PathBuf = std::env::temp_dir().join(format!("vm-{cid}.vsock"));
    let daemon = Daemon::userspace(cid, HostPlace::Unix(uds_path.clone()))?;
    let vm = Vm {
        cid,
        daemon: &daemon,
        platform: ACCESS_PLATFORM,
        programs: Programs::Unix(&uds_path),
        seqpacket: true,
    };
    vm.live()?;
    daemon.end()?;
    Ok(WORKS)
}

/// A guest and the host's programs on `AF_VSOCK`, with the daemon between them: each side
/// connects, in both types of sockets that the kernel has.
fn forwarded(host: &Host) -> Result<&'static str> {
    /// The host itself, by loopback.
    const LOCAL: u64 = 1;
    /// Nobody here has it: programs of the host stand in.
    const OTHER_VM: u64 = 77;
    const BYTES: u64 = 4 << 20;
    let cid = fresh_cid();
    let listen = fresh_port();
    let place = HostPlace::Vsock {
        cid: Cid::LOCAL,
        listen: vec![Port(listen)],
    };
    let daemon = Daemon::userspace(cid, place)?;
    let config = GuestConfig {
        cid,
        timeout: TIMEOUT,
        ..GuestConfig::default()
    };
    let guest = Guest::new(config.clone())?;
    let mut vmm = Vmm::connect(daemon.socket())?;
    vmm.start(&guest, &config)?;

    let port = fresh_port();
    let listener = host::listen(port, SocketType::STREAM)?;
    for to in [LOCAL, conversation::HOST, OTHER_VM] {
        let stream = guest
            .connect(to, port, SocketType::STREAM)
            .with_context(|| format!("the guest connects to CID {to}"))?;
        let socket = host::accept(&listener)?;
        conversation::exchange(&stream, &socket, BYTES, to)
            .with_context(|| format!("the guest's connection to CID {to}"))?;
    }
    match guest.connect(conversation::HOST, fresh_port(), SocketType::STREAM) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        other => bail!("a port nobody listens on: {:?}", other.map(drop)),
    }
    let listener = guest.listen(listen, SocketType::STREAM)?;
    let socket = host::connect(LOCAL, listen, SocketType::STREAM)?;
    let stream = listener.accept()?;
    conversation::exchange(&stream, &socket, BYTES, 5).context("the host's connection")?;
    if host.seqpacket() {
        forwarded_messages(&guest)?;
    }
    check_quiet(&guest)?;
    drop(vmm);
    daemon.end()?;
    Ok(WORKS)
}

fn forwarded_messages(guest: &Guest) -> Result<()> {
    let port = fresh_port();
    let listener = host::listen(port, SocketType::SEQPACKET)?;
    let stream = guest.connect(conversation::HOST, port, SocketType::SEQPACKET)?;
    let socket = host::accept(&listener)?;
    for size in [1, 5000, 60_000] {
        let message = vec![size as u8; size];
        stream.send_msg(&message, false)?;
        let mut received = vec![0; 2 * size];
        let len = Read::read(&mut &socket, &mut received)?;
        ensure!(
            received[..len] == message,
            "the host got {len} bytes of {size}"
        );
        Write::write_all(&mut &socket, &message)?;
        received.clear();
        stream.recv_msg(&mut received)?.context("a message")?;
        ensure!(
            received == message,
            "the guest got {} bytes of {size}",
            received.len()
        );
    }
    Ok(())
}

/// The VMM's and the host's side of the daemon.
struct Vm<'a> {
    cid: u64,
    daemon: &'a Daemon,
    /// What its front ends acknowledge beside the rest.
    platform: u64,
    programs: Programs<'a>,
    seqpacket: bool,
}

impl Vm<'_> {
    fn live(&self) -> Result<()> {
        let config = GuestConfig {
            cid: self.cid,
            indirect: true,
            timeout: TIMEOUT,
            ..GuestConfig::default()
        };
        let guest = Guest::new(config.clone())?;
        let mut vmm = self.boot(&guest, &config).context("the first front end")?;
        conversation::hold(self.sides(&guest), self.seqpacket, 110)?;
        self.stops(&mut vmm, &guest)?;
        drop(vmm);

        let vmm = self.boot(&guest, &config).context("the second front end")?;
        let event = guest
            .wait_event(Duration::from_secs(10))
            .context("the reset event")?;
        ensure!(event == Event::TRANSPORT_RESET, "the guest saw {event:?}");
        conversation::brief(self.sides(&guest), 111).context("behind the second front end")?;
        check_quiet(&guest)?;
        drop((vmm, guest));

        let guest = Guest::new(config.clone())?;
        let vmm = self.boot(&guest, &config).context("the third front end")?;
        conversation::brief(self.sides(&guest), 112).context("behind the third front end")?;
        check_quiet(&guest)?;
        drop(vmm);
        Ok(())
    }

    fn sides<'a>(&'a self, guest: &'a Guest) -> Sides<'a> {
        let programs = self.programs;
        Sides { guest, programs }
    }

    /// A front end that starts the device, and what the kernel was told by that.
    fn boot(&self, guest: &Guest, config: &GuestConfig) -> Result<Vmm> {
        let mut vmm = Vmm::connect(self.daemon.socket())?;
        vmm.extra_features = self.platform;
        vmm.start(guest, config)?;
        if let Programs::Vsock = self.programs {
            let devices = self.daemon.devices();
            let (last, before) = devices.split_last().context("no device was opened")?;
            ensure!(
                before.iter().all(Option::is_none),
                "a device of an earlier guest is open still"
            );
            let told = last.as_ref().context("the device is closed")?.told();
            let either = IotlbBit::default().either();
            ensure!(told != FeatureSet::EMPTY, "the kernel was told nothing");
            ensure!(
                (told - either) == told,
                "a bit of {either} went down: {told}"
            );
        }
        Ok(vmm)
    }

    /// Stops and goes on, as a VMM does that pauses its VM, while both sides send.
    fn stops(&self, vmm: &mut Vmm, guest: &Guest) -> Result<()> {
        const STOPS: usize = 5;
        const PAUSE: Duration = Duration::from_millis(20);
        let (stream, socket) = conversation::from_guest(self.sides(guest), SocketType::STREAM)?;
        std::thread::scope(|scope| {
            let traffic = scope.spawn(|| conversation::exchange(&stream, &socket, 4 << 20, 4));
            let mut stops = 0;
            while !traffic.is_finished() && stops < STOPS {
                std::thread::sleep(PAUSE);
                vmm.stop()?;
                std::thread::sleep(PAUSE);
                vmm.start_rings(guest)?;
                stops += 1;
            }
            let traffic = traffic
                .join()
                .map_err(|_| anyhow!("the traffic panicked"))?;
            traffic.with_context(|| format!("after {stops} stops"))?;
            ensure!(stops > 0, "the traffic ended before the first stop");
            Ok(())
        })
    }
}

/// What has gone wrong in the guest without anybody asking for it.
fn check_quiet(guest: &Guest) -> Result<()> {
    if let Some(failure) = guest.failure() {
        return Err(anyhow!("the guest driver gave up: {failure}"));
    }
    match guest.take_violations().first() {
        Some(violation) => Err(anyhow!("the device broke a rule: {violation:?}")),
        None => Ok(()),
    }
}
