//! What a guest prints: to the log, to everyone who watches, and into a short memory for the report of a crash.
//!
//! The serial port and `hvc0` both print here, in order. A watcher that does not read loses output, never the guest time.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use labyard_devices::virtio::console::{ConsoleInput, ConsoleOutput};

use crate::runtime;
use crate::seccomp::Role;

/// Bytes kept for a report: a panic with its registers and call trace has about half.
const TAIL_BYTES: usize = 16 << 10;
/// Bytes of log that are kept; a guest cannot fill the host's disk.
const KEPT_LOG_BYTES: u64 = 64 << 20;
/// Bytes beyond that before the oldest go, all at once.
const LOG_SLACK_BYTES: u64 = 8 << 20;
/// Blocks are given back whole.
const LOG_BLOCK_BYTES: u64 = 4096;
/// How a kernel's last line begins (Linux, kernel/panic.c).
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Watchers of one console at most.
const MAX_WATCHERS: usize = 16;

struct State {
    log: Log,
    tail: Vec<u8>,
    panicked: bool,
    watchers: Vec<UnixStream>,
    first_byte: Option<Box<dyn FnOnce() + Send>>,
}

/// A file that grows at its end and whose beginning becomes a hole, so that positions in it stay true for those who follow it.
struct Log {
    file: File,
    /// What is before here has been given back.
    start: u64,
    end: u64,
    /// It could not be written, or not be given back, and takes no more.
    over: bool,
}

impl Log {
    fn append(&mut self, bytes: &[u8]) {
        if self.over {
            return;
        }
        if let Err(error) = self.file.write_all(bytes) {
            log::error!("writing a console's log, which ends here: {error}");
            self.over = true;
            return;
        }
        self.end += bytes.len() as u64;
        if self.end - self.start < KEPT_LOG_BYTES + LOG_SLACK_BYTES {
            return;
        }
        let start = (self.end - KEPT_LOG_BYTES) / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
        match labyard_sys::space::punch(&self.file, self.start, start - self.start) {
            Ok(()) => self.start = start,
            Err(error) => {
                log::warn!("a console's log has {} bytes and ends here, its file system keeps them: {error}", self.end);
                self.over = true;
            }
        }
    }
}

/// The console of one machine, for as long as the playground lives.
pub struct ConsoleHub {
    /// Everything. Printing from vCPU threads and the device loop takes turns.
    state: Mutex<State>,
    input: Arc<ConsoleInput>,
}

impl ConsoleHub {
    /// A console that appends to `log`. `first_byte` is called when the guest prints for the first time.
    pub fn new(log: File, first_byte: Box<dyn FnOnce() + Send>) -> std::io::Result<Arc<Self>> {
        let (tail, watchers) = (Vec::with_capacity(TAIL_BYTES), Vec::new());
        let log = Log { end: log.metadata()?.len(), start: 0, file: log, over: false };
        let state = State { log, tail, panicked: false, watchers, first_byte: Some(first_byte) };
        Ok(Arc::new(Self { state: Mutex::new(state), input: ConsoleInput::new()? }))
    }

    /// Where a device prints.
    pub fn output(self: &Arc<Self>) -> Box<dyn ConsoleOutput> {
        Box::new(Printer(Arc::clone(self)))
    }

    /// What is typed.
    pub fn input(&self) -> Arc<ConsoleInput> {
        Arc::clone(&self.input)
    }

    /// What the kernel has said of its panic, from that line on, if it has since this was asked for the last time.
    pub fn take_panic(&self, count: usize) -> Option<String> {
        let mut state = self.lock();
        if !std::mem::take(&mut state.panicked) {
            return None;
        }
        let text = String::from_utf8_lossy(&state.tail);
        let of_panic =
            text.lines().skip_while(|line| !line.as_bytes().windows(PANIC.len()).any(|window| window == PANIC));
        Some(of_panic.take(count).collect::<Vec<_>>().join("\n"))
    }

