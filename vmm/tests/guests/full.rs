//! A host disk without room: tiny guests that write one block to a drive in layers, on a file system that is full.
//!
//! The file system is a tmpfs that is mounted nowhere: it is there for as long as a file of it is open.

use std::os::fd::OwnedFd;

use labyard_devices::backend::overlay::{Chain, LayerFiles, Overlay};
use labyard_spec::control::{FullDrive, SavedFiles};
use labyard_spec::playground::{DriveSpec, Engine, LayerSlots, OverlaySpec, Slot};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use super::saved::{set, with};
use super::*;

/// The drive is the first device; its registers (VIRTIO 1.2, §4.2.2).
const DRIVE: u32 = 0xd000_0000;
const NOTIFY: u32 = DRIVE + 0x50;
const DESCRIPTORS: u32 = 0x31_0000;
const AVAILABLE: u32 = 0x32_0000;
const USED: u32 = 0x33_0000;
const HEADER: u32 = 0x34_0000;
const DATA: u32 = 0x35_0000;
const ANSWER: u32 = 0x36_0000;

/// How long what needs no guest may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes a block, waits for the answer by looking, prints its status as a digit, and powers off.
fn writes_a_block() -> Vec<u8> {
    let registers = [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1), // VIRTIO_F_VERSION_1
        (0x70, 0xb),
        (0x30, 0),
        (0x38, 8),
        (0x80, DESCRIPTORS),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),
        (0x70, 0xf),
    ];
    let set_up = registers.map(|(register, value)| set(DRIVE + register, value)).concat();
    // Address, length, flags and the next one (§2.7.5): 1 is more, 2 is for the device to write.
    let descriptors = [(HEADER, 16, 1 | 1 << 16), (DATA, 4096, 1 | 2 << 16), (ANSWER, 1, 2)];
    let request: Vec<u8> = (0..)
        .step_by(16)
        .zip(descriptors)
        .flat_map(|(at, (address, len, flags))| {
            let descriptor = DESCRIPTORS + at;
            [set(descriptor, address), set(descriptor + 8, len), set(descriptor + 12, flags)].concat()
        })
        .collect();
    // VIRTIO_BLK_T_OUT to sector 0 (§5.2.6); the first entry of the ring is descriptor 0.
    let offer = [set(HEADER, 1), set(DATA, 0x6464_6464), set(ANSWER, 0xee), set(AVAILABLE, 1 << 16), set(NOTIFY, 0)];
    // Until the used index is the same: pause.
    let wait = [vec![0xf3, 0x90], with(&[0x66, 0xa1], AVAILABLE + 2), with(&[0x66, 0x3b, 0x05], USED + 2)].concat();
    let back = -(wait.len() as i8 + 2);
    // mov al, [answer]; add al, '0'; mov dx, 0x3f8; out dx, al
    let tell = [with(&[0xa0], ANSWER), vec![0x04, b'0', 0x66, 0xba, 0xf8, 0x03, 0xee]].concat();
    [set_up, request, offer.concat(), wait, vec![0x75, back as u8], tell, power_off()].concat()
}

/// A file system of sixteen pages, with a file that takes what is free.
struct Small {
    mount: OwnedFd,
}

impl Small {
    fn new() -> Self {
        let system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("a tmpfs");
        fsconfig_set_string(&system, "size", "64k").expect("its size");
        fsconfig_create(&system).expect("a tmpfs");
        let mount = fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).expect("a mount");
        Self { mount }
    }

    fn file(&self, name: &str) -> File {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        File::from(openat(&self.mount, name, flags, Mode::RUSR | Mode::WUSR).expect("a file"))
    }

    fn fill(&self) {
        let mut filler = self.file("filler");
        while filler.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        unlinkat(&self.mount, "filler", AtFlags::empty()).expect("the filler");
    }
}

/// A machine whose drive lies on a file system that is full since its layer is there.
fn start_full() -> (Lab, Small) {
    let small = Small::new();
    let (mut files, log) = (Files::default(), tempfile::tempfile().expect("file"));
    let kernel = files.add(kernel(&writes_a_block()));
    let boot = BootSpec { kernel, initrd: Vec::new(), extra_cmdline: String::new(), entry: Entry::Pvh };
    let mut machine = MachineSpec::new("m", boot, files.add(log.try_clone().expect("a copy")));
    machine.memory_mib = 32;
    let top = LayerSlots { data: files.add(small.file("data")), map: files.add(small.file("map")) };
    let overlay = OverlaySpec { frozen: Vec::new(), top, capacity_bytes: 1 << 20 };
    machine.drives = vec![DriveSpec {
        serial: "d00".into(),
        read_only: false,
        base: None,
        overlay: Some(overlay),
        engine: Engine::Auto,
    }];
    // The layer's header, as `create` would write it; then nothing fits any more.
    let top = LayerFiles { data: small.file("data"), map: small.file("map") };
    let chain = Chain { base: None, frozen: Vec::new(), top, live: false, capacity_bytes: 1 << 20 };
    drop(Overlay::new(chain).expect("a layer"));
    small.fill();
    let spec = PlaygroundSpec { name: "lab".into(), networks: Vec::new(), machines: vec![machine] };
    let playground = embed::playground().expect("KVM");
    playground.create(&spec, files.into_slots()).expect("created");
    (Lab { playground, log }, small)
}

