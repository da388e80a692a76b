//! What the parts of a supervisor share: the state, the journal, and a bell that rings when either changed.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use labyard_spec::control::{Event, Happening, MachineState};

use crate::home::{Folder, HomeError};
use crate::journal::{Journal, What};
use crate::record::{Condition, ConditionName, Machine, State, Who, now_ms};
use crate::words::{chain, log, printable};

/// Longest text of a guest or the vmm that is written down, in bytes.
const MAX_FOREIGN_TEXT: usize = 8 << 10;

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
    /// Guards state and journal together; never held across an await.
    inner: Mutex<Inner>,
    /// Rings after every change.
    bell: tokio::sync::watch::Sender<Phase>,
    /// Held by who changes `plan.json`, until the vmm has made the change or refused it. No other lock is taken under it.
    pub(super) planning: Mutex<()>,
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
    /// Streams to the readiness port that are open, of all machines.
    hellos: usize,
}

impl Shared {
    pub(super) fn new(folder: Folder, state: State, journal: Journal) -> Self {
        let inner = Inner { state, journal, lines: Vec::new(), stopping: false, hellos: 0 };
        let bell = tokio::sync::watch::Sender::new(Phase::Starting);
        Self { folder, inner: Mutex::new(inner), bell, planning: Mutex::default() }
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

    /// Writes down that something was reached, the first time.
    pub(super) fn reached(&self, machine: Option<&str>, name: ConditionName, message: &str) {
        self.change(|inner| inner.reached(machine, name, message));
    }

    /// Writes down what the vmm says.
    pub(super) fn happened(&self, event: &Event) {
        self.change(|inner| {
            let Some(position) = inner.state.machines.iter().position(|machine| machine.name == event.machine) else {
                let text = format!("the vmm speaks of a machine `{}` that nobody asked for", bounded(&event.machine));
                inner.say(None, What::Note(text));
                return;
            };
            let happening = match event.what.clone() {
                Happening::Ended(state) => Happening::Ended(bounded_state(state)),
                Happening::HostDisk { drive, full } => Happening::HostDisk { drive: bounded(&drive), full },
                other => other,
            };
            let what = What::Vmm { number: event.number, at_us: event.at_us, happening: happening.clone() };
            inner.say(Some(&event.machine), what);
            match happening {
                Happening::Started => {
                    inner.reached(Some(&event.machine), ConditionName::KernelStarted, "vCPUs run");
                }
                Happening::Ended(state) => inner.machine_ended(position, state),
                Happening::Rebooted | Happening::GuestConnected { .. } | Happening::HostDisk { .. } => {}
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
    fn say(&mut self, machine: Option<&str>, what: What) {
        self.lines.push((machine.map(str::to_owned), what));
    }

    fn machine_ended(&mut self, position: usize, state: MachineState) {
        if let Some(machine) = self.state.machines.get_mut(position)
            && machine.ended.is_none()
            && state != MachineState::Running
        {
            machine.ended = Some(state);
        }
    }

    fn reached(&mut self, machine: Option<&str>, name: ConditionName, message: &str) {
        let conditions = match machine {
            None => &mut self.state.conditions,
            Some(machine) => match self.state.machines.iter_mut().find(|other| other.name == machine) {
                Some(machine) => &mut machine.conditions,
                None => return,
            },
        };
        if conditions.iter().any(|condition| condition.name == name) {
            return;
        }
        let message = bounded(message);
        conditions.push(Condition { name, at_ms: now_ms(), message: message.clone() });
        self.say(machine, What::Condition { name, message });
        if machine.is_some() && name == ConditionName::AgentReachable {
            self.reached(machine, ConditionName::Ready, "the machine can be used");
            let ready = |machine: &Machine| machine.has(ConditionName::Ready);
            if self.state.machines.iter().all(ready) {
                self.reached(None, ConditionName::Ready, "every machine can be used");
            }
        }
    }
}

/// Foreign text, cut and safe to print.
fn bounded(text: &str) -> String {
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
