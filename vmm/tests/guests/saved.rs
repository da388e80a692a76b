//! Tiny guests that are halted, saved, and go on elsewhere: no step is lost and none is taken twice.
//!
//! A guest counts in memory and shows each number as a byte, at the serial port or by a request to its virtio console. What was shown
//! is in one log, whoever ran it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use labyard_spec::control::{RestoreSpec, SavedFiles};
use labyard_spec::playground::Slot;

use super::*;

/// Where the guests keep what they know.
const COUNTER: u32 = 0x30_0000;
const BUFFER: u32 = 0x30_0010;
/// Rings of the console's transmit queue.
const DESCRIPTORS: u32 = 0x31_0000;
const AVAILABLE: u32 = 0x32_0000;
const USED: u32 = 0x33_0000;
/// The first device of a machine without drives and interfaces is its console; its registers (VIRTIO 1.2, §4.2.2).
const CONSOLE: u32 = 0xd000_0000;
const STATUS: u32 = CONSOLE + 0x70;
const NOTIFY: u32 = CONSOLE + 0x50;

/// mov dword [address], value
fn set(address: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// An instruction of these bytes on a variable.
fn with(code: &[u8], address: u32) -> Vec<u8> {
    [code, &address.to_le_bytes()].concat()
}

/// `code` until the counter is `end`, which it counts up to.
fn count_to(end: u32, code: Vec<u8>) -> Vec<u8> {
    let mut code =
        [code, with(&[0xff, 0x05], COUNTER), with(&[0x81, 0x3d], COUNTER), end.to_le_bytes().to_vec()].concat();
    let back = -(code.len() as i32 + 6); // jne rel32
    code.extend_from_slice(&[0x0f, 0x85]);
    code.extend_from_slice(&back.to_le_bytes());
    code
}

/// mov eax, [counter]; mov dx, 0x3f8; out dx, al
fn shows_at_the_serial_port(end: u32) -> Vec<u8> {
    let show = [with(&[0xa1], COUNTER), vec![0x66, 0xba, 0xf8, 0x03, 0xee]].concat();
    [count_to(end, show), power_off()].concat()
}

/// Sets the console up, and gives it one request for each number: descriptor 0, again and again.
fn shows_on_its_console(end: u32) -> Vec<u8> {
    let registers = [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1), // VIRTIO_F_VERSION_1
        (0x70, 0xb),
        (0x30, 1),
        (0x38, 64),
        (0x80, DESCRIPTORS),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),
    ];
    let set_up = registers.map(|(register, value)| set(CONSOLE + register, value)).concat();
    let descriptor = [set(DESCRIPTORS, BUFFER), set(DESCRIPTORS + 8, 1)].concat();
    // mov eax, [counter]; mov [buffer], al; inc word [available.idx]; kick; then until the used index is the same: pause
    let offer =
        [with(&[0xa1], COUNTER), with(&[0xa2], BUFFER), with(&[0x66, 0xff, 0x05], AVAILABLE + 2), set(NOTIFY, 1)];
    let wait = [vec![0xf3, 0x90], with(&[0x66, 0xa1], AVAILABLE + 2), with(&[0x66, 0x3b, 0x05], USED + 2)].concat();
    let back = -(wait.len() as i8 + 2);
    let request = [offer.concat(), wait, vec![0x75, back as u8]].concat();
    [set_up, descriptor, set(STATUS, 0xf), count_to(end, request), power_off()].concat()
}

/// Machines `m`, of 32 MiB, that run this code.
fn spec(files: &mut Files, code: &[u8], log: &File, cpu_count: u32) -> PlaygroundSpec {
    let (initrd, extra_cmdline) = (Vec::new(), String::new());
    let boot = BootSpec { kernel: files.add(kernel(code)), initrd, extra_cmdline, entry: Entry::Pvh };
    let mut machine = MachineSpec::new("m", boot, files.add(log.try_clone().expect("a copy")));
    (machine.memory_mib, machine.cpu_count) = (32, cpu_count);
    PlaygroundSpec { name: "lab".into(), networks: Vec::new(), machines: vec![machine] }
}

struct Counting {
    code: Vec<u8>,
    cpu_count: u32,
    log: File,
    playground: Arc<Playground>,
}

impl Counting {
    fn start(code: Vec<u8>, cpu_count: u32) -> Self {
        let log = tempfile::tempfile().expect("a file");
        let playground = embed::playground().expect("KVM");
        let mut files = Files::default();
        let spec = spec(&mut files, &code, &log, cpu_count);
        playground.create(&spec, files.into_slots()).expect("created");
        Self { code, cpu_count, log, playground }
    }

