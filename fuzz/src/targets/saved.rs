//! What a state file may hold: the file as a whole, its body behind a header that is right, and the state of each device, which is taken over or refused, and whoever has
//! been taken over serves an honest driver after a reset.

use std::fs::File;
use std::os::unix::fs::FileExt;

use labyard_devices::REGISTRY;
use labyard_devices::testing::GuestDriver;
use labyard_devices::virtio::feature;
use labyard_devices::virtio::transport::mmio::State;
use labyard_spec::control::MachineState;
use labyard_sys::memfd;
use labyard_vmm::snapshot::{Life, Saved, SavedMachine};

/// Status register (VIRTIO 1.2, §4.2.2).
const STATUS: u32 = 0x70;

/// Bytes of magic and version, which come before checksum and length (`docs/formats.md`, "Saved machines").
const BEGINNING: usize = 12;

/// The body of a state file: what is understood is written as it was read, and whatever happens to the file then is noticed.
pub(super) fn body(bytes: &[u8]) {
    refused_or_read(&filled(bytes));
    let empty = memfd::create("a state", 0).expect("a memfd");
    Saved { machines: Vec::new() }.write(&empty).expect("written");
    let mut file = vec![0; BEGINNING];
    empty.read_exact_at(&mut file, 0).expect("read");
    file.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    file.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    file.extend_from_slice(bytes);
    refused_or_read(&filled(&file));
    let Ok(saved) = Saved::decode(bytes) else { return };
    let again = saved.encode().expect("what was read can be written");
    let twice = Saved::decode(&again).expect("and read again").encode().expect("and written");
    assert_eq!(again, twice);
    // A byte that differs, and an end that is missing.
    let at = bytes.iter().fold(0, |at, byte| (at * 31 + usize::from(*byte)) % file.len());
    let mut other = file.clone();
    other[at] ^= 1;
    assert!(Saved::read(&filled(&other)).is_err(), "byte {at} has another value");
    assert!(Saved::read(&filled(&file[..at])).is_err(), "the file ends at {at}");
    assert!(saved.write(&filled(&file)).is_err(), "a file that has something in it already");
}

fn filled(bytes: &[u8]) -> File {
    let file = memfd::create("a state", 0).expect("a memfd");
    file.write_all_at(bytes, 0).expect("written");
    file
}

fn refused_or_read(file: &File) {
    if let Err(error) = Saved::read(file) {
        assert!(!error.to_string().is_empty(), "an error without a word");
    }
}

/// Bodies without vCPUs, which only KVM can make.
pub(super) fn bodies() -> Vec<Vec<u8>> {
    let machine =
        |name: &str, state| SavedMachine { name: name.into(), memory_bytes: 1 << 28, life: Life::Ended(state) };
    let saved = Saved {
        machines: vec![machine("web", MachineState::PoweredOff), machine("db", MachineState::Crashed("panic".into()))],
    };
    vec![saved.encode().expect("plain data")]
}

/// States of devices, as JSON: each is offered to every device.
pub(super) fn device(bytes: &[u8]) {
    let Ok(state) = serde_json::from_slice::<State>(bytes) else { return };
    for entry in REGISTRY {
        let mut guest = GuestDriver::power_on((entry.sample)());
        if guest.transport().restore(&state).is_err() {
            continue;
        }
        guest.run();
        let again = guest.transport().save();
        guest.write(STATUS, 0);
        guest.set_up(!feature::EVENT_IDX);
        assert_eq!(again.map(|again| again.device().device_type), Some(state.device().device_type), "{}", entry.name);
        assert!(!guest.needs_reset(), "{}: a driver that begins anew is served", entry.name);
    }
}

/// Each device's own state, untouched and at work.
pub(super) fn devices() -> Vec<Vec<u8>> {
    let text = |guest: &mut GuestDriver| {
        serde_json::to_vec(&guest.transport().save().expect("no device is lost")).expect("plain data")
    };
    let untouched = REGISTRY.iter().map(|entry| text(&mut GuestDriver::power_on((entry.sample)())));
    let at_work = REGISTRY.iter().map(|entry| text(&mut GuestDriver::attach((entry.sample)())));
    untouched.chain(at_work).collect()
}
