// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock reset`: ends all connections of a guest.

use std::process::ExitCode;

use clap::Args;

use super::asking::{finish, guest_cid, Answer, AskError, Where, EXIT_CODES};
use crosvm_vsock::control::client::ClientError;

/// End all connections of a guest, and tell it so.
///
/// A device that was stopped by a denied access runs again afterwards.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    /// CID of the guest.
    #[arg(value_parser = guest_cid)]
    cid: i64,

    #[command(flatten)]
    place: Where,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> ExitCode {
    let reset = || -> Result<Answer, AskError> {
        let client = arguments.place.client()?;
        let device = client.device(arguments.cid)?;
        device.reset().map_err(ClientError::from)?;
        Ok(Answer::default())
    };
    finish("reset", reset())
}
