// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host, a daemon and a guest, up and ready to talk.
//!
//! On this machine the host's programs are an agent in this process. On a nested host
//! everything is one machine deeper: the daemon and the guest's QEMU run inside it,
//! started by its agent, and the guest's agent is reached through a serial port of its.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use guest_agent::protocol::{About, Answer, Command, Handle, Kind};
use guest_agent::sockets::Place;

use super::daemon::{Daemon, Settings};
use super::inner::{self, InnerDaemon, DAEMON, VMM};
use super::logs::Logs;
use super::machine::{Guest, NestedHost, Qemu};
use super::peer::Peer;
use super::programs::Programs;
use super::qmp::Monitor;
use super::setting::{Backend, Setting};
use super::workshop::{Workshop, INNER};
use crate::interrupt::Unfinished;

/// The guest's CID, here as in every nested host.
pub const CID: u32 = 42;
/// The first port that rows use; no port is used twice, since a socket that lingers
/// answers for its port.
const FIRST_PORT: u32 = 10_000;

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Programs of the host.
    Host,
    /// Programs of the guest.
    Guest,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }
}

/// Everything that is up. Dropped, it ends in the order of its fields.
pub struct Stage {
    /// What this is.
    pub setting: Setting,
    /// The programs of the host.
    pub host: Peer,
    /// The programs of the guest.
    pub guest: Peer,
    /// What the guest said when it had booted.
    pub about: About,
    /// The release of the host's kernel.
    pub host_kernel: String,
    /// Debian's programs, if the guest has them.
    pub programs: Option<Programs>,
    /// `None` only while it is exchanged.
    qemu: Option<Qemu>,
    /// QEMU's options, for another start.
    options: Vec<String>,
    /// The same with a vIOMMU; none on a nested host.
    viommu_options: Option<Vec<String>>,
    daemon: Option<Daemon>,
    settings: Settings,
    logs: Logs,
    monitor: Option<PathBuf>,
    boot: Duration,
    next_port: u32,
    sockets: Unfinished,
}

impl Stage {
    /// Brings everything up.
    ///
    /// # Errors
    /// When something does not come up; the error has the end of the logs.
    pub fn open(workshop: &mut Workshop, setting: Setting) -> Result<Self> {
        let logs = Logs::new(workshop.directory(), &setting);
        let sockets = workshop.sockets()?;
        let opened = match setting.host {
            None => Self::here(workshop, setting, sockets, logs.clone()),
            Some(_) => Self::nested(workshop, setting, sockets, logs.clone()),
        };
        opened.map_err(|error| match logs.last_words() {
            // Nothing was started yet.
            words if words.is_empty() => error,
            words => error.context(words),
        })
    }

    fn here(
        workshop: &mut Workshop,
        setting: Setting,
        sockets: Unfinished,
        logs: Logs,
    ) -> Result<Self> {
        let programs = setting.has_programs().then(|| workshop.programs());
        let programs = programs.transpose()?;
        let files = match &programs {
            Some(programs) => workshop.guest_with(&setting.guest, programs)?,
            None => workshop.guest(&setting.guest)?,
        };
        let accel = workshop.accel(&files)?;
        let uds_path = sockets.path().join("vm.vsock");
        let settings = Settings {
            program: workshop.daemon().to_owned(),
            socket: sockets.path().join("vhost.socket"),
            cid: CID,
            uds_path: (setting.backend == Backend::Userspace).then(|| uds_path.clone()),
        };
        let place = match setting.backend {
            Backend::Userspace => Place::Hybrid(uds_path),
            Backend::Kernel => Place::Vsock(CID),
        };
        let daemon = Daemon::start(&settings, &logs.daemon)?;
        let monitor = sockets.path().join("qmp.socket");
        let mut options: Vec<String> = accel.arguments().map(str::to_owned).into();
        options.extend([
            "-qmp".to_owned(),
            format!("unix:{},server=on,wait=off", monitor.display()),
        ]);
        let mut viommu_options = options.clone();
        let guest = Guest {
            vmlinuz: &files.vmlinuz,
            initramfs: &files.initramfs,
            console: &logs.console,
            control: "stdio,signal=off",
            device: &settings.socket,
            platform_access: setting.platform_access,
            viommu: false,
            nested: false,
        };
        options.extend(guest.options());
        let translated = Guest {
            viommu: true,
            ..guest
        };
        viommu_options.extend(translated.options());
        let (qemu, mut guest) = Qemu::start("the guest", &options, &logs.qemu)?;
        let boot = accel.boot_limit();
        let about = guest.hello(boot)?;
        let mut host = Peer::here("the host", place);
        let host_kernel = host.about()?.kernel;
        Ok(Self {
            setting,
            host,
            guest,
            about,
            host_kernel,
            programs,
            qemu: Some(qemu),
            options,
            viommu_options: Some(viommu_options),
            daemon: Some(daemon),
            settings,
            logs,
            monitor: Some(monitor),
            boot,
            next_port: FIRST_PORT,
            sockets,
        })
    }