impl Lab {
    /// Waits for what has happened so far and ends with this; all of it that is about room and pauses.
    fn until(&self, last: &Happening) -> Vec<Happening> {
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let (event, _) = self.playground.event_after(after, PATIENCE).unwrap_or_else(|| panic!("{seen:?}"));
            after = event.number;
            if matches!(event.what, Happening::HostDisk { .. } | Happening::Paused | Happening::Resumed) {
                seen.push(event.what.clone());
            }
            if event.what == *last {
                return seen;
            }
        }
    }
}

fn host_disk(errno: Option<i32>) -> Happening {
    Happening::HostDisk { drive: "d00".into(), full: errno.is_some(), errno }
}

fn no_space() -> Happening {
    host_disk(Some(28))
}

#[test]
fn a_machine_without_room_is_paused_and_resumed_once_there_is_some() {
    let (mut lab, small) = start_full();
    assert_eq!(lab.until(&Happening::Paused), [no_space(), Happening::Paused]);
    let status = lab.status();
    let full = FullDrive { drive: "d00".into(), errno: 28 };
    assert_eq!((status.state, status.paused, status.full_drives), (MachineState::Running, true, vec![full]));
    for machine in [Some("m"), None] {
        let error = lab.playground.resume(machine).expect_err("no room");
        assert!(error.starts_with("machine m: it stays paused, drive d00: no room on the host's disk"), "{error}");
        assert!(error.contains("No space left on device"), "{error}");
        assert!(lab.status().paused);
    }
    assert_eq!(lab.printed(), "");
    small.make_room();
    lab.playground.resume(Some("m")).expect("there is room");
    assert_eq!(lab.playground.wait("m"), Ok(MachineState::PoweredOff));
    assert_eq!(lab.printed(), "0", "the guest's write went well");
    let all = lab.until(&Happening::Ended(MachineState::PoweredOff));
    assert_eq!(all, [no_space(), Happening::Paused, host_disk(None), Happening::Resumed]);
    let mut stored = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&small.file("data"), &mut stored, 0).expect("the data");
    assert_eq!(&stored, b"dddd");
}

#[test]
fn a_machine_without_room_goes_on_by_itself_once_there_is_some() {
    let (mut lab, small) = start_full();
    lab.until(&Happening::Paused);
    small.make_room();
    assert_eq!(lab.playground.wait("m"), Ok(MachineState::PoweredOff));
    assert_eq!(lab.printed(), "0");
}

#[test]
fn a_machine_without_room_ends_at_once_when_its_power_is_cut_and_never_hears_of_it() {
    for machine in [Some("m"), None] {
        let (mut lab, _small) = start_full();
        lab.until(&Happening::Paused);
        lab.playground.kill(machine).expect("killed");
        assert_eq!(lab.playground.wait("m"), Ok(MachineState::Killed));
        assert_eq!(lab.printed(), "");
        let status = lab.status();
        assert_eq!((status.paused, status.full_drives), (false, vec![]));
        assert_eq!(lab.until(&Happening::Ended(MachineState::Killed)), [no_space(), Happening::Paused]);
    }
}

#[test]
fn who_pauses_a_machine_without_room_keeps_it_paused_and_cannot_save_it() {
    let (mut lab, small) = start_full();
    lab.until(&Happening::Paused);
    lab.playground.pause(Some("m")).expect("it stands still already");
    let mut files = Files::default();
    let mut slot = || files.add(tempfile::tempfile().expect("file"));
    let saved = SavedFiles { state: slot(), memory: vec![slot()] };
    let slots: std::collections::HashMap<Slot, OwnedFd> = files.into_slots();
    let error = lab.playground.save(&saved, slots).expect_err("it waits");
    assert_eq!(error, "machine m: it waits for room on the host's disk: free space there, and it can be saved");
    small.make_room();
    lab.until(&host_disk(None));
    let status = lab.status();
    assert_eq!((status.state, status.paused, status.full_drives), (MachineState::Running, true, vec![]));
    assert_eq!(lab.printed(), "", "it is paused");
    lab.playground.resume(None).expect("there is room");
    assert_eq!(lab.playground.wait("m"), Ok(MachineState::PoweredOff));
    assert_eq!(lab.printed(), "0");
}
