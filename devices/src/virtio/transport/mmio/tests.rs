use super::*;
use crate::testing::{GuestDriver, readable, writable};
use crate::virtio::rng::{QUEUE_SIZE, Rng};

fn device() -> Box<dyn VirtioDevice> {
    Box::new(Rng::new())
}

#[test]
fn a_driver_finds_magic_version_and_type() {
    let mut guest = GuestDriver::power_on(device());
    assert_eq!((guest.read(0), guest.read(4), guest.read(8)), (0x7472_6976, 2, 4));
    assert_eq!(guest.read(0x34), u32::from(QUEUE_SIZE));
    assert_eq!(guest.faults(), 0);
}

#[test]
fn a_driver_that_is_not_version_1_or_wants_more_than_offered_is_refused() {
    for mask in [!feature::VERSION_1, 0] {
        let mut guest = GuestDriver::power_on(device());
        guest.negotiate(mask);
        assert_eq!(guest.read(0x70) & status::FEATURES_OK, 0);
    }
    let mut guest = GuestDriver::power_on(device());
    guest.write(0x70, 3);
    guest.write(0x24, 1);
    guest.write(0x20, u32::MAX);
    guest.write(0x70, 11);
    assert_eq!((guest.read(0x70), guest.faults()), (3, 1));
}

#[test]
fn hostile_register_accesses_change_nothing_and_are_counted() {
    let cases: &[(&str, u64, &[u8])] = &[
        ("a byte", 0x70, &[0]),
        ("two bytes", 0x38, &[1, 0]),
        ("eight bytes", 0x80, &[0; 8]),
        ("unaligned", 0x71, &[0; 4]),
        ("a read-only register", 0x00, &[0; 4]),
        ("the configuration", 0x100, &[0; 4]),
        ("behind everything", 0xffc, &[0; 4]),
        ("a kick of no queue", 0x50, &[9, 0, 0, 0]),
        ("a queue at work", 0x38, &[8, 0, 0, 0]),
        ("ready taken back at work", 0x44, &[0; 4]),
        ("features at work", 0x20, &[0; 4]),
        ("a status bit cleared", 0x70, &[1, 0, 0, 0]),
    ];
    for (name, offset, data) in cases {
        let mut guest = GuestDriver::attach(device());
        let before = guest.faults();
        guest.transport().write(*offset, data);
        assert_eq!(guest.faults(), before + 1, "{name}");
        let head = guest.offer(0, &[writable(0x1000, 8)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(head, 8)], "{name}: the device still works");
    }
    let mut guest = GuestDriver::attach(device());
    let mut byte = [0xee];
    guest.transport().read(0x70, &mut byte);
    assert_eq!((byte, guest.faults()), ([0], 1));
}

#[test]
fn queue_sizes_that_are_no_power_of_two_or_too_long_are_refused() {
    for size in [0, 3, u32::from(QUEUE_SIZE) * 2, 0x1_0000, u32::MAX] {
        let mut guest = GuestDriver::power_on(device());
        guest.write(0x38, size);
        assert_eq!(guest.faults(), 1, "{size}");
    }
}

#[test]
fn a_ring_outside_of_memory_stops_the_device_and_a_reset_brings_it_back() {
    let mut guest = GuestDriver::power_on(device());
    guest.negotiate(!feature::EVENT_IDX);
    guest.set_up_queue(0);
    guest.write(0x44, 0);
    guest.write(0xa4, 0xffff);
    guest.write(0x44, 1);
    guest.write(0x70, 15);
    assert!(guest.needs_reset());
    guest.write(0x70, 0);
    assert_eq!(guest.read(0x70), 0);
    guest.set_up(!feature::EVENT_IDX);
    let head = guest.offer(0, &[writable(0x1000, 8)]);
    guest.kick(0);
    assert_eq!(guest.used(0), [(head, 8)]);
}

