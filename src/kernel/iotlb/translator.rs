// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who says what an I/O virtual address means: [`Identity`], a [`Window`], or a
//! vIOMMU behind the [`Translator`] trait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Iotlb, IotlbError};
use crate::access::Access;
use crate::address::{Address, Gpa, Iova, Range};
use crate::memory::{MemoryMap, PAGE};

/// A stretch of I/O virtual addresses and the guest memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The I/O virtual addresses; page-aligned at both ends.
    pub range: Range<Iova>,
    /// Where the first of them lies in guest memory.
    pub gpa: Gpa,
    /// What the device may do there.
    pub access: Access,
}

/// Says what an I/O virtual address means. Called with the IOTLB's table locked:
/// an implementation must not call back into [`Iotlb`], and should answer from
/// memory.
pub trait Translator: Send + Sync {
    /// The largest stretch around `iova` that translates as one; `None` denies.
    fn translate(&self, iova: Iova) -> Option<Translation>;

    /// What the kernel is told of `range` before it asks. Translators that know
    /// all of their few mappings give them; the rest wait for misses.
    fn preload(&self, range: Range<Iova>) -> Vec<Translation> {
        let _ = range;
        Vec::new()
    }
}

/// The guest physical address that an identity mapping has for an IOVA.
fn same(range: Range<Gpa>) -> Translation {
    Translation {
        // Both are 64-bit spaces and the start does not move: never out of range.
        range: range
            .at(Iova(range.first().raw()))
            .unwrap_or(Range::everything()),
        gpa: range.first(),
        access: Access::ReadWrite,
    }
}

/// All of guest memory, every address meaning itself.
#[derive(Debug)]
pub struct Identity(pub MemoryMap);

impl Translator for Identity {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let region = self.0.region(Gpa(iova.raw()))?;
        Some(same(region.gpa()))
    }

    fn preload(&self, range: Range<Iova>) -> Vec<Translation> {
        let wanted = range.at(Gpa(range.first().raw()));
        let parts = wanted.into_iter().flat_map(|range| self.0.parts(range));
        parts.map(|(part, _)| same(part)).collect()
    }
}

/// The ranges that the guest has shared, every address meaning itself: mode
/// restricted. What is not shared the kernel cannot touch.
///
/// A window outlives the device's activations, and follows
/// [`share`](Self::share) and [`unshare`](Self::unshare) at any time. One window
/// serves one device.
#[derive(Debug, Default)]
pub struct Window {
    /// Sorted; neither overlapping nor touching.
    shared: Mutex<Vec<Range<Gpa>>>,
    /// The service to tell of changes, while the device is active.
    service: Mutex<Weak<Iotlb>>,
}

/// A share that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Not whole pages.
    #[error("the range {0} cannot be shared or unshared: its ends are not multiples of {PAGE}")]
    Alignment(Range<Gpa>),
    /// Not guest memory.
    #[error("the range {0} cannot be shared: not all of it is guest memory")]
    OutsideMemory(Range<Gpa>),
    /// Too many scattered ranges.
    #[error("more than {max} separate ranges would be shared: nothing was changed, share larger ones", max = Window::MAX_RANGES)]
    TooMany,
    /// The window is another running device's, which it must keep telling.
    #[error("the window of shared ranges serves another running device: give each device its own")]
    InUse,
    /// The kernel did not follow. After a failed *unshare* it may still reach the
    /// range: reset the device.
    #[error("the range {range} was recorded, but the kernel's IOTLB did not follow")]
    Kernel {
        /// What was to change.
        range: Range<Gpa>,
        /// Why it did not.
        source: IotlbError,
    },
}

impl Window {
    /// The most separate ranges, so that a guest cannot make the host hold more
    /// (1 MiB of them).
    pub const MAX_RANGES: usize = 65536;

    /// A window with nothing shared.
    pub fn new() -> Self {
        Self::default()
    }

    /// The shared ranges, sorted and merged.
    pub fn shared(&self) -> Vec<Range<Gpa>> {
        lock(&self.shared).clone()
    }

    /// Opens `range` to the device; shared parts stay shared.
    pub fn share(&self, range: Range<Gpa>) -> Result<(), ShareError> {
        check_alignment(range)?;
        let service = self.service();
        if let Some(service) = &service {
            check_memory(service.memory(), range)?;
        }
        {
            let mut shared = lock(&self.shared);
            if shared.len() >= Self::MAX_RANGES {
                return Err(ShareError::TooMany);
            }
            let mut merged = range;
            shared.retain(|old| {
                let joins = old.overlaps(&merged) || old.touches(&merged) || merged.touches(old);
                if joins {
                    let first = old.first().min(merged.first());
                    merged =
                        Range::inclusive(first, old.last().max(merged.last())).unwrap_or(merged);
                }
                !joins
            });
            let at = shared.partition_point(|old| old.first() < merged.first());
            shared.insert(at, merged);
        }
        self.follow(range)
    }

    /// Closes `range`: when this returns, no access of the device to it is under
    /// way and none will come. Unshared parts stay unshared.
    pub fn unshare(&self, range: Range<Gpa>) -> Result<(), ShareError> {
        check_alignment(range)?;
        {
            let mut shared = lock(&self.shared);
            let kept: Vec<_> = shared.iter().flat_map(|old| old.without(&range)).collect();
            if kept.len() > Self::MAX_RANGES {
                return Err(ShareError::TooMany);
            }
            *shared = kept;
        }
        self.follow(range)
    }

