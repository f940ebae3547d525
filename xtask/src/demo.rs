// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo`: what the project is for, in a minute.
//!
//! Starts the daemon, boots a stock Debian guest against it, holds a conversation from
//! both sides and says at each step what happens and how to do it by hand.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clap::{Args, ValueEnum};
use crosvm_vsock::features::{Feature, FeatureSet};
use guest_agent::protocol::{Answer, Command, Handle, Kind};

use crate::guests::setting::{self, Backend, Setting};
use crate::guests::stage::{Side, Stage, CID};
use crate::guests::workshop::Workshop;
use crate::kernels::NEWEST;
use crate::lab::workspace;

/// Where the host kernel's vhost-vsock is.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";
/// Where `--keep` has an echo, in the guest and on the host.
const ECHO: u32 = 7;

/// What to show.
#[derive(Debug, Args)]
pub struct Options {
    /// The guest's kernel: 5.10, 6.1, 6.12 or 7.
    #[arg(long, value_name = "KERNEL", default_value = NEWEST)]
    guest: String,
    /// What moves the data.
    #[arg(long, value_enum, default_value_t = Wish::Userspace)]
    backend: Wish,
    /// Offers bit 33 (VIRTIO_F_ACCESS_PLATFORM) to the guest.
    #[arg(long)]
    platform_access: bool,
    /// Leaves the guest running until Ctrl-C, and says how to talk to it.
    #[arg(long)]
    keep: bool,
}

/// The backend that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wish {
    /// The daemon itself, to Unix sockets.
    Userspace,
    /// The host kernel's vhost-vsock; host programs use AF_VSOCK.
    Kernel,
    /// The kernel if /dev/vhost-vsock can be opened, else userspace (the daemon's own `auto`
    /// goes by where host programs are).
    Auto,
}

impl Wish {
    /// The backend, and why.
    fn decide(self) -> Result<(Backend, String)> {
        let open = OpenOptions::new().read(true).write(true).open(VHOST_VSOCK);
        match (self, open) {
            (Self::Userspace, _) => Ok((Backend::Userspace, "it needs no kernel module".into())),
            (_, Ok(_)) => Ok((Backend::Kernel, format!("{VHOST_VSOCK} can be opened"))),
            (Self::Auto, Err(error)) => Ok((Backend::Userspace, format!("{VHOST_VSOCK}: {error}"))),
            (Self::Kernel, Err(error)) => bail!(
                "--backend kernel needs {VHOST_VSOCK}, which cannot be opened: {error}. \
                 Try `sudo modprobe vhost_vsock` and the rights to it, or --backend userspace"
            ),
        }
    }
}

/// Shows it. Returns whether all went as it should.
///
/// # Errors
/// When something does not; the error says which step.
pub fn run(options: &Options) -> Result<bool> {
    let start = Instant::now();
    let (backend, why) = options.backend.decide()?;
    let setting = Setting {
        guest: setting::stock_kernel(&options.guest)?,
        host: None,
        backend,
        platform_access: options.platform_access,
    };
    let mut workshop = Workshop::open(false)?;
    println!(
        "\n1. A daemon and a guest: Debian's Linux {}",
        setting.guest.name
    );
    println!("   backend {backend}: {why}");
    println!("   booting under QEMU ...");
    let booting = Instant::now();
    let mut stage = Stage::open(&mut workshop, setting)?;
    println!(
        "   Linux {} is up after {:.1} s; behind its virtio-vsock driver:\n   $ {}",
        stage.about.kernel,
        booting.elapsed().as_secs_f32(),
        stage.daemon_command()
    );
    negotiated(&mut stage)?;
    println!("\n2. The guest calls the host");
    talk(&mut stage, Side::Guest).context("the guest calls the host")?;
    println!("\n3. The host calls the guest");
    talk(&mut stage, Side::Host).context("the host calls the guest")?;
    println!("\n4. A file each way");
    let readme = workspace().join("README.md").display().to_string();
    let copy = stage.scratch("from-the-guest");
    file(&mut stage, Side::Host, &readme, "/tmp/README.md").context("a file to the guest")?;
    file(
        &mut stage,
        Side::Guest,
        "/init",
        &copy.display().to_string(),
    )
    .context("a file to the host")?;
    println!("\n5. 64 MiB each way, at once");
    volume(&mut stage)?;
    println!(
        "\nAll of it arrived as it was sent, {:.0} s in total.",
        start.elapsed().as_secs_f32()
    );
    if options.keep {
        return keep(&mut stage);
    }
    println!(
        "\nTry next:\n  \
         cargo xtask demo --platform-access      the guest acknowledges bit 33\n  \
         cargo xtask demo --guest 5.10 --keep    an old guest that stays, to talk to\n  \
         cargo xtask guests                      all guests, all hosts, everything they do\n  \
         cargo xtask kernels --demo              the failure of 2022, and what this device does about it"
    );
    Ok(true)
}

