// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's translation table, with its sharp edges (`iotlb.c`).

use crosvm_vsock::address::{Address, Hva, Iova, Range};

/// One translation: `range` is found at `host` and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The I/O virtual addresses.
    pub range: Range<Iova>,
    /// Where the first of them lies.
    pub host: Hva,
    /// 1 read, 2 write.
    pub perm: u8,
}

impl Entry {
    /// Where `iova`, which lies inside, is found.
    pub fn host_of(&self, iova: Iova) -> u64 {
        let into = iova.raw() - self.range.first().raw();
        self.host.raw().wrapping_add(into)
    }
}

/// Why a lookup ended without a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hole {
    /// Nothing at this address: a miss.
    Missing(Iova),
    /// An entry that does not allow it.
    Forbidden,
}

#[derive(Debug)]
pub(crate) struct Table {
    /// Oldest first, as the kernel's list of maps.
    entries: Vec<Entry>,
    limit: usize,
}

impl Table {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: Vec::new(),
            limit,
        }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// `vhost_iotlb_add_range`: adds beside whatever is there; at the limit the
    /// oldest goes.
    pub(crate) fn add(&mut self, entry: Entry) {
        if self.entries.len() >= self.limit {
            self.entries.remove(0);
        }
        self.entries.push(entry);
    }

    /// `vhost_iotlb_del_range`: every overlapping entry goes, whole.
    pub(crate) fn delete(&mut self, range: Range<Iova>) {
        self.entries.retain(|entry| !entry.range.overlaps(&range));
    }

    /// Two entries that share an address, if there are such.
    pub(crate) fn overlap(&self) -> Option<(Entry, Entry)> {
        let mut sorted = self.entries.clone();
        sorted.sort_by_key(|entry| entry.range.first());
        sorted
            .windows(2)
            .find(|pair| pair[0].range.overlaps(&pair[1].range))
            .map(|pair| (pair[0], pair[1]))
    }

    /// `vhost_iotlb_itree_first`: of the entries that share an address with
    /// `range` the one that begins lowest, and of those the oldest.
    fn first(&self, range: Range<Iova>) -> Option<Entry> {
        let overlapping = self
            .entries
            .iter()
            .filter(|entry| entry.range.overlaps(&range));
        overlapping.min_by_key(|entry| entry.range.first()).copied()
    }

    /// The walk of `translate_desc` and `iotlb_access_ok`: the host addresses
    /// behind `range`, piece by piece.
    pub(crate) fn walk(&self, range: Range<Iova>, perm: u8) -> Result<Vec<Range<Hva>>, Hole> {
        let mut pieces = Vec::new();
        let mut left = Some(range);
        while let Some(rest) = left {
            let here = rest.first();
            let entry = self
                .first(rest)
                .filter(|entry| entry.range.first() <= here)
                .ok_or(Hole::Missing(here))?;
            if entry.perm & perm == 0 {
                return Err(Hole::Forbidden);
            }
            let last = entry.range.last().min(rest.last());
            let host = Hva(entry.host_of(here));
            pieces.extend(Range::inclusive(here, last).and_then(|piece| piece.at(host)));
            left = last
                .checked_add(1)
                .and_then(|next| Range::inclusive(next, rest.last()));
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(first: u64, last: u64, host: u64, perm: u8) -> Entry {
        Entry {
            range: range(first, last),
            host: Hva(host),
            perm,
        }
    }

    fn range(first: u64, last: u64) -> Range<Iova> {
        Range::inclusive(Iova(first), Iova(last)).unwrap()
    }

    #[test]
    fn an_update_adds_and_the_lowest_oldest_entry_answers() {
        let mut table = Table::new(8);
        table.add(entry(0x10, 0x1f, 0x100, 3));
        table.add(entry(0x10, 0x1f, 0x200, 3));
        assert_eq!(table.entries().len(), 2);
        assert!(table.overlap().is_some());
        let found = table.walk(range(0x12, 0x13), 1).unwrap();
        assert_eq!(found[0].first(), Hva(0x102));
    }

    #[test]
    fn an_invalidation_takes_entries_whole() {
        let mut table = Table::new(8);
        table.add(entry(0x10, 0x1f, 0x100, 3));
        table.add(entry(0x20, 0x2f, 0x200, 3));
        table.delete(range(0x1f, 0x1f));
        assert_eq!(table.entries(), [entry(0x20, 0x2f, 0x200, 3)]);
    }

    #[test]
    fn at_the_limit_the_oldest_goes() {
        let mut table = Table::new(2);
        for page in 0..3 {
            table.add(entry(page * 16, page * 16 + 15, 0, 3));
        }
        assert_eq!(table.walk(range(0, 0), 1), Err(Hole::Missing(Iova(0))));
        assert!(table.walk(range(16, 47), 1).is_ok());
    }

    #[test]
    fn a_walk_crosses_entries_and_names_the_hole() {
        let mut table = Table::new(8);
        table.add(entry(0x10, 0x1f, 0x100, 3));
        table.add(entry(0x20, 0x2f, 0x500, 1));
        assert_eq!(table.walk(range(0x18, 0x27), 1).unwrap().len(), 2);
        assert_eq!(table.walk(range(0x18, 0x27), 2), Err(Hole::Forbidden));
        assert_eq!(
            table.walk(range(0x28, 0x37), 1),
            Err(Hole::Missing(Iova(0x30)))
        );
    }
}
