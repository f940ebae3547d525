// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a working vsock does, tried between a guest and its host: the same
//! conversation in every cell that is expected to work.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use guest_driver::check::{expect_end, receive, send, Pieces};
use guest_driver::rng::Rng;
use guest_driver::{Guest, SocketType, Stream};
use socket2::Socket;

use crate::host::{accept, fresh_port, Programs};

/// The host's CID.
pub const HOST: u64 = 2;
/// Connections opened from each side.
const CONNECTIONS: u64 = 8;
/// Bytes each way, over all connections.
const VOLUME: u64 = 16 << 20;
/// "At once", on a machine that emulates.
const AT_ONCE: Duration = Duration::from_secs(5);

/// One end of a connection, on either side.
pub trait End: Sync {
    /// Reads what there is.
    fn read(&self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits.
    fn write(&self, from: &[u8]) -> io::Result<usize>;
    /// Says that nothing more will be written.
    fn finish(&self) -> io::Result<()>;
}

impl End for Stream {
    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut stream: &Stream = self;
        Read::read(&mut stream, into)
    }
    fn write(&self, from: &[u8]) -> io::Result<usize> {
        let mut stream: &Stream = self;
        Write::write(&mut stream, from)
    }
    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl End for Socket {
    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut socket: &Socket = self;
        Read::read(&mut socket, into)
    }
    fn write(&self, from: &[u8]) -> io::Result<usize> {
        let mut socket: &Socket = self;
        Write::write(&mut socket, from)
    }
    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Who talks: a guest and the programs of its host.
#[derive(Clone, Copy)]
pub struct Sides<'a> {
    /// The guest.
    pub guest: &'a Guest,
    /// Where the host's programs are.
    pub programs: Programs<'a>,
}

impl<'a> From<&'a Guest> for Sides<'a> {
    fn from(guest: &'a Guest) -> Self {
        let programs = Programs::Vsock;
        Self { guest, programs }
    }
}

struct Reading<'a>(&'a dyn End);

impl Read for Reading<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

struct Writing<'a>(&'a dyn End);

impl Write for Writing<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.write(from)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The whole conversation.
pub fn hold<'a>(sides: impl Into<Sides<'a>>, seqpacket: bool, seed: u64) -> Result<()> {
    let sides = sides.into();
    volume(sides, VOLUME, seed)?;
    half_close(sides).context("half-close")?;
    refusals(sides).context("a port nobody listens on")?;
    if seqpacket {
        messages(sides, seed).context("seqpacket")?;
    }
    Ok(())
}

/// A short one, for where another conversation has to be told from silence.
pub fn brief<'a>(sides: impl Into<Sides<'a>>, seed: u64) -> Result<()> {
    volume(sides, 1 << 20, seed)
}

/// A connection opened by the guest.
pub fn from_guest<'a>(sides: impl Into<Sides<'a>>, kind: SocketType) -> Result<(Stream, Socket)> {
    let Sides { guest, programs } = sides.into();
    let port = fresh_port();
    let listener = programs
        .listen(port, kind)
        .context("listening on the host")?;
    let stream = guest
        .connect(HOST, port, kind)
        .context("connecting from the guest")?;
    let socket = accept(&listener).context("accepting on the host")?;
    Ok((stream, socket))
}

/// A connection opened by the host.
pub fn from_host<'a>(sides: impl Into<Sides<'a>>, kind: SocketType) -> Result<(Stream, Socket)> {
    let Sides { guest, programs } = sides.into();
    let port = fresh_port();
    let listener = guest.listen(port, kind).context("listening in the guest")?;
    let socket = programs
        .connect(guest.cid(), port, kind)
        .context("connecting from the host")?;
    let stream = listener.accept().context("accepting in the guest")?;
    Ok((stream, socket))
}

/// Connections from both sides, all at once, both ways at once, in pieces of
/// random size, every byte checked, to the end of each stream.
pub fn volume<'a>(sides: impl Into<Sides<'a>>, bytes: u64, seed: u64) -> Result<()> {
    let sides = sides.into();
    let share = bytes / (2 * CONNECTIONS);
    std::thread::scope(|scope| {
        let conversations: Vec<_> = (0..2 * CONNECTIONS)
            .map(|number| {
                scope.spawn(move || {
                    let kind = SocketType::STREAM;
                    let (who, (stream, socket)) = match number % 2 {
                        0 => ("the guest", from_guest(sides, kind)?),
                        _ => ("the host", from_host(sides, kind)?),
                    };
                    exchange(&stream, &socket, share, seed + number)
                        .with_context(|| format!("connection {number}, opened by {who}"))
                })
            })
            .collect();
        conversations.into_iter().try_for_each(|conversation| {
            conversation
                .join()
                .map_err(|_| anyhow!("a conversation panicked"))?
        })
    })
}

