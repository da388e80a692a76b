//! The Internet checksum (RFC 1071): the one's complement of a one's complement sum of 16-bit words.

/// A sum over bytes that come in pieces. The pieces may have any length: a word may lie across two of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// Sum of words in this machine's byte order (RFC 1071, §2B: the order does not matter until the end), not folded yet.
    words: u64,
    /// An odd number of bytes was added.
    odd: bool,
}

impl Sum {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.odd
            && let Some((first, behind)) = bytes.split_first()
        {
            self.word(u16::from_ne_bytes([0, *first]).into());
            self.odd = false;
            rest = behind;
        }
        let (fours, tail) = rest.as_chunks::<4>();
        // At most 2^32 - 1 each: 2^32 of them fit, a frame has 2^14.
        let sum = fours.iter().map(|four| u64::from(u32::from_ne_bytes(*four))).fold(0, u64::wrapping_add);
        self.word(sum);
        match *tail {
            [a] => self.half_word(u16::from_ne_bytes([a, 0])),
            [a, b] => self.word(u16::from_ne_bytes([a, b]).into()),
            [a, b, c] => {
                self.word(u16::from_ne_bytes([a, b]).into());
                self.half_word(u16::from_ne_bytes([c, 0]));
            }
            _ => {}
        }
    }

    /// Adds a number in network byte order.
    pub fn add_u16(&mut self, number: u16) {
        self.add(&number.to_be_bytes());
    }

    /// The sum, folded to 16 bits, in host byte order.
    pub fn folded(self) -> u16 {
        let mut sum = self.words;
        while sum > u64::from(u16::MAX) {
            sum = (sum & 0xffff).wrapping_add(sum >> 16);
        }
        // It fits: the loop ended.
        u16::from_be(sum as u16)
    }

    /// The checksum. Never 0, which in UDP means that there is none (RFC 768); for others 0 and !0 are the same.
    pub fn finish(self) -> u16 {
        match !self.folded() {
            0 => u16::MAX,
            checksum => checksum,
        }
    }

    fn word(&mut self, word: u64) {
        // An end-around carry keeps the sum right whatever its length.
        let (sum, carry) = self.words.overflowing_add(word);
        self.words = sum.wrapping_add(carry.into());
    }

    fn half_word(&mut self, word: u16) {
        self.word(word.into());
        self.odd = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 says it.
    pub(crate) fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.finish(), 0x220d);
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_all_ones() {
        let mut sum = Sum::default();
        sum.add_u16(0xffff);
        assert_eq!(sum.finish(), 0xffff);
    }

    proptest! {
        #[test]
        fn any_pieces_sum_up_as_the_whole(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..70), 0..8)) {
            let mut sum = Sum::default();
            pieces.iter().for_each(|piece| sum.add(piece));
            let (ours, theirs) = (sum.folded(), naive(&pieces.concat()));
            // 0 and !0 are the same number in one's complement.
            prop_assert!(ours == theirs || (ours | theirs == 0xffff && ours & theirs == 0), "{ours:#x} {theirs:#x}");
        }
    }
}
