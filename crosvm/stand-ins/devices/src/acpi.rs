// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What [`Interrupt::new`](crate::virtio::Interrupt::new) needs of ACPI: a type
//! for the wake-up event that a test never has.

/// Wakes a sleeping VM. The stand-in cannot make one.
pub enum PmWakeupEvent {}

/// Names a wake-up in crosvm's metrics. The stand-in cannot make one.
///
/// In crosvm this lies in the crate `metrics`.
pub enum MetricEventType {}
