// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an agent is told and what it answers, one line each.
//!
//! To an agent: a [`Request`] as JSON. From it: `@hello` with [`About`] once it is up,
//! `@reply` with a [`Reply`] for each request, in any order. Anything else on the line is
//! somebody else's.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Stream or sequenced packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_SEQPACKET`.
    Seqpacket,
}

/// A socket that an agent keeps, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handle(pub u32);

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Says where this is: [`Answer::About`].
    About,
    /// Listens on a port: [`Answer::Socket`].
    Listen {
        /// The port.
        port: u32,
        /// Of this kind.
        kind: Kind,
    },
    /// Waits for one connection: [`Answer::Socket`].
    Accept {
        /// Where.
        listener: Handle,
    },
    /// Connects to a port of the other side: [`Answer::Socket`].
    Connect {
        /// The port.
        port: u32,
        /// Of this kind.
        kind: Kind,
    },
    /// Sends the pattern of a seed: [`Answer::Moved`].
    Send {
        /// Where.
        socket: Handle,
        /// How many bytes.
        bytes: u64,
        /// Of which pattern.
        seed: u64,
    },
    /// Receives so many bytes, or all until the end: [`Answer::Moved`].
    Receive {
        /// Where.
        socket: Handle,
        /// How many; `None` until the other side has closed.
        bytes: Option<u64>,
    },
    /// Sends a line of text: [`Answer::Done`].
    Say {
        /// Where.
        socket: Handle,
        /// Without the end of the line.
        text: String,
    },
    /// Waits for a line of text: [`Answer::Text`].
    Hear {
        /// Where.
        socket: Handle,
    },
    /// Sends a file: [`Answer::Moved`].
    SendFile {
        /// Where.
        socket: Handle,
        /// Its path, on the agent's side.
        path: String,
    },
    /// Receives a file, until the end: [`Answer::Moved`].
    ReceiveFile {
        /// Where.
        socket: Handle,
        /// Where to put it, on the agent's side.
        path: String,
    },
    /// Sends messages of these sizes: [`Answer::Messages`].
    SendMessages {
        /// Where.
        socket: Handle,
        /// Bytes in each.
        sizes: Vec<u32>,
        /// Of which pattern.
        seed: u64,
    },
    /// Receives so many messages: [`Answer::Messages`].
    ReceiveMessages {
        /// Where.
        socket: Handle,
        /// How many.
        count: usize,
    },
    /// Closes the sending half: [`Answer::Done`].
    Finish {
        /// Of this.
        socket: Handle,
    },
    /// Closes a socket: [`Answer::Done`].
    Close {
        /// This one.
        socket: Handle,
    },
    /// Sends back whatever comes on a port, on every connection, from now on:
    /// [`Answer::Done`].
    Echo {
        /// The port.
        port: u32,
        /// Of this kind.
        kind: Kind,
    },
    /// Opens connections to an echo, all at once, holds them, sends on each of them and
    /// compares what comes back: [`Answer::Done`].
    Crowd {
        /// The port of the echo.
        port: u32,
        /// How many.
        connections: u32,
        /// On each.
        bytes: u32,
    },
    /// Runs a program to its end: [`Answer::Ended`].
    Run {
        /// The program's path.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
        /// What it reads.
        input: String,
    },
    /// Starts a program that goes on: [`Answer::Done`].
    Start {
        /// By which it is known from here on.
        name: String,
        /// The program's path.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
    },
    /// Ends a program that was started, with SIGTERM: [`Answer::Ended`].
    Stop {
        /// Its name.
        name: String,
    },
    /// What a program that was started has written so far: [`Answer::Text`].
    Log {
        /// Its name.
        name: String,
    },
    /// Boots the machine again. No answer but the next `@hello`.
    Reboot,
    /// Switches the machine off. No answer.
    PowerOff,
}

/// Where an agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The kernel's release.
    pub kernel: String,
    /// The feature bits of the vsock device that the kernel's driver has acknowledged, if
    /// there is such a device.
    pub acked: Option<u64>,
    /// The CID, if there is a vsock transport.
    pub cid: Option<u32>,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// Where the agent is.
    About(About),
    /// A socket, for further commands.
    Socket(Handle),
    /// Bytes that were sent or received.
    Moved {
        /// How many.
        bytes: u64,
        /// Their sum ([`crate::pattern::Sum`]).
        sum: u64,
    },
    /// Messages that were sent or received.
    Messages {
        /// Bytes in each.
        sizes: Vec<u32>,
        /// The sum over all.
        sum: u64,
    },
    /// A program has ended.
    Ended {
        /// Its exit code; `None` if a signal ended it.
        code: Option<i32>,
        /// What it wrote, standard output and then standard error.
        output: String,
    },
    /// Text.
    Text(String),
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kernel's error number, where it was the kernel that refused.
    pub errno: Option<i32>,
    /// For people.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error(),
            text: error.to_string(),
        }
    }
}

/// A command with a number to tell its reply by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by whoever asks.
    pub number: u64,
    /// What to do.
    pub command: Command,
}

/// The answer to the request of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's.
    pub number: u64,
    /// What came of it.
    pub result: Result<Answer, Failure>,
}

/// A line from an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// It is up.
    Hello(About),
    /// It has done something.
    Reply(Reply),
    /// It cannot go on.
    Fatal(String),
}

impl Line {
    /// The line, with its end.
    ///
    /// # Errors
    /// Never for what this module defines.
    pub fn write(&self) -> serde_json::Result<String> {
        Ok(match self {
            Self::Hello(about) => format!("@hello {}\n", serde_json::to_string(about)?),
            Self::Reply(reply) => format!("@reply {}\n", serde_json::to_string(reply)?),
            Self::Fatal(text) => format!("@fatal {}\n", text.replace('\n', " ")),
        })
    }

    /// Reads a line; `None` for one that no agent wrote.
    ///
    /// # Errors
    /// A line that begins like an agent's and cannot be read.
    pub fn parse(line: &str) -> serde_json::Result<Option<Self>> {
        let line = line.trim_end_matches(['\r', '\n']);
        Ok(match line.split_once(' ') {
            Some(("@hello", rest)) => Some(Self::Hello(serde_json::from_str(rest)?)),
            Some(("@reply", rest)) => Some(Self::Reply(serde_json::from_str(rest)?)),
            Some(("@fatal", rest)) => Some(Self::Fatal(rest.to_owned())),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_went() {
        let about = About {
            kernel: String::from("6.1"),
            acked: Some(1 << 33),
            cid: Some(42),
        };
        let failure = Failure::from(io::Error::from_raw_os_error(libc::ECONNRESET));
        for line in [
            Line::Hello(about),
            Line::Reply(Reply {
                number: 7,
                result: Ok(Answer::Moved {
                    bytes: 1,
                    sum: u64::MAX,
                }),
            }),
            Line::Reply(Reply {
                number: 8,
                result: Err(failure),
            }),
            Line::Fatal(String::from("no module")),
        ] {
            let text = line.write().unwrap();
            assert!(text.ends_with('\n'));
            assert_eq!(
                Line::parse(&text.replace('\n', "\r\n")).unwrap(),
                Some(line)
            );
        }
    }

    #[test]
    fn strange_lines_are_nobodys_and_broken_ones_are_errors() {
        assert_eq!(Line::parse("[    0.0] Linux version").unwrap(), None);
        assert_eq!(Line::parse("@row {}").unwrap(), None);
        assert!(Line::parse("@reply {").is_err());
    }
}
