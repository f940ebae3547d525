// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock connect`: standard input and output as a connection to a guest's port.
//!
//! Each direction ends by itself: the end of standard input is the end of what the guest
//! hears, and what it still has to say is written until it ends, too. It is the same the
//! other way round, unless the guest neither says nor hears any more: then standard input
//! may have no end, and nobody waits for it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::Args;

use super::asking::{finish, guest_cid, Answer, AskError, Where, EXIT_CODES};
use crosvm_vsock::control::client::ClientError;

/// How often it is looked whether a guest that says no more has closed the connection.
const TICK: Duration = Duration::from_millis(100);

/// Connect standard input and output to a port of a guest.
///
/// Ends when both directions have ended, or the guest has closed the connection. The end of
/// standard input ends the one direction only, and so does the end of what the guest says.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    /// CID of the guest.
    #[arg(value_parser = guest_cid)]
    cid: i64,

    /// Port of the guest.
    #[arg(value_parser = port)]
    port: i64,

    #[command(flatten)]
    place: Where,
}

fn port(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(port @ 0..=0xffff_fffe) => Ok(port),
        _ => Err(format!("`{text}` is not a vsock port (0 to 4294967294)")),
    }
}

/// Connects, and returns the exit code.
pub fn run(arguments: &Arguments) -> ExitCode {
    let connect = || -> Result<Answer, AskError> {
        let socket = dial(arguments)?;
        relay(socket)?;
        Ok(Answer::default())
    };
    finish("connect", connect())
}

fn dial(arguments: &Arguments) -> Result<UnixStream, AskError> {
    let client = arguments.place.client()?;
    let device = client.device(arguments.cid)?;
    let socket = device.connect(arguments.port).map_err(ClientError::from)?;
    // A socket of another family, as the kernel path's are, reads, writes and shuts down
    // like one of this.
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn relay(socket: UnixStream) -> Result<(), AskError> {
    let failed = |error| AskError::Io("the connection failed", error);
    let sender = socket.try_clone().map_err(failed)?;
    let (report, sent) = sync_channel(1);
    // Not joined: it may wait for input that nobody wants any more.
    std::thread::Builder::new()
        .spawn(move || {
            // Nobody listens once the guest has closed the connection.
            let _ = report.send(send(&sender));
        })
        .map_err(failed)?;
    match copy(&mut &socket, &mut io::stdout().lock(), &mut 0) {
        Ok(()) => wait_for_the_sender(&socket, &sent),
        // Whoever read what we write has had enough.
        Err(CopyError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(CopyError::Write(error)) => {
            Err(AskError::Io("cannot write what the guest says", error))
        }
        // A connection that is reset ends both directions; the other one knows how far it got.
        Err(CopyError::Read(error)) => match sent.recv_timeout(TICK) {
            Ok(Err(sending)) => Err(sending),
            _ => Err(failed(error)),
        },
    }
}

/// Copies standard input to the guest.
fn send(socket: &UnixStream) -> Result<(), AskError> {
    let mut sent = 0;
    let result = copy(&mut io::stdin().lock(), &mut &*socket, &mut sent);
    // It fails if nobody is there to be told.
    let _ = socket.shutdown(Shutdown::Write);
    result.map_err(|error| match error {
        // Which of the two depends on whether there was something left to read.
        CopyError::Write(error)
            if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset]
                .contains(&error.kind()) =>
        {
            AskError::GuestStoppedReading(sent)
        }
        CopyError::Write(error) => AskError::Io("the connection failed", error),
        CopyError::Read(error) => AskError::Io("cannot read standard input", error),
    })
}

/// The guest has said all. Waits until it has been told all, or reads no more.
fn wait_for_the_sender(
    socket: &UnixStream,
    sent: &Receiver<Result<(), AskError>>,
) -> Result<(), AskError> {
    loop {
        // Asked first, so that a write that fails for this reason has the time to say so.
        let is_closed = is_closed(socket);
        match sent.recv_timeout(TICK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) if !is_closed => {}
            Err(_) => return Ok(()),
        }
    }
}

/// Whether nothing can be written any more. No poll tells this of a vsock socket, which has
/// no POLLHUP when the other side has closed it; writing nothing does, of any.
fn is_closed(mut socket: &UnixStream) -> bool {
    socket.write(&[]).is_err()
}

/// Why a copy ends early.
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies until the end, and shows each piece at once. `copied` grows with what is written.
fn copy(from: &mut impl Read, to: &mut impl Write, copied: &mut u64) -> Result<(), CopyError> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let len = match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        let mut rest = &bytes[..len];
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(0) => return Err(CopyError::Write(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    *copied += written as u64;
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Write(error)),
            }
        }
        to.flush().map_err(CopyError::Write)?;
    }
}
