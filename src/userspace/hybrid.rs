// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How host programs reach a guest through a Unix socket (Firecracker's hybrid vsock).
//!
//! A client connects to `<uds-path>`, says `CONNECT <port>\n` (in any case: Cuttlefish
//! says `connect`) and hears `OK <port>\n` once the guest has accepted; from then on the
//! socket is the connection. Which port the answer names is a matter of dialect
//! ([`Reply`]). The line is read without taking a byte beyond it: what the client
//! has already sent after it belongs to the guest.
//!
//! A guest's request for port P goes to the Unix socket `<uds-path>_P`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use super::packet::SocketType;
use super::socket::{NextMessage, Socket};
use crate::address::Port;

/// Longest line in bytes, the newline included.
pub const MAX_LINE: usize = 32;

/// Which port the answer to a client names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// The guest's, as the client asked for it: what Cuttlefish expects.
    #[default]
    GuestPort,
    /// The host's, as the guest sees it: what Firecracker does.
    HostPort,
}

impl Reply {
    /// The answer's bytes.
    pub fn line(self, guest_port: Port, host_port: Port) -> Vec<u8> {
        let port = match self {
            Self::GuestPort => guest_port,
            Self::HostPort => host_port,
        };
        format!("OK {port}\n").into_bytes()
    }
}

/// What a client has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Not all of it yet.
    Partial,
    /// It asks for this port.
    Connect(Port),
    /// It is gone.
    Gone,
    /// It speaks something else.
    Nonsense,
}

/// Looks for a client's line and takes exactly that off its socket.
pub fn read_line(socket: &Socket, socket_type: SocketType) -> io::Result<Line> {
    let mut bytes = [0u8; MAX_LINE];
    let len = match socket.peek(&mut bytes) {
        Ok(0) => return Ok(Line::Gone),
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Line::Partial),
        Err(error) => return Err(error),
    };
    let end = match bytes[..len].iter().position(|byte| *byte == b'\n') {
        Some(end) => end,
        // A message is whole: its newline would have come with it.
        None if len == MAX_LINE || socket_type == SocketType::SeqPacket => {
            return Ok(Line::Nonsense)
        }
        None if socket.read_closed() => return Ok(Line::Gone),
        None => return Ok(Line::Partial),
    };
    if socket_type == SocketType::SeqPacket && socket.next_message()? != NextMessage::Of(end + 1) {
        // What is behind the line in its message would be lost with it.
        return Ok(Line::Nonsense);
    }
    let mut line = [0u8; MAX_LINE];
    socket.receive_bytes(&mut line[..=end])?;
    Ok(parse(&line[..end]).map_or(Line::Nonsense, Line::Connect))
}

/// `CONNECT <port>`, in any case, with one blank or more between and a carriage return
/// at the end tolerated.
fn parse(line: &[u8]) -> Option<Port> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let command = words.next()?;
    let port = words.next()?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if !command.eq_ignore_ascii_case("connect") || !digits || words.next().is_some() {
        return None;
    }
    port.parse().ok().map(Port)
}

/// Where a guest's request for `port` goes.
pub fn guest_path(base: &Path, port: Port) -> OsString {
    with_suffix(base, &format!("_{port}"))
}

/// Where host clients for sequenced packets connect.
pub fn seqpacket_path(base: &Path) -> OsString {
    with_suffix(base, "_seqpacket")
}

fn with_suffix(base: &Path, suffix: &str) -> OsString {
    let mut path = base.as_os_str().to_owned();
    path.push(OsStr::new(suffix));
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    fn say(socket: &Socket, bytes: &[u8]) {
        socket.send_bytes(&[IoSlice::new(bytes)]).unwrap();
    }

    #[test]
    fn a_line_comes_in_pieces_and_nothing_behind_it_is_taken() {
        let (client, socket) = Socket::pair(SocketType::Stream).unwrap();
        let look = || read_line(&socket, SocketType::Stream).unwrap();
        assert_eq!(look(), Line::Partial);
        for piece in [&b"con"[..], b"nect 4", b"2"] {
            say(&client, piece);
            assert_eq!(look(), Line::Partial);
        }
        say(&client, b"\nhello");
        assert_eq!(look(), Line::Connect(Port(42)));
        let mut rest = [0; 16];
        assert_eq!(socket.receive_bytes(&mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"hello");
    }

    #[test]
    fn a_client_that_leaves_is_gone_at_once() {
        let (client, socket) = Socket::pair(SocketType::Stream).unwrap();
        say(&client, b"CONN");
        drop(client);
        assert_eq!(read_line(&socket, SocketType::Stream).unwrap(), Line::Gone);
    }

    #[test]
    fn only_a_port_is_a_port() {
        assert_eq!(parse(b"CONNECT 5555"), Some(Port(5555)));
        assert_eq!(parse(b"Connect 4294967295\r"), Some(Port(u32::MAX)));
        for line in [
            &b"CONNECT"[..],
            b"CONNECT ",
            b"CONNECT -1",
            b"CONNECT +1",
            b"CONNECT 4294967296",
            b"CONNECT 1 2",
            b"GET / HTTP/1.1",
            b"\xff\xfe 1",
            b"",
        ] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_message_is_the_line_and_nothing_else() {
        let (client, socket) = Socket::pair(SocketType::SeqPacket).unwrap();
        let look = || read_line(&socket, SocketType::SeqPacket).unwrap();
        say(&client, b"CONNECT 42\n");
        assert_eq!(look(), Line::Connect(Port(42)));
        say(&client, b"CONNECT 42\nmore");
        assert_eq!(look(), Line::Nonsense);
    }

    #[test]
    fn too_much_without_a_newline_is_nonsense() {
        let (client, socket) = Socket::pair(SocketType::Stream).unwrap();
        say(&client, &[b'1'; MAX_LINE]);
        assert_eq!(
            read_line(&socket, SocketType::Stream).unwrap(),
            Line::Nonsense
        );
    }
}
