//! Machines whose guest is a few bytes of machine code, by the public API: what needs KVM but no Linux.
//!
//! Run by `tests/run-guests`, like everything that runs guests; where `/dev/kvm` is there, `cargo test -p labyard-vmm --test guests`
//! does it too.

#[path = "../examples/hello.rs"]
#[expect(dead_code, reason = "its main is for the example")]
mod hello;

#[path = "guests/again.rs"]
mod again;
#[path = "guests/elf.rs"]
mod elf;
#[path = "guests/full.rs"]
mod full;
#[path = "guests/saved.rs"]
mod saved;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use labyard_spec::control::{Happening, MachineState, MachineStatus};
use labyard_spec::playground::{BootSpec, Entry, MachineSpec, PlaygroundSpec};
use labyard_vmm::embed::{self, Files};
use labyard_vmm::playground::Playground;

use elf::elf;

/// hlt; jmp to it. And a jump to itself.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
const SPIN: &[u8] = &[0xeb, 0xfe];

/// Code that means the same in 32 and 64 bits: mov dx, port; mov al, value; out dx, al.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

fn power_off() -> Vec<u8> {
    [out(0x600, 5 << 2 | 1 << 5), HALT.to_vec()].concat()
}

/// An ELF kernel of this code, with a PVH note.
fn kernel(code: &[u8]) -> File {
    file(&elf(code))
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(bytes).expect("written");
    file
}

struct Lab {
    playground: Arc<Playground>,
    log: File,
}

/// Starts a machine `m` of this code, changed by `change`.
fn start(code: &[u8], change: impl FnOnce(&mut MachineSpec)) -> Result<Lab, String> {
    start_kernel(kernel(code), change)
}

fn start_kernel(kernel: File, change: impl FnOnce(&mut MachineSpec)) -> Result<Lab, String> {
    let mut files = Files::default();
    let log = tempfile::tempfile().expect("file");
    let boot =
        BootSpec { kernel: files.add(kernel), initrd: Vec::new(), extra_cmdline: String::new(), entry: Entry::Auto };
    let mut machine = MachineSpec::new("m", boot, files.add(log.try_clone().expect("a copy")));
    machine.memory_mib = 32;
    change(&mut machine);
    let spec = PlaygroundSpec { name: "lab".into(), networks: Vec::new(), machines: vec![machine] };
    let playground = embed::playground().map_err(|error| error.to_string())?;
    playground.create(&spec, files.into_slots())?;
    Ok(Lab { playground, log })
}

impl Lab {
    fn printed(&mut self) -> String {
        let mut text = String::new();
        self.log.seek(SeekFrom::Start(0)).expect("a file");
        self.log.read_to_string(&mut text).expect("text");
        text
    }

    fn status(&self) -> MachineStatus {
        self.playground.status().machines.remove(0)
    }

