// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock connections`: who is connected.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{json, Value};

use super::asking::{devices, finish, guest_cid, AskError, Where, EXIT_CODES};
use crosvm_vsock::control::binder::{IVsockDevice, VsockConnection, VsockConnectionState};
use crosvm_vsock::control::client::ClientError;

/// List the connections of all guests, or of one.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Arguments {
    /// Only the guest with this CID.
    #[arg(value_parser = guest_cid)]
    cid: Option<i64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: Where,
}

/// Prints them and returns the exit code.
pub fn run(arguments: &Arguments) -> ExitCode {
    finish("connections", list(arguments))
}

fn list(arguments: &Arguments) -> Result<String, AskError> {
    let client = arguments.place.client()?;
    let mut all = Vec::new();
    let mut elsewhere = Vec::new();
    for (cid, device) in devices(&client, arguments.cid)? {
        match device.getConnections(0).map_err(ClientError::from) {
            Ok(connections) => {
                let open = device.getStatistics().map_err(ClientError::from)?;
                all.push((cid, connections, open.connectionsOpen));
            }
            // One of several guests whose connections the kernel keeps is no failure.
            Err(ClientError::Refused { code, message })
                if code == IVsockDevice::ERROR_UNSUPPORTED && arguments.cid.is_none() =>
            {
                elsewhere.push((cid, message));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if arguments.json {
        let rows: Vec<Value> = all
            .iter()
            .flat_map(|(cid, connections, _)| connections.iter().map(|c| row(*cid, c)))
            .collect();
        return Ok(format!("{:#}\n", Value::from(rows)));
    }
    Ok(text(&all, &elsewhere))
}

fn text(all: &[(i64, Vec<VsockConnection>, i64)], elsewhere: &[(i64, String)]) -> String {
    let mut text = format!(
        "{:<23}{:<23}{:<11}{:<13}{}\n",
        "GUEST CID:PORT", "PEER CID:PORT", "TYPE", "STATE", "PENDING"
    );
    for (cid, connections, open) in all {
        for c in connections {
            let guest = format!("{cid}:{}", c.guestPort);
            let peer = format!("{}:{}", c.peerCid, c.peerPort);
            let (kind, state) = (kind(c), state(c.state));
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{guest:<23}{peer:<23}{kind:<11}{state:<13}{}",
                c.pendingBytes
            );
        }
        let more = open - connections.len() as i64;
        if more > 0 {
            let _ = writeln!(text, "{cid}: {more} more, which do not fit an answer");
        }
    }
    for (cid, why) in elsewhere {
        let _ = writeln!(text, "{cid}: {why}");
    }
    text
}

fn row(cid: i64, connection: &VsockConnection) -> Value {
    json!({
        "cid": cid,
        "guest_port": connection.guestPort,
        "peer_cid": connection.peerCid,
        "peer_port": connection.peerPort,
        "type": kind(connection),
        "state": state(connection.state),
        "pending_bytes": connection.pendingBytes,
    })
}

fn kind(connection: &VsockConnection) -> &'static str {
    match connection.seqpacket {
        true => "seqpacket",
        false => "stream",
    }
}

fn state(state: VsockConnectionState) -> &'static str {
    match state {
        VsockConnectionState::OPENING => "opening",
        VsockConnectionState::ESTABLISHED => "established",
        VsockConnectionState::CLOSING => "closing",
        _ => "unknown",
    }
}
