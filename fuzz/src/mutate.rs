//! New inputs from old ones. A seed decides everything, so a run can be repeated.

/// Longest input in bytes.
pub const MAX_BYTES: usize = 4096;

/// Numbers at which code changes its mind.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x1_0000_0000, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// A stream of numbers (SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }
}

/// Bytes from nothing. Short inputs are as common as long ones.
pub fn fresh(random: &mut Random) -> Vec<u8> {
    let longest = 1 << random.below(12);
    let len = random.below(longest) + 1;
    (0..len).map(|_| random.number() as u8).collect()
}

/// A changed copy of one of `corpus`, sometimes crossed with another.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..1 << random.below(5) {
        change(random, &mut bytes, corpus);
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    if bytes.is_empty() {
        *bytes = fresh(random);
        return;
    }
    let at = random.below(bytes.len());
    let len = random.below((bytes.len() - at).min(64)) + 1;
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.number() as u8,
        2 => drop(bytes.drain(at..at + len)),
        3 => {
            let copy = bytes[at..at + len].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        4 => {
            let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
            let width = 1 << random.below(4);
            for (to, from) in bytes[at..].iter_mut().zip(&edge[..width]) {
                *to = *from;
            }
        }
        5 => {
            let new: Vec<u8> = (0..len).map(|_| random.number() as u8).collect();
            bytes.splice(at..at, new);
        }
        6 => bytes[at] = bytes[at].wrapping_add(random.below(16) as u8).wrapping_sub(8),
        _ => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let inputs = |seed| {
            let mut random = Random::new(seed);
            let corpus = vec![b"{\"seed\":1}".to_vec(), Vec::new()];
            (0..200).map(|_| mutate(&mut random, &corpus)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }

    #[test]
    fn inputs_stay_short() {
        let mut random = Random::new(1);
        let corpus = vec![vec![1; MAX_BYTES], vec![2; MAX_BYTES]];
        assert!((0..1000).all(|_| mutate(&mut random, &corpus).len() <= MAX_BYTES));
    }
}