#[test]
fn a_ring_that_makes_no_sense_stops_the_device_only() {
    type Break = fn(&mut GuestDriver);
    let cases: &[(&str, Break)] = &[
        ("more offered than the queue holds", |guest| guest.set_avail(0, QUEUE_SIZE + 1)),
        ("a head outside of the table", |guest| guest.offer_head(0, QUEUE_SIZE)),
        ("a head far outside", |guest| guest.offer_head(0, u16::MAX)),
    ];
    for (name, harm) in cases {
        let mut guest = GuestDriver::attach(device());
        harm(&mut guest);
        guest.kick(0);
        assert_eq!(guest.used(0), [], "{name}");
        guest.write(0x70, 0);
        guest.set_up(!feature::EVENT_IDX);
        let head = guest.offer(0, &[writable(0x1000, 8)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(head, 8)], "{name}: after a reset");
    }
}

#[test]
fn broken_chains_come_back_empty_and_the_next_one_is_served() {
    let cases: &[(&str, &[crate::testing::Buffer])] = &[
        ("points at itself", &[writable(0x1000, 8).then(0)]),
        ("points out of the table", &[writable(0x1000, 8).then(QUEUE_SIZE)]),
        ("behind memory", &[writable(0x40_0000, 8)]),
        ("over the end of memory", &[writable(0x3f_ffff, 2)]),
        ("wraps around", &[writable(u64::MAX - 3, 8)]),
        ("readable behind writable", &[writable(0x1000, 8), readable(0x2000, 8)]),
        ("a table of half a descriptor", &[readable(0x1000, 8).indirect()]),
        ("an empty table", &[readable(0x1000, 0).indirect()]),
        ("a table outside of memory", &[readable(u64::MAX - 15, 32).indirect()]),
        ("a table that goes on", &[readable(0x1000, 16).indirect(), writable(0x1000, 8)]),
    ];
    for (name, buffers) in cases {
        let mut guest = GuestDriver::attach(device());
        let broken = guest.offer(0, buffers);
        let good = guest.offer(0, &[writable(0x1000, 8)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(broken, 0), (good, 8)], "{name}");
        assert_eq!(guest.faults(), 1, "{name}");
    }
}

#[test]
fn a_table_of_descriptors_is_followed_once_and_not_deeper() {
    let mut guest = GuestDriver::attach(device());
    guest.put(0x5000, &writable(0x1000, 8).encode(Some(1)));
    guest.put(0x5010, &writable(0x2000, 8).encode(None));
    let head = guest.offer(0, &[readable(0x5000, 32).indirect()]);
    guest.kick(0);
    assert_eq!((guest.used(0), guest.faults()), (vec![(head, 16)], 0));
    guest.put(0x5010, &readable(0x5000, 32).indirect().encode(None));
    let head = guest.offer(0, &[readable(0x5000, 32).indirect()]);
    guest.kick(0);
    assert_eq!((guest.used(0), guest.faults()), (vec![(head, 0)], 1));
}

#[test]
fn a_driver_that_asks_not_to_be_told_is_not_told() {
    let mut guest = GuestDriver::attach(device());
    guest.set_avail_flags(0, 1);
    guest.offer(0, &[writable(0x1000, 8)]);
    guest.kick(0);
    assert_eq!((guest.used(0).len(), guest.interrupts()), (1, 0));
    guest.set_avail_flags(0, 0);
    guest.offer(0, &[writable(0x1000, 8)]);
    guest.kick(0);
    assert_eq!((guest.read(0x60), guest.interrupts()), (1, 1));
    guest.write(0x64, 1);
    assert_eq!(guest.read(0x60), 0);
}

