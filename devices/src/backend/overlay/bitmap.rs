//! Which blocks live in a layer: bits in pages that exist once one of their bits is set. Bits only go from 0 to 1.
//!
//! An untouched page costs a pointer, so 30 GiB of drive cost 2 KiB until they are written; then 4 KiB for each 127 MiB.

use labyard_spec::overlay::{PAGE_BLOCKS, PAGE_WORDS, Words};

/// The bits of one layer.
pub(super) struct Bitmap {
    pages: Vec<Option<Box<Words>>>,
    /// Pages that were changed since they were last taken, each once.
    dirty: Vec<u32>,
    is_dirty: Vec<bool>,
}

impl Bitmap {
    /// No bit set, in so many pages.
    pub(super) fn new(pages: u64) -> Self {
        let count = usize::try_from(pages).unwrap_or(usize::MAX);
        let mut empty = Vec::new();
        empty.resize_with(count, || None);
        // Room for all of them, so that setting a bit never moves the list.
        Self { pages: empty, dirty: Vec::with_capacity(count), is_dirty: vec![false; count] }
    }

    /// More pages, with no bit set.
    pub(super) fn grow(&mut self, pages: u64) {
        let count = usize::try_from(pages).unwrap_or(usize::MAX).max(self.pages.len());
        self.pages.resize_with(count, || None);
        self.is_dirty.resize(count, false);
        self.dirty.reserve(count.saturating_sub(self.dirty.len()));
    }

    /// Adds the bits of a page that was read.
    pub(super) fn load(&mut self, page: u64, words: &Words) {
        if words.iter().all(|word| *word == 0) {
            return;
        }
        let Some(place) = usize::try_from(page).ok().and_then(|page| self.pages.get_mut(page)) else { return };
        let own = place.get_or_insert_with(|| Box::new([0; PAGE_WORDS]));
        for (own, word) in own.iter_mut().zip(words) {
            *own |= word;
        }
    }

    /// The bit of a block, and how many blocks from there on have the same, up to `most`.
    pub(super) fn run(&self, block: u64, most: u64) -> (bool, u64) {
        let mut first = None;
        let mut len = 0u64;
        while len < most {
            let (page, bit) = place(block.saturating_add(len));
            let in_page = PAGE_BLOCKS.saturating_sub(bit).min(most.saturating_sub(len));
            let (set, run) = match self.pages.get(page) {
                Some(Some(words)) => run_in(words, bit, in_page),
                // A page that is not there is clear; behind the last there is nothing but clear bits.
                Some(None) => (false, in_page),
                None => (false, most.saturating_sub(len)),
            };
            if *first.get_or_insert(set) != set {
                break;
            }
            len = len.saturating_add(run);
            if run < in_page {
                break;
            }
        }
        (first.unwrap_or(false), len)
    }

    /// Sets the bits of `count` blocks.
    pub(super) fn set(&mut self, block: u64, count: u64) {
        let end = block.saturating_add(count);
        let mut at = block;
        while at < end {
            let (page, bit) = place(at);
            let until = PAGE_BLOCKS.min(bit.saturating_add(end.saturating_sub(at)));
            at = at.saturating_add(until.saturating_sub(bit));
            let Some(place) = self.pages.get_mut(page) else { return };
            let words = place.get_or_insert_with(|| Box::new([0; PAGE_WORDS]));
            let mut changed = false;
            let (first, last) = (word_of(bit), word_of(until.saturating_sub(1)));
            for (number, word) in (first..=last).zip(words.iter_mut().skip(first)) {
                let start = (number as u64).saturating_mul(64);
                let mask = mask(bit.saturating_sub(start)) & !mask(until.saturating_sub(start));
                changed |= *word & mask != mask;
                *word |= mask;
            }
            if changed {
                self.mark(page);
            }
        }
    }

