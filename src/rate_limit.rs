// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A limit for log lines that a guest can cause.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets [`BURST`](Self::BURST) events pass in each [`PERIOD`](Self::PERIOD).
#[derive(Debug, Default)]
pub struct RateLimit(Mutex<Option<(Instant, u32)>>);

impl RateLimit {
    /// How many events pass in a period.
    pub const BURST: u32 = 5;
    /// How long a period lasts.
    pub const PERIOD: Duration = Duration::from_secs(10);

    /// Whether this event may pass.
    pub fn allow(&self) -> bool {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> bool {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, passed) = match *period {
            Some((start, passed)) if now.duration_since(start) < Self::PERIOD => (start, passed),
            _ => (now, 0),
        };
        *period = Some((start, passed.saturating_add(1)));
        passed < Self::BURST
    }
}

/// `debug!`, if a [`RateLimit`] lets it pass. What is not logged anyway costs neither time nor
/// any of the limit. A macro, since a log line names the module that it stands in.
macro_rules! debug_within {
    ($limit:expr, $($what:tt)+) => {
        if log::log_enabled!(log::Level::Debug) && $limit.allow() {
            log::debug!($($what)+);
        }
    };
}
pub(crate) use debug_within;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_once_a_period() {
        let limit = RateLimit::default();
        let start = Instant::now();
        let passed = (0..100).filter(|_| limit.allow_at(start)).count();
        assert_eq!(passed, RateLimit::BURST as usize);
        assert!(limit.allow_at(start + RateLimit::PERIOD));
    }
}