    fn shown(&self) -> u64 {
        self.log.metadata().expect("metadata").len()
    }

    fn wait_until_shown(&self, least: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.shown() < least && self.status().state == MachineState::Running {
            assert!(Instant::now() < deadline, "{} of {least}: {:?}", self.shown(), self.status());
            std::thread::yield_now();
        }
    }

    fn status(&self) -> MachineStatus {
        self.playground.status().machines.remove(0)
    }

    fn save(&self) -> Result<Saved, String> {
        let saved =
            Saved { state: tempfile::tempfile().expect("a file"), memory: tempfile::tempfile().expect("a file") };
        let (files, passed) = saved.passed();
        self.playground.save(&files, passed).map(|()| saved)
    }

    /// In place of this one, which is dropped without a word to its guest.
    fn restored(self, saved: &Saved) -> Self {
        let cpu_count = self.cpu_count;
        self.restored_with(saved, |spec| spec.machines[0].cpu_count = cpu_count).expect("restored")
    }

    fn restored_with(self, saved: &Saved, change: impl FnOnce(&mut PlaygroundSpec)) -> Result<Self, String> {
        self.playground.kill(None).expect("killed");
        let playground = embed::playground().expect("KVM");
        let mut files = Files::default();
        let mut spec = spec(&mut files, &self.code, &self.log, self.cpu_count);
        change(&mut spec);
        let mut passed = files.into_slots();
        let (saved, more) = saved.passed();
        passed.extend(more);
        playground.restore(&RestoreSpec { playground: spec, saved }, passed)?;
        Ok(Self { playground, ..self })
    }

    fn check(mut self, end: u32) {
        assert_eq!(self.playground.wait("m"), Ok(MachineState::PoweredOff));
        let mut shown = Vec::new();
        self.log.seek(SeekFrom::Start(0)).expect("a file");
        self.log.read_to_end(&mut shown).expect("read");
        let expected: Vec<u8> = (0..end).map(|number| number as u8).collect();
        let differs = shown.iter().zip(&expected).position(|(shown, expected)| shown != expected);
        assert_eq!((shown.len(), differs), (expected.len(), None));
    }
}

struct Saved {
    state: File,
    memory: File,
}

impl Saved {
    fn passed(&self) -> (SavedFiles, HashMap<Slot, OwnedFd>) {
        let (state, memory) = (Slot(1000), Slot(1001));
        let copy = |file: &File| OwnedFd::from(file.try_clone().expect("a copy"));
        (SavedFiles { state, memory: vec![memory] }, [(state, copy(&self.state)), (memory, copy(&self.memory))].into())
    }
}

/// A few points, or many in the soak.
fn points() -> u64 {
    if std::env::var_os("LABYARD_SOAK").is_some() { 200 } else { 12 }
}

#[test]
fn a_guest_that_was_saved_at_any_point_counts_on_without_a_lost_or_repeated_step() {
    for (program, cpu_count) in
        [(shows_at_the_serial_port as fn(u32) -> Vec<u8>, 1), (shows_on_its_console, 1), (shows_on_its_console, 3)]
    {
        let end = 300 * points() as u32;
        let mut guest = Counting::start(program(end), cpu_count);
        for point in 1..=points() {
            guest.wait_until_shown(point * 250);
            let saved = guest.save().expect("saved");
            assert!(guest.status().paused || guest.status().state != MachineState::Running);
            guest = guest.restored(&saved);
            guest.playground.resume(None).expect("resumed");
        }
        guest.check(end);
    }
}

#[test]
fn a_guest_that_was_paused_or_saved_goes_on_where_it_was() {
    let end = 6000;
    let guest = Counting::start(shows_on_its_console(end), 2);
    for round in 0..40 {
        guest.playground.pause(Some("m")).expect("paused");
        guest.playground.pause(None).expect("paused already");
        let (shown, status) = (guest.shown(), guest.status());
        if round % 4 == 0 {
            guest.save().expect("saved");
        }
        std::thread::yield_now();
        assert_eq!((guest.shown(), guest.status().counters), (shown, status.counters), "it stands still");
        guest.playground.resume(None).expect("resumed");
        guest.playground.resume(Some("m")).expect("runs already");
        assert!(!guest.status().paused);
    }
    guest.wait_until_shown(end.into());
    guest.check(end);
}
