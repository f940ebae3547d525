// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupt lines as events.

use base::{AsRawDescriptor, AsRawDescriptors, Event, RawDescriptor, Result};

/// An edge-triggered line.
pub struct IrqEdgeEvent(Event);

impl IrqEdgeEvent {
    /// A new line.
    pub fn new() -> Result<Self> {
        Event::new().map(Self)
    }

    /// Another handle of the same line.
    pub fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// What a raised line signals.
    pub fn get_trigger(&self) -> &Event {
        &self.0
    }

    /// Raises the line.
    pub fn trigger(&self) -> Result<()> {
        self.0.signal()
    }
}

/// A level-triggered line: the interrupt controller asks with the resample event
/// whether it is still raised.
#[derive(Debug)]
pub struct IrqLevelEvent {
    trigger: Event,
    resample: Event,
}

impl IrqLevelEvent {
    /// A new line.
    pub fn new() -> Result<Self> {
        Ok(Self::from_event_pair(Event::new()?, Event::new()?))
    }

    /// Another handle of the same line.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self {
            trigger: self.trigger.try_clone()?,
            resample: self.resample.try_clone()?,
        })
    }

    /// The line of these two events.
    pub fn from_event_pair(trigger_evt: Event, resample_evt: Event) -> Self {
        Self {
            trigger: trigger_evt,
            resample: resample_evt,
        }
    }

    /// What a raised line signals.
    pub fn get_trigger(&self) -> &Event {
        &self.trigger
    }

    /// What the interrupt controller signals.
    pub fn get_resample(&self) -> &Event {
        &self.resample
    }

    /// Raises the line.
    pub fn trigger(&self) -> Result<()> {
        self.trigger.signal()
    }
}

impl AsRawDescriptors for IrqLevelEvent {
    fn as_raw_descriptors(&self) -> Vec<RawDescriptor> {
        let events = [&self.trigger, &self.resample];
        events.map(|event| event.as_raw_descriptor()).into()
    }
}
