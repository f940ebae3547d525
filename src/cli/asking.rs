// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the commands that ask a running daemon have in common: where it is, how they fail.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crosvm_vsock::address::GuestCid;
use crosvm_vsock::control::binder::{IVsockDevice as Errors, Strong, VsockDevice};
use crosvm_vsock::control::client::{Client, ClientError};

pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  no daemon at the control socket
  4  no permission to use the control socket
  5  the daemon serves no guest with this CID
  6  the guest is not running, or refused the connection

Environment:
  CROSVM_VSOCK_CONTROL  the daemon's control socket, if --control does not name it";

/// The variable that stands in for `--control`.
const VARIABLE: &str = "CROSVM_VSOCK_CONTROL";

#[derive(Args, Debug)]
pub struct Where {
    /// The daemon's control socket [default: $CROSVM_VSOCK_CONTROL].
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// A guest's CID, as the daemon's own settings take it.
pub fn guest_cid(text: &str) -> Result<i64, String> {
    let number = text.parse().ok().and_then(|raw| GuestCid::new(raw).ok());
    number
        .map(|cid| i64::from(cid.cid().0))
        .ok_or_else(|| format!("`{text}` is not a guest's CID (3 to 4294967294)"))
}

/// Why a command does not succeed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("where is the daemon? Say --control PATH, as the daemon was told, or set {VARIABLE}")]
    Nowhere,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the guest stopped reading after {0} bytes")]
    GuestStoppedReading(u64),
    #[error("{0}: {1}")]
    Io(&'static str, #[source] std::io::Error),
}

impl AskError {
    fn code(&self) -> u8 {
        match self {
            Self::Nowhere => 2,
            Self::GuestStoppedReading(_) | Self::Io(..) => 1,
            Self::Client(error) => match error {
                ClientError::NoDaemon { .. } => 3,
                ClientError::Permission { .. } => 4,
                ClientError::Refused { code, .. } => match *code {
                    Errors::ERROR_NO_SUCH_DEVICE => 5,
                    Errors::ERROR_NOT_RUNNING | Errors::ERROR_FAILED_TO_CONNECT => 6,
                    _ => 1,
                },
                ClientError::Silent { .. }
                | ClientError::Nonsense { .. }
                | ClientError::Gone(_) => 1,
            },
        }
    }
}

impl Where {
    /// Connects to the daemon.
    pub fn client(&self) -> Result<Client, AskError> {
        let variable = || std::env::var_os(VARIABLE).map(PathBuf::from);
        let path = self.control.clone().or_else(variable);
        let path = path.ok_or(AskError::Nowhere)?;
        Ok(Client::open(&path, false)?)
    }
}

/// A device with its CID.
pub type Named = (i64, Strong<dyn VsockDevice>);

/// All devices, or the one that is asked for.
pub fn devices(client: &Client, cid: Option<i64>) -> Result<Vec<Named>, AskError> {
    let cids = match cid {
        Some(cid) => vec![cid],
        None => client.guest_cids()?,
    };
    let device = |cid| Ok((cid, client.device(cid)?));
    cids.into_iter().map(device).collect()
}

/// Prints what a command has to say, or why not.
pub fn finish(command: &str, result: Result<String, AskError>) -> ExitCode {
    use std::io::Write;
    let result = result.and_then(|text| {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| AskError::Io("cannot write the answer", error))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crosvm-vsock {command}: {error}");
            ExitCode::from(error.code())
        }
    }
}