    fn nested(
        workshop: &mut Workshop,
        setting: Setting,
        sockets: Unfinished,
        logs: Logs,
    ) -> Result<Self> {
        let files = workshop.nested_host(&setting)?;
        let accel = workshop.accel(&files)?;
        let guest_control = sockets.path().join("guest.socket");
        let nested = NestedHost {
            vmlinuz: &files.vmlinuz,
            initramfs: &files.initramfs,
            console: &logs.console,
            guest_control: &guest_control,
            cid: CID,
        };
        let mut options: Vec<String> = accel.host_arguments().map(str::to_owned).into();
        options.extend(nested.options());
        let (qemu, mut host) = Qemu::start("the nested host", &options, &logs.qemu)?;
        let boot = accel.boot_limit();
        let host_kernel = host.hello(boot)?.kernel;

        let settings = Settings {
            program: PathBuf::from(INNER.daemon),
            socket: PathBuf::from("/tmp/vhost.socket"),
            cid: CID,
            uds_path: None,
        };
        let control = UnixStream::connect(&guest_control)
            .context("cannot reach the serial port of the nested host")?;
        let mut guest = Peer::behind("the guest", control.try_clone()?, control);
        let mut stage_daemon = InnerDaemon { host: &mut host };
        stage_daemon.start(&settings)?;
        let inner = Guest {
            vmlinuz: Path::new(INNER.vmlinuz),
            initramfs: Path::new(INNER.initramfs),
            console: Path::new(INNER.console),
            control: INNER.control,
            device: &settings.socket,
            platform_access: setting.platform_access,
            viommu: false,
            nested: true,
        };
        let mut arguments: Vec<String> = INNER.accel.map(str::to_owned).into();
        arguments.extend(inner.options());
        host.call(Command::Start {
            name: VMM.to_owned(),
            program: INNER.qemu.to_owned(),
            arguments,
        })?;
        // Emulated inside of an emulation, at the worst.
        let boot = boot * 2;
        let about = match guest.hello(boot) {
            Ok(about) => about,
            Err(error) => return Err(error.context(inner::last_words(&mut host))),
        };
        Ok(Self {
            setting,
            host,
            guest,
            about,
            host_kernel,
            programs: None,
            qemu: Some(qemu),
            options,
            viommu_options: None,
            daemon: None,
            settings,
            logs,
            monitor: None,
            boot,
            next_port: FIRST_PORT,
            sockets,
        })
    }

    /// The agent of a side.
    pub fn peer(&mut self, side: Side) -> &mut Peer {
        match side {
            Side::Host => &mut self.host,
            Side::Guest => &mut self.guest,
        }
    }

    /// A port that nobody has used.
    pub fn port(&mut self) -> u32 {
        self.next_port += 1;
        self.next_port
    }

    /// The port of the last connection.
    pub fn last_port(&self) -> u32 {
        self.next_port
    }

    /// A path for a file that lives as long as this.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    /// The daemon's command line.
    pub fn daemon_command(&self) -> String {
        format!("crosvm-vsock {}", self.settings.arguments().join(" "))
    }

    /// The directory of the logs.
    pub fn log_place(&self) -> String {
        let place = self.logs.console.parent();
        place.unwrap_or(Path::new(".")).display().to_string()
    }

    /// A connection that `from` opens: its socket in the host, and in the guest.
    ///
    /// # Errors
    /// When it is not established.
    pub fn connect(&mut self, from: Side, kind: Kind) -> Result<Connection> {
        let port = self.port();
        let (near, far) = match from {
            Side::Host => (&mut self.host, &mut self.guest),
            Side::Guest => (&mut self.guest, &mut self.host),
        };
        let listener = far.listen(port, kind)?;
        let connecting = near.start(Command::Connect { port, kind })?;
        let accepted = far.start(Command::Accept { listener })?;
        let near_socket = near.finish_socket(connecting)?;
        let far_socket = far.finish_socket(accepted)?;
        far.close(listener)?;
        let (host, guest) = match from {
            Side::Host => (near_socket, far_socket),
            Side::Guest => (far_socket, near_socket),
        };
        Ok(Connection { host, guest })
    }

    /// Closes both ends.
    ///
    /// # Errors
    /// When an agent is gone.
    pub fn close(&mut self, connection: Connection) -> Result<()> {
        self.host.close(connection.host)?;
        self.guest.close(connection.guest)
    }

