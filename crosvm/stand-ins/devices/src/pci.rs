// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSI-X: the capability and the table that the guest writes, and the irqfd of
//! each vector. PCI 3.0, 6.8.2.
//!
//! crosvm asks the VM for the irqfds over a tube; here they are plain events, and
//! the tube is kept and not used.

use anyhow::{ensure, Result};
use base::{Event, Tube};
use serde::{Deserialize, Serialize};
use snapshot::AnySnapshot;

/// Message Control: enable MSI-X.
const ENABLE: u16 = 0x8000;
/// Message Control: mask all vectors.
const FUNCTION_MASK: u16 = 0x4000;
/// Vector Control: mask this vector.
const ENTRY_MASK: u32 = 1;
/// The size of a table entry in bytes.
const ENTRY_SIZE: u64 = 16;

/// What a write to MSI-X registers changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum MsixStatus {
    /// The mask of all vectors.
    Changed,
    /// The mask of this vector.
    EntryChanged(usize),
    /// No mask.
    NothingToDo,
}

#[derive(Default)]
struct Vector {
    /// Message address (two words), message data, vector control.
    entry: [u32; 4],
    pending: bool,
    irqfd: Option<Event>,
}

impl Vector {
    fn masked(&self) -> bool {
        self.entry[3] & ENTRY_MASK != 0
    }

    fn signal(&self) {
        if let Some(irqfd) = &self.irqfd {
            irqfd.signal().expect("an eventfd takes one more count");
        }
    }
}

#[derive(Serialize, Deserialize)]
struct MsixSnapshot {
    vectors: Vec<([u32; 4], bool)>,
    masked: bool,
    enabled: bool,
}

/// The MSI-X state of a device.
pub struct MsixConfig {
    vectors: Vec<Vector>,
    masked: bool,
    enabled: bool,
    _vm_socket: Tube,
}

impl MsixConfig {
    /// MSI-X with that many vectors: disabled, and every vector masked.
    pub fn new(msix_vectors: u16, vm_socket: Tube, _pci_id: u32, _device_name: String) -> Self {
        let masked = || Vector {
            entry: [0, 0, 0, ENTRY_MASK],
            ..Vector::default()
        };
        Self {
            vectors: (0..msix_vectors).map(|_| masked()).collect(),
            masked: false,
            enabled: false,
            _vm_socket: vm_socket,
        }
    }

