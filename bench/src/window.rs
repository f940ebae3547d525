// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The stretch of time that is measured, after a stretch that is not.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::device::cpu_time;

/// Traffic before anything counts.
const WARM_UP: Duration = Duration::from_millis(60);

/// What one run has come to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Length of the window in seconds.
    pub seconds: f64,
    /// What was counted in it: bytes, or events.
    pub count: u64,
    /// CPU time of the device within it in seconds.
    pub cpu: f64,
    /// Packets that the guest has sent and received, where system calls were counted.
    #[serde(default)]
    pub packets: u64,
    /// System calls of the device, where they were counted.
    #[serde(default)]
    pub calls: u64,
    /// Memory of the device's own in bytes that its connections or VMs have added.
    #[serde(default)]
    pub memory: u64,
    /// Latencies within it in nanoseconds, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latencies: Vec<u32>,
}

/// A count over time.
#[derive(Debug)]
pub struct Window {
    device: Option<u32>,
    length: Duration,
    opens: Instant,
    open: Option<(Instant, Duration, u64)>,
    count: u64,
}

impl Window {
    /// A window of this `length` that opens soon; `device` is whose CPU time counts.
    pub fn new(length: Duration, device: Option<u32>) -> Self {
        Self {
            device,
            length,
            opens: Instant::now() + WARM_UP,
            open: None,
            count: 0,
        }
    }

    /// Whether it is open: what happens now counts.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn cpu(&self) -> Result<Duration> {
        self.device.map_or(Ok(Duration::ZERO), cpu_time)
    }

    /// Counts. The result once the window is over.
    pub fn add(&mut self, count: u64) -> Result<Option<Measured>> {
        self.count += count;
        let now = Instant::now();
        match self.open {
            None if now >= self.opens => {
                let cpu = self.cpu()?;
                self.open = Some((Instant::now(), cpu, self.count));
                Ok(None)
            }
            Some((since, cpu, before)) if now >= since + self.length => Ok(Some(Measured {
                seconds: (now - since).as_secs_f64(),
                count: self.count - before,
                cpu: (self.cpu()?.saturating_sub(cpu)).as_secs_f64(),
                ..Measured::default()
            })),
            _ => Ok(None),
        }
    }
}