    /// The page is to be written.
    pub(super) fn mark(&mut self, page: usize) {
        if let Some(dirty) = self.is_dirty.get_mut(page)
            && !std::mem::replace(dirty, true)
        {
            self.dirty.push(u32::try_from(page).unwrap_or(u32::MAX));
        }
    }

    /// A page that was changed since it was last taken, and its bits as they are now.
    pub(super) fn take_dirty(&mut self) -> Option<(u32, &Words)> {
        let page = self.dirty.pop()?;
        let index = page as usize;
        if let Some(dirty) = self.is_dirty.get_mut(index) {
            *dirty = false;
        }
        Some((page, self.pages.get(index)?.as_deref()?))
    }
}

/// Bits of a word from this one on; none from 64 on.
fn mask(from: u64) -> u64 {
    u32::try_from(from).ok().and_then(|from| u64::MAX.checked_shl(from)).unwrap_or(0)
}

fn word_of(bit: u64) -> usize {
    usize::try_from(bit >> 6).unwrap_or(usize::MAX)
}

/// Page and bit of a block.
fn place(block: u64) -> (usize, u64) {
    let page = block.checked_div(PAGE_BLOCKS).unwrap_or(0);
    (usize::try_from(page).unwrap_or(usize::MAX), block.checked_rem(PAGE_BLOCKS).unwrap_or(0))
}

/// The value at `bit`, and how many bits from there on have it, up to `most`.
fn run_in(words: &Words, bit: u64, most: u64) -> (bool, u64) {
    let first = word_of(bit);
    let set = words.get(first).is_some_and(|word| word >> (bit & 63) & 1 == 1);
    let mut len = 0u64;
    for (word, skip) in words.iter().skip(first).zip(std::iter::once(bit & 63).chain(std::iter::repeat(0))) {
        // Ones where the value goes on; what is shifted in ends the run, unless the word ends it.
        let same = if set { *word } else { !*word } >> skip;
        let run = u64::from(same.trailing_ones());
        len = len.saturating_add(run);
        if len >= most || run < 64u64.saturating_sub(skip) {
            break;
        }
    }
    (set, len.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn thirty_gib_untouched_are_cheap() {
        let bitmap = Bitmap::new(labyard_spec::overlay::pages(30 << 30));
        let bytes = bitmap.pages.capacity() * size_of::<usize>() + bitmap.dirty.capacity() * 4 + bitmap.is_dirty.len();
        assert!(bytes < 4096, "{bytes}");
        assert_eq!(bitmap.run(0, 8 << 20), (false, 8 << 20));
    }

    proptest! {
        #[test]
        fn runs_and_bits_are_those_of_a_plain_list(
            sets in prop::collection::vec((0u64..100_000, 1u64..40_000), 0..12),
            looks in prop::collection::vec((0u64..101_000, 1u64..70_000), 1..20),
        ) {
            let (mut bitmap, mut list) = (Bitmap::new(3), vec![false; 3 * PAGE_BLOCKS as usize]);
            for (at, count) in sets {
                let count = count.min(list.len() as u64 - 1 - at.min(list.len() as u64 - 2));
                let at = at.min(list.len() as u64 - 2);
                bitmap.set(at, count);
                list[at as usize..][..count as usize].fill(true);
            }
            for (at, most) in looks {
                let value = |block: u64| list.get(block as usize).copied().unwrap_or(false);
                let len = (at..at + most).take_while(|block| value(*block) == value(at)).count() as u64;
                prop_assert_eq!(bitmap.run(at, most), (value(at), len));
            }
            let mut dirty: Vec<u32> = std::iter::from_fn(|| bitmap.take_dirty().map(|(page, _)| page)).collect();
            dirty.sort_unstable();
            let touched: Vec<u32> =
                (0..3).filter(|page| list.chunks(PAGE_BLOCKS as usize).nth(*page as usize).expect("a page").contains(&true)).collect();
            prop_assert_eq!(dirty, touched);
        }
    }
}