/// `bytes` both ways at once; each side ends its direction when it is done.
pub fn exchange(guest: &dyn End, host: &dyn End, bytes: u64, seed: u64) -> Result<()> {
    let pieces = |seed| Pieces::Random {
        max: 48 << 10,
        seed,
    };
    let up = |end: &dyn End, seed| {
        send(Writing(end), seed, bytes, pieces(seed)).and_then(|_| end.finish())
    };
    let down = |end: &dyn End, seed| {
        receive(Reading(end), seed, bytes, pieces(!seed)).and_then(|_| expect_end(Reading(end)))
    };
    let (there, back) = (2 * seed, 2 * seed + 1);
    std::thread::scope(|scope| {
        let tasks = [
            ("the guest's sending", scope.spawn(move || up(guest, there))),
            (
                "the host's receiving",
                scope.spawn(move || down(host, there)),
            ),
            ("the host's sending", scope.spawn(move || up(host, back))),
            (
                "the guest's receiving",
                scope.spawn(move || down(guest, back)),
            ),
        ];
        tasks.into_iter().try_for_each(|(what, task)| {
            let done = task.join().map_err(|_| anyhow!("{what} panicked"))?;
            done.context(what)
        })
    })
}

/// Each side in turn ends its direction first, and still receives.
fn half_close(sides: Sides<'_>) -> Result<()> {
    const LATE: u64 = 256 << 10;
    let pieces = Pieces::Of(8 << 10);
    for guest_ends_first in [true, false] {
        let (stream, socket) = from_guest(sides, SocketType::STREAM)?;
        let (early, late): (&dyn End, &dyn End) = match guest_ends_first {
            true => (&stream, &socket),
            false => (&socket, &stream),
        };
        send(Writing(early), 7, 1000, pieces)?;
        early.finish()?;
        receive(Reading(late), 7, 1000, pieces)?;
        expect_end(Reading(late))
            .context("the end was not seen while the other direction flows")?;
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                send(Writing(late), 8, LATE, pieces)?;
                late.finish()
            });
            receive(Reading(early), 8, LATE, pieces)?;
            expect_end(Reading(early))?;
            sending.join().map_err(|_| anyhow!("sending panicked"))??;
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

/// Both sides are refused at once, and nothing lingers.
fn refusals(sides: Sides<'_>) -> Result<()> {
    let Sides { guest, programs } = sides;
    let start = Instant::now();
    match guest.connect(HOST, fresh_port(), SocketType::STREAM) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) => bail!("the guest was not refused: {error}"),
        Ok(_) => bail!("the guest was connected to a port nobody listens on"),
    }
    match programs.connect(guest.cid(), fresh_port(), SocketType::STREAM) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {}
        Err(error) => bail!("the host was not refused: {error}"),
        Ok(_) => bail!("the host was connected to a port nobody listens on"),
    }
    let took = start.elapsed();
    ensure!(took < AT_ONCE, "refused only after {took:?}");
    Ok(())
}

/// Messages of many sizes keep their boundaries both ways.
fn messages(sides: Sides<'_>, seed: u64) -> Result<()> {
    for opened_by_guest in [true, false] {
        let (stream, socket) = match opened_by_guest {
            true => from_guest(sides, SocketType::SEQPACKET)?,
            false => from_host(sides, SocketType::SEQPACKET)?,
        };
        let mut rng = Rng::new(seed);
        let mut received = Vec::new();
        for size in [1, 44, 4096, 5000, 65536, 100_000]
            .into_iter()
            .chain((0..20).map(|_| rng.up_to(90_000)))
        {
            let message: Vec<u8> = (0..size).map(|i| (i as u64 ^ seed) as u8).collect();
            stream.send_msg(&message, false)?;
            received.resize(200_000, 0);
            let filled = Read::read(&mut &socket, &mut received)?;
            ensure!(
                received[..filled] == message,
                "the host got {filled} bytes of {size}"
            );
            let sent = Write::write(&mut &socket, &message)?;
            ensure!(sent == size, "the host sent {sent} bytes of {size}");
            received.clear();
            let got = stream.recv_msg(&mut received)?.context("a message")?;
            ensure!(
                got.len == size && received == message,
                "the guest got {} bytes of {size}",
                got.len
            );
        }
        socket.shutdown(Shutdown::Write)?;
        ensure!(
            stream.recv_msg(&mut received)?.is_none(),
            "a message after the end"
        );
    }
    Ok(())
}
