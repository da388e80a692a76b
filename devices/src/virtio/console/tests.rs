use super::*;
use crate::testing::{GuestDriver, readable, writable};

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl ConsoleOutput for Paper {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().expect("lock").extend_from_slice(bytes);
    }
}

fn console() -> (GuestDriver, Paper, Arc<ConsoleInput>) {
    let (paper, input) = (Paper::default(), ConsoleInput::new().expect("eventfd"));
    (GuestDriver::attach(Box::new(Console::new(Box::new(paper.clone()), input.clone()))), paper, input)
}

#[test]
fn what_the_guest_prints_comes_out_whole_and_in_order() {
    let (mut guest, paper, _) = console();
    let text: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
    guest.put(0x10000, &text);
    let head = guest.offer(1, &[readable(0x10000, 9000), readable(0x10000 + 9000, 1000)]);
    guest.kick(1);
    assert_eq!(guest.used(1), [(head, 0)]);
    assert_eq!(*paper.0.lock().expect("lock"), text);
}

#[test]
fn what_is_typed_waits_for_room() {
    let (mut guest, _, input) = console();
    assert_eq!(input.push(b"hello world"), 11);
    guest.run();
    assert_eq!(guest.used(0), []);
    let first = guest.offer(0, &[writable(0x1000, 5)]);
    let second = guest.offer(0, &[writable(0x2000, 100)]);
    guest.kick(0);
    assert_eq!(guest.used(0), [(first, 5), (second, 6)]);
    assert_eq!([guest.bytes(0x1000, 5), guest.bytes(0x2000, 6)].concat(), b"hello world");
}

#[test]
fn the_size_of_the_terminal_reaches_the_guest_while_it_runs() {
    let (mut guest, _, input) = console();
    assert_eq!(guest.config(0, 6), [80, 0, 24, 0, 0, 0]);
    let (generation, before) = (guest.read(0xfc), guest.interrupts());
    input.set_size(200, 50);
    guest.run();
    assert_eq!(guest.config(0, 4), [200, 0, 50, 0]);
    assert_eq!((guest.read(0xfc), guest.read(0x60), guest.interrupts()), (generation + 1, 2, before + 1));
}

#[test]
fn a_driver_that_did_not_ask_for_sizes_is_not_disturbed() {
    let input = ConsoleInput::new().expect("eventfd");
    let mut guest = GuestDriver::power_on(Box::new(Console::new(Box::new(Paper::default()), input.clone())));
    guest.set_up(!crate::virtio::feature::EVENT_IDX & !F_SIZE);
    input.set_size(1, 1);
    guest.run();
    assert_eq!(guest.interrupts(), 0);
}

#[test]
fn a_saved_console_keeps_its_size_and_its_input_and_foreign_or_damaged_states_are_refused() {
    let input = ConsoleInput::new().expect("eventfd");
    input.set_size(132, 43);
    input.push(b"typed");
    let good = Console::new(Box::new(Paper::default()), input).save();
    let input = ConsoleInput::new().expect("eventfd");
    let mut restored = Console::new(Box::new(Paper::default()), input.clone());
    restored.restore(&good).expect("its own state");
    assert_eq!(restored.save(), good);
    let mut later = good.clone();
    later.bytes.extend_from_slice(b" and more");
    input.lock().extend(b" and more");
    assert_eq!(restored.save(), later, "what was typed since comes after it");
    for harm in [
        (|state| state.version = 2) as fn(&mut DeviceState),
        |state| state.device_type = DeviceType::Rng,
        |state| state.bytes.clear(),
        |state| state.bytes.resize(CONFIG_BYTES + MAX_INPUT_BYTES + 1, b'x'),
    ] {
        let mut state = good.clone();
        harm(&mut state);
        assert!(restored.restore(&state).is_err(), "{state:?}");
    }
}

#[test]
fn input_is_bounded() {
    let (_, _, input) = console();
    assert_eq!(input.push(&vec![b'x'; MAX_INPUT_BYTES + 5]), MAX_INPUT_BYTES);
    assert_eq!(input.push(b"y"), 0);
}

