// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system error: an errno, printed as the system prints it.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

/// An errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(i32);

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error with number `e`; 0 when it does not fit.
    pub fn new<T: TryInto<i32>>(e: T) -> Error {
        Error(e.try_into().unwrap_or_default())
    }

    /// The error of the last system call of this thread.
    pub fn last() -> Error {
        io::Error::last_os_error().into()
    }

    /// The number.
    pub fn errno(self) -> i32 {
        self.0
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Error(e.raw_os_error().unwrap_or_default())
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        io::Error::from_raw_os_error(e.0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(f)
    }
}

impl std::error::Error for Error {}

/// The error of the last system call of this thread, as a failed result.
pub fn errno_result<T>() -> Result<T> {
    Err(Error::last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_the_system_does() {
        let error = Error::new(libc::EBADF);
        assert_eq!(error.errno(), libc::EBADF);
        assert!(error.to_string().contains("Bad file descriptor"));
        assert_eq!(Error::from(io::Error::from(error)), error);
        assert_eq!(Error::new(u64::MAX).errno(), 0);
    }
}