fn negotiated(stage: &mut Stage) -> Result<()> {
    let acked = stage.about.acked.context("the guest has no vsock device")?;
    let acked = FeatureSet::from_bits(acked);
    println!("   the guest's CID is {CID}; its driver acknowledges {acked}");
    let bit = if acked.has(Feature::ACCESS_PLATFORM) {
        "acknowledged: the guest uses the platform's DMA API, and the device does not mind"
    } else if stage.setting.platform_access {
        bail!("bit 33 was offered, and the guest did not acknowledge it")
    } else {
        "not offered (try --platform-access): the guest uses its physical addresses"
    };
    println!("   bit 33 {bit}");
    Ok(())
}

/// A greeting and its answer.
fn talk(stage: &mut Stage, from: Side) -> Result<()> {
    let connection = stage.connect(from, Kind::Stream)?;
    let port = stage.last_port();
    println!("   {}", how(stage, from, port));
    let (near, far) = match from {
        Side::Guest => (Side::Guest, Side::Host),
        Side::Host => (Side::Host, Side::Guest),
    };
    let (kernel, host_kernel) = (stage.about.kernel.clone(), stage.host_kernel.clone());
    let greeting = |side: Side| match side {
        Side::Guest => format!("Hello from Linux {kernel}, in the guest."),
        Side::Host => format!("Hello from Linux {host_kernel}, on the host."),
    };
    for (from, to) in [(near, far), (far, near)] {
        let text = greeting(from);
        let socket = connection.of(from);
        let said = text.clone();
        stage.peer(from).call(Command::Say { socket, text })?;
        let heard = hear(stage, to, connection.of(to))?;
        let name = match to {
            Side::Guest => "the guest",
            Side::Host => "the host",
        };
        println!("   {name} hears: {heard}");
        ensure!(heard == said, "it should have heard: {said}");
    }
    stage.close(connection)
}

/// How the same is done by hand.
fn how(stage: &Stage, from: Side, port: u32) -> String {
    match (from, stage.uds_path()) {
        (Side::Guest, Some(path)) => {
            format!(
                "it connects to CID 2, port {port}; a program of the host listens at\n   {}_{port}",
                path.display()
            )
        }
        (Side::Guest, None) => {
            format!("it connects to CID 2, port {port}; a program of the host listens there, on AF_VSOCK")
        }
        (Side::Host, Some(path)) => {
            format!(
                "it connects to {},\n   says `CONNECT {port}` and hears `OK {port}`",
                path.display()
            )
        }
        (Side::Host, None) => format!("it connects to CID {CID}, port {port}, on AF_VSOCK"),
    }
}

fn hear(stage: &mut Stage, side: Side, socket: Handle) -> Result<String> {
    match stage.peer(side).call(Command::Hear { socket })? {
        Answer::Text(text) => Ok(text),
        other => bail!("{other:?} is not what was heard"),
    }
}

/// A file that `from` sends, from its `path` to the other side's `copy`.
fn file(stage: &mut Stage, from: Side, path: &str, copy: &str) -> Result<()> {
    let connection = stage.connect(from, Kind::Stream)?;
    let (to, arrow) = match from {
        Side::Guest => (Side::Host, "guest -> host"),
        Side::Host => (Side::Guest, "host -> guest"),
    };
    let receiving = stage.peer(to).start(Command::ReceiveFile {
        socket: connection.of(to),
        path: copy.to_owned(),
    })?;
    let sending = stage.peer(from).start(Command::SendFile {
        socket: connection.of(from),
        path: path.to_owned(),
    })?;
    let sent = stage.peer(from).finish_moved(sending)?;
    stage.peer(from).close_half(connection.of(from))?;
    let received = stage.peer(to).finish_moved(receiving)?;
    ensure!(sent == received, "sent {sent:?}, received {received:?}");
    let name = PathBuf::from(path);
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    println!(
        "   {arrow}  {name}: {} bytes, checksum {:016x} on both sides",
        sent.bytes, sent.sum
    );
    stage.close(connection)
}

fn volume(stage: &mut Stage) -> Result<()> {
    const VOLUME: u64 = 64 << 20;
    let start = Instant::now();
    let connection = stage.connect(Side::Guest, Kind::Stream)?;
    stage.exchange(connection, VOLUME)?;
    stage.close(connection)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "   {:.1} s: {:.0} MiB/s, the making and checking of the bytes included",
        seconds,
        (2 * (VOLUME >> 20)) as f64 / seconds
    );
    Ok(())
}

/// Services on both sides, until Ctrl-C or the end of the guest.
fn keep(stage: &mut Stage) -> Result<bool> {
    const GLANCE: Duration = Duration::from_secs(2);
    let kind = Kind::Stream;
    let echo = Command::Echo { port: ECHO, kind };
    stage.guest.call(echo.clone())?;
    stage.host.call(echo)?;
    println!("\nThe guest stays. Port {ECHO} of the guest sends back what it gets:");
    match stage.uds_path() {
        Some(path) => println!(
            "  (echo CONNECT {ECHO}; cat) | socat - UNIX-CONNECT:{}",
            path.display()
        ),
        None => println!("  socat - VSOCK-CONNECT:{CID}:{ECHO}"),
    }
    println!(
        "Its console and the daemon's log are in {}.",
        stage.log_place()
    );
    println!("Ctrl-C ends everything.");
    loop {
        std::thread::sleep(GLANCE);
        stage.guest.about().context("the guest has ended")?;
    }
}
