//! What a state file may hold: its body as a whole, and the state of each device, which is taken over or refused, and whoever has
//! been taken over serves an honest driver after a reset.

use labyard_devices::REGISTRY;
use labyard_devices::testing::GuestDriver;
use labyard_devices::virtio::feature;
use labyard_devices::virtio::transport::mmio::State;
use labyard_spec::control::MachineState;
use labyard_vmm::snapshot::{Life, Saved, SavedMachine};

/// Status register (VIRTIO 1.2, §4.2.2).
const STATUS: u32 = 0x70;

/// The body of a state file: what is understood is written as it was read.
pub(super) fn body(bytes: &[u8]) {
    if let Ok(saved) = Saved::decode(bytes) {
        let again = saved.encode().expect("what was read can be written");
        let twice = Saved::decode(&again).expect("and read again").encode().expect("and written");
        assert_eq!(again, twice);
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
