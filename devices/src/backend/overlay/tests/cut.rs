//! Power cuts. A recorder under the drive knows which writes reached a file and which of them a sync has made durable; from that, any
//! state of the disk is built that a cut at some moment may leave, opened again, and each sector compared with what it may hold.
//!
//! The disk is as bad as disks are: of what was not synced, each sector of 512 bytes is there or not, in any version, whatever the
//! order of the writes. A sync covers only writes that had completed when it was begun.

use super::*;
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use vm_memory::VolatileSlice;

const SECTOR: u64 = 512;
const CAPACITY: u64 = 40 * 4096 + 1024;
const SECTORS: u64 = CAPACITY / SECTOR;

enum What {
    /// Of a whole number of sectors; zeros where a hole was punched.
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    Sync,
}

struct Record {
    file: FileIndex,
    what: What,
    /// Where in the log its completion was told.
    completed: Option<usize>,
}

#[derive(Default)]
struct Log {
    records: Vec<Record>,
    under_way: HashMap<IoTag, usize>,
}

struct Recorder {
    inner: Shuffled<SyncEngine>,
    log: Arc<Mutex<Log>>,
}

impl Engine for Recorder {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        let seen = match &io {
            Io::Read { .. } => None,
            Io::Write { file, offset, from } => {
                let mut bytes = vec![0; from.len_bytes()];
                from.copy_to(&VolatileSlice::from(bytes.as_mut_slice()));
                Some((*file, What::Write { offset: *offset, bytes }))
            }
            Io::Punch { file, offset, len } | Io::Zero { file, offset, len } => {
                Some((*file, What::Write { offset: *offset, bytes: vec![0; *len as usize] }))
            }
            Io::Sync { file } => Some((*file, What::Sync)),
        };
        if let Some((file, what)) = seen {
            let mut log = self.log.lock().expect("log");
            if matches!(what, What::Write { .. }) {
                let index = log.records.len();
                log.under_way.insert(tag, index);
            }
            log.records.push(Record { file, what, completed: None });
        }
        self.inner.submit(tag, io);
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        let (tag, result) = self.inner.collect()?;
        let mut log = self.log.lock().expect("log");
        if let Some(index) = log.under_way.remove(&tag) {
            log.records[index].completed = Some(log.records.len());
        }
        Some((tag, result))
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

/// What a sector says: its eight bytes over and over.
type Value = [u8; 8];

/// One request of the guest as the test remembers it.
struct Asked {
    first: u64,
    count: u64,
    /// Index in each sector's history; a flush has what was complete when it was asked for.
    floors: Vec<(u64, usize)>,
}

struct World {
    place: Place,
    guest: Guest<Recorder>,
    log: Arc<Mutex<Log>>,
    random: Random,
    seed: u64,
    /// Of each sector, every value with the moment it was asked for.
    history: Vec<Vec<(usize, Value)>>,
    /// Of each sector, the newest value whose write has ended.
    ended: Vec<usize>,
    /// Of each flush that has ended: when, and what it promised.
    promised: Vec<(usize, Vec<usize>)>,
    under_way: BTreeMap<Tag, Asked>,
    /// Files as they were when they joined, and when that was.
    files: Vec<(usize, Vec<u8>)>,
    layers_at: Vec<usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let base: Vec<u8> = (0..30 * 8 + 3u64).flat_map(|sector| value(sector + 1).repeat(64)).collect();
        let place = Place::new(Some(base.clone()), CAPACITY);
        let log = Arc::new(Mutex::new(Log::default()));
        let guest = Guest::new(Overlay::open(place.chain(), |files| Ok(recorder(files, seed, &log))).expect("a drive"));
        let history: Vec<_> = (0..SECTORS as usize)
            .map(|sector| {
                let old = base.get(sector * 512..sector * 512 + 8);
                vec![(0, old.map_or([0; 8], |old| old.try_into().expect("eight")))]
            })
            .collect();
        let ended = vec![0; SECTORS as usize];
        let promised = vec![(0, ended.clone())];
        let mut world = Self {
            place,
            guest,
            log,
            random: Random(seed),
            seed,
            history,
            ended,
            promised,
            under_way: BTreeMap::new(),
            files: vec![(0, base)],
            layers_at: Vec::new(),
        };
        world.layer_joins(0);
        world
    }

    fn now(&self) -> usize {
        self.log.lock().expect("log").records.len()
    }

    fn layer_joins(&mut self, layer: usize) {
        let now = self.now();
        for what in ["data", "map"] {
            self.files.push((now, std::fs::read(self.place.path(layer, what)).expect("reading")));
        }
        self.layers_at.push(now);
    }

    fn collect_one(&mut self) {
        let Some(completion) = self.guest.drive.collect() else { return };
        completion.result.expect("no error");
        let asked = self.under_way.remove(&completion.tag).expect("a request of ours");
        if asked.count == 0 {
            let floors = asked.floors.iter().map(|(_, floor)| *floor).collect();
            self.promised.push((self.now(), floors));
        }
        for (sector, index) in asked.floors.iter().filter(|_| asked.count > 0) {
            self.ended[*sector as usize] = *index;
        }
    }

