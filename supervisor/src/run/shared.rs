//! What the parts of a supervisor share: the state, the journal, and a bell that rings when either changed.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use labyard_spec::control::{Event, Happening, MachineState};
use labyard_sys::space::NO_SPACE;

use super::expiry::Usage;
use crate::boots;
use crate::home::{Folder, HomeError};
use crate::journal::{Journal, What};
use crate::record::{Condition, ConditionName, FullDrive, Machine, State, TaskState, TaskStatus, Who, now_ms};
use crate::room;
use crate::starter::Starter;
use crate::words::{chain, log, printable};

/// Longest text of a guest or the vmm that is written down, in bytes.
const MAX_FOREIGN_TEXT: usize = 8 << 10;
/// Streams that a guest opens of which each is an event. The others are counted: a guest opens as many as it likes.
const TOLD_CALLS: u64 = 16;

/// Drives of a machine that can wait for room at once: more than it has.
const MAX_FULL_DRIVES: usize = 64;

/// How far the vmm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It is being started or adopted.
    Starting,
    /// It runs.
    Up,
    /// It has ended, and all is written down.
    Over,
}

/// The shared part.
pub(super) struct Shared {
    /// The playground's folder.
    pub(super) folder: Folder,
    /// Who may start programs.
    pub(super) starter: Starter,
    /// Guards state and journal together; never held across an await.
    inner: Mutex<Inner>,
    /// Rings after every change.
    bell: tokio::sync::watch::Sender<Phase>,
    /// Held by who changes `plan.json`, until the vmm has made the change or refused it.
    pub(super) planning: Mutex<()>,
    /// Uplinks that this process has started, to be waited for. Held by whoever opens or closes ways out, or tells them something. Taken
    /// after `planning`.
    pub(super) uplinks: Mutex<Vec<std::process::Child>>,
    /// Who uses it.
    pub(super) usage: Usage,
}

/// How far a save is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saving {
    /// Nobody saves.
    No,
    /// It is being written.
    Begun,
    /// It is there, and the vmm ends.
    Done,
}

/// What the lock guards.
pub(super) struct Inner {
    pub(super) state: State,
    pub(super) journal: Journal,
    /// Lines of the change under way. They are written behind the state: whoever waits for a line and then asks for the state must
    /// find it there, and a supervisor that is killed in between hears of the event again, since its line is not there.
    lines: Vec<(Option<String>, What)>,
    /// Somebody asked for the end.
    stopping: bool,
    /// How far a save is.
    saving: Saving,
    /// Streams to the readiness port that are open, of all machines.
    hellos: usize,
    /// Streams that each machine's guest has opened to this supervisor.
    calls: HashMap<String, u64>,
}

