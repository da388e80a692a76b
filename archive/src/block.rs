//! One header block of 512 bytes: POSIX ustar, and what GNU makes of it.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// A field, as offset and length (POSIX.1-2008, pax, "ustar Interchange Format").
type Field = (usize, usize);
const NAME: Field = (0, 100);
const MODE: Field = (100, 8);
const UID: Field = (108, 8);
const GID: Field = (116, 8);
const SIZE: Field = (124, 12);
const MTIME: Field = (136, 12);
const CHECKSUM: Field = (148, 8);
const KIND: usize = 156;
const LINK: Field = (157, 100);
const MAGIC: Field = (257, 8);
const MAJOR: Field = (329, 8);
const MINOR: Field = (337, 8);
const PREFIX: Field = (345, 155);

/// A block as it came; nothing in it is true yet.
pub(crate) struct Block(pub(crate) [u8; BLOCK]);

/// What is written into a block.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) link: &'a [u8],
    pub(crate) device: (u32, u32),
}

impl Block {
    /// A block with these fields. A name or number that does not fit is cut: a pax header before it has the whole one.
    pub(crate) fn of(fields: &Fields<'_>) -> Self {
        let mut block = Self([0; BLOCK]);
        block.text(NAME, fields.name);
        block.octal(MODE, u64::from(fields.mode));
        block.octal(UID, u64::from(fields.uid));
        block.octal(GID, u64::from(fields.gid));
        block.octal(SIZE, fields.size);
        block.octal(MTIME, fields.mtime);
        block.text((KIND, 1), &[fields.kind]);
        block.text(LINK, fields.link);
        block.text(MAGIC, b"ustar\x0000");
        block.octal(MAJOR, u64::from(fields.device.0));
        block.octal(MINOR, u64::from(fields.device.1));
        block.text(CHECKSUM, b"        ");
        let sum = block.sum();
        block.text(CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn text(&mut self, (at, len): Field, text: &[u8]) {
        let places = self.0.iter_mut().skip(at).take(len);
        places.zip(text).for_each(|(place, byte)| *place = *byte);
    }

    fn octal(&mut self, field: Field, number: u64) {
        let digits = field.1.saturating_sub(1);
        let most = 1u64
            .checked_shl(u32::try_from(digits.saturating_mul(3)).unwrap_or(0))
            .map_or(u64::MAX, |one| one.wrapping_sub(1));
        let text = format!("{:0digits$o}", number.min(most));
        self.text(field, text.as_bytes());
    }

    fn field(&self, (at, len): Field) -> &[u8] {
        self.0.get(at..at.saturating_add(len)).unwrap_or_default()
    }

    /// A text up to its NUL.
    fn string(&self, field: Field) -> &[u8] {
        self.field(field).split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// The sum of all bytes, the checksum's own counted as spaces.
    fn sum(&self) -> u64 {
        let own = CHECKSUM.0..CHECKSUM.0.saturating_add(CHECKSUM.1);
        let bytes = self.0.iter().enumerate();
        bytes.map(|(at, byte)| u64::from(if own.contains(&at) { b' ' } else { *byte })).sum()
    }

    /// Whether it is nothing but zeros, which ends an archive.
    pub(crate) fn is_end(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whether its checksum is right.
    pub(crate) fn is_sound(&self) -> bool {
        number(self.field(CHECKSUM)) == Some(self.sum())
    }

    pub(crate) fn kind(&self) -> u8 {
        self.0.get(KIND).copied().unwrap_or_default()
    }

    /// Prefix and name.
    pub(crate) fn name(&self) -> Vec<u8> {
        let (prefix, name) = (self.string(PREFIX), self.string(NAME));
        // GNU has other things where POSIX has the prefix.
        match self.field(MAGIC).starts_with(b"ustar\0") && !prefix.is_empty() {
            true => [prefix, b"/", name].concat(),
            false => name.to_vec(),
        }
    }

    pub(crate) fn link(&self) -> &[u8] {
        self.string(LINK)
    }

    pub(crate) fn size(&self) -> Option<u64> {
        number(self.field(SIZE))
    }

    pub(crate) fn mode(&self) -> Option<u64> {
        number(self.field(MODE))
    }

    pub(crate) fn owner(&self) -> (Option<u64>, Option<u64>) {
        (number(self.field(UID)), number(self.field(GID)))
    }

    pub(crate) fn mtime(&self) -> Option<u64> {
        number(self.field(MTIME))
    }

    pub(crate) fn device(&self) -> (Option<u64>, Option<u64>) {
        (number(self.field(MAJOR)), number(self.field(MINOR)))
    }

    /// The parts of an old GNU sparse header, whether blocks with more follow, and the real size (tar.h of GNU tar, `oldgnu_header`).
    pub(crate) fn old_sparse(&self) -> (&[u8], bool, Option<u64>) {
        (self.field((386, 96)), self.field((482, 1)) != [0], number(self.field((483, 12))))
    }

    /// The parts of a block that follows one, and whether another does.
    pub(crate) fn more_sparse(&self) -> (&[u8], bool) {
        (self.field((0, 504)), self.field((504, 1)) != [0])
    }
}

/// A number: octal digits with blanks around, or GNU's big-endian one with the first bit set. An empty field is 0.
pub(crate) fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // Negative, or larger than any file.
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() {
        return Some(0);
    }
    text.bytes().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit.wrapping_sub(b'0'))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_nothing_else() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0000648\0", None),
            (b"-1", None),
            (b"77777777777777777777777", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
