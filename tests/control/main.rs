// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control interface over its real socket: a running daemon, a guest behind it (the
//! driver of `guest_driver`), and clients, well-behaved and otherwise.

mod callbacks;
mod commands;
mod connect;
mod denials;
mod errors;
mod fake;
mod harness;
mod hostile;
mod methods;
mod pages;
mod unread;