    /// The last lines.
    pub fn last_lines(&self, count: usize) -> String {
        let state = self.lock();
        let text = String::from_utf8_lossy(&state.tail);
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(count)).copied().collect::<Vec<_>>().join("\n")
    }

    /// Lets somebody watch and type: their end of a stream, which starts with the last output.
    pub fn attach(self: &Arc<Self>, machine: &str) -> std::io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let typed = ours.try_clone()?;
        {
            let mut state = self.lock();
            if state.watchers.len() >= MAX_WATCHERS {
                return Err(std::io::Error::other(format!("{MAX_WATCHERS} people watch this console already")));
            }
            (&ours).write_all(&state.tail)?;
            state.watchers.push(ours);
        }
        let hub = Arc::clone(self);
        runtime::spawn(Role::Control, &format!("{machine} keys"), move || hub.type_in(typed))?;
        Ok(theirs)
    }

    /// Passes on what is typed until the person leaves.
    fn type_in(&self, mut typed: UnixStream) {
        // The watching side of this stream must not block the guest; the typing side waits.
        let mut buffer = [0; 1024];
        loop {
            match typed.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    self.input.push(buffer.get(..n).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let _ = typed.shutdown(std::net::Shutdown::Both); // gone already is as good
    }

    /// Bytes that were ever written to the log, those that were given back included.
    pub fn log_bytes(&self) -> u64 {
        self.lock().log.end
    }

    fn print(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if let Some(first_byte) = state.first_byte.take() {
            first_byte();
        }
        state.log.append(bytes);
        state.remember(bytes);
        state.watchers.retain_mut(|watcher| {
            match labyard_sys::fdpass::send_now(&*watcher, bytes) {
                Ok(()) => true,
                // Slow: loses this piece. Gone: leaves.
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remember(&mut self, bytes: &[u8]) {
        // A panic line may come in pieces: look at the new bytes with what could be its beginning.
        let overlap = self.tail.len().saturating_sub(PANIC.len());
        let keep = bytes.len().saturating_sub(TAIL_BYTES);
        let bytes = bytes.get(keep..).unwrap_or_default();
        self.tail.extend_from_slice(bytes);
        let fresh = self.tail.get(overlap..).unwrap_or_default();
        self.panicked |= fresh.windows(PANIC.len()).any(|window| window == PANIC);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
    }
}

struct Printer(Arc<ConsoleHub>);

impl ConsoleOutput for Printer {
    fn write(&mut self, bytes: &[u8]) {
        self.0.print(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    fn hub() -> (Arc<ConsoleHub>, File) {
        let file = tempfile::tempfile().expect("file");
        let hub = ConsoleHub::new(file.try_clone().expect("clone"), Box::new(|| {})).expect("hub");
        (hub, file)
    }

    #[test]
    fn output_is_logged_and_the_last_lines_are_remembered() {
        let (hub, mut log) = hub();
        let mut output = hub.output();
        for line in 0..2000 {
            output.write(format!("line {line}\n").as_bytes());
        }
        assert_eq!(hub.last_lines(2), "line 1998\nline 1999");
        let mut text = String::new();
        log.rewind().expect("rewind");
        log.read_to_string(&mut text).expect("read");
        assert_eq!(text.lines().count(), 2000);
    }

    #[test]
    fn a_guest_that_prints_without_end_fills_neither_disk_nor_memory_and_the_last_of_it_is_kept() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let (hub, log) = hub();
        let mut output = hub.output();
        let flood = KEPT_LOG_BYTES + 3 * LOG_SLACK_BYTES;
        for _ in 0..flood / (64 << 10) {
            output.write(&[b'x'; 64 << 10]);
        }
        output.write(b"the end");
        let metadata = log.metadata().expect("metadata");
        assert_eq!(metadata.len(), flood + 7, "positions stay true");
        assert!(metadata.blocks() * 512 <= KEPT_LOG_BYTES + LOG_SLACK_BYTES + (64 << 10), "{metadata:?}");
        let mut last = [0; 7];
        log.read_exact_at(&mut last, flood).expect("read");
        assert_eq!(&last, b"the end");
        assert!(hub.lock().tail.capacity() <= 4 * TAIL_BYTES, "{}", hub.lock().tail.capacity());
    }

    #[test]
    fn a_panic_is_seen_even_byte_by_byte() {
        let (hub, _) = hub();
        let mut output = hub.output();
        output.write(b"all is well\n");
        assert_eq!(hub.take_panic(9), None);
        for byte in b"[    1.0] Kernel panic - not syncing: Attempted to kill init!\nCall Trace:\n" {
            output.write(&[*byte]);
        }
        let panic = "[    1.0] Kernel panic - not syncing: Attempted to kill init!\nCall Trace:";
        assert_eq!(hub.take_panic(9).as_deref(), Some(panic));
        assert_eq!(hub.take_panic(9), None);
    }

    #[test]
    fn a_watcher_sees_the_past_and_the_present_and_types() {
        let (hub, _) = hub();
        hub.output().write(b"before ");
        let mut person = hub.attach("web").expect("attached");
        hub.output().write(b"after");
        let mut seen = [0; 12];
        person.read_exact(&mut seen).expect("read");
        assert_eq!(&seen, b"before after");
    }

    #[test]
    fn a_watcher_that_does_not_read_does_not_stop_the_guest() {
        let (hub, _) = hub();
        let _person = hub.attach("web").expect("attached");
        for _ in 0..1000 {
            hub.output().write(&[b'x'; 4096]);
        }
    }
}
