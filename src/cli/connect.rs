// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock connect`: standard input and output as a connection to a guest's port.
//!
//! Each direction ends by itself: the end of standard input is the end of what the guest
//! hears, and what it still has to say is written until it ends, too.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Args;

use super::asking::{finish, guest_cid, AskError, Where, EXIT_CODES};
use crosvm_vsock::control::client::ClientError;

/// Connect standard input and output to a port of a guest.
///
/// Ends when the guest has ended the connection; the end of standard input ends the one
/// direction only.
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
    let connect = || -> Result<String, AskError> {
        let socket = dial(arguments)?;
        relay(socket).map_err(|error| AskError::Io("the connection failed", error))?;
        Ok(String::new())
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

fn relay(socket: UnixStream) -> io::Result<()> {
    let sender = socket.try_clone()?;
    // Not joined: it may wait for input that nobody wants any more.
    std::thread::Builder::new().spawn(move || {
        // A guest that reads no more is no failure: it may still have something to say.
        let _ = copy(&mut io::stdin().lock(), &mut &sender);
        let _ = sender.shutdown(Shutdown::Write);
    })?;
    match copy(&mut &socket, &mut io::stdout().lock()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Copies until the end, and shows each piece at once.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let len = match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&bytes[..len])?;
        to.flush()?;
    }
}
