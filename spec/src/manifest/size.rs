//! Sizes as people write them: `512MiB`, `2GiB`, and the short forms `1Gi` and `4G`, which mean the same powers of 1,024.

const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// Bytes of a size.
///
/// # Errors
/// The text, and the forms that are understood.
pub fn parse(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size such as 512MiB or 2GiB");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(|| format!("`{text}` has no unit: write {text}MiB or {text}GiB"))?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim_start();
    let shift = UNITS.iter().find_map(|(letter, shift)| {
        let rest = unit.strip_prefix(letter)?;
        matches!(rest, "" | "i" | "iB").then_some(*shift)
    });
    let shift = shift.ok_or_else(|| {
        match unit.strip_suffix('B').filter(|letter| UNITS.iter().any(|(unit, _)| unit == letter)) {
            Some(letter) => {
                format!("`{text}` is not a size: powers of 1,000 are not used here, write {number}{letter}iB")
            }
            None => bad(),
        }
    })?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than can be counted"))
}

/// A size in the largest unit that leaves no rest.
pub fn show(bytes: u64) -> String {
    for (letter, shift) in UNITS.iter().rev() {
        let unit = 1u64 << shift;
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{letter}iB", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_size_that_occurs_is_read() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("1Gi", 1 << 30),
            ("4G", 4 << 30),
            ("8 GiB", 8 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_way_out() {
        for (text, way_out) in [
            ("512", "512MiB"),
            ("2GB", "2GiB"),
            ("two", "such as"),
            ("", "no unit"),
            ("-1GiB", "such as"),
            ("1.5GiB", "such as"),
            ("20000000TiB", "more than"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(way_out), "{error}");
        }
    }

    #[test]
    fn a_size_is_shown_as_it_would_be_written() {
        assert_eq!([show(512 << 20), show(4 << 30), show(1000)], ["512MiB", "4GiB", "1000 bytes"]);
    }
}
