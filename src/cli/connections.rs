// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `crosvm-vsock connections`: who is connected.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::asking::{ask_each, finish, guest_cid, Answer, AskError, Where, EXIT_CODES};
use crosvm_vsock::control::binder::{
    IVsockDevice, Strong, VsockConnection, VsockConnectionState, VsockDevice,
};
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

/// What a device answers.
struct Listing {
    cid: i64,
    connections: Vec<VsockConnection>,
    /// Why there are no others, if there may be.
    note: Option<String>,
}

fn list(arguments: &Arguments) -> Result<Answer, AskError> {
    let client = arguments.place.client()?;
    let alone = arguments.cid.is_some();
    let ask = |cid, device: &Strong<dyn VsockDevice>| ask(cid, device, alone);
    let (listings, failures) = ask_each(&client, arguments.cid, ask)?;
    let note = |listing: &Listing| {
        let note = listing.note.as_ref()?;
        Some(format!("{}: {note}", listing.cid))
    };
    let notes: Vec<String> = listings.iter().filter_map(note).collect();
    Ok(if arguments.json {
        let rows: Vec<Value> = rows(&listings).map(|(cid, c)| json(cid, c)).collect();
        Answer {
            text: format!("{:#}\n", Value::from(rows)),
            notes,
            failures,
        }
    } else {
        Answer {
            text: text(&listings, &notes),
            notes: Vec::new(),
            failures,
        }
    })
}

fn ask(cid: i64, device: &Strong<dyn VsockDevice>, alone: bool) -> Result<Listing, ClientError> {
    match device.getConnections(0).map_err(ClientError::from) {
        Ok(connections) => {
            let more = device.getStatistics()?.connectionsOpen - connections.len() as i64;
            let note = (more > 0).then(|| format!("{more} more, which do not fit an answer"));
            Ok(Listing {
                cid,
                connections,
                note,
            })
        }
        // One of several guests whose connections the kernel keeps is no failure.
        Err(ClientError::Refused { code, message })
            if code == IVsockDevice::ERROR_UNSUPPORTED && !alone =>
        {
            Ok(Listing {
                cid,
                connections: Vec::new(),
                note: Some(message),
            })
        }
        Err(error) => Err(error),
    }
}

fn rows(listings: &[Listing]) -> impl Iterator<Item = (i64, &VsockConnection)> {
    listings
        .iter()
        .flat_map(|listing| listing.connections.iter().map(|c| (listing.cid, c)))
}

fn text(listings: &[Listing], notes: &[String]) -> String {
    let mut text = format!(
        "{:<23}{:<23}{:<11}{:<13}{}\n",
        "GUEST CID:PORT", "PEER CID:PORT", "TYPE", "STATE", "PENDING"
    );
    for (cid, c) in rows(listings) {
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
    for note in notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn json(cid: i64, connection: &VsockConnection) -> Value {
    serde_json::json!({
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
