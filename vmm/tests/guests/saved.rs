//! Tiny guests that are halted, saved, and go on elsewhere: no step is lost and none is taken twice.
//!
//! A guest counts in memory and shows each number as a byte, at the serial port or by a request to its virtio console. What was shown
//! is in one log, whoever ran it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use labyard_spec::control::{RestoreSpec, SavedFiles};
use labyard_spec::playground::Slot;
use labyard_vmm::snapshot;

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
pub(super) fn set(address: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// An instruction of these bytes on a variable.
pub(super) fn with(code: &[u8], address: u32) -> Vec<u8> {
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

/// These guests wait by spinning: several at once would wait for each other's time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Counting {
    code: Vec<u8>,
    cpu_count: u32,
    log: File,
    playground: Arc<Playground>,
}

impl Counting {
    fn start(code: Vec<u8>, cpu_count: u32) -> Self {
        Self::start_with(code, cpu_count, tempfile::tempfile().expect("a file"))
    }

    fn start_with(code: Vec<u8>, cpu_count: u32, log: File) -> Self {
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
        let (mut seen, mut since) = (0, Instant::now());
        while self.shown() < least && self.status().state == MachineState::Running {
            if self.shown() != seen {
                (seen, since) = (self.shown(), Instant::now());
            }
            assert!(since.elapsed() < Duration::from_secs(60), "{seen} of {least}: {:?}", self.status());
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

impl Saved {
    fn copy(&self) -> Self {
        let copy = |from: &File| {
            let mut to = tempfile::tempfile().expect("a file");
            let mut from = from.try_clone().expect("a copy");
            from.seek(SeekFrom::Start(0)).expect("a file");
            std::io::copy(&mut from, &mut to).expect("copied");
            to
        };
        Self { state: copy(&self.state), memory: copy(&self.memory) }
    }

    /// Changes the state of its machine.
    fn change(&self, change: impl FnOnce(&mut snapshot::SavedRun)) {
        let mut saved = snapshot::Saved::read(&self.state).expect("a state file");
        match &mut saved.machines[0].life {
            snapshot::Life::Ran(run) => change(run),
            snapshot::Life::Ended(state) => panic!("it had ended: {state:?}"),
        }
        self.state.set_len(0).expect("emptied");
        saved.write(&self.state).expect("written");
    }

    /// The generation id in its memory.
    fn generation(&self) -> [u8; 16] {
        let mut id = [0; 16];
        self.memory.read_exact_at(&mut id, labyard_vmm::arch::x86_64::layout::GENERATION).expect("in memory");
        id
    }
}

/// A few points, or many in the soak.
fn points() -> u64 {
    if std::env::var_os("LABYARD_SOAK").is_some() { 200 } else { 12 }
}

#[test]
fn a_guest_that_was_saved_at_any_point_counts_on_without_a_lost_or_repeated_step() {
    let _alone = alone();
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
    let _alone = alone();
    let end = 1000;
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

#[test]
fn a_power_off_under_way_is_carried_out_once_whoever_carries_it_out() {
    let _alone = alone();
    let end = 40;
    let mut carried_out_elsewhere = 0;
    for round in 0..points() * 2 {
        let guest = Counting::start(shows_at_the_serial_port(end), 1);
        guest.wait_until_shown(u64::from(end) - round % 3);
        let saved = guest.save().expect("saved");
        let guest = guest.restored(&saved);
        carried_out_elsewhere += u32::from(guest.status().state == MachineState::Running);
        guest.playground.resume(None).expect("resumed");
        guest.check(end);
    }
    eprintln!("{carried_out_elsewhere} of {} power-offs after the save", points() * 2);
}

#[test]
fn a_guest_that_resets_while_it_is_paused_and_resumed_reboots_once() {
    let _alone = alone();
    // It shows R each time that it begins, waits a while and resets.
    let wait = [vec![0xb9], 200_000u32.to_le_bytes().to_vec(), vec![0x49, 0x75, 0xfd]].concat(); // mov ecx; dec ecx; jnz
    let code = [print("R"), wait, out(0x602, 1), HALT.to_vec()].concat();
    for _ in 0..points() / 4 {
        let guest = Counting::start(code.clone(), 2);
        guest.wait_until_shown(1);
        let saved = guest.save().expect("saved");
        if guest.status().state != MachineState::Running {
            continue; // it was faster
        }
        saved.change(|run| run.greeted = true);
        let guest = guest.restored(&saved);
        while guest.playground.resume(Some("m")).is_ok() && guest.playground.pause(Some("m")).is_ok() {}
        let ended = guest.playground.wait("m").expect("a machine");
        // The second time nobody has said hello.
        assert_eq!(ended, MachineState::Crashed("the machine reset before its init said hello\nR".into()));
        assert_eq!(guest.shown(), 2);
    }
}

#[test]
fn a_machine_that_is_killed_while_it_is_paused_or_saved_ends() {
    let _alone = alone();
    for round in 0..points() {
        let guest = Counting::start(shows_on_its_console(1 << 30), 2);
        guest.wait_until_shown(10);
        let playground = Arc::clone(&guest.playground);
        let killer = std::thread::spawn(move || playground.kill(Some("m")));
        let outcome = if round % 2 == 0 { guest.playground.pause(None) } else { guest.save().map(|_| ()) };
        assert_eq!(outcome, Ok(()), "all machines stand still: none is there or it is paused");
        killer.join().expect("no panic").expect("killed");
        assert_eq!(guest.playground.wait("m"), Ok(MachineState::Killed));
        assert!(!guest.status().paused);
        assert_eq!(guest.playground.pause(Some("m")), Err("machine m: it does not run".into()));
        assert_eq!(guest.playground.resume(Some("x")), Err("machine x: there is none of this name".into()));
    }
}

#[test]
fn a_guest_hears_that_it_is_a_copy() {
    let _alone = alone();
    let guest = Counting::start([print("x"), SPIN.to_vec()].concat(), 1);
    guest.wait_until_shown(1);
    let (first, second) = (guest.save().expect("saved"), guest.save().expect("saved"));
    let third = guest.restored(&first).save().expect("saved");
    assert_eq!(first.generation(), second.generation());
    assert_ne!(first.generation(), third.generation());

    // Shows what its event register tells, once it tells something: mov dx; in al, dx; test al, al; jz; mov dx; out dx, al.
    let waits =
        [&[0x66, 0xba, 0x04, 0x06, 0xec, 0x84, 0xc0, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xee][..], &power_off()]
            .concat();
    let guest = Counting::start([print("w"), waits].concat(), 1);
    guest.wait_until_shown(1);
    let saved = guest.save().expect("saved");
    let guest = guest.restored(&saved);
    guest.playground.resume(None).expect("resumed");
    assert_eq!(guest.playground.wait("m"), Ok(MachineState::PoweredOff));
    let mut shown = [0; 2];
    guest.log.read_exact_at(&mut shown, 0).expect("two bytes");
    assert_eq!(shown, [b'w', 2], "the event of a new generation, and no other");
}

#[test]
fn a_guest_whose_kernel_panics_is_not_paused() {
    let _alone = alone();
    let guest = Counting::start([out(0x505, 1), print("panic"), SPIN.to_vec()].concat(), 1);
    guest.wait_until_shown(5);
    let error = guest.playground.pause(Some("m")).expect_err("it is about to end");
    assert_eq!(error, "machine m: its kernel panics, and it is about to end");
    assert!(guest.save().is_err());
    guest.playground.kill(None).expect("killed");
}

#[test]
fn what_cannot_go_on_here_is_one_clear_error() {
    let _alone = alone();
    let guest = Counting::start([print("x"), SPIN.to_vec()].concat(), 2);
    guest.wait_until_shown(1);
    let saved = guest.save().expect("saved");
    let error = guest.playground.save(&saved.passed().0, saved.passed().1).expect_err("the files are written");
    assert!(error.contains("bytes already, and must be empty"), "{error}");
    assert!(guest.status().paused, "it was paused before");
    let none = HashMap::new();
    assert_eq!(
        guest.playground.save(&saved.passed().0, none).expect_err("no files"),
        "descriptor Slot(1000) was not passed"
    );
    guest.playground.kill(None).expect("killed");

    type Change = fn(&mut PlaygroundSpec);
    let specs: &[(Change, &str)] = &[
        (|spec| spec.machines[0].cpu_count = 1, "machine m: it has 2 vCPUs, the machine 1"),
        (|spec| spec.machines[0].memory_mib = 64, "in its place was saved m of 33554432"),
        (|spec| spec.machines[0].name = "n".into(), "machine n of 33554432 bytes: in its place was saved m"),
        (
            |spec| spec.machines.push(MachineSpec { name: "n".into(), ..spec.machines[0].clone() }),
            "1 machines were saved",
        ),
    ];
    for (change, expected) in specs {
        assert!(refused(&saved, change).contains(expected), "{}", refused(&saved, change));
    }
    type Damage = fn(&mut snapshot::SavedRun);
    let states: &[(Damage, &str)] = &[
        (|run| drop(run.transports.pop()), "machine m: it has 3 devices, the machine 4"),
        (|run| run.transports.swap(0, 1), "saved device 0, console: state of Rng"),
        (|run| drop(run.cpuid.pop()), "machine m: it has 1 lists of CPUID leaves"),
        (|run| run.cpuid[0][0].function = 0x4000_0001, "machine m: it was saved on another kind of processor"),
    ];
    for (damage, expected) in states {
        let mut damaged = saved.copy();
        damaged.change(damage);
        let error = refused(&damaged, |_| {});
        assert!(error.contains(expected), "{error}");
        damaged.state = tempfile::tempfile().expect("a file");
        assert_eq!(refused(&damaged, |_| {}), "snapshot: the state file does not begin as one does");
    }
    let cut = saved.copy();
    cut.memory.set_len(1 << 20).expect("cut");
    let error = refused(&cut, |_| {});
    assert!(error.contains("the file of a machine's memory has 1048576 bytes, the machine 33554432"), "{error}");
}

/// Why a playground of this code is not restored. Its machines have ended.
fn refused(saved: &Saved, change: impl FnOnce(&mut PlaygroundSpec)) -> String {
    let guest = Counting::start(HALT.to_vec(), 2);
    match guest.restored_with(saved, change) {
        Ok(_) => panic!("it was restored"),
        Err(error) => error,
    }
}

const SIGKILL: i32 = 9;
/// Set for the process that is killed: where it leaves what it saved.
const CHILD: &str = "LABYARD_TEST_SAVED_IN";

#[test]
fn a_guest_goes_on_when_its_process_was_killed() {
    let _alone = alone();
    let end = 3000;
    let folder = tempfile::tempdir().expect("a folder");
    let test = "saved::in_a_process_of_its_own";
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    let child = child.args(["--exact", test, "--nocapture"]).env(CHILD, folder.path()).status().expect("it runs");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child), Some(SIGKILL), "{child}");
    let open = |name| File::options().read(true).append(name == "log").open(folder.path().join(name)).expect(name);
    let saved = Saved { state: open("state"), memory: open("memory") };
    let idle = Counting::start(HALT.to_vec(), 1);
    let guest = Counting { log: open("log"), code: shows_on_its_console(end), ..idle };
    assert!((1000..3000).contains(&guest.shown()));
    let guest = guest.restored(&saved);
    guest.playground.resume(None).expect("resumed");
    guest.check(end);
}

#[test]
fn in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(CHILD).map(std::path::PathBuf::from) else { return };
    let make = |name| File::options().read(true).write(true).create_new(true).open(folder.join(name)).expect(name);
    let code = shows_on_its_console(3000);
    let guest = Counting::start_with(code, 1, make("log"));
    guest.wait_until_shown(1000);
    let (files, passed) = Saved { state: make("state"), memory: make("memory") }.passed();
    guest.playground.save(&files, passed).expect("saved");
    let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
    unreachable!("it was killed");
}
