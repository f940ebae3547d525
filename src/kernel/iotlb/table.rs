// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A mirror of the entries that the kernel's IOTLB holds.
//!
//! It exists because the kernel's table has sharp edges (`vhost_iotlb_add_range`,
//! `vhost_iotlb_del_range`): an update *adds* beside an overlapping entry instead
//! of replacing it, an invalidation deletes every overlapping entry whole, and at
//! the limit the oldest entry is dropped without a word. The mirror turns "map
//! this", "unmap that" into the commands that give exactly the wished result, and
//! merges neighbours so that few entries do. Entries never overlap.
//!
//! Pure; about 120 bytes an entry, never more than the limit of them.

use std::collections::BTreeMap;

use super::message::{Command, Mapping};
use crate::address::{Address, Iova, Range};

/// `max_iotlb_entries`, the kernel's default limit.
pub const KERNEL_LIMIT: usize = 2048;

/// What the kernel holds, as far as one who wrote all of it can know.
#[derive(Debug)]
pub struct Table {
    entries: BTreeMap<Iova, Entry>,
    /// First addresses by age, oldest first.
    ages: BTreeMap<u64, Iova>,
    next_age: u64,
    limit: usize,
    evictions: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    mapping: Mapping,
    age: u64,
}

impl Table {
    /// An empty table of at most `limit` entries.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            ages: BTreeMap::new(),
            next_age: 0,
            limit: limit.max(1),
            evictions: 0,
        }
    }

    /// How many entries there are now.
    pub fn held(&self) -> usize {
        self.entries.len()
    }

    /// Whether half of the entries are taken. What is mapped in advance stops here:
    /// more of it would only push out what the queues need.
    pub fn is_half_full(&self) -> bool {
        self.entries.len() >= self.limit / 2
    }

    /// How many entries the kernel has dropped for want of room.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// The entry that holds `iova`.
    pub fn covering(&self, iova: Iova) -> Option<Mapping> {
        let (_, entry) = self.entries.range(..=iova).next_back()?;
        entry.mapping.range.contains(iova).then_some(entry.mapping)
    }

    /// Makes `mapping` hold, whatever was there, and merges it with neighbours
    /// that continue it. Appends what to tell the kernel to `commands`.
    ///
    /// The last update always covers `mapping`, also when nothing changed: only an
    /// update *after* a miss was read wakes the queue that waits for it
    /// (`vhost_iotlb_notify_vq`).
    pub fn map(&mut self, mapping: Mapping, commands: &mut Vec<Command>) {
        let reach = with_neighbours(mapping.range);
        let mut merged = mapping;
        let mut stale: Option<Range<Iova>> = None;
        let mut remainders = Vec::new();
        for old in self.overlapping(reach) {
            let continues = offset(&old) == offset(&mapping) && old.access == mapping.access;
            if continues {
                merged = join(&merged, &old);
            } else if old.range.overlaps(&mapping.range) {
                remainders.extend(rest(&old, &mapping.range));
            } else {
                continue;
            }
            self.remove(old.range.first());
            stale = Some(stale.map_or(old.range, |stale| hull(&stale, &old.range)));
        }
        // The hull reaches no entry that stays: what it spans beyond `mapping` is
        // old entries just removed, which touch or overlap `mapping`.
        commands.extend(stale.map(Command::Invalidate));
        for mapping in remainders.into_iter().chain([merged]) {
            self.add(mapping);
            commands.push(Command::Update(mapping));
        }
    }

    /// Makes nothing hold in `range`, and what overlapped it hold as before
    /// outside. The invalidation goes out even when no entry is known: the kernel
    /// may hold one longer than the mirror does.
    pub fn unmap(&mut self, range: Range<Iova>, commands: &mut Vec<Command>) {
        commands.push(Command::Invalidate(range));
        for old in self.overlapping(range) {
            self.remove(old.range.first());
            for remainder in rest(&old, &range) {
                self.add(remainder);
                commands.push(Command::Update(remainder));
            }
        }
    }

    fn add(&mut self, mapping: Mapping) {
        if self.entries.len() == self.limit {
            if let Some((_, oldest)) = self.ages.pop_first() {
                self.entries.remove(&oldest);
                self.evictions += 1;
            }
        }
        let age = self.next_age;
        self.next_age += 1;
        self.ages.insert(age, mapping.range.first());
        self.entries
            .insert(mapping.range.first(), Entry { mapping, age });
    }

    fn remove(&mut self, first: Iova) {
        if let Some(entry) = self.entries.remove(&first) {
            self.ages.remove(&entry.age);
        }
    }

    fn overlapping(&self, range: Range<Iova>) -> Vec<Mapping> {
        self.entries
            .range(..=range.last())
            .rev()
            .map(|(_, entry)| entry.mapping)
            .take_while(|mapping| mapping.range.overlaps(&range))
            .collect()
    }
}

