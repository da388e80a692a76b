//! What a process holds in memory beside its guest's, from `/proc/PID/smaps`.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Proportional set size in KiB of everything but the guests' memory: mappings as large as that, one for each of so many guests.
pub fn beside_guests_kib(pid: u32, guest_kib: u64, guests: usize) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).context(path)?;
    sum(&text, guest_kib, guests)
}

fn sum(smaps: &str, guest_kib: u64, expected: usize) -> Result<u64> {
    let (mut size, mut beside, mut guests, mut largest) = (0, 0, 0, 0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (name, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match name {
            "Size:" => {
                size = value.parse::<u64>().with_context(|| line.to_owned())?;
                largest = largest.max(size);
                guests += usize::from(size >= guest_kib);
            }
            "Pss:" if size < guest_kib => beside += value.parse::<u64>().with_context(|| line.to_owned())?,
            _ => {}
        }
    }
    ensure!(
        guests == expected,
        "{guests} mappings of {guest_kib} KiB or more, where {expected} were expected, one a guest; the largest has {largest}"
    );
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "7f0000000000-7f0008000000 rw-p 00000000 00:00 0\nSize:             131072 kB\nRss:  9000 kB\nPss:    9000 kB\nPss_Dirty: 9 kB\n\
        7f0010000000-7f0010001000 r-xp 00000000 00:00 0 /vmm\nSize:  4 kB\nPss:   2 kB\n7ffe0000-7ffe2000 rw-p 0 00:00 0 [stack]\nSize: 8 kB\nPss:   8 kB\n";

    #[test]
    fn the_guests_memory_is_left_out() {
        assert_eq!(sum(SMAPS, 131_072, 1).expect("one mapping"), 10);
    }

    #[test]
    fn memory_that_is_not_one_mapping_is_told() {
        assert!(sum(SMAPS, 262_144, 1).expect_err("none").to_string().starts_with("0 mappings"));
        assert!(sum(SMAPS, 8, 1).expect_err("two").to_string().starts_with("2 mappings"));
    }
}
