//! What the binary may not contain, because no image has the files for it.

use std::collections::HashSet;

/// Type of a section with symbols, and bytes of one of them (elf(5), Elf64_Shdr and Elf64_Sym).
const SHT_SYMTAB: u64 = 2;
const SYMBOL_BYTES: usize = 24;

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn place<const N: usize>(bytes: &[u8], at: usize) -> usize {
    usize::try_from(number::<N>(bytes, at)).expect("a place in the file")
}

/// Names of everything that has an address in the ELF file.
fn symbols(elf: &[u8]) -> HashSet<String> {
    let (table, size, count) = (place::<8>(elf, 40), place::<2>(elf, 58), place::<2>(elf, 60));
    let section = |index: usize| &elf[table + index * size..][..size];
    let contents = |section: &[u8]| place::<8>(section, 24)..place::<8>(section, 24) + place::<8>(section, 32);
    let mut names = HashSet::new();
    for found in (0..count).map(section).filter(|section| number::<4>(section, 4) == SHT_SYMTAB) {
        let text = &elf[contents(section(place::<4>(found, 40)))];
        for symbol in elf[contents(found)].chunks_exact(SYMBOL_BYTES).filter(|symbol| number::<8>(symbol, 8) != 0) {
            let name = text[place::<4>(symbol, 0)..].split(|byte| *byte == 0).next().expect("a name");
            names.insert(String::from_utf8_lossy(name).into_owned());
        }
    }
    names
}

#[test]
fn nothing_of_the_c_librarys_name_lookup_is_linked() {
    let names = symbols(&std::fs::read(env!("CARGO_BIN_EXE_labyard-init")).expect("reading the binary"));
    assert!(names.contains("__libc_start_main"), "the binary has no symbols, so this test would prove nothing");
    for symbol in ["getaddrinfo", "getnameinfo", "getpwnam_r", "getpwuid_r", "getgrnam_r", "getgrouplist"] {
        assert!(!names.contains(symbol), "{symbol} is linked");
    }
}