    /// Tells `service` of changes from now on, and checks that all shared ranges
    /// are memory. It is told before it preloads: a change in between is not lost.
    pub(in crate::kernel) fn attach(&self, service: &Arc<Iotlb>) -> Result<(), ShareError> {
        {
            let mut current = lock(&self.service);
            if current.upgrade().is_some_and(|other| !other.is_over()) {
                return Err(ShareError::InUse);
            }
            *current = Arc::downgrade(service);
        }
        let shared = lock(&self.shared);
        shared
            .iter()
            .try_for_each(|range| check_memory(service.memory(), *range))
    }

    fn service(&self) -> Option<Arc<Iotlb>> {
        lock(&self.service).upgrade()
    }

    /// The set changed first, then the kernel follows: whoever translates in
    /// between sees the new set.
    fn follow(&self, range: Range<Gpa>) -> Result<(), ShareError> {
        let Some(service) = self.service() else {
            return Ok(());
        };
        service
            .changed(same(range).range)
            .map_err(|source| ShareError::Kernel { range, source })
    }
}

fn check_alignment(range: Range<Gpa>) -> Result<(), ShareError> {
    let aligned = range.first().raw() % PAGE == 0 && range.last().raw() % PAGE == PAGE - 1;
    aligned.then_some(()).ok_or(ShareError::Alignment(range))
}

fn check_memory(memory: &MemoryMap, range: Range<Gpa>) -> Result<(), ShareError> {
    let mut holes = vec![range];
    for region in memory.regions() {
        holes = holes
            .iter()
            .flat_map(|hole| hole.without(&region.gpa()))
            .collect();
    }
    match holes.is_empty() {
        true => Ok(()),
        false => Err(ShareError::OutsideMemory(range)),
    }
}

/// A panic elsewhere leaves no half-made state behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Translator for Window {
    fn translate(&self, iova: Iova) -> Option<Translation> {
        let gpa = Gpa(iova.raw());
        let shared = lock(&self.shared);
        let after = shared.partition_point(|range| range.first() <= gpa);
        let range = shared.get(after.checked_sub(1)?)?;
        range.contains(gpa).then(|| same(*range))
    }

    fn preload(&self, range: Range<Iova>) -> Vec<Translation> {
        let wanted = range
            .at(Gpa(range.first().raw()))
            .unwrap_or(Range::everything());
        let shared = lock(&self.shared);
        let parts = shared.iter().filter_map(|old| old.intersection(&wanted));
        parts.map(same).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Hva;
    use crate::memory::Region;

    fn gpas(page: u64, pages: u64) -> Range<Gpa> {
        Range::new(Gpa(page * PAGE), pages * PAGE).unwrap()
    }

    #[test]
    fn shares_merge_and_unshares_split() {
        let window = Window::new();
        window.share(gpas(4, 1)).unwrap();
        window.share(gpas(6, 1)).unwrap();
        assert_eq!(window.shared(), [gpas(4, 1), gpas(6, 1)]);
        window.share(gpas(5, 1)).unwrap();
        window.share(gpas(5, 1)).unwrap();
        assert_eq!(window.shared(), [gpas(4, 3)]);
        window.unshare(gpas(5, 1)).unwrap();
        assert_eq!(window.shared(), [gpas(4, 1), gpas(6, 1)]);
        window.share(gpas(0, 16)).unwrap();
        assert_eq!(window.shared(), [gpas(0, 16)]);
    }

    #[test]
    fn a_window_translates_what_is_shared_and_denies_the_rest() {
        let window = Window::new();
        window.share(gpas(4, 2)).unwrap();
        let inside = window.translate(Iova(5 * PAGE + 7)).unwrap();
        assert_eq!(inside.gpa, Gpa(4 * PAGE));
        assert_eq!(inside.range.last(), Iova(6 * PAGE - 1));
        assert!(window.translate(Iova(4 * PAGE - 1)).is_none());
        assert!(window.translate(Iova(6 * PAGE)).is_none());
    }

    #[test]
    fn shares_are_whole_pages_and_bounded() {
        let window = Window::new();
        let odd = Range::new(Gpa(1), PAGE).unwrap();
        assert!(matches!(window.share(odd), Err(ShareError::Alignment(_))));
        let odd = Range::new(Gpa(0), PAGE - 1).unwrap();
        assert!(matches!(window.unshare(odd), Err(ShareError::Alignment(_))));
        *lock(&window.shared) = vec![gpas(1, 1); Window::MAX_RANGES];
        assert!(matches!(window.share(gpas(9, 1)), Err(ShareError::TooMany)));
    }

    #[test]
    fn identity_gives_each_region_whole() {
        let region =
            |page: u64, pages, hva| Region::new(Gpa(page * PAGE), Hva(hva), pages * PAGE).unwrap();
        let memory = MemoryMap::new(vec![region(1, 2, 0x7000_0000), region(8, 1, 0x6000_0000)]);
        let identity = Identity(memory.unwrap());
        assert_eq!(identity.preload(Range::everything()).len(), 2);
        let found = identity.translate(Iova(2 * PAGE)).unwrap();
        assert_eq!(found.range.first(), Iova(PAGE));
        assert_eq!(found.gpa, Gpa(PAGE));
        assert!(identity.translate(Iova(3 * PAGE)).is_none());
    }
}