    /// Waits until vCPU 0 has left the guest at least so often.
    fn wait_for_exits(&self, least: u64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let exits = || {
            let counters = self.status().counters;
            let (_, cpu0) = counters.into_iter().find(|(owner, _)| owner == "cpu0").expect("cpu0");
            cpu0.into_iter().map(|(_, count)| count).sum::<u64>()
        };
        while exits() < least {
            assert!(Instant::now() < deadline, "{:?}", self.status());
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_machine_boots_by_either_entry_prints_and_powers_itself_off() {
    for entry in [Entry::Auto, Entry::Pvh, Entry::Linux64] {
        let code = [print("hello\n"), power_off()].concat();
        let mut lab = start(&code, |machine| machine.boot.entry = entry).expect("started");
        assert_eq!(lab.playground.wait("m"), Ok(MachineState::PoweredOff), "{entry:?}");
        assert_eq!(lab.printed(), "hello\n");
        let status = lab.status();
        assert_eq!(status.boot_us.len(), 3, "{:?}", status.boot_us);
        let (_, exits) = status.counters.iter().find(|(owner, _)| owner == "cpu0").expect("cpu0");
        assert!(exits.contains(&("port_write".into(), 7)), "{exits:?}");
        assert!([4096, 2 << 20].contains(&status.page_size));
    }
}

#[test]
fn two_playgrounds_live_in_one_process_and_end_one_by_one() {
    let first = start(SPIN, |_| {}).expect("started");
    let mut second = start(&[print("second"), power_off()].concat(), |_| {}).expect("started");
    assert_eq!(second.playground.wait("m"), Ok(MachineState::PoweredOff));
    assert_eq!(second.printed(), "second");
    assert_eq!(first.status().state, MachineState::Running);
    first.playground.kill(None).expect("killed");
    assert_eq!(first.playground.wait("m"), Ok(MachineState::Killed));
}

#[test]
fn vcpus_that_never_leave_the_guest_are_stopped_all_the_same() {
    for _ in 0..20 {
        let lab = start(&[out(0x80, 1), SPIN.to_vec()].concat(), |machine| machine.cpu_count = 4).expect("started");
        lab.wait_for_exits(1);
        lab.playground.kill(Some("m")).expect("killed");
        assert_eq!(lab.playground.wait("m"), Ok(MachineState::Killed));
    }
}

#[test]
fn thirty_two_vcpus_are_made_and_stopped() {
    let lab = start(SPIN, |machine| machine.cpu_count = 32).expect("started");
    assert_eq!(lab.status().counters.iter().filter(|(owner, _)| owner.starts_with("cpu")).count(), 32);
    lab.playground.kill(None).expect("killed");
    assert_eq!(lab.playground.wait("m"), Ok(MachineState::Killed));
}

#[test]
fn a_panic_that_is_told_to_pvpanic_is_a_crash_also_when_the_guest_resets() {
    let code = [print("last words\n"), out(0x505, 1), out(0x505, 1), out(0x602, 1), HALT.to_vec()].concat();
    let lab = start(&code, |_| {}).expect("started");
    let expected = MachineState::Crashed("the kernel panicked\nlast words".into());
    assert_eq!(lab.playground.wait("m"), Ok(expected));
}

#[test]
fn six_gibibytes_can_be_asked_for_where_only_what_is_touched_counts() {
    let lab = start(&power_off(), |machine| machine.memory_mib = 6 << 10).expect("started");
    assert_eq!(lab.playground.wait("m"), Ok(MachineState::PoweredOff));
}

#[test]
fn what_a_machine_cannot_have_is_one_clear_error() {
    type Change = fn(&mut MachineSpec);
    let cases: &[(Change, &str)] = &[
        (|machine| machine.cpu_count = 5000, "machine m: 5000 vCPUs, this host's KVM allows 1 to "),
        (|machine| machine.memory_mib = 8, "machine m: 8 MiB of memory"),
        (|machine| machine.cpu_template = Some("i486".into()), "machine m: CPU template i486: there is none"),
        (|machine| machine.memory_mib = 1 << 23, "machine m: 8388608 MiB of memory, allowed are 32 to 4194304"),
        (|machine| (machine.memory_mib, machine.huge_pages) = (1 << 20, true), "524288 huge pages of 2 MiB"),
    ];
    for (change, expected) in cases {
        let error = match start(HALT, change) {
            Err(error) => error,
            Ok(lab) => match lab.playground.wait("m") {
                Ok(MachineState::Failed(reason)) => reason,
                other => panic!("{expected}: {other:?}"),
            },
        };
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_no_kernel_for_this_machine_is_refused_before_anything_runs() {
    type Change = fn(&mut Vec<u8>);
    let cases: &[(Change, &str)] = &[
        (Vec::clear, "machine m: kernel: not an ELF image; take the vmlinux"),
        (|bytes| bytes[..4].copy_from_slice(b"MZ\xea\x07"), "machine m: kernel: not an ELF image; take the vmlinux"),
        (
            |bytes| bytes.truncate(0x1000),
            "machine m: kernel: cut short: its headers speak of 4099 bytes, the file has 4096",
        ),
        (|bytes| bytes[18] = 183, "machine m: kernel: an ELF image for AArch64, this host runs x86-64 ones"),
        // A segment of 64 MiB, where the machine has 32.
        (
            |bytes| bytes[64 + 40..64 + 48].copy_from_slice(&(64u64 << 20).to_le_bytes()),
            "machine m: 32 MiB of memory: this kernel ends at 66 MiB",
        ),
    ];
    for (change, expected) in cases {
        let mut bytes = elf(HALT);
        change(&mut bytes);
        let error = start_kernel(file(&bytes), |_| {}).err().expect(expected);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn sixteen_machines_live_in_one_process_and_each_prints_its_own() {
    let mut files = Files::default();
    let mut logs = Vec::new();
    let machines = (0..16u32).map(|number| {
        let log = tempfile::tempfile().expect("file");
        logs.push(log.try_clone().expect("a copy"));
        let code = [print(&format!("machine {number}\n")), power_off()].concat();
        let boot = BootSpec {
            kernel: files.add(kernel(&code)),
            initrd: Vec::new(),
            extra_cmdline: String::new(),
            entry: Entry::Auto,
        };
        let mut machine = MachineSpec::new(&format!("m{number}"), boot, files.add(log));
        (machine.memory_mib, machine.cpu_count, machine.cid) = (32, 2, 3 + number);
        machine
    });
    let machines: Vec<_> = machines.collect();
    let spec = PlaygroundSpec { name: "many".into(), networks: Vec::new(), machines };
    let playground = embed::playground().expect("KVM");
    playground.create(&spec, files.into_slots()).expect("started");
    for (number, log) in logs.iter_mut().enumerate() {
        assert_eq!(playground.wait(&format!("m{number}")), Ok(MachineState::PoweredOff));
        let mut text = String::new();
        log.seek(SeekFrom::Start(0)).expect("a file");
        log.read_to_string(&mut text).expect("text");
        assert_eq!(text, format!("machine {number}\n"));
    }
}

#[test]
fn the_size_of_its_pages_is_an_event_of_a_machine() {
    let lab = start(&power_off(), |_| {}).expect("started");
    assert_eq!(lab.playground.wait("m"), Ok(MachineState::PoweredOff));
    let (event, _) = lab.playground.event_after(0, Duration::ZERO).expect("an event");
    assert_eq!(event.what, Happening::Booting { log_bytes: 0 });
    let (event, _) = lab.playground.event_after(1, Duration::ZERO).expect("an event");
    assert_eq!(event.what, Happening::Mapped { page_size: lab.status().page_size });
}

#[test]
fn the_power_button_of_a_machine_that_has_ended_cannot_be_pressed() {
    let lab = start(&power_off(), |_| {}).expect("started");
    assert_eq!(lab.playground.wait("m"), Ok(MachineState::PoweredOff));
    let error = lab.playground.press_power_button("m").expect_err("no machine");
    assert_eq!(error, "machine m: it does not run");
    assert_eq!(lab.playground.wait("x"), Err("machine x: there is none of this name".into()));
}

/// What the program says, run without a jail, and its exit code.
fn program(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_labyard-vmm"));
    let ended = command.args(arguments).stdin(std::process::Stdio::null()).output().expect("the program");
    (ended.status.code(), String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned())
}

#[test]
fn the_program_runs_no_guest_outside_of_the_jail_and_takes_no_other_words() {
    let (code, said) = program(&["--rings", "many"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("--rings many: not a number of rings"), "{said}");
    if cfg!(debug_assertions) {
        return; // it warns only
    }
    let (code, said) = program(&[]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.starts_with("error: no guest runs outside of the jail, and it has capabilities\n"), "{said}");
    assert!(said.contains("use `labyard up` instead"), "{said}");
    let (code, said) = program(&["--log-calls"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("--log-calls: not an option"), "{said}");
}

#[test]
fn the_example_boots_a_machine() {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    let mut kernel = kernel(&[print("hello from the example\n"), power_off()].concat());
    kernel.seek(SeekFrom::Start(0)).expect("a file");
    std::io::copy(&mut kernel, &mut file).expect("copied");
    let path = file.path().to_str().expect("a path").to_owned();
    assert_eq!(hello::boot(vec![path]).expect("booted"), MachineState::PoweredOff);
    assert!(hello::boot(Vec::new()).is_err());
}