/// `range` and one byte to either side.
fn with_neighbours(range: Range<Iova>) -> Range<Iova> {
    let first = Iova(range.first().raw().saturating_sub(1));
    let last = Iova(range.last().raw().saturating_add(1));
    Range::inclusive(first, last).unwrap_or(range)
}

/// What is added to an I/O virtual address to get the host's.
fn offset(mapping: &Mapping) -> u64 {
    mapping.host.raw().wrapping_sub(mapping.range.first().raw())
}

fn hull(a: &Range<Iova>, b: &Range<Iova>) -> Range<Iova> {
    Range::inclusive(a.first().min(b.first()), a.last().max(b.last())).unwrap_or(*a)
}

/// Two mappings of the same offset as one.
fn join(a: &Mapping, b: &Mapping) -> Mapping {
    Mapping {
        range: hull(&a.range, &b.range),
        host: a.host.min(b.host),
        access: a.access,
    }
}

/// What `mapping` says outside of `hole`.
fn rest(mapping: &Mapping, hole: &Range<Iova>) -> Vec<Mapping> {
    let Mapping {
        range,
        host,
        access,
    } = *mapping;
    range
        .without(hole)
        .filter_map(|left| {
            let into = left.first().offset_from(range.first())?;
            Some(Mapping {
                range: left,
                host: host.checked_add(into)?,
                access,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::address::Hva;

    fn range(first: u64, size: u64) -> Range<Iova> {
        Range::new(Iova(first), size).unwrap()
    }

    fn mapping(first: u64, size: u64, host: u64) -> Mapping {
        Mapping {
            range: range(first, size),
            host: Hva(host),
            access: Access::ReadWrite,
        }
    }

    fn read_only(mapping: Mapping) -> Mapping {
        Mapping {
            access: Access::Read,
            ..mapping
        }
    }

    fn map(table: &mut Table, mapping: Mapping) -> Vec<Command> {
        let mut commands = Vec::new();
        table.map(mapping, &mut commands);
        commands
    }

    fn unmap(table: &mut Table, range: Range<Iova>) -> Vec<Command> {
        let mut commands = Vec::new();
        table.unmap(range, &mut commands);
        commands
    }

    #[test]
    fn a_new_mapping_is_one_update() {
        let mut table = Table::new(8);
        let new = mapping(0x1000, 0x1000, 0x9000);
        assert_eq!(map(&mut table, new), [Command::Update(new)]);
        assert_eq!(table.covering(Iova(0x1fff)), Some(new));
        assert_eq!(table.covering(Iova(0x2000)), None);
        assert_eq!(table.covering(Iova(0xfff)), None);
    }

    #[test]
    fn a_remap_invalidates_first_and_keeps_what_it_does_not_cover() {
        let mut table = Table::new(8);
        map(&mut table, mapping(0x1000, 0x3000, 0x9000));
        let moved = mapping(0x2000, 0x1000, 0x5_0000);
        assert_eq!(
            map(&mut table, moved),
            [
                Command::Invalidate(range(0x1000, 0x3000)),
                Command::Update(mapping(0x1000, 0x1000, 0x9000)),
                Command::Update(mapping(0x3000, 0x1000, 0xb000)),
                Command::Update(moved),
            ]
        );
        assert_eq!(table.held(), 3);
    }

    #[test]
    fn a_repeated_miss_is_answered_with_a_fresh_update() {
        let mut table = Table::new(8);
        let known = mapping(0x1000, 0x1000, 0x9000);
        map(&mut table, known);
        assert_eq!(
            map(&mut table, known),
            [Command::Invalidate(known.range), Command::Update(known)]
        );
        assert_eq!(table.held(), 1);
    }

    #[test]
    fn neighbours_that_continue_each_other_become_one_entry() {
        let mut table = Table::new(8);
        map(&mut table, mapping(0x1000, 0x1000, 0x9000));
        map(&mut table, mapping(0x3000, 0x1000, 0xb000));
        let all = mapping(0x1000, 0x3000, 0x9000);
        assert_eq!(
            map(&mut table, mapping(0x2000, 0x1000, 0xa000)),
            [Command::Invalidate(all.range), Command::Update(all)]
        );
        assert_eq!(table.held(), 1);
    }

    #[test]
    fn neighbours_that_do_not_continue_are_left_alone() {
        let mut table = Table::new(8);
        map(&mut table, mapping(0x1000, 0x1000, 0x9000));
        let elsewhere = mapping(0x2000, 0x1000, 0x5_0000);
        assert_eq!(map(&mut table, elsewhere), [Command::Update(elsewhere)]);
        let weaker = read_only(mapping(0x3000, 0x1000, 0x5_1000));
        assert_eq!(map(&mut table, weaker), [Command::Update(weaker)]);
        assert_eq!(table.held(), 3);
    }

    #[test]
    fn a_partial_unmap_adds_the_remainders_again() {
        let mut table = Table::new(8);
        map(&mut table, mapping(0x1000, 0x3000, 0x9000));
        assert_eq!(
            unmap(&mut table, range(0x2000, 0x1000)),
            [
                Command::Invalidate(range(0x2000, 0x1000)),
                Command::Update(mapping(0x1000, 0x1000, 0x9000)),
                Command::Update(mapping(0x3000, 0x1000, 0xb000)),
            ]
        );
        assert_eq!(table.covering(Iova(0x2000)), None);
        let everything = Range::inclusive(Iova(0), Iova(u64::MAX)).unwrap();
        assert_eq!(
            unmap(&mut table, everything),
            [Command::Invalidate(everything)]
        );
        assert_eq!(table.held(), 0);
    }

    #[test]
    fn an_unmap_of_the_unknown_is_still_told() {
        let mut table = Table::new(8);
        assert_eq!(
            unmap(&mut table, range(0, 1)),
            [Command::Invalidate(range(0, 1))]
        );
    }

    #[test]
    fn at_the_limit_the_oldest_goes_as_in_the_kernel() {
        let mut table = Table::new(2);
        map(&mut table, mapping(0x1000, 0x1000, 0x9_0000));
        map(&mut table, mapping(0x3000, 0x1000, 0x8_0000));
        map(&mut table, mapping(0x5000, 0x1000, 0x7_0000));
        assert_eq!(table.held(), 2);
        assert_eq!(table.evictions(), 1);
        assert_eq!(table.covering(Iova(0x1000)), None);
        // Renewed entries are young again.
        map(&mut table, mapping(0x3000, 0x1000, 0x8_0000));
        map(&mut table, mapping(0x7000, 0x1000, 0x6_0000));
        assert_eq!(table.covering(Iova(0x5000)), None);
        assert!(table.covering(Iova(0x3000)).is_some());
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_wrap() {
        let mut table = Table::new(8);
        map(&mut table, mapping(0, 0x1000, 0x9000));
        map(
            &mut table,
            mapping(0u64.wrapping_sub(0x1000), 0x1000, 0x5000),
        );
        assert_eq!(table.held(), 2);
        unmap(&mut table, range(0, 0x1000));
        assert_eq!(table.held(), 1);
    }
}
