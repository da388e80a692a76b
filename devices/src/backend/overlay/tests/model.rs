//! Random requests over random chains, against a plain array.

use super::*;
use proptest::prelude::*;

const CAPACITY: u64 = 300 * 4096 + 512;
const SECTORS: u64 = CAPACITY / 512;

#[derive(Debug, Clone)]
enum Action {
    Read { sector: u64, count: u64 },
    Write { sector: u64, count: u64 },
    Discard { sector: u64, count: u64 },
    Zeroes { sector: u64, count: u64 },
    Flush,
    Freeze,
    Reopen,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    // Short ranges near each other meet; some are long.
    let range = || (0..SECTORS, prop_oneof![4 => 1u64..24, 1 => 1u64..100]).prop_map(|(s, n)| (s, n.min(SECTORS - s)));
    let near = || (0u64..64, 1u64..24);
    let range = move || prop_oneof![range(), near()];
    prop::collection::vec(
        prop_oneof![
            6 => range().prop_map(|(sector, count)| Action::Read { sector, count }),
            8 => range().prop_map(|(sector, count)| Action::Write { sector, count }),
            3 => range().prop_map(|(sector, count)| Action::Discard { sector, count }),
            1 => range().prop_map(|(sector, count)| Action::Zeroes { sector, count }),
            2 => Just(Action::Flush),
            1 => Just(Action::Freeze),
            1 => Just(Action::Reopen),
        ],
        1..80,
    )
}

fn base() -> Vec<u8> {
    (0..200 * 4096 + 1024u64).map(|n| (n / 512 * 7 + n % 13) as u8).collect()
}

/// Requests run at once unless they touch the same sectors; then the earlier one ends first.
struct Player {
    place: Place,
    guest: Guest<Shuffled<SyncEngine>>,
    model: Vec<u8>,
    seed: u64,
    under_way: BTreeMap<Tag, (u64, u64, Option<Vec<u8>>)>,
    next: u8,
}

fn start(place: &Place, seed: u64, live: bool) -> Guest<Shuffled<SyncEngine>> {
    let chain = Chain { live, ..place.chain() };
    Guest::new(Overlay::open(chain, |files| Ok(Shuffled::new(SyncEngine::new(files), seed))).expect("a drive"))
}

impl Player {
    fn new(with_base: bool, seed: u64) -> Self {
        let place = Place::new(with_base.then(base), CAPACITY);
        let mut model = place.base.clone().unwrap_or_default();
        model.resize(CAPACITY as usize, 0);
        let guest = start(&place, seed, false);
        Self { place, guest, model, seed, under_way: BTreeMap::new(), next: 0 }
    }

    fn collect_one(&mut self) {
        let Some(completion) = self.guest.drive.collect() else { return };
        completion.result.expect("no error");
        let (_, len, expected) = self.under_way.remove(&completion.tag).expect("a request of ours");
        if let Some(expected) = expected {
            assert!(self.guest.bytes(completion.tag, len) == expected, "what was read, tag {}", completion.tag);
        }
    }

    fn settle(&mut self) {
        while !self.under_way.is_empty() {
            self.collect_one();
        }
    }

    /// A tag whose range nobody else uses meanwhile.
    fn tag(&mut self, offset: u64, len: u64) -> Tag {
        let meets = |(at, other, _): &(u64, u64, Option<Vec<u8>>)| *at < offset + len && offset < at + other;
        while self.under_way.values().any(meets) || self.under_way.len() >= TAGS as usize {
            self.collect_one();
        }
        (0..TAGS as Tag).find(|tag| !self.under_way.contains_key(tag)).expect("a free tag")
    }

    fn play(&mut self, action: &Action) {
        let (sector, count) = match *action {
            Action::Read { sector, count }
            | Action::Write { sector, count }
            | Action::Discard { sector, count }
            | Action::Zeroes { sector, count } => (sector, count),
            _ => (0, 0),
        };
        let (offset, len) = (sector * 512, count * 512);
        let range = offset as usize..(offset + len) as usize;
        match action {
            Action::Read { .. } => {
                let tag = self.tag(offset, len);
                self.guest.start_read(tag, offset, len);
                self.under_way.insert(tag, (offset, len, Some(self.model[range].to_vec())));
            }
            Action::Write { .. } => {
                self.next = self.next.wrapping_add(1);
                let bytes: Vec<u8> = (0..len).map(|n| self.next ^ (n / 512) as u8).collect();
                let tag = self.tag(offset, len);
                self.model[range].copy_from_slice(&bytes);
                self.guest.start_write(tag, offset, &bytes);
                self.under_way.insert(tag, (offset, len, None));
            }
            Action::Discard { .. } | Action::Zeroes { .. } => {
                let tag = self.tag(offset, len);
                self.model[range].fill(0);
                let operation = match action {
                    Action::Discard { .. } => Operation::Discard { offset, len },
                    _ => Operation::WriteZeroes { offset, len, unmap: false },
                };
                self.guest.drive.submit(tag, operation);
                self.under_way.insert(tag, (offset, len, None));
            }
            Action::Flush => {
                let tag = self.tag(CAPACITY, 0);
                self.guest.drive.submit(tag, Operation::Flush);
                self.under_way.insert(tag, (CAPACITY, 0, None));
            }
            Action::Freeze => {
                self.settle();
                let files = self.place.files(self.place.layers);
                let seed = self.seed;
                self.guest
                    .drive
                    .freeze(files, |files| Ok(Shuffled::new(SyncEngine::new(files), seed)))
                    .expect("frozen");
                self.place.layers += 1;
            }
            Action::Reopen => {
                self.play(&Action::Flush);
                self.settle();
                self.play(&Action::Flush);
                self.settle();
                let gone = std::mem::replace(&mut self.guest, Self::new(false, 1).guest);
                drop(gone);
                self.guest = start(&self.place, self.seed, false);
            }
        }
    }

    fn compare(&mut self) {
        self.settle();
        for (number, expected) in self.model.clone().chunks(64 << 10).enumerate() {
            let (offset, len) = (number as u64 * (64 << 10), expected.len() as u64);
            self.guest.start_read(0, offset, len);
            self.under_way.insert(0, (offset, len, Some(expected.to_vec())));
            self.settle();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(rounds(60, 3000) as u32))]
    #[test]
    fn a_drive_in_layers_is_an_array_of_sectors(
        with_base in any::<bool>(),
        seed in 1u64..u64::MAX,
        actions in actions(),
    ) {
        let mut player = Player::new(with_base, seed);
        for action in &actions {
            player.play(action);
        }
        player.compare();
        player.play(&Action::Reopen);
        player.compare();
    }
}
