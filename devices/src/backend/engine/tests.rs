//! What every engine must do, asked of each.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;

/// Each step of a batch has a part of file and memory for itself.
const PART: usize = 16 << 10;
const PARTS: usize = 8;
const GUEST_BYTES: usize = PART * PARTS;

type Make = fn(Vec<File>) -> Box<dyn Engine>;

const ENGINES: [(&str, Make); 2] = [("sync", sync), ("io_uring", uring)];

fn sync(files: Vec<File>) -> Box<dyn Engine> {
    choose(Choice::Sync, files).expect("always there").0
}

fn uring(files: Vec<File>) -> Box<dyn Engine> {
    choose(Choice::Uring, files).expect("this host has io_uring").0
}

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), GUEST_BYTES)]).expect("memory")
}

/// `len` bytes from `address` in pieces of `piece`.
fn slices(mem: &Memory, address: usize, len: usize, piece: usize) -> GuestSlices<'_> {
    let mut list = GuestSlices::new();
    for start in (0..len).step_by(piece) {
        let part = mem.get_slice(GuestAddress((address + start) as u64), piece.min(len - start));
        assert!(list.push(part.expect("in memory")));
    }
    list
}

/// Waits until `count` steps have ended; their results by tag.
fn ended(engine: &mut dyn Engine, count: usize) -> Vec<(IoTag, io::Result<()>)> {
    let mut ended = Vec::new();
    while ended.len() < count {
        match (engine.collect(), engine.source()) {
            (Some(done), _) => ended.push(done),
            (None, Some(source)) => crate::worker::wait_readable(source),
            (None, None) => panic!("{} of {count} steps have ended", ended.len()),
        }
    }
    assert!(engine.collect().is_none(), "more than was asked for");
    ended.sort_by_key(|(tag, _)| *tag);
    ended
}

#[derive(Debug, Clone)]
struct Step {
    kind: u8,
    start: usize,
    len: usize,
    piece: usize,
    fill: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0u8..5, 0..PART, 1..PART, 200..5000usize, any::<u8>())
        .prop_map(|(kind, start, len, piece, fill)| Step { kind, start, len: len.min(PART - start), piece, fill });
    proptest::collection::vec(step, 1..64)
}

