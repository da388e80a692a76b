//! Which blocks are taken. Metadata is placed first; data then takes what is free from the front, so that a file is one
//! extent unless a copy of the superblock lies in its way.

use std::collections::BTreeMap;
use std::ops::Range;

/// Taken ranges of blocks, by start; neighbours are joined.
#[derive(Debug)]
pub(super) struct Space {
    taken: BTreeMap<u64, u64>,
    cursor: u64,
    end: u64,
}

impl Space {
    /// Blocks `0..end`, all free.
    pub(super) fn new(end: u64) -> Self {
        Self { taken: BTreeMap::new(), cursor: 0, end }
    }

    /// Marks a range that is known to be free.
    pub(super) fn reserve(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &until)) = self.taken.range(..start).next_back()
            && until == start
        {
            start = before;
        }
        if let Some(&until) = self.taken.get(&end) {
            self.taken.remove(&end);
            end = until;
        }
        self.taken.insert(start, end);
    }

    /// Takes the first `count` free blocks in a row at or behind `from`; `None` where no such row is left.
    pub(super) fn place(&mut self, from: u64, count: u64) -> Option<u64> {
        let mut at = from;
        loop {
            let end = at.checked_add(count).filter(|end| *end <= self.end)?;
            match self.taken.range(..end).next_back() {
                Some((_, &until)) if until > at => at = until,
                _ => {
                    self.reserve(at..end);
                    return Some(at);
                }
            }
        }
    }

    /// Takes up to `count` blocks in a row, from the front; `None` where the disk is full.
    pub(super) fn take(&mut self, count: u64) -> Option<Range<u64>> {
        if let Some((_, &until)) = self.taken.range(..=self.cursor).next_back()
            && until > self.cursor
        {
            self.cursor = until;
        }
        let limit = self.taken.range(self.cursor..).next().map_or(self.end, |(&start, _)| start);
        let range = self.cursor..(self.cursor + count).min(limit);
        if range.is_empty() {
            return None;
        }
        self.reserve(range.clone());
        self.cursor = range.end;
        Some(range)
    }

    /// The parts of `within` that are taken, in order.
    pub(super) fn taken_in(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.taken.range(..within.start).next_back().map_or(within.start, |(&start, _)| start);
        self.taken
            .range(first..within.end)
            .map(move |(&start, &end)| start.max(within.start)..end.min(within.end))
            .filter(|range| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_around_what_is_reserved() {
        let mut space = Space::new(20);
        space.reserve(0..2);
        space.reserve(5..6);
        assert_eq!(space.take(10), Some(2..5));
        assert_eq!(space.take(7), Some(6..13));
        assert_eq!(space.take(100), Some(13..20));
        assert_eq!(space.take(1), None);
        assert_eq!(space.taken_in(4..8).collect::<Vec<_>>(), vec![Range { start: 4, end: 8 }]);
    }

    #[test]
    fn a_row_is_placed_where_it_fits_whole() {
        let mut space = Space::new(20);
        space.reserve(3..4);
        assert_eq!(space.place(0, 4), Some(4));
        assert_eq!(space.place(0, 3), Some(0));
        assert_eq!(space.place(0, 13), None);
        assert_eq!(space.place(10, 10), Some(10));
    }
}
