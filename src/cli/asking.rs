// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the commands that ask a running daemon have in common: where it is, how they fail.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crosvm_vsock::control::binder::{IVsockDevice as Errors, Strong, VsockDevice};
use crosvm_vsock::control::client::{Client, ClientError};

use super::vm;

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
    vm::guest_cid(text)
        .map(|cid| i64::from(cid.cid().0))
        .ok_or_else(|| format!("`{text}` is not {}", vm::GUEST_CID))
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
    Io(&'static str, #[source] io::Error),
}

impl AskError {
    fn code(&self) -> u8 {
        match self {
            Self::Nowhere => 2,
            Self::GuestStoppedReading(_) | Self::Io(..) => 1,
            Self::Client(error) => code(error),
        }
    }
}

fn code(error: &ClientError) -> u8 {
    match error {
        ClientError::NoDaemon { .. } => 3,
        ClientError::Permission { .. } => 4,
        ClientError::Refused { code, .. } => match *code {
            Errors::ERROR_NO_SUCH_DEVICE => 5,
            Errors::ERROR_NOT_RUNNING | Errors::ERROR_FAILED_TO_CONNECT => 6,
            _ => 1,
        },
        ClientError::Silent { .. } | ClientError::Nonsense { .. } | ClientError::Gone(_) => 1,
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

/// Guests that did not answer while others did, by CID.
pub type Failures = Vec<(i64, ClientError)>;

/// What a command has to say.
#[derive(Default)]
pub struct Answer {
    pub text: String,
    /// Lines for people, where the text is for programs.
    pub notes: Vec<String>,
    pub failures: Failures,
}

/// Asks the guest with a CID, or all. Of all, those that answer are heard whatever the
/// others do.
pub fn ask_each<T>(
    client: &Client,
    cid: Option<i64>,
    ask: impl Fn(i64, &Strong<dyn VsockDevice>) -> Result<T, ClientError>,
) -> Result<(Vec<T>, Failures), AskError> {
    let ask = |cid| ask(cid, &client.device(cid)?);
    if let Some(cid) = cid {
        return Ok((vec![ask(cid)?], Vec::new()));
    }
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for cid in client.guest_cids()? {
        match ask(cid) {
            Ok(answer) => answers.push(answer),
            Err(error @ ClientError::Refused { .. }) => failures.push((cid, error)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((answers, failures))
}

/// Prints what a command has to say, or why not.
pub fn finish(command: &str, result: Result<Answer, AskError>) -> ExitCode {
    let result = result.and_then(|answer| {
        print(&answer.text).map_err(|error| AskError::Io("cannot write the answer", error))?;
        Ok(answer)
    });
    let code = match result {
        Ok(answer) => {
            for note in answer.notes {
                eprintln!("crosvm-vsock {command}: {note}");
            }
            for (cid, error) in &answer.failures {
                eprintln!("crosvm-vsock {command}: guest CID {cid}: {error}");
            }
            answer.failures.first().map_or(0, |(_, error)| code(error))
        }
        Err(error) => {
            eprintln!("crosvm-vsock {command}: {error}");
            error.code()
        }
    };
    ExitCode::from(code)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads it has had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
