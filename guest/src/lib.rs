// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One side of a conversation over vsock, told from outside what to do.
//!
//! An [`agent::Agent`] takes a [`protocol::Command`] and answers: listen, connect, send so
//! many bytes, receive them, close one half. It is the same on both sides. Inside a guest
//! it is the only program (`main.rs`), its commands come as lines on a serial port, so
//! that a vsock that is dead is an answer and not a hang. On the host it runs in the
//! process that drives both sides, where it talks to Unix sockets or to `AF_VSOCK`.
//!
//! Every wait of an agent has a deadline, [`sockets::TIMEOUT`].

pub mod agent;
pub mod machine;
pub mod pattern;
pub mod programs;
pub mod protocol;
pub mod sockets;
