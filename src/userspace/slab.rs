// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A table whose places are used again, with names that are not.

/// The name of an entry: its place, and how often the place has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Place in the table.
    pub slot: u32,
    /// Use of the place.
    pub generation: u32,
}

/// Entries by [`Id`].
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<(u32, Option<Box<T>>)>,
    free: Vec<u32>,
    most: usize,
}

impl<T> Slab<T> {
    /// Room for `most` entries (below 2^24), allocated as they come.
    pub fn new(most: usize) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            most: most.min((1 << 24) - 1),
        }
    }

    /// Entries at present.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether no more fits.
    pub fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// Adds what `make` builds, unless the table is full.
    pub fn insert(&mut self, make: impl FnOnce(Id) -> T) -> Option<Id> {
        if self.is_full() {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.places.push((0, None));
                (self.places.len() - 1) as u32
            }
        };
        let place = &mut self.places[slot as usize];
        let id = Id {
            slot,
            generation: place.0,
        };
        place.1 = Some(Box::new(make(id)));
        Some(id)
    }

    /// The entry, if it is still there.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let (generation, entry) = self.places.get_mut(id.slot as usize)?;
        entry
            .as_deref_mut()
            .filter(|_| *generation == id.generation)
    }

    /// Takes the entry out.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.get_mut(id)?;
        let place = &mut self.places[id.slot as usize];
        place.0 = place.0.wrapping_add(1);
        self.free.push(id.slot);
        place.1.take().map(|entry| *entry)
    }

    /// All entries with their names.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &T)> + '_ {
        self.places
            .iter()
            .enumerate()
            .filter_map(|(slot, (generation, entry))| {
                let id = Id {
                    slot: slot as u32,
                    generation: *generation,
                };
                Some((id, entry.as_deref()?))
            })
    }

    /// The names of all entries.
    pub fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        self.iter().map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_used_again_has_another_name() {
        let mut slab = Slab::new(1);
        let first = slab.insert(|_| "first").unwrap();
        assert!(slab.insert(|_| "too many").is_none());
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert(|_| "second").unwrap();
        assert_eq!(first.slot, second.slot);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!(slab.ids().collect::<Vec<_>>(), [second]);
    }
}
