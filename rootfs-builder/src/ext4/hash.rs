//! Half MD4, by which indexed directories are sorted (kernel documentation, filesystems/ext4, "hash tree directories"; the
//! transformation is the first half of MD4, RFC 1320).

/// The kernel keeps the largest hash for the end of a directory (`EXT4_HTREE_EOF_32BIT`, doubled).
const END: u32 = 0x7fff_ffff << 1;
/// Words of a name that are mixed in at once.
const WORDS: usize = 8;
/// Constants of rounds 2 and 3 (RFC 1320, 3.4).
const ROOT_2: u32 = 0x5a82_7999;
const ROOT_3: u32 = 0x6ed9_eba1;
/// The state that MD4 begins with, for a seed of zeros.
const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// Hash of a name, its lowest bit off, and the rest that orders names of one hash. Bytes are signed, as the superblock says.
pub(super) fn half_md4(name: &[u8], seed: &[u8; 16]) -> (u32, u32) {
    let mut state = START;
    if *seed != [0; 16] {
        for (word, bytes) in state.iter_mut().zip(seed.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    let mut left = name;
    loop {
        transform(&mut state, &words(left));
        match left.get(WORDS * 4..) {
            Some(rest) if !rest.is_empty() => left = rest,
            _ => break,
        }
    }
    let hash = state[1] & !1;
    (if hash == END { END - 2 } else { hash }, state[2])
}

/// The first bytes of a name, filled up with its length.
fn words(name: &[u8]) -> [u32; WORDS] {
    let len = (name.len() as u32 & 0xff) | (name.len() as u32) << 8;
    let pad = len | len << 16;
    let mut words = [pad; WORDS];
    for (word, bytes) in words.iter_mut().zip(name.chunks(4)) {
        *word = bytes.iter().fold(pad, |value, byte| (i32::from(*byte as i8) as u32).wrapping_add(value << 8));
    }
    words
}

fn transform(state: &mut [u32; 4], words: &[u32; WORDS]) {
    let choose = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let most = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let odd = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let mut mixed = *state;
    round(&mut mixed, words, choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
    round(&mut mixed, words, most, ROOT_2, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
    round(&mut mixed, words, odd, ROOT_3, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
    for (word, more) in state.iter_mut().zip(mixed) {
        *word = word.wrapping_add(more);
    }
}

/// Eight steps; each changes the word before the one that the step before has changed.
fn round(
    [a, b, c, d]: &mut [u32; 4],
    words: &[u32; WORDS],
    mix: impl Fn(u32, u32, u32) -> u32,
    constant: u32,
    order: [usize; WORDS],
    turns: [u32; 4],
) {
    for (step, at) in order.into_iter().enumerate() {
        let more = mix(*b, *c, *d).wrapping_add(words[at]).wrapping_add(constant);
        let next = a.wrapping_add(more).rotate_left(turns[step % 4]);
        (*a, *d, *c, *b) = (*d, *c, *b, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_that_debugfs_tells() {
        // debugfs -R "dx_hash -h half_md4 [-s a5a5a5a5-a5a5-a5a5-a5a5-a5a5a5a5a5a5] NAME"
        let long = "n".repeat(100);
        let cases = [
            ("a", 0xcab0_1b60, 0x1c4e_3efa),
            ("web-01", 0x6373_9a6a, 0x5aca_d4da),
            ("abcdefghijklmnopqrstuvwxyz012345", 0xafd4_9c60, 0x4693_622c),
            ("abcdefghijklmnopqrstuvwxyz0123456", 0x88d6_c846, 0x2236_cd47),
            (&long, 0x6525_d74e, 0xa47c_b58b),
        ];
        for (name, hash, rest) in cases {
            assert_eq!(half_md4(name.as_bytes(), &[0xa5; 16]), (hash, rest), "{name}");
        }
        assert_eq!(half_md4(b"a", &[0; 16]), (0xd5fa_7d7a, 0xacb4_8187));
    }
}