#[test]
fn a_saved_device_goes_on_where_it_stood() {
    let mut guest = GuestDriver::attach(device());
    for _ in 0..3 {
        guest.offer(0, &[writable(0x1000, 8)]);
    }
    guest.kick(0);
    assert_eq!(guest.used(0).len(), 3);
    let state = guest.transport().save().expect("not lost");
    let text = serde_json::to_string(&state).expect("plain data");
    let state: State = serde_json::from_str(&text).expect("plain data");

    // Another process: a new device over the same memory.
    let host = crate::testing::InlineHost::default();
    let line = crate::testing::Recorder::default();
    let mem = guest.memory().clone();
    let mut restored =
        MmioTransport::new(device(), mem, Box::new(line.clone()), Arc::new(host.clone())).expect("eventfds");
    let head = guest.offer(0, &[writable(0x1000, 8)]);
    restored.restore(&state).expect("its own state");
    host.run();
    assert_eq!(guest.used(0), [(head, 8)], "what was offered in between is served without a kick");
    assert_eq!(line.edges(), 2, "for what its driver had not acknowledged, and for what was served");
    assert_eq!(restored.save().map(|state| state.registers.queues[0].next_used), Some(4));
}

#[test]
fn a_driver_that_sets_bits_which_no_status_has_can_be_saved_and_goes_on() {
    let mut guest = GuestDriver::attach(device());
    let status = guest.read(0x70);
    guest.write(0x70, status | 0x10 | 1 << 31);
    assert_eq!((guest.read(0x70), guest.faults()), (status, 1));
    let state = guest.transport().save().expect("not lost");
    GuestDriver::power_on(device()).transport().restore(&state).expect("its own state");
}

#[test]
fn a_foreign_or_damaged_state_is_refused() {
    let mut guest = GuestDriver::attach(device());
    let good = guest.transport().save().expect("not lost");
    assert!(guest.transport().restore(&good).is_err(), "at work already");
    for harm in [
        (|state: &mut State| state.version = 9) as fn(&mut State),
        |state| state.registers.queues.clear(),
        |state| state.registers.queues[0].size = 3,
        |state| state.registers.queues[0].size = 0x8000,
        |state| state.registers.queues[0].desc_table = 1 << 60,
        |state| state.registers.queues[0].used_ring = 1,
        |state| state.registers.status |= 0x40,
        |state| state.registers.status &= !status::FEATURES_OK,
        |state| state.registers.driver_features |= 1 << 60,
        |state| state.registers.driver_features = 0,
        |state| state.device.version = 9,
        |state| state.device.bytes.push(1),
        |state| state.device.device_type = crate::virtio::device::DeviceType::Net,
    ] {
        let mut state = good.clone();
        harm(&mut state);
        assert!(GuestDriver::power_on(device()).transport().restore(&state).is_err());
    }
}

#[test]
fn a_held_device_rests_whatever_its_driver_does_and_then_catches_up() {
    let mut guest = GuestDriver::attach(device());
    guest.transport().hold();
    let first = guest.offer(0, &[writable(0x1000, 8)]);
    guest.kick(0);
    assert_eq!(guest.used(0), []);
    guest.transport().release();
    guest.run();
    assert_eq!(guest.used(0), [(first, 8)]);

    // A reset in between, and a driver that sets it up again.
    guest.transport().hold();
    guest.transport().hold();
    guest.write(0x70, 0);
    guest.set_up(!feature::EVENT_IDX);
    let head = guest.offer(0, &[writable(0x1000, 8)]);
    guest.kick(0);
    assert_eq!(guest.used(0), []);
    guest.transport().release();
    guest.transport().release();
    guest.run();
    assert_eq!(guest.used(0), [(head, 8)]);

    // One that no driver has set up does not begin to work.
    guest.transport().hold();
    guest.write(0x70, 0);
    guest.transport().release();
    assert_eq!(guest.read(0x70), 0);
}

#[test]
fn an_interrupt_that_may_have_been_on_its_way_is_given_again() {
    let mut guest = GuestDriver::attach(device());
    guest.offer(0, &[writable(0x1000, 8)]);
    guest.kick(0);
    let state = guest.transport().save().expect("not lost");
    let (host, line) = (crate::testing::InlineHost::default(), crate::testing::Recorder::default());
    let mem = guest.memory().clone();
    let mut restored = MmioTransport::new(device(), mem, Box::new(line.clone()), Arc::new(host)).expect("eventfds");
    restored.restore(&state).expect("its own state");
    assert_eq!(line.edges(), 1);
}