    /// Sends from one side; what arrives at the other must be the same.
    ///
    /// # Errors
    /// When it is not, or does not arrive.
    pub fn transfer(&mut self, connection: Connection, from: Side, bytes: u64) -> Result<()> {
        let to = from.other();
        let receiving = self.peer(to).start(Command::Receive {
            socket: connection.of(to),
            bytes: Some(bytes),
        })?;
        let sent = self.peer(from).send(connection.of(from), bytes, bytes)?;
        let received = self.peer(to).finish_moved(receiving)?;
        ensure!(sent == received, "sent {sent:?}, received {received:?}");
        Ok(())
    }

    /// Both sides send at once.
    ///
    /// # Errors
    /// As [`Self::transfer`].
    pub fn exchange(&mut self, connection: Connection, bytes: u64) -> Result<()> {
        let mut tickets = Vec::new();
        for (side, seed) in [(Side::Host, 1), (Side::Guest, 2)] {
            let socket = connection.of(side);
            let peer = self.peer(side);
            let receiving = peer.start(Command::Receive {
                socket,
                bytes: Some(bytes),
            })?;
            let sending = peer.start(Command::Send {
                socket,
                bytes,
                seed,
            })?;
            tickets.push((side, receiving, sending));
        }
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for (side, receiving, sending) in tickets {
            sent.push(self.peer(side).finish_moved(sending)?);
            received.insert(0, self.peer(side).finish_moved(receiving)?);
        }
        ensure!(sent == received, "sent {sent:?}, received {received:?}");
        Ok(())
    }

    /// Boots the guest again and waits for it.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn reboot_guest(&mut self) -> Result<()> {
        self.guest.tell(Command::Reboot)?;
        self.about = self.guest.hello(self.boot).context("after a reboot")?;
        Ok(())
    }

    /// Ends the VMM, as if it had crashed, and starts another for the same guest.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn restart_vmm(&mut self) -> Result<()> {
        self.start_vmm(&self.options.clone())
    }

    /// The same, and the other VMM has a vIOMMU.
    ///
    /// # Errors
    /// When it does not come up again, or is a nested host's.
    pub fn restart_vmm_with_viommu(&mut self) -> Result<()> {
        let options = self.viommu_options.clone();
        self.start_vmm(&options.context("a nested host's QEMU is never given a vIOMMU")?)
    }

    fn start_vmm(&mut self, options: &[String]) -> Result<()> {
        self.qemu = None;
        let (qemu, guest) = Qemu::start("the guest", options, &self.logs.qemu)?;
        self.qemu = Some(qemu);
        self.guest = guest;
        self.about = self.guest.hello(self.boot).context("after a restart")?;
        Ok(())
    }

    /// Ends the daemon with SIGTERM and starts another.
    ///
    /// # Errors
    /// When it does not end well or does not start.
    pub fn restart_daemon(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(daemon) => {
                daemon.stop()?;
                self.daemon = Some(Daemon::start(&self.settings, &self.logs.daemon)?);
                Ok(())
            }
            None => {
                let name = DAEMON.to_owned();
                let stopped = self.host.call(Command::Stop { name })?;
                let Answer::Ended { code: Some(0), .. } = stopped else {
                    bail!("the daemon did not end well on SIGTERM: {stopped:?}");
                };
                let host = &mut self.host;
                InnerDaemon { host }.start(&self.settings)
            }
        }
    }

    /// QEMU's monitor, on this machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn monitor(&self) -> Result<Monitor> {
        let path = self.monitor.as_ref();
        Monitor::connect(path.context("a nested host's QEMU has no monitor here")?)
    }

    /// What the daemon has said so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn daemon_log(&mut self) -> Result<String> {
        if self.setting.host.is_none() {
            let log = &self.logs.daemon;
            return fs::read_to_string(log)
                .with_context(|| format!("cannot read {}", log.display()));
        }
        let name = DAEMON.to_owned();
        match self.host.call(Command::Log { name })? {
            Answer::Text(text) => Ok(text),
            other => bail!("the nested host answers {other:?}, not with a log"),
        }
    }

    /// Where host programs reach the guest, if they do it through Unix sockets.
    pub fn uds_path(&self) -> Option<&Path> {
        self.settings.uds_path.as_deref()
    }

    /// The ends of the logs, for whoever has to find out.
    pub fn last_words(&mut self) -> String {
        let mut words = self.logs.last_words();
        if self.setting.host.is_some() {
            words += &inner::last_words(&mut self.host);
        }
        words
    }
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// The host's socket.
    pub host: Handle,
    /// The guest's socket.
    pub guest: Handle,
}

impl Connection {
    /// The socket of a side.
    pub fn of(self, side: Side) -> Handle {
        match side {
            Side::Host => self.host,
            Side::Guest => self.guest,
        }
    }
}
