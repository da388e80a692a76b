use super::*;
use crate::testing::{GuestDriver, readable, writable};

struct Repeat(u8);

impl Entropy for Repeat {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        into.fill(self.0);
        Ok(())
    }
}

fn guest() -> GuestDriver {
    with_rate(DEFAULT_RATE)
}

fn with_rate(rate: Rate) -> GuestDriver {
    GuestDriver::attach(Box::new(Rng::with_entropy(Box::new(Repeat(0xab)), rate)))
}

#[test]
fn a_guest_that_wants_more_waits_and_gets_it() {
    let mut guest = with_rate(Rate { per_second: 4096 * 20, burst: 4096 });
    let heads: Vec<u16> = (0..3).map(|_| guest.offer(0, &[writable(0x1000, 4096)])).collect();
    guest.kick(0);
    let mut used = guest.used(0);
    assert_eq!(used[..2], [(heads[0], 4096), (heads[1], 4096)]);
    while used.len() < 3 {
        guest.run();
        used.extend(guest.used(0));
    }
    assert_eq!(used[2], (heads[2], 4096));
}

#[test]
fn a_guest_that_has_used_up_its_share_is_reset_at_once_and_its_share_is_not_renewed() {
    let mut guest = with_rate(Rate { per_second: 1, burst: 0 });
    for again in [false, true] {
        guest.offer(0, &[writable(0x1000, 4096)]);
        guest.kick(0);
        assert_eq!(guest.used(0).len(), usize::from(!again));
        guest.write(0x70, 0);
        guest.set_up(!crate::virtio::feature::EVENT_IDX);
    }
}

#[test]
fn a_buffer_comes_back_full() {
    let mut guest = guest();
    let head = guest.offer(0, &[writable(0x1000, 32), writable(0x2000, 32)]);
    guest.kick(0);
    assert_eq!(guest.used(0), [(head, 64)]);
    assert_eq!(guest.bytes(0x2000, 33), [[0xab; 32].as_slice(), &[0]].concat());
    assert_eq!(guest.interrupts(), 1);
}

#[test]
fn a_descriptor_that_changes_while_it_is_filled_is_of_no_matter() {
    use std::sync::{Mutex, OnceLock};
    struct Meddler(Arc<OnceLock<Mutex<Memory>>>);
    impl Entropy for Meddler {
        fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
            into.fill(0xcd);
            let mem = self.0.get().expect("set before the first kick").lock().expect("lock");
            vm_memory::Bytes::write_slice(&*mem, &[0xff; 1024], vm_memory::GuestAddress(0x30_0000)).expect("the table");
            Ok(())
        }
    }
    let mem = Arc::new(OnceLock::new());
    let mut guest = GuestDriver::attach(Box::new(Rng::with_entropy(Box::new(Meddler(Arc::clone(&mem))), DEFAULT_RATE)));
    assert!(mem.set(Mutex::new(guest.memory().clone())).is_ok());
    let head = guest.offer(0, &[writable(0x1000, 16)]);
    guest.kick(0);
    assert_eq!((guest.used(0), guest.faults()), (vec![(head, 16)], 0));
    assert_eq!(guest.bytes(0x1000, 17), [[0xcd; 16].as_slice(), &[0]].concat());
}

#[test]
fn one_request_yields_at_most_4096_bytes() {
    let mut guest = guest();
    let head = guest.offer(0, &[writable(0x1000, 1 << 20)]);
    guest.kick(0);
    assert_eq!(guest.used(0), [(head, 4096)]);
}

#[test]
fn requests_that_cannot_be_filled_come_back_empty_and_are_counted() {
    let cases = [
        ("bytes for the device", vec![readable(0x1000, 8)]),
        ("some of each", vec![readable(0x1000, 8), writable(0x2000, 8)]),
        ("the wrong way round", vec![writable(0x2000, 8), readable(0x1000, 8)]),
        ("nothing to fill", vec![writable(0, 0)]),
        ("a loop", vec![writable(0x1000, 8).then(0)]),
        ("out of the table", vec![writable(0x1000, 8).then(QUEUE_SIZE)]),
        ("behind memory", vec![writable(4 << 20, 1)]),
        ("over the end of memory", vec![writable((4 << 20) - 1, 2)]),
        ("around the end of all", vec![writable(u64::MAX, 2)]),
        ("4 GiB in two", vec![writable(0, u32::MAX), writable(0, u32::MAX)]),
        ("a table of itself", vec![writable(0x30_0000, 64).indirect()]),
    ];
    for (name, buffers) in cases {
        let mut guest = guest();
        let head = guest.offer(0, &buffers);
        guest.kick(0);
        assert_eq!((guest.used(0), guest.faults()), (vec![(head, 0)], 1), "{name}");
        let good = guest.offer(0, &[writable(0x1000, 8)]);
        guest.kick(0);
        assert_eq!((guest.used(0), guest.needs_reset()), (vec![(good, 8)], false), "{name}: the next one is filled");
    }
}

#[test]
fn requests_bytes_and_waits_are_counted() {
    let rate = Rate { burst: 50, per_second: 1 };
    let rng = Rng::with_entropy(Box::new(Repeat(1)), rate);
    let counters = rng.counters();
    let mut guest = GuestDriver::attach(Box::new(rng));
    for _ in 0..2 {
        guest.offer(0, &[writable(0x1000, 100)]);
    }
    guest.kick(0);
    assert_eq!(counters.read(), [("faults", 0), ("requests", 1), ("bytes", 100), ("waits", 1)]);
}
