//! `events.jsonl`: one event a line, append-only, so that whoever follows it reads a file and asks nobody.
//!
//! Guests make some of these lines happen, so the file is a bounded ring like their consoles' logs: it grows at its end, its
//! beginning becomes a hole, and positions in it stay true. What must outlive that is in `state.json`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use labyard_spec::control::Happening;
use labyard_sys::space;
use serde::{Deserialize, Serialize};

use crate::home::{Folder, HomeError, append_to, names};
use crate::record::{ConditionName, TaskStatus, now_ms};

/// Longest line; what guests can put into one is bounded before.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Bytes of the journal that are kept: months of a playground that lives, and nothing that a guest could fill a disk with.
const KEPT_BYTES: u64 = 16 << 20;
/// Bytes beyond that before the oldest go, all at once.
const SLACK_BYTES: u64 = 1 << 20;
/// Bytes that wait for room on a full disk; what comes then is lost.
const MAX_WAITING_BYTES: usize = 256 << 10;
/// Blocks are given back whole.
const BLOCK_BYTES: u64 = 4096;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The machine that it is about; the playground as a whole where missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Something was reached.
    Condition {
        /// Which.
        name: ConditionName,
        /// How, for people.
        message: String,
    },
    /// The vmm said so.
    Vmm {
        /// The vmm's own number of the event.
        number: u64,
        /// Microseconds since the start of the vmm.
        at_us: u64,
        /// What.
        happening: Happening,
    },
    /// An init task began or ended.
    Task {
        /// Which.
        name: String,
        /// What it is now.
        status: TaskStatus,
        /// Why, for people.
        why: String,
    },
    /// Something worth knowing.
    Note(String),
    /// The vmm ended, or was never started.
    Ended(String),
}

/// The journal, open for writing.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// What is before here has been given back.
    start: u64,
    /// Its file system does not give anything back, so that it takes no more.
    over: bool,
    /// What found no room, from where its file ends: lines, the first of which may be there in part.
    waits: Vec<u8>,
}

impl Journal {
    /// Opens a playground's journal.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(folder: &Folder) -> Result<Self, HomeError> {
        Ok(Self { file: append_to(&folder.file(names::EVENTS))?, start: 0, over: false, waits: Vec::new() })
    }

    /// Writes one entry. A disk that is full must not end a playground: what finds no room is written before the next entry that does, and
    /// any other failure is told on the log.
    pub fn write(&mut self, machine: Option<&str>, what: What) {
        if self.over {
            return;
        }
        let entry = Entry { at_ms: now_ms(), machine: machine.map(str::to_owned), what };
        let mut line = serde_json::to_vec(&entry).expect("plain data has a JSON form");
        line.push(b'\n');
        let fits = |waits: &Vec<u8>| waits.len() + line.len() <= MAX_WAITING_BYTES;
        if fits(&self.waits) || self.write_waiting().is_ok() {
            self.waits.extend(line);
        }
        // Of what waits for nothing one write, so that lines of two writers do not mix (O_APPEND).
        if let Err(error) = self.write_waiting() {
            crate::words::log(&format!("writing an event: {error}"));
        }
        if let Err(error) = self.give_back() {
            eprintln!("the journal ends here, its file system keeps all of it: {error}");
            self.over = true;
        }
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        while !self.waits.is_empty() {
            match self.file.write(&self.waits) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.waits.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                        self.waits.clear();
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Makes a hole of the oldest entries, once there are too many. Another writer may do the same.
    fn give_back(&mut self) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        if end.saturating_sub(self.start) < KEPT_BYTES + SLACK_BYTES {
            return Ok(());
        }
        let start = end.saturating_sub(KEPT_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
        space::punch(&self.file, 0, start)?;
        self.start = start;
        Ok(())
    }
}

/// Reads a journal, also while it grows.
#[derive(Debug)]
pub struct Reader {
    file: File,
    rest: Vec<u8>,
}

impl Reader {
    /// Opens a playground's journal at its beginning; `None` where there is none.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(folder: &Folder) -> io::Result<Option<Self>> {
        match File::open(folder.file(names::EVENTS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(|file| Some(Self { file, rest: Vec::new() })),
        }
    }

    /// Moves to the end: only what comes from now on is read.
    ///
    /// # Errors
    /// What lseek(2) says.
    pub fn skip(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::End(0)).map(|_| ())
    }

    /// All whole entries that are there and were not read before. A line that is none is passed over.
    ///
    /// # Errors
    /// What read(2) says, or a line without an end.
    pub fn entries(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.pass_over_hole()?;
        loop {
            let mut chunk = Vec::new();
            if (&self.file).take(64 << 10).read_to_end(&mut chunk)? == 0 {
                return Ok(entries);
            }
            self.rest.extend(chunk);
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                entries.extend(serde_json::from_slice::<Entry>(&line));
            }
            if self.rest.len() > MAX_LINE_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an event without an end"));
            }
        }
    }

    /// Goes on behind what was given back; the line that begins in it is lost with it.
    fn pass_over_hole(&mut self) -> io::Result<()> {
        let (at, end) = (self.file.stream_position()?, self.file.metadata()?.len());
        let data = space::data_ranges(&self.file, at..end).next().map_or(at, |data| data.start);
        self.file.seek(SeekFrom::Start(data))?;
        if data > at {
            self.rest.clear();
        }
        Ok(())
    }
}

