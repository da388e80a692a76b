use super::*;
use crate::testing::{GuestDriver, readable, writable};
use crate::virtio::feature;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const REPORTS: usize = 3;
/// Pages of the test guest's memory.
const MEMORY_PAGES: u32 = 1024;

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<(u64, u64)>>>);

impl Reclaim for Taken {
    fn give_back(&mut self, mem: &Memory, start: u64, len_bytes: u64) -> io::Result<()> {
        assert!(
            mem.check_range(GuestAddress(start), len_bytes as usize, Permissions::Write),
            "{len_bytes} at {start:#x}"
        );
        assert_eq!((start % PAGE_BYTES, len_bytes % PAGE_BYTES), (0, 0), "whole pages");
        self.0.lock().expect("lock").push((start, len_bytes));
        Ok(())
    }
}

struct Fixture {
    guest: GuestDriver,
    control: Arc<BalloonControl>,
    taken: Taken,
}

impl Fixture {
    fn new() -> Self {
        Self::with_features(!feature::EVENT_IDX)
    }

    fn with_features(mask: u64) -> Self {
        let taken = Taken::default();
        let balloon = Balloon::new(Box::new(taken.clone())).expect("eventfds");
        let control = balloon.control();
        let mut guest = GuestDriver::power_on(Box::new(balloon));
        guest.set_up(mask);
        Self { guest, control, taken }
    }

    fn taken(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.taken.0.lock().expect("lock"))
    }

    /// Puts page numbers where the driver has them; their length in bytes.
    fn numbers(&self, pages: &[u32]) -> u32 {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.guest.put(0x10_0000, &bytes);
        bytes.len() as u32
    }

    fn inflate(&mut self, pages: &[u32]) {
        let len = self.numbers(pages);
        let head = self.guest.offer(INFLATE, &[readable(0x10_0000, len)]);
        self.guest.kick(INFLATE);
        assert_eq!(self.guest.used(INFLATE), [(head, 0)]);
    }

    fn tell(&mut self, entries: &[(u16, u64)]) -> u16 {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(tag, value)| [tag.to_le_bytes().as_slice(), &value.to_le_bytes()].concat())
            .collect();
        self.guest.put(0x20_0000, &bytes);
        let head = self.guest.offer(STATS, &[readable(0x20_0000, bytes.len() as u32)]);
        self.guest.kick(STATS);
        head
    }
}

#[test]
fn pages_in_the_balloon_go_back_in_runs() {
    let mut fixture = Fixture::new();
    fixture.inflate(&[12, 10, 11, 11, 600, 3]);
    assert_eq!(fixture.taken(), [(0x3000, 0x1000), (0xa000, 0x3000), (600 * 4096, 0x1000)]);
    assert_eq!((fixture.guest.faults(), fixture.control.given_back_bytes()), (0, 5 * 4096));
    let len = fixture.numbers(&[10, 11]);
    let head = fixture.guest.offer(DEFLATE, &[readable(0x10_0000, len)]);
    fixture.guest.kick(DEFLATE);
    assert_eq!((fixture.guest.used(DEFLATE), fixture.taken()), (vec![(head, 0)], vec![]));
}

#[test]
fn more_pages_than_are_looked_at_together_all_go_back() {
    let mut fixture = Fixture::new();
    // One page over a chunk; the same pages again, so that a short memory has enough of them.
    let pages: Vec<u32> = (0..=(CHUNK as u32 / 4)).map(|n| n % 512).collect();
    fixture.inflate(&pages);
    assert_eq!(fixture.taken(), [(0, 512 * 4096), (0, 4096)]);
}

#[test]
fn reported_pages_go_back_whole_and_by_either_number_of_the_queue() {
    for queue in [REPORTS, REPORTS + 1] {
        let mut fixture = Fixture::new();
        let ranges = [writable(0x2000, 0x4000), writable(0x10_0001, 0x2fff), writable(0x20_0000, 0x1fff)];
        let head = fixture.guest.offer(queue, &ranges);
        fixture.guest.kick(queue);
        assert_eq!(fixture.guest.used(queue), [(head, 0)]);
        assert_eq!(fixture.taken(), [(0x2000, 0x4000), (0x10_1000, 0x2000), (0x20_0000, 0x1000)]);
    }
}

#[test]
fn a_driver_without_statistics_reports_on_what_would_be_their_queue() {
    let mut fixture = Fixture::with_features(!feature::EVENT_IDX & !F_STATS_VQ);
    fixture.guest.offer(STATS, &[writable(0x2000, 0x1000)]);
    fixture.guest.kick(STATS);
    assert_eq!((fixture.taken(), fixture.guest.faults()), (vec![(0x2000, 0x1000)], 0));
}

