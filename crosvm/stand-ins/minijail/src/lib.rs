// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for `minijail`, which confines crosvm's device processes. This one
//! confines nothing. Host tests only; never built by Soong.

/// Why a jail could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There was no memory.
    #[error("unable to create a jail")]
    CreatingMinijail,
}

/// The result of making a jail.
pub type Result<T> = std::result::Result<T, Error>;

/// A jail.
pub struct Minijail {
    /// The name of its policy, for tests to look at; crosvm's has no such field.
    pub policy: Option<String>,
}

impl Minijail {
    /// A jail without limits yet.
    pub fn new() -> Result<Minijail> {
        Ok(Minijail { policy: None })
    }
}