fn follows_the_model(make: Make, steps: &[Step], file: File) {
    let mem = memory();
    file.set_len(GUEST_BYTES as u64).expect("size");
    let mut engine = make(vec![file.try_clone().expect("clone")]);
    engine.attach(&mem);
    let mut model = vec![0u8; GUEST_BYTES];
    for batch in steps.chunks(PARTS) {
        let mut reads = Vec::new();
        for (part, step) in batch.iter().enumerate() {
            let (at, len) = (part * PART + step.start, step.len);
            let (offset, range) = (at as u64, at..at + len);
            let io = match step.kind {
                0 => {
                    mem.write_slice(&vec![!step.fill; len], GuestAddress(offset)).expect("memory");
                    reads.push(range.clone());
                    Io::Read { file: 0, offset, into: slices(&mem, at, len, step.piece) }
                }
                1 => {
                    let bytes: Vec<u8> = (0..len).map(|n| step.fill.wrapping_add((n % 251) as u8)).collect();
                    mem.write_slice(&bytes, GuestAddress(offset)).expect("memory");
                    model[range].copy_from_slice(&bytes);
                    Io::Write { file: 0, offset, from: slices(&mem, at, len, step.piece) }
                }
                2 => Io::Sync { file: 0 },
                kind => {
                    model[range].fill(0);
                    let len = len as u64;
                    if kind == 3 { Io::Punch { file: 0, offset, len } } else { Io::Zero { file: 0, offset, len } }
                }
            };
            engine.submit(part as IoTag, io);
        }
        engine.kick();
        for (tag, result) in ended(&mut *engine, batch.len()) {
            result.unwrap_or_else(|error| panic!("step {tag} of {batch:?}: {error}"));
        }
        for range in reads {
            let mut read = vec![0; range.len()];
            mem.read_slice(&mut read, GuestAddress(range.start as u64)).expect("memory");
            assert!(read == model[range.clone()], "read of {range:?}");
        }
        let mut stored = vec![1; GUEST_BYTES];
        file.read_exact_at(&mut stored, 0).expect("read");
        assert!(stored == model, "after {batch:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_engine_moves_the_bytes_of_the_model(steps in steps()) {
        for (_, make) in ENGINES {
            follows_the_model(make, &steps, tempfile::tempfile().expect("a file"));
            // A file system that makes zeros only by writing them.
            follows_the_model(make, &steps, labyard_sys::memfd::create("a drive", 0).expect("a memfd"));
        }
    }
}

#[test]
fn errors_are_told_with_their_step() {
    for (name, make) in ENGINES {
        let mem = memory();
        let short = tempfile::tempfile().expect("a file");
        short.write_all_at(&[7; 1000], 0).expect("writing");
        let full = File::options().read(true).write(true).open("/dev/full").expect("/dev/full");
        let mut engine = make(vec![short, full]);
        engine.attach(&mem);
        engine.submit(1, Io::Read { file: 0, offset: 512, into: slices(&mem, 0, 512, 512) });
        engine.submit(2, Io::Write { file: 1, offset: 0, from: slices(&mem, 512, 512, 100) });
        engine.submit(3, Io::Write { file: 2, offset: 0, from: slices(&mem, 1024, 512, 512) });
        engine.submit(4, Io::Read { file: 0, offset: 0, into: slices(&mem, 2048, 1000, 512) });
        engine.kick();
        let kinds: Vec<_> =
            ended(&mut *engine, 4).into_iter().map(|(_, result)| result.map_err(|error| error.kind())).collect();
        assert_eq!(kinds[0], Err(io::ErrorKind::UnexpectedEof), "{name}");
        assert_eq!(kinds[1], Err(io::ErrorKind::StorageFull), "{name}");
        assert!(kinds[2].is_err(), "{name}: a file that is not there");
        assert_eq!(kinds[3], Ok(()), "{name}: the others go on");
    }
}

#[test]
fn a_flush_that_ends_comes_after_the_writes_that_had_ended() {
    for (name, make) in ENGINES {
        let (mem, file) = (memory(), tempfile::tempfile().expect("a file"));
        let mut engine = make(vec![file.try_clone().expect("clone")]);
        engine.attach(&mem);
        for round in 0..20u8 {
            mem.write_slice(&[round; 4096], GuestAddress(0)).expect("memory");
            engine.submit(1, Io::Write { file: 0, offset: 0, from: slices(&mem, 0, 4096, 512) });
            engine.kick();
            assert!(ended(&mut *engine, 1)[0].1.is_ok());
            engine.submit(2, Io::Sync { file: 0 });
            engine.kick();
            assert!(ended(&mut *engine, 1)[0].1.is_ok());
            let mut stored = [0; 4096];
            file.read_exact_at(&mut stored, 0).expect("read");
            assert_eq!(stored, [round; 4096], "{name}");
        }
    }
}

#[test]
fn bytes_of_a_backend_and_more_steps_than_fit_are_carried_out_as_well() {
    for (name, make) in ENGINES {
        let (mem, own, file) = (memory(), memory(), tempfile::tempfile().expect("a file"));
        let mut engine = make(vec![file.try_clone().expect("clone")]);
        engine.attach(&mem);
        own.write_slice(&[9; 64], GuestAddress(0)).expect("memory");
        for tag in 0..1000u64 {
            let from = if tag % 2 == 0 { slices(&mem, 0, 64, 64) } else { slices(&own, 0, 64, 64) };
            engine.submit(tag, Io::Write { file: 0, offset: tag * 64, from });
        }
        engine.kick();
        assert!(ended(&mut *engine, 1000).iter().all(|(_, result)| result.is_ok()), "{name}");
        let mut stored = vec![1; 64 * 1000];
        file.read_exact_at(&mut stored, 0).expect("read");
        assert!(stored.chunks(128).all(|pair| pair[..64] == [0; 64] && pair[64..] == [9; 64]), "{name}");
        engine.detach();
        engine.submit(7, Io::Read { file: 0, offset: 0, into: slices(&mem, 0, 64, 64) });
        engine.kick();
        assert!(ended(&mut *engine, 1)[0].1.is_ok(), "{name}: without memory it works, too");
    }
}

#[test]
fn the_choice_falls_on_system_calls_where_the_ring_cannot_be() {
    let file = tempfile::tempfile().expect("a file");
    let (engine, told) = choose(Choice::Auto, vec![file]).expect("one or the other");
    assert_eq!(engine.source().is_some(), told == "io_uring", "{told}");
    let (engine, told) = choose(Choice::Sync, vec![]).expect("always there");
    assert_eq!((engine.source(), told.as_str()), (None, "system calls, as asked for"));
    // A ring has places for so many files, and none is to be had for more, as none is at all where io_uring is switched off.
    let many = || (0..65).map(|_| tempfile::tempfile().expect("a file")).collect::<Vec<_>>();
    let (engine, told) = choose(Choice::Auto, many()).expect("one or the other");
    assert!(engine.source().is_none() && told.starts_with("system calls, because"), "{told}");
    assert!(choose(Choice::Uring, many()).is_err());
}