impl Shared {
    pub(super) fn new(folder: Folder, state: State, journal: Journal, starter: Starter) -> Self {
        let inner = Inner {
            state,
            journal,
            lines: Vec::new(),
            stopping: false,
            saving: Saving::No,
            hellos: 0,
            calls: HashMap::new(),
        };
        let bell = tokio::sync::watch::Sender::new(Phase::Starting);
        Self {
            folder,
            starter,
            inner: Mutex::new(inner),
            bell,
            planning: Mutex::default(),
            uplinks: Mutex::default(),
            usage: Usage::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete in itself, so what a panicking thread left is still sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, writes the state and rings the bell.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let result = change(&mut inner);
        // A full disk must not end a playground; what `ps` shows is then older than it should be.
        if let Err(error) = inner.state.write(&self.folder) {
            log(&chain(&error));
        }
        for (machine, what) in std::mem::take(&mut inner.lines) {
            inner.journal.write(machine.as_deref(), what);
        }
        drop(inner);
        self.bell.send_modify(|_| {});
        result
    }

    /// The state as it is now.
    pub(super) fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// Rings after every change.
    pub(super) fn bell(&self) -> tokio::sync::watch::Receiver<Phase> {
        self.bell.subscribe()
    }

    /// Rings without a change.
    pub(super) fn ring(&self) {
        self.bell.send_modify(|_| {});
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.bell.send_replace(phase);
    }

    /// Waits until `done` holds.
    pub(super) async fn until(&self, mut done: impl FnMut(&State, Phase) -> bool) {
        let mut bell = self.bell();
        loop {
            let phase = *bell.borrow_and_update();
            if done(&self.lock().state, phase) {
                return;
            }
            if bell.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes down who the vmm is; fails where that cannot be written.
    pub(super) fn vmm_is(&self, who: &Who) -> Result<(), HomeError> {
        let mut inner = self.lock();
        inner.state.vmm = Some(who.clone());
        inner.state.write(&self.folder)
    }

    /// Takes hold of the vmm; `None` where it has ended.
    pub(super) fn vmm_pidfd(&self) -> Option<Arc<OwnedFd>> {
        let identity = self.lock().state.vmm.as_ref()?.identity()?;
        Some(Arc::new(identity.open().ok()?.into()))
    }

    pub(super) fn stop_was_asked(&self) {
        self.lock().stopping = true;
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Moves a save from one step to the next; `false` where it is not there.
    pub(super) fn saving(&self, from: Saving, to: Saving) -> bool {
        let mut inner = self.lock();
        let is_there = inner.saving == from;
        inner.saving = if is_there { to } else { inner.saving };
        is_there
    }

    /// Counts a stream to the readiness port; `false` where there are `most` already.
    pub(super) fn hello_begins(&self, most: usize) -> bool {
        let mut inner = self.lock();
        let fits = inner.hellos < most;
        inner.hellos += usize::from(fits);
        fits
    }

    pub(super) fn hello_ends(&self) {
        self.lock().hellos -= 1;
    }

    /// Writes a line to the journal.
    pub(super) fn note(&self, machine: Option<&str>, text: &str) {
        self.lock().journal.write(machine, What::Note(bounded(text)));
    }

    /// Writes down that something was reached, the first time. A guest that says so again and again costs no write.
    pub(super) fn reached(&self, machine: Option<&str>, name: ConditionName, message: &str) {
        if self.lock().conditions(machine).is_some_and(|known| known.iter().any(|condition| condition.name == name)) {
            return;
        }
        self.change(|inner| inner.reached(machine, name, message));
    }

    /// Writes down what the vmm says.
    pub(super) fn happened(&self, event: &Event) {
        if let Happening::GuestConnected { port } = event.what
            && self.lock().is_one_call_of_many(event, port)
        {
            return;
        }
        self.change(|inner| {
            let Some(position) = inner.state.machines.iter().position(|machine| machine.name == event.machine) else {
                let text = format!("the vmm speaks of a machine `{}` that nobody asked for", bounded(&event.machine));
                inner.say(None, What::Note(text));
                return;
            };
            let happening = match event.what.clone() {
                Happening::Ended(state) => Happening::Ended(bounded_state(state)),
                Happening::HostDisk { drive, full, errno } => {
                    Happening::HostDisk { drive: bounded(&drive), full, errno }
                }
                other => other,
            };
            let what = What::Vmm { number: event.number, at_us: event.at_us, happening: happening.clone() };
            inner.say(Some(&event.machine), what);
            match happening {
                Happening::Booting { log_bytes } => {
                    if let Err(error) = boots::begin(&self.folder, &event.machine, now_ms(), log_bytes) {
                        log(&chain(&error));
                    }
                }
                Happening::Started => {
                    inner.started_again(position);
                    inner.reached(Some(&event.machine), ConditionName::KernelStarted, "vCPUs run");
                }
                Happening::Ended(state) => inner.machine_ended(position, state),
                Happening::Mapped { page_size } => {
                    if let Some(machine) = inner.state.machines.get_mut(position) {
                        machine.page_size = page_size;
                    }
                }
                Happening::Paused => inner.machine_paused(position, true),
                Happening::Resumed => inner.machine_paused(position, false),
                Happening::HostDisk { drive, full, errno } => {
                    inner.host_disk(&self.folder, position, drive, full.then_some(errno.unwrap_or(NO_SPACE)));
                }
                Happening::Rebooted | Happening::GuestConnected { .. } => {}
            }
        });
    }

    /// Writes down a machine's end that was learned otherwise than by an event.
    pub(super) fn machine_ended(&self, machine: &str, state: &MachineState) {
        self.change(|inner| {
            if let Some(position) = inner.state.machines.iter().position(|other| other.name == machine) {
                inner.machine_ended(position, bounded_state(state.clone()));
            }
        });
    }
}

impl Inner {
    /// Counts a stream that a guest has opened. Beyond the first ones, every doubling of their number is a line and changes nothing
    /// else.
    fn is_one_call_of_many(&mut self, event: &Event, port: u32) -> bool {
        if self.state.machines.iter().all(|machine| machine.name != event.machine) {
            return false;
        }
        let count = self.calls.entry(event.machine.clone()).or_default();
        *count += 1;
        let count = *count;
        if count <= TOLD_CALLS {
            return false;
        }
        if count.is_power_of_two() {
            let text = format!("the guest has called the host {count} times, the last time port {port}");
            self.journal.write(Some(&event.machine), What::Note(text));
        }
        true
    }

    pub(super) fn say(&mut self, machine: Option<&str>, what: What) {
        self.lines.push((machine.map(str::to_owned), what));
    }

    fn machine_ended(&mut self, position: usize, state: MachineState) {
        if let Some(machine) = self.state.machines.get_mut(position)
            && machine.ended.is_none()
            && state != MachineState::Running
        {
            machine.ended = Some(state);
            machine.has_room();
        }
    }

    /// A machine that had ended runs anew: what it had reached is over, and so is what all of them had.
    fn started_again(&mut self, position: usize) {
        if let Some(machine) = self.state.machines.get_mut(position)
            && machine.ended.is_some()
        {
            let page_size = machine.page_size;
            machine.begin_again();
            machine.page_size = page_size;
            self.state.conditions.retain(|condition| condition.name != ConditionName::Ready);
        }
    }

    /// A drive finds no room on the host's disk, which says this, or finds it again.
    fn host_disk(&mut self, folder: &Folder, position: usize, drive: String, full: Option<i32>) {
        let Some(machine) = self.state.machines.get_mut(position) else { return };
        machine.full_drives.retain(|known| known.drive != drive);
        if let Some(errno) = full
            && machine.full_drives.len() < MAX_FULL_DRIVES
        {
            machine.full_drives.push(FullDrive { drive, errno, at_ms: now_ms() });
        }
        let drives = std::mem::take(&mut machine.full_drives);
        machine.has_room();
        let Some(first) = drives.first() else { return };
        let message = room::words(folder, &machine.name, &drives);
        let name = ConditionName::HostDiskFull;
        machine.conditions.push(Condition { name, at_ms: first.at_ms, message: message.clone() });
        machine.full_drives = drives;
        if full.is_some() {
            let machine = machine.name.clone();
            self.say(Some(&machine), What::Condition { name, message });
        }
    }

    fn machine_paused(&mut self, position: usize, paused: bool) {
        if let Some(machine) = self.state.machines.get_mut(position) {
            machine.paused = paused;
        }
    }

    /// What was reached by a machine, or by the playground as a whole; `None` where there is no such machine.
    fn conditions(&mut self, machine: Option<&str>) -> Option<&mut Vec<Condition>> {
        match machine {
            None => Some(&mut self.state.conditions),
            Some(name) => Some(&mut self.state.machines.iter_mut().find(|other| other.name == name)?.conditions),
        }
    }

    fn reached(&mut self, machine: Option<&str>, name: ConditionName, message: &str) {
        let Some(conditions) = self.conditions(machine) else { return };
        if conditions.iter().any(|condition| condition.name == name) {
            return;
        }
        let message = bounded(message);
        conditions.push(Condition { name, at_ms: now_ms(), message: message.clone() });
        self.say(machine, What::Condition { name, message });
        if machine.is_some() && name == ConditionName::AgentReachable {
            self.reached(machine, ConditionName::Ready, "the machine can be used");
            self.may_be_ready();
        }
    }

    /// A machine that is gone may come again, and is another then.
    pub(super) fn forget_calls(&mut self, machine: &str) {
        self.calls.remove(machine);
    }

    /// It is ready when every machine is, and every init task has completed.
    pub(super) fn may_be_ready(&mut self) {
        let ready = |machine: &Machine| machine.has(ConditionName::Ready);
        let done = |task: &TaskState| task.status == TaskStatus::Completed;
        if self.state.machines.iter().all(ready) && self.state.tasks.iter().all(done) {
            self.reached(None, ConditionName::Ready, "every machine can be used");
        }
    }

    /// An init task has completed.
    pub(super) fn tasks_may_be_done(&mut self) {
        let tasks = &self.state.tasks;
        if tasks.iter().all(|task| task.status == TaskStatus::Completed) {
            let message = format!("init tasks completed: {}", tasks.len());
            self.reached(None, ConditionName::TasksDone, &message);
            self.may_be_ready();
        }
    }
}

/// Foreign text, cut and safe to print.
pub(super) fn bounded(text: &str) -> String {
    let cut = text.char_indices().map(|(position, _)| position).find(|position| *position >= MAX_FOREIGN_TEXT);
    printable(text.get(..cut.unwrap_or(text.len())).unwrap_or_default())
}

fn bounded_state(state: MachineState) -> MachineState {
    match state {
        MachineState::Crashed(text) => MachineState::Crashed(bounded(&text)),
        MachineState::Failed(text) => MachineState::Failed(bounded(&text)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Reader;
    use crate::record::VERSION;

    #[test]
    fn a_guest_that_calls_without_end_writes_a_few_lines() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = Folder { name: "lab".into(), path: home.path().to_owned() };
        let web = Machine {
            name: "web".into(),
            cpu_count: 1,
            memory_mib: 64,
            page_size: 0,
            addresses: Vec::new(),
            addresses6: Vec::new(),
            conditions: Vec::new(),
            ended: None,
            paused: false,
            full_drives: Vec::new(),
        };
        let state = State {
            version: VERSION,
            name: "lab".into(),
            manifest: String::new(),
            created_ms: 0,
            starter: None,
            supervisor: None,
            vmm: None,
            conditions: Vec::new(),
            machines: vec![web],
            expiry: crate::record::Expiry::default(),
            tasks: Vec::new(),
            left: None,
            uplinks: Vec::new(),
            end: None,
        };
        let shared = Shared::new(
            folder.clone(),
            state,
            Journal::open(&folder).expect("a journal"),
            Starter::new().expect("a thread"),
        );
        let event = |number, what| Event { number, at_us: 0, machine: "web".into(), what };
        for number in 1..=10_000 {
            // Other ports each time, so that it is not the port that bounds them.
            shared.happened(&event(number, Happening::GuestConnected { port: number as u32 }));
        }
        shared.happened(&event(10_001, Happening::Rebooted));
        let entries = Reader::open(&folder).expect("opening").expect("a journal").entries().expect("reading");
        let notes: Vec<_> = entries.iter().filter(|entry| matches!(entry.what, What::Note(_))).collect();
        // 32, 64, … 8,192.
        assert_eq!((entries.len(), notes.len()), (TOLD_CALLS as usize + 9 + 1, 9));
        let last = What::Note("the guest has called the host 8192 times, the last time port 8192".into());
        assert_eq!((notes[8].machine.as_deref(), &notes[8].what), (Some("web"), &last));
        assert!(matches!(entries.last().map(|entry| &entry.what), Some(What::Vmm { number: 10_001, .. })));
    }
}