#[test]
fn descriptors_that_change_while_they_are_printed_are_of_no_matter() {
    struct Meddler(Paper, Arc<Mutex<Option<Memory>>>);
    impl ConsoleOutput for Meddler {
        fn write(&mut self, bytes: &[u8]) {
            self.0.write(bytes);
            let mem = self.1.lock().expect("lock");
            let mem = mem.as_ref().expect("set before the first kick");
            vm_memory::Bytes::write_slice(mem, &[0xff; 1024], vm_memory::GuestAddress(0x31_0000)).expect("the table");
        }
    }
    let (paper, mem) = (Paper::default(), Arc::new(Mutex::new(None)));
    let output = Box::new(Meddler(paper.clone(), Arc::clone(&mem)));
    let mut guest = GuestDriver::attach(Box::new(Console::new(output, ConsoleInput::new().expect("eventfd"))));
    *mem.lock().expect("lock") = Some(guest.memory().clone());
    let head = guest.offer(1, &[readable(0x1000, 5000), readable(0x8000, 10)]);
    guest.kick(1);
    assert_eq!((guest.used(1), guest.faults()), (vec![(head, 0)], 0));
    assert_eq!(paper.0.lock().expect("lock").len(), 5010);
}

#[test]
fn a_flood_is_printed_in_turns_and_no_request_is_longer_than_64_kib() {
    let (mut guest, paper, _) = console();
    for _ in 0..QUEUE_SIZE {
        guest.offer(1, &[readable(0x1000, 100)]);
    }
    guest.kick(1);
    assert_eq!(guest.used(1).len(), usize::from(QUEUE_SIZE));
    assert_eq!((paper.0.lock().expect("lock").len(), guest.faults()), (6400, 0));
    guest.offer(1, &[readable(0x1000, 2 << 20)]);
    guest.kick(1);
    assert_eq!(guest.used(1).len(), 1);
    assert_eq!((paper.0.lock().expect("lock").len(), guest.faults()), (6400 + (64 << 10), 1));
}

#[test]
fn hostile_requests_come_back_empty_and_are_counted() {
    type Case<'a> = (&'a str, usize, &'a [crate::testing::Buffer], u64);
    let cases: &[Case<'_>] = &[
        ("a loop", 1, &[readable(0x1000, 8).then(0)], 1),
        ("behind memory", 1, &[readable(0x40_0000, 8)], 1),
        ("nothing to print", 1, &[readable(0x1000, 0)], 0),
        ("a buffer to be filled instead", 1, &[writable(0x1000, 8)], 1),
        ("4 GiB to print", 1, &[readable(0, u32::MAX)], 1),
        ("room that loops", 0, &[writable(0x1000, 8).then(0)], 1),
        ("room behind memory", 0, &[writable(u64::MAX - 7, 8)], 1),
        ("no room", 0, &[writable(0x1000, 0)], 1),
        ("text where room should be", 0, &[readable(0x1000, 8)], 1),
    ];
    for (name, queue, buffers, faults) in cases {
        let (mut guest, _, input) = console();
        input.push(b"ab");
        let head = guest.offer(*queue, buffers);
        guest.kick(*queue);
        assert_eq!((guest.used(*queue), guest.faults()), (vec![(head, 0)], *faults), "{name}");
        let good = guest.offer(0, &[writable(0x3000, 8)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(good, 2)], "{name}: nothing typed was lost");
        assert!(!guest.needs_reset(), "{name}");
    }
}

#[test]
fn hostile_buffers_come_back_and_the_console_goes_on() {
    let (mut guest, paper, input) = console();
    let writable_for_output = guest.offer(1, &[writable(0x1000, 8)]);
    guest.kick(1);
    assert_eq!(guest.used(1), [(writable_for_output, 0)]);
    input.push(b"ab");
    let readable_for_input = guest.offer(0, &[readable(0x1000, 8)]);
    let good = guest.offer(0, &[writable(0x1000, 8)]);
    guest.kick(0);
    assert_eq!(guest.used(0), [(readable_for_input, 0), (good, 2)]);
    assert_eq!((paper.0.lock().expect("lock").len(), guest.faults()), (0, 2));
}

#[test]
fn what_went_through_is_counted() {
    let input = ConsoleInput::new().expect("eventfd");
    let device = Console::new(Box::new(Paper::default()), input.clone());
    let counters = device.counters();
    let mut guest = GuestDriver::attach(Box::new(device));
    input.push(b"abc");
    guest.offer(0, &[writable(0x1000, 2)]);
    guest.offer(1, &[readable(0x1000, 5000)]);
    guest.kick(0);
    guest.kick(1);
    assert_eq!(counters.read(), [("faults", 0), ("printed_bytes", 5000), ("typed_bytes", 2)]);
}
