//! Which layer has each block: what somebody who reads a whole chain asks, a page at a time.

use super::{PAGE_BLOCKS, Words};

/// Blocks in a row that one layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first one, counted from the page's first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Whose they are, 0 the lowest; what no layer has is the base's.
    pub layer: Option<usize>,
}

/// The first `blocks` blocks of a page in runs, from the page's bits in each layer, lowest first.
pub fn runs(pages: &[Words], blocks: u64) -> impl Iterator<Item = Run> {
    let blocks = blocks.min(PAGE_BLOCKS);
    let mut first = 0;
    std::iter::from_fn(move || {
        let layer = (first < blocks).then(|| owner(pages, first))?;
        let count = (first..blocks).take_while(|block| owner(pages, *block) == layer).count() as u64;
        let run = Run { first, count, layer };
        first = first.saturating_add(count.max(1));
        Some(run)
    })
}

/// The topmost layer whose bit is set.
fn owner(pages: &[Words], block: u64) -> Option<usize> {
    let word = usize::try_from(block / 64).ok()?;
    pages.iter().rposition(|words| words.get(word).is_some_and(|bits| bits >> (block % 64) & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::super::PAGE_WORDS;
    use super::*;

    #[test]
    fn the_topmost_layer_that_has_a_block_owns_it() {
        let (mut lower, mut upper) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        lower[0] = 0b1110;
        upper[0] = 0b1100_0100;
        upper[1] = 1;
        let found: Vec<_> = runs(&[lower, upper], 100).map(|run| (run.first, run.count, run.layer)).collect();
        let expected = [
            (0, 1, None),
            (1, 1, Some(0)),
            (2, 1, Some(1)),
            (3, 1, Some(0)),
            (4, 2, None),
            (6, 2, Some(1)),
            (8, 56, None),
            (64, 1, Some(1)),
            (65, 35, None),
        ];
        assert_eq!(found, expected);
        assert_eq!(runs(&[], 7).collect::<Vec<_>>(), [Run { first: 0, count: 7, layer: None }]);
        assert_eq!(runs(&[], u64::MAX).map(|run| run.count).sum::<u64>(), PAGE_BLOCKS);
        assert_eq!(runs(&[lower], 0).count(), 0);
    }
}