#[test]
fn a_driver_that_agreed_on_no_reports_gives_nothing_back() {
    let mut fixture = Fixture::with_features(!feature::EVENT_IDX & !F_PAGE_REPORTING);
    let head = fixture.guest.offer(REPORTS, &[writable(0x2000, 0x1000)]);
    fixture.guest.kick(REPORTS);
    assert_eq!((fixture.guest.used(REPORTS), fixture.taken(), fixture.guest.faults()), (vec![(head, 0)], vec![], 1));
}

#[test]
fn a_balloon_without_reclaim_asks_for_no_reports_and_takes_nothing() {
    let balloon = Balloon::without_reclaim().expect("eventfds");
    assert_eq!(balloon.info().features, F_STATS_VQ | F_DEFLATE_ON_OOM);
    let control = balloon.control();
    let mut guest = GuestDriver::power_on(Box::new(balloon));
    guest.set_up(!feature::EVENT_IDX);
    guest.put(0x10_0000, &7u32.to_le_bytes());
    guest.put(7 * 4096, &[9; 4]);
    let head = guest.offer(INFLATE, &[readable(0x10_0000, 4)]);
    guest.kick(INFLATE);
    assert_eq!((guest.used(INFLATE), guest.bytes(7 * 4096, 4)), (vec![(head, 0)], vec![9; 4]));
    assert_eq!((control.given_back_bytes(), guest.faults()), (0, 0));
}

#[test]
fn the_host_changes_the_target_and_the_guest_is_told() {
    let mut fixture = Fixture::new();
    let before = fixture.guest.interrupts();
    fixture.control.set_target_pages(512);
    fixture.guest.run();
    assert_eq!(fixture.guest.config(0, 4), 512u32.to_le_bytes());
    assert_eq!(
        (fixture.guest.interrupts(), fixture.guest.read(0x60) & 2),
        (before + 1, 2),
        "a change of configuration"
    );
    fixture.guest.write_config(4, &300u32.to_le_bytes());
    assert_eq!((fixture.control.target_pages(), fixture.control.actual_pages()), (512, 300));
}

#[test]
fn statistics_wait_with_the_device_until_somebody_asks() {
    let mut fixture = Fixture::new();
    let first = fixture.tell(&[(4, 1000), (5, 2000), (77, 1)]);
    assert_eq!(fixture.guest.used(STATS), [], "the buffer stays with the device");
    assert_eq!(fixture.control.statistics(), [("free-bytes", 1000), ("total-bytes", 2000)]);
    fixture.guest.run();
    assert_eq!(fixture.guest.used(STATS), [(first, 0)], "now the guest may tell again");
    let second = fixture.tell(&[(4, 900)]);
    assert_eq!(fixture.control.statistics(), [("free-bytes", 900), ("total-bytes", 2000)]);
    fixture.guest.run();
    assert_eq!(fixture.guest.used(STATS), [(second, 0)]);
    assert_eq!(fixture.guest.faults(), 0);
}

#[test]
fn a_saved_balloon_keeps_its_sizes_and_the_statistics_buffer() {
    let mut fixture = Fixture::new();
    fixture.control.set_target_pages(700);
    fixture.guest.write_config(4, &650u32.to_le_bytes());
    let head = fixture.tell(&[(4, 1)]);
    let state = fixture.guest.transport().save().expect("not lost");
    // The one that was saved goes on.
    let _ = fixture.control.statistics();
    fixture.guest.run();
    assert_eq!(fixture.guest.used(STATS), [(head, 0)], "taken once, given back once");
    assert_eq!(fixture.control.actual_pages(), 650, "saving is no reset");

    let balloon = Balloon::new(Box::new(Taken::default())).expect("eventfds");
    let control = balloon.control();
    GuestDriver::power_on(Box::new(balloon)).transport().restore(&state).expect("its own state");
    assert_eq!((control.target_pages(), control.actual_pages()), (700, 650));
}

#[test]
fn a_foreign_or_damaged_state_is_refused() {
    let good = sample().save();
    for harm in [
        (|state| state.version = 2) as fn(&mut DeviceState),
        |state| state.device_type = DeviceType::Rng,
        |state| state.bytes.clear(),
        |state| state.bytes.push(0),
    ] {
        let mut state = good.clone();
        harm(&mut state);
        assert!(sample().restore(&state).is_err(), "{state:?}");
    }
    assert!(sample().restore(&good).is_ok());
}

#[test]
fn a_reset_empties_the_balloon_but_keeps_the_target() {
    let mut fixture = Fixture::new();
    fixture.control.set_target_pages(512);
    fixture.guest.write_config(4, &512u32.to_le_bytes());
    fixture.tell(&[(4, 1)]);
    fixture.guest.write(0x70, 0);
    assert_eq!((fixture.control.target_pages(), fixture.control.actual_pages()), (512, 0));
    assert_eq!(fixture.control.statistics(), []);
}