    fn ask(&mut self, number: u64) {
        let long = if self.random.below(5) == 0 { 60 } else { 12 };
        let first = self.random.below(SECTORS);
        let count = (self.random.below(long) + 1).min(SECTORS - first);
        let meets = |asked: &Asked| asked.first < first + count && first < asked.first + asked.count;
        while self.under_way.values().any(meets) || self.under_way.len() > 12 {
            self.collect_one();
        }
        let tag = (0..TAGS as Tag).find(|tag| !self.under_way.contains_key(tag)).expect("a free tag");
        let (now, kind) = (self.now(), self.random.below(10));
        if kind < 2 {
            let floors = (0..SECTORS).zip(self.ended.iter().copied()).collect();
            self.under_way.insert(tag, Asked { first: 0, count: 0, floors });
            return self.guest.drive.submit(tag, Operation::Flush);
        }
        let new = if kind < 4 { [0; 8] } else { value(number << 16 | 0xffff) };
        let floors = (first..first + count)
            .map(|sector| {
                let history = &mut self.history[sector as usize];
                history.push((now, new));
                (sector, history.len() - 1)
            })
            .collect();
        self.under_way.insert(tag, Asked { first, count, floors });
        let (offset, len) = (first * SECTOR, count * SECTOR);
        match kind {
            0..4 => self.guest.drive.submit(tag, Operation::Discard { offset, len }),
            _ => self.guest.start_write(tag, offset, &new.repeat(count as usize * 64)),
        }
    }

    fn freeze(&mut self) {
        while !self.under_way.is_empty() {
            self.collect_one();
        }
        let layer = self.place.layers;
        let files = self.place.files(layer);
        self.guest.drive.make_next(&files).expect("a layer");
        let (before, seed) = (std::fs::read(self.place.path(layer - 1, "map")).expect("reading"), self.seed);
        self.guest.drive.freeze(files, |files| Ok(recorder(files, seed, &self.log))).expect("frozen");
        let after = std::fs::read(self.place.path(layer - 1, "map")).expect("reading");
        let mut log = self.log.lock().expect("log");
        for (sector, (_, bytes)) in
            before.chunks(512).zip(after.chunks(512)).enumerate().filter(|(_, (old, new))| old != new)
        {
            let what = What::Write { offset: sector as u64 * SECTOR, bytes: bytes.to_vec() };
            let completed = Some(log.records.len());
            log.records.push(Record { file: 2 * layer, what, completed });
        }
        drop(log);
        self.place.layers += 1;
        self.layer_joins(layer);
    }

    /// A disk as a power cut before record `moment` may leave it.
    fn disk_at(&mut self, moment: usize) -> Place {
        let layers = self.layers_at.iter().filter(|at| **at <= moment).count();
        let cut = Place { layers, ..Place::new(self.place.base.clone(), CAPACITY) };
        let log = self.log.lock().expect("log");
        for (file, (joined, content)) in self.files.iter().enumerate().skip(1).take(layers * 2) {
            let mut content = content.clone();
            let mut pending: BTreeMap<u64, Vec<(usize, &[u8])>> = BTreeMap::new();
            for (at, record) in log.records.iter().enumerate().take(moment) {
                if record.file != file || at < *joined {
                    continue;
                }
                match &record.what {
                    What::Write { offset, bytes } => {
                        for (number, sector) in (offset / SECTOR..).zip(bytes.chunks(512)) {
                            pending.entry(number).or_default().push((at, sector));
                        }
                    }
                    What::Sync => {
                        for (number, versions) in &mut pending {
                            let done = |(write, _): &(usize, &[u8])| {
                                log.records[*write].completed.is_some_and(|completed| completed <= at)
                            };
                            let Some(last) = versions.iter().rposition(done) else { continue };
                            content[(number * SECTOR) as usize..][..512].copy_from_slice(versions[last].1);
                            versions.drain(..=last);
                        }
                    }
                }
            }
            for (number, versions) in pending {
                let choice = self.random.below(versions.len() as u64 + 1) as usize;
                if let Some((_, sector)) = versions.get(choice) {
                    content[(number * SECTOR) as usize..][..512].copy_from_slice(sector);
                }
            }
            let name = if file % 2 == 1 { "data" } else { "map" };
            open(&cut.path((file - 1) / 2, name)).write_all_at(&content, 0).expect("writing");
        }
        drop(log);
        cut
    }

    fn check(&mut self, moment: usize) {
        let cut = self.disk_at(moment);
        let mut guest = Guest::new(Overlay::new(cut.chain()).expect("a drive after a power cut"));
        let (_, floors) = self.promised.iter().rfind(|(at, _)| *at <= moment).expect("the first promises nothing");
        for (sector, history) in self.history.iter().enumerate() {
            let read = guest.read(sector as u64 * SECTOR, SECTOR);
            let allowed = history
                .iter()
                .enumerate()
                .filter(|(index, (asked, _))| *index == floors[sector] || *index > floors[sector] && *asked <= moment);
            let fits = allowed.clone().any(|(_, (_, value))| read.chunks(8).all(|bytes| bytes == value));
            assert!(
                fits,
                "seed {}, cut before record {moment}: sector {sector} is {:x?}, may be {:x?}",
                self.seed,
                &read[..8],
                allowed.map(|(_, (_, value))| value).collect::<Vec<_>>()
            );
        }
    }
}

fn recorder(files: Vec<File>, seed: u64, log: &Arc<Mutex<Log>>) -> Recorder {
    Recorder { inner: Shuffled::new(SyncEngine::new(files), seed), log: log.clone() }
}

fn value(number: u64) -> Value {
    number.to_le_bytes()
}

#[test]
fn a_power_cut_leaves_what_was_flushed_or_written_later_and_never_anything_else() {
    for round in 0..rounds(10, 100) {
        let mut world = World::new(0x9e37_79b9_7f4a_7c15 ^ (round + 1) << 20);
        for number in 1..100 {
            world.ask(number);
            if number % 40 == 39 && round % 2 == 1 {
                world.freeze();
            }
        }
        for _ in 0..10 {
            let moment = world.random.below(world.now() as u64 + 1) as usize;
            world.check(moment);
        }
    }
}