    /// The number of vectors.
    pub fn num_vectors(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Whether all vectors are masked.
    pub fn masked(&self) -> bool {
        self.masked
    }

    /// Whether this vector is masked, or there is no such vector.
    pub fn table_masked(&self, index: usize) -> bool {
        self.vectors.get(index).is_none_or(Vector::masked)
    }

    /// Whether the guest uses MSI-X.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// What this vector signals: none before it is enabled and unmasked for the
    /// first time.
    pub fn get_irqfd(&self, vector: usize) -> Option<&Event> {
        self.vectors.get(vector)?.irqfd.as_ref()
    }

    /// Signals the vector, or remembers to when it is unmasked.
    ///
    /// # Panics
    /// When there is no such vector, as crosvm does: a guest may give a queue any
    /// vector, so it is the device that must look first.
    pub fn trigger(&mut self, vector: u16) {
        let masked = self.masked;
        let vector = &mut self.vectors[usize::from(vector)];
        match masked || vector.masked() {
            true => vector.pending = true,
            false => vector.signal(),
        }
    }

    /// A write of the guest to the capability; only Message Control, at offset 2,
    /// does anything.
    pub fn write_msix_capability(&mut self, offset: u64, data: &[u8]) -> MsixStatus {
        let (2, &[low, high]) = (offset, data) else {
            return MsixStatus::NothingToDo;
        };
        let control = u16::from_le_bytes([low, high]);
        let was_masked = self.masked;
        self.masked = control & FUNCTION_MASK != 0;
        self.enabled = control & ENABLE != 0;
        if self.make_irqfds().is_err() {
            self.enabled = false;
        }
        self.deliver_pending();
        match was_masked == self.masked {
            true => MsixStatus::NothingToDo,
            false => MsixStatus::Changed,
        }
    }

    /// A write of the guest to the table: one aligned word or two.
    pub fn write_msix_table(&mut self, offset: u64, data: &[u8]) -> MsixStatus {
        let index = (offset / ENTRY_SIZE) as usize;
        let word = (offset % ENTRY_SIZE / 4) as usize;
        let words = data.chunks_exact(4);
        let count = words.len();
        if offset % 4 != 0 || count * 4 != data.len() || word + count > 4 {
            return MsixStatus::NothingToDo;
        }
        let Some(vector) = self.vectors.get_mut(index) else {
            return MsixStatus::NothingToDo;
        };
        let was_masked = vector.masked();
        for (target, bytes) in vector.entry[word..].iter_mut().zip(words) {
            *target = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let masked = vector.masked();
        let first_use = vector.irqfd.is_none() && !masked && self.enabled && !self.masked;
        if self.make_irqfds().is_err() {
            self.vectors[index].entry[3] |= ENTRY_MASK;
        }
        self.deliver_pending();
        match was_masked != masked && (first_use || !self.masked) {
            true => MsixStatus::EntryChanged(index),
            false => MsixStatus::NothingToDo,
        }
    }

    /// Whether the vector waits to be unmasked.
    pub fn pending(&self, vector: u16) -> bool {
        let vector = self.vectors.get(usize::from(vector));
        vector.is_some_and(|vector| vector.pending)
    }

    /// The state, for [`restore`](Self::restore).
    pub fn snapshot(&mut self) -> Result<AnySnapshot> {
        let vectors = self.vectors.iter();
        AnySnapshot::to_any(MsixSnapshot {
            vectors: vectors.map(|v| (v.entry, v.pending)).collect(),
            masked: self.masked,
            enabled: self.enabled,
        })
    }

    /// Takes over a state; every vector gets a new irqfd.
    pub fn restore(&mut self, snapshot: AnySnapshot) -> Result<()> {
        let state: MsixSnapshot = AnySnapshot::from_any(snapshot)?;
        ensure!(
            state.vectors.len() == self.vectors.len(),
            "the snapshot has another number of vectors"
        );
        for (vector, (entry, pending)) in self.vectors.iter_mut().zip(state.vectors) {
            *vector = Vector {
                entry,
                pending,
                irqfd: None,
            };
        }
        self.masked = state.masked;
        self.enabled = state.enabled;
        Ok(self.make_irqfds()?)
    }

    fn make_irqfds(&mut self) -> base::Result<()> {
        if !self.enabled || self.masked {
            return Ok(());
        }
        for vector in &mut self.vectors {
            if vector.irqfd.is_none() && !vector.masked() {
                vector.irqfd = Some(Event::new()?);
            }
        }
        Ok(())
    }

    fn deliver_pending(&mut self) {
        if self.masked {
            return;
        }
        for vector in &mut self.vectors {
            if vector.pending && !vector.masked() {
                vector.pending = false;
                vector.signal();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::EventWaitResult;

    use super::*;

    fn config() -> MsixConfig {
        let (_, tube) = Tube::pair().unwrap();
        MsixConfig::new(2, tube, 0, "test".to_owned())
    }

    fn mask(config: &mut MsixConfig, vector: u64, masked: bool) -> MsixStatus {
        let control = u32::from(masked).to_le_bytes();
        config.write_msix_table(vector * ENTRY_SIZE + 12, &control)
    }

    fn control(config: &mut MsixConfig, bits: u16) -> MsixStatus {
        config.write_msix_capability(2, &bits.to_le_bytes())
    }

    fn signalled(config: &MsixConfig, vector: usize) -> bool {
        let irqfd = config.get_irqfd(vector).unwrap();
        irqfd.wait_timeout(Duration::ZERO).unwrap() == EventWaitResult::Signaled
    }

    #[test]
    fn linux_brings_it_up_masked_first() {
        let mut config = config();
        // Enabling while masking tells of the mask; writes below it tell nothing.
        assert_eq!(
            control(&mut config, ENABLE | FUNCTION_MASK),
            MsixStatus::Changed
        );
        assert_eq!(mask(&mut config, 1, false), MsixStatus::NothingToDo);
        assert!(config.get_irqfd(1).is_none());
        assert_eq!(control(&mut config, ENABLE), MsixStatus::Changed);
        assert!(config.get_irqfd(1).is_some() && config.get_irqfd(0).is_none());
        assert!(!config.table_masked(1) && config.table_masked(0) && config.table_masked(2));
        // Enabling without the mask tells nothing.
        assert_eq!(control(&mut config, 0), MsixStatus::NothingToDo);
        assert_eq!(control(&mut config, ENABLE), MsixStatus::NothingToDo);
    }

    #[test]
    fn a_masked_vector_waits() {
        let mut config = config();
        control(&mut config, ENABLE);
        assert_eq!(mask(&mut config, 1, false), MsixStatus::EntryChanged(1));
        config.trigger(1);
        assert!(signalled(&config, 1) && !signalled(&config, 1));
        assert_eq!(mask(&mut config, 1, true), MsixStatus::EntryChanged(1));
        config.trigger(1);
        assert!(config.pending(1) && !signalled(&config, 1));
        assert_eq!(mask(&mut config, 1, false), MsixStatus::EntryChanged(1));
        assert!(!config.pending(1) && signalled(&config, 1));
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn there_is_no_third_of_two_vectors() {
        config().trigger(2);
    }

    #[test]
    fn odd_writes_change_nothing() {
        let mut config = config();
        control(&mut config, ENABLE);
        for (offset, data) in [
            (2 * ENTRY_SIZE + 12, vec![0; 4]),
            (13, vec![0; 4]),
            (12, vec![0; 8]),
            (12, vec![0; 3]),
        ] {
            let status = config.write_msix_table(offset, &data);
            assert_eq!(status, MsixStatus::NothingToDo, "{offset} {data:?}");
        }
        assert!(config.table_masked(0));
        assert_eq!(
            config.write_msix_capability(0, &[0, 0]),
            MsixStatus::NothingToDo
        );
        assert!(config.enabled());
    }
}