#[test]
fn hostile_requests_take_nothing_come_back_and_are_counted() {
    type Case<'a> = (&'a str, usize, &'a [crate::testing::Buffer], &'a [u32]);
    let cases: &[Case<'_>] = &[
        ("a page behind memory", INFLATE, &[readable(0x10_0000, 4)], &[MEMORY_PAGES]),
        ("the last page of all", INFLATE, &[readable(0x10_0000, 4)], &[u32::MAX]),
        ("a run over the end", INFLATE, &[readable(0x10_0000, 8)], &[MEMORY_PAGES - 1, MEMORY_PAGES]),
        ("half a number", INFLATE, &[readable(0x10_0000, 6)], &[1, 2]),
        ("no number", INFLATE, &[readable(0x10_0000, 0)], &[]),
        ("numbers where the device should write", INFLATE, &[writable(0x10_0000, 4)], &[1]),
        ("both", INFLATE, &[readable(0x10_0000, 4), writable(0x11_0000, 4)], &[1]),
        ("more numbers than allowed", INFLATE, &[readable(0, 0x20_0000)], &[]),
        ("a loop", INFLATE, &[readable(0x10_0000, 4).then(0)], &[1]),
        ("a report for the device to read", REPORTS, &[readable(0x2000, 0x1000)], &[]),
        ("an empty report", REPORTS, &[writable(0x2000, 0)], &[]),
        ("an empty page at the end of all", REPORTS, &[writable(0x2001, 1), writable(u64::MAX, 0)], &[]),
        ("less than a page", REPORTS, &[writable(0x2000, 0xfff)], &[]),
        ("two halves of pages", REPORTS, &[writable(0x2800, 0x1000)], &[]),
        ("a report over the end", REPORTS, &[writable(0x3f_f000, 0x2000)], &[]),
        ("a report of everything", REPORTS, &[writable(0, u32::MAX)], &[]),
        ("a report around the end of all", REPORTS, &[writable(u64::MAX - 0xfff, 0x2000)], &[]),
        ("half a statistic", STATS, &[readable(0x20_0000, 5)], &[]),
        ("statistics without an end", STATS, &[readable(0, 0x10_0000)], &[]),
    ];
    let faults = |name: &str| if name == "an empty page at the end of all" { 2 } else { 1 };
    for (name, queue, buffers, pages) in cases {
        let mut fixture = Fixture::new();
        fixture.numbers(pages);
        let head = fixture.guest.offer(*queue, buffers);
        fixture.guest.kick(*queue);
        let _ = fixture.control.statistics();
        fixture.guest.run();
        assert_eq!(fixture.guest.used(*queue), [(head, 0)], "{name}");
        assert_eq!((fixture.taken(), fixture.guest.faults()), (vec![], faults(name)), "{name}");
        assert!(!fixture.guest.needs_reset(), "{name}");
        fixture.inflate(&[7]);
        assert_eq!(fixture.taken(), [(0x7000, 0x1000)], "{name}: an honest page afterwards");
    }
}

/// Changes the guest's memory while a request is being carried out, as another vCPU could.
struct Meddler(Taken);

impl Reclaim for Meddler {
    fn give_back(&mut self, mem: &Memory, start: u64, len_bytes: u64) -> io::Result<()> {
        self.0.give_back(mem, start, len_bytes)?;
        // Page numbers, and every descriptor of the first queues' tables.
        for place in [0x10_0000, 0x30_0000, 0x31_0000, 0x33_0000] {
            vm_memory::Bytes::write_slice(mem, &[0xff; 2048], GuestAddress(place)).expect("within memory");
        }
        Ok(())
    }
}

#[test]
fn numbers_and_ranges_that_change_in_flight_are_read_once() {
    let taken = Taken::default();
    let balloon = Balloon::new(Box::new(Meddler(taken.clone()))).expect("eventfds");
    let mut guest = GuestDriver::attach(Box::new(balloon));
    let pages: Vec<u8> = [9u32, 5, 7].iter().flat_map(|page| page.to_le_bytes()).collect();
    guest.put(0x10_0000, &pages);
    let head = guest.offer(INFLATE, &[readable(0x10_0000, 12)]);
    guest.kick(INFLATE);
    assert_eq!(guest.used(INFLATE), [(head, 0)]);
    let report = guest.offer(REPORTS, &[writable(0x2000, 0x1000), writable(0x8000, 0x1000)]);
    guest.kick(REPORTS);
    assert_eq!(guest.used(REPORTS), [(report, 0)]);
    let whole = [0x5000, 0x7000, 0x9000, 0x2000, 0x8000].map(|start| (start, 0x1000));
    assert_eq!((std::mem::take(&mut *taken.0.lock().expect("lock")), guest.faults()), (whole.to_vec(), 0));
}

#[test]
fn a_flood_of_requests_ends_and_each_comes_back() {
    let mut fixture = Fixture::new();
    fixture.numbers(&[1]);
    for _ in 0..QUEUE_SIZE {
        fixture.guest.offer(INFLATE, &[readable(0x10_0000, 4)]);
    }
    fixture.guest.kick(INFLATE);
    assert_eq!(fixture.guest.used(INFLATE).len(), usize::from(QUEUE_SIZE));
}
