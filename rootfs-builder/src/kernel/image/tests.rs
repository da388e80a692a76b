use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::kernel::elf::image_with;

fn elf() -> Vec<u8> {
    image_with(b"\0\0Linux version %s (%s)\0Linux version 6.12.3-test (me) #1\0", 4 << 20)
}

fn bz_image(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(HEADER_MAGIC);
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend_from_slice(&[0; 16]);
    file.extend_from_slice(payload);
    file
}

/// Packed by the tool that packs kernels, with the size that Linux's build appends.
fn packed(command: &[&str], content: &[u8]) -> Vec<u8> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", command[0]));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = content.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("output");
    writer.join().expect("joined").expect("written");
    assert!(output.status.success(), "{command:?}");
    [output.stdout, (content.len() as u32).to_le_bytes().to_vec()].concat()
}

/// The old format of LZ4, as `lz4 -l` writes it: blocks of 8 MiB.
fn lz4_legacy(content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x02, 0x21, 0x4c, 0x18];
    for block in content.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        bytes.extend((block.len() as u32).to_le_bytes());
        bytes.extend(block);
    }
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes
}

/// More than a block of LZ4, and calls for the x86 filter of xz to turn around.
fn large() -> Vec<u8> {
    let mut content = b"Linux version 6.1.2-large (me)\0".to_vec();
    for number in 0..1_800_000u32 {
        content.push(0xe8);
        content.extend((number.wrapping_mul(0x9e37) & 0xf_ffff).to_le_bytes());
    }
    image_with(&content, 16 << 20)
}

#[test]
fn the_elf_image_comes_out_as_it_went_in_whatever_packed_it() {
    for elf in [elf(), large()] {
        // The options are those of Linux, scripts/Makefile.lib and scripts/xz_wrap.sh.
        for file in [
            elf.clone(),
            bz_image(&elf),
            bz_image(&packed(&["gzip", "-n", "-c", "-1"], &elf)),
            bz_image(&packed(&["xz", "-0", "-c", "--check=crc32", "--x86", "--lzma2=preset=0,dict=32MiB"], &elf)),
            bz_image(&packed(&["zstd", "-q", "-c", "-1"], &elf)),
            bz_image(&lz4_legacy(&elf)),
        ] {
            let (found, end) = elf_of(file).expect("a kernel");
            assert!(found == elf && end > 16 << 20);
        }
    }
    assert_eq!(version_of(&elf()).expect("a version"), "6.12.3-test");
}

#[test]
fn what_is_no_kernel_is_refused_by_what_it_lacks() {
    let mut short = bz_image(b"\x28\xb5\x2f\xfd");
    short.truncate(0x410);
    let mut old = bz_image(b"x");
    old[0x206] = 0;
    let mut arm = elf();
    arm[18] = 183;
    let mut cut = elf();
    cut.truncate(cut.len() - 8);
    let half = |packed: Vec<u8>| bz_image(&packed[..packed.len() / 2]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "neither an ELF image nor a bzImage"),
        (b"#!/bin/sh".to_vec(), "neither an ELF image nor a bzImage"),
        (short, "the file ends before"),
        (old, "boot protocol 0x0200"),
        (bz_image(&[0x5d, 0, 0, 0]), "compressed with lzma"),
        (bz_image(&[0x89, 0x4c, 0x5a, 0x4f, 0]), "compressed with lzo"),
        (bz_image(b"\x28\xb5\x2f\xfdnot zstd really"), "unpacking its payload"),
        (bz_image(b"\xfd7zXZ\0not xz really"), "unpacking its payload"),
        (bz_image(b"\x1f\x8bnot gzip really"), "unpacking its payload"),
        (bz_image(b"\x02\x21\x4c\x18\xff\xff\xff\xffnot lz4"), "unpacking its payload"),
        (half(packed(&["gzip", "-n", "-c"], &large())), "unpacking its payload"),
        (half(packed(&["xz", "-0", "-c", "--check=crc32"], &large())), "unpacking its payload"),
        (half(packed(&["zstd", "-q", "-c"], &large())), "unpacking its payload"),
        (half(lz4_legacy(&large())), "unpacking its payload"),
        (bz_image(b"????"), "something unknown"),
        (bz_image(&packed(&["gzip", "-n", "-c"], b"no ELF image")), "neither an ELF image nor a bzImage"),
        (bz_image(&packed(&["gzip", "-n", "-c"], &arm)), "machine 183"),
        (arm, "machine 183"),
        (cut, "cut short"),
    ];
    for (file, expected) in cases {
        let error = elf_of(file).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
    assert!(version_of(b"\x7fELF and nothing else").is_err());
}

#[test]
fn a_dictionary_larger_than_any_kernel_needs_is_not_allocated() {
    let huge = packed(&["xz", "-0", "-c", "--check=crc32", "--lzma2=preset=0,dict=1GiB"], b"\x7fELF");
    assert!(matches!(elf_of(bz_image(&huge)), Err(ImageError::Unpack(_))));
}

#[test]
fn a_file_without_an_end_is_not_read_to_it() {
    assert!(matches!(read(Path::new("/dev/zero")), Ok(Err(ImageError::Large))));
}