/// Number of the last event of the vmm that was written down.
pub fn last_vmm_event(folder: &Folder) -> u64 {
    let Ok(Some(mut reader)) = Reader::open(folder) else { return 0 };
    let mut last = 0;
    for entry in reader.entries().unwrap_or_default() {
        match entry.what {
            What::Vmm { number, .. } => last = last.max(number),
            // Its vmm is gone; that of a lab that was saved and goes on begins to count anew.
            What::Ended(_) => last = 0,
            _ => {}
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_once_and_half_a_line_waits() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = Folder { name: "lab".into(), path: home.path().to_owned() };
        assert!(Reader::open(&folder).expect("opening").is_none());
        let mut journal = Journal::open(&folder).expect("opening");
        let mut reader = Reader::open(&folder).expect("opening").expect("a journal");
        journal.write(Some("web"), What::Vmm { number: 7, at_us: 1, happening: Happening::Started });
        journal.file.write_all(b"{\"at_ms\":1,").expect("writing");
        let entries = reader.entries().expect("reading");
        assert_eq!((entries.len(), entries[0].machine.as_deref()), (1, Some("web")));
        journal.file.write_all(b"\"what\":{\"note\":\"x\"}}\n").expect("writing");
        assert_eq!(reader.entries().expect("reading")[0].what, What::Note("x".into()));
        assert_eq!(last_vmm_event(&folder), 7);
        journal.write(None, What::Ended("saved".into()));
        assert_eq!(last_vmm_event(&folder), 0, "another vmm counts anew");
    }

    #[test]
    fn what_finds_no_room_is_written_once_there_is_some_and_not_without_end() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = Folder { name: "lab".into(), path: home.path().to_owned() };
        let mut journal = Journal::open(&folder).expect("opening");
        let note = |number: usize| What::Note(format!("{number:04096}"));
        // full(4): each write fails with ENOSPC.
        let full = File::options().write(true).open("/dev/full").expect("full");
        let file = std::mem::replace(&mut journal.file, full);
        let most = 80;
        for number in 0..most {
            journal.write(None, note(number));
        }
        assert!(journal.waits.len() <= MAX_WAITING_BYTES);
        // Half a line was there when the disk became full.
        let (first, rest) = journal.waits.split_at(10);
        (&file).write_all(first).expect("writing");
        journal.waits = rest.to_vec();
        journal.file = file;
        journal.write(None, note(most));
        journal.write(None, note(most + 1));
        let entries = Reader::open(&folder).expect("opening").expect("a journal").entries().expect("reading");
        assert!((50..most).contains(&entries.len()), "{} entries", entries.len());
        assert!(entries.iter().zip(0..).take(50).all(|(entry, n)| entry.what == note(n)));
        assert_eq!(entries.last().map(|entry| entry.what.clone()), Some(note(most + 1)));
    }

    #[test]
    fn a_journal_without_end_keeps_the_newest_and_its_readers_go_on() {
        use std::os::unix::fs::MetadataExt;

        let home = tempfile::tempdir().expect("a folder");
        let folder = Folder { name: "lab".into(), path: home.path().to_owned() };
        let mut journal = Journal::open(&folder).expect("opening");
        let mut early = Reader::open(&folder).expect("opening").expect("a journal");
        journal.write(None, What::Note("first".into()));
        assert_eq!(early.entries().expect("reading").len(), 1);
        let (text, mut written) = ("x".repeat(8 << 10), 0);
        let mut most = 0;
        while written < 3 * KEPT_BYTES {
            journal.write(None, What::Note(text.clone()));
            written += text.len() as u64;
            most = most.max(journal.file.metadata().expect("metadata").blocks() * 512);
        }
        journal.write(None, What::Note("last".into()));
        assert!(most <= KEPT_BYTES + 2 * SLACK_BYTES, "{most} bytes on the disk at most");
        let mut late = Reader::open(&folder).expect("opening").expect("a journal");
        for reader in [&mut early, &mut late] {
            let entries = reader.entries().expect("reading");
            assert!((KEPT_BYTES / text.len() as u64 - 20..).contains(&(entries.len() as u64)), "{}", entries.len());
            assert_eq!(entries.last().map(|entry| &entry.what), Some(&What::Note("last".into())));
        }
    }
}
