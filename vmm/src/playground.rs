//! All machines of one process, their networks, and what is known about them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use labyard_devices::counters::Counters;
use labyard_devices::fault::Faults;
use labyard_devices::legacy::ged;
use labyard_devices::switch::Plug;
use labyard_devices::virtio::balloon::Balloon;
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::console::Console;
use labyard_devices::virtio::device::VirtioDevice;
use labyard_devices::virtio::net::Net;
use labyard_devices::virtio::rng::Rng;
use labyard_devices::virtio::vsock::{Hub, Incoming, Vsock};
use labyard_spec::control::{
    Change, Event, FullDrive, Happening, MachineState, MachineStatus, Milestone, PROTOCOL, Status,
};
use labyard_spec::guest::READY_PORT;
use labyard_spec::playground::{MachineSpec, PlaygroundSpec, Slot};

use crate::arch::x86_64::cpuid::{self, Processors, Template};
use crate::boot::{self, Images};
use crate::change::{self, Knobs, Shares};
use crate::console::ConsoleHub;
use crate::kvm::Hypervisor;
use crate::levers::Levers;
use crate::machine::{self, Parts, Witness};
use crate::reclaim::Holes;
use crate::seccomp::Role;
use crate::vcpu::Signal;
use crate::{plan, runtime, vcpu};
use wiring::Wiring;

mod again;
mod coming;
mod drives;
pub mod hold;
mod links;
mod wiring;

/// Events that are kept for whoever asks later.
const MAX_EVENTS: usize = 4096;
/// Streams of guests that nobody has claimed; more are refused.
const MAX_UNCLAIMED: usize = 64;
/// How long a guest may take to answer a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// What the record's lock guards: all that is known about machines, and events.
#[derive(Default)]
struct Record {
    machines: Vec<MachineRecord>,
    events: VecDeque<(Event, Option<OwnedFd>)>,
    last_event: u64,
    unclaimed: usize,
}

struct MachineRecord {
    name: String,
    state: MachineState,
    /// Somebody has paused it.
    held: bool,
    /// It stands still because the host's disk has no room for what these drives write.
    out_of_room: bool,
    full_drives: Vec<FullDrive>,
    /// To its thread, once it has one.
    signals: Option<Sender<Signal>>,
    boot_us: Vec<(Milestone, u64)>,
    faults: Vec<Faults>,
    counters: Vec<Counters>,
    levers: Levers,
    page_size: u64,
}

impl MachineRecord {
    /// Of one that is about to run.
    fn of(parts: &Parts, levers: &Levers) -> Self {
        Self {
            name: parts.name.clone(),
            state: MachineState::Running,
            held: parts.saved.is_some(),
            out_of_room: false,
            full_drives: Vec::new(),
            signals: None,
            boot_us: Vec::new(),
            faults: parts.faults(),
            counters: parts.counters(),
            levers: levers.clone(),
            page_size: 0,
        }
    }

    fn is_paused(&self) -> bool {
        self.held || self.out_of_room
    }
}

/// A running machine's handles.
struct Handle {
    signals: Sender<Signal>,
    levers: Levers,
    thread: Option<JoinHandle<()>>,
}

/// The playground of this process.
pub struct Playground {
    since: Instant,
    hypervisor: Arc<Hypervisor>,
    /// Taken after `handles` where both are needed.
    record: Mutex<Record>,
    changed: Condvar,
    last_words: Mutex<File>,
    /// By machine name; filled by `create`, and anew by `start`.
    handles: Mutex<HashMap<String, Handle>>,
    /// What limits all drives together, and all NICs.
    limits: Shares,
    /// Networks and the machines' places in them.
    wiring: Mutex<Wiring>,
    /// Held by whoever pauses, saves, resumes or starts, so that one is done when the next begins. Taken before all others.
    turn: Mutex<()>,
}

impl Playground {
    /// An empty playground. Times count from `since`; ended machines are written to `last_words`.
    ///
    /// # Errors
    /// Where the signal that stops vCPUs cannot be handled.
    pub fn new(hypervisor: Hypervisor, last_words: File, since: Instant) -> std::io::Result<Arc<Self>> {
        vcpu::install_wake_handler()?;
        Ok(Arc::new(Self {
            since,
            hypervisor: Arc::new(hypervisor),
            record: Mutex::default(),
            changed: Condvar::new(),
            last_words: Mutex::new(last_words),
            handles: Mutex::default(),
            limits: Shares::unlimited(),
            wiring: Mutex::default(),
            turn: Mutex::default(),
        }))
    }

    /// Builds and starts all machines, or none.
    pub fn create(self: &Arc<Self>, spec: &PlaygroundSpec, passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        self.begin(spec, passed, |_| Ok(HashMap::new()))
    }

    /// Builds all machines, as `prepare` has changed them, and lets their threads begin, but for those that it says have ended.
    fn begin(
        self: &Arc<Self>,
        spec: &PlaygroundSpec,
        mut passed: HashMap<Slot, OwnedFd>,
        prepare: impl FnOnce(&mut [Parts]) -> Result<HashMap<String, MachineState>, String>,
    ) -> Result<(), String> {
        let mut handles = lock(&self.handles);
        if !handles.is_empty() {
            return Err("the playground was created already".into());
        }
        let slots: HashSet<Slot> = passed.keys().copied().collect();
        plan::check(spec, &slots, self.hypervisor.max_vcpus()).map_err(|error| error.to_string())?;
        let files: HashMap<Slot, Arc<File>> =
            passed.drain().map(|(slot, descriptor)| (slot, Arc::new(File::from(descriptor)))).collect();
        let (wiring, gateways) = Wiring::of(spec);
        let mut plugs = wiring.plugs.clone();
        *lock(&self.wiring) = wiring;

        // Everything that can be refused is built before anything runs.
        let (mut machines, mut all_levers) = (Vec::new(), Vec::new());
        for machine in &spec.machines {
            let made = self.build(machine, &files, &mut plugs);
            let (parts, levers) = made.map_err(|error| format!("machine {}: {error}", machine.name))?;
            machines.push(parts);
            all_levers.push(levers);
        }
        let mut ended = prepare(&mut machines)?;
        lock(&self.wiring).open_ways_out(gateways, &files)?;
        lock(&self.record).machines =
            machines.iter().zip(&all_levers).map(|(parts, levers)| MachineRecord::of(parts, levers)).collect();
        for (parts, levers) in machines.into_iter().zip(all_levers) {
            if let Some(state) = ended.remove(&parts.name) {
                let name = parts.name.clone();
                handles.insert(name.clone(), Handle { signals: mpsc::channel().0, levers, thread: None });
                self.end(&name, state);
            } else {
                // The others run all the same, and its end says why.
                let _ = self.run(&mut handles, parts, levers);
            }
        }
        Ok(())
    }

    /// Lets a machine's thread begin. Where there is none to be had, the machine has ended and says so.
    fn run(
        self: &Arc<Self>,
        handles: &mut HashMap<String, Handle>,
        parts: Parts,
        levers: Levers,
    ) -> Result<(), String> {
        let (sender, signals) = mpsc::channel();
        let name = parts.name.clone();
        let witness: Arc<dyn Witness> = Arc::new(Watcher { playground: Arc::clone(self), name: name.clone() });
        let (hypervisor, own) = (Arc::clone(&self.hypervisor), sender.clone());
        if let Some(record) = lock(&self.record).machines.iter_mut().find(|known| known.name == name) {
            record.signals = Some(sender.clone());
        }
        match runtime::spawn(Role::Machine, &name, move || machine::run(parts, &hypervisor, signals, &own, &witness)) {
            Ok(thread) => {
                handles.insert(name, Handle { signals: sender, levers, thread: Some(thread) });
                Ok(())
            }
            Err(error) => {
                let why = format!("starting its thread: {error}");
                self.end(&name, MachineState::Failed(why.clone()));
                Err(why)
            }
        }
    }

    fn build(
        self: &Arc<Self>,
        spec: &MachineSpec,
        files: &HashMap<Slot, Arc<File>>,
        plugs: &mut HashMap<(String, usize), Plug>,
    ) -> Result<(Parts, Levers), String> {
        let file = |slot: Slot| files.get(&slot).cloned().ok_or_else(|| format!("descriptor {slot:?} was not passed"));
        let own = |slot: Slot| file(slot)?.try_clone().map_err(|error| format!("descriptor {slot:?}: {error}"));
        let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");

        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let mut knobs = Knobs::new(&self.limits);
        for drive in &spec.drives {
            let failed = |error: String| format!("drive {}: {error}", drive.serial);
            let block = Block::new(&drive.serial, self.drive(&spec.name, drive, &own).map_err(failed)?);
            let block = knobs.add(&drive.serial, block).map_err(|error| failed(error.to_string()))?;
            devices.push(Box::new(block));
        }
        let mut links = Vec::new();
        for (position, interface) in spec.interfaces.iter().enumerate() {
            let plug = plugs.remove(&(spec.name.clone(), position));
            let plug = plug.ok_or_else(|| format!("network {} does not exist", interface.network))?;
            let net = Net::new(&format!("eth{position}"), plug);
            links.push(net.link());
            let net = knobs.add_nic(net).map_err(|error| format!("interface {position}: {error}"))?;
            devices.push(Box::new(net));
        }
        let (this, name) = (Arc::clone(self), spec.name.clone());
        let first_byte = Box::new(move || this.milestone(&name, Milestone::FirstConsoleByte));
        let console = ConsoleHub::new(own(spec.console_log)?, first_byte).map_err(said("its console"))?;
        devices.push(Box::new(Console::new(console.output(), console.input())));
        devices.push(Box::new(Rng::new()));
        let balloon = match spec.huge_pages {
            true => Balloon::without_reclaim(),
            false => Balloon::new(Box::new(Holes::default())),
        };
        let balloon = balloon.map_err(said("its balloon"))?;
        let lever = balloon.control();
        devices.push(Box::new(balloon));
        let hub = Hub::new().map_err(said("its vsock"))?;
        let hello = Arc::new(AtomicBool::new(false));
        let visitors = Visitors {
            playground: Arc::clone(self),
            machine: spec.name.clone(),
            hello: Arc::clone(&hello),
            refused: Faults::new(&format!("machine {}", spec.name)),
        };
        devices.push(Box::new(Vsock::new(spec.cid, Arc::clone(&hub), Box::new(visitors))));

        let initrd = spec.boot.initrd.iter().map(|slot| file(*slot)).collect::<Result<_, _>>()?;
        let cmdline = boot::command_line(&spec.boot.extra_cmdline);
        let images = Images { kernel: file(spec.boot.kernel)?, initrd, cmdline, entry: spec.boot.entry };
        let memory_bytes = spec.memory_mib << 20;
        images.check(memory_bytes).map_err(|error| runtime::chain(&error))?;
        let mut generation = [0; 16];
        labyard_sys::random::fill(&mut generation).map_err(said("its generation id"))?;
        let events: Arc<ged::Events> = Arc::default();
        let levers = Levers {
            hub,
            console: Arc::clone(&console),
            balloon: lever,
            memory_mib: spec.memory_mib,
            huge_pages: spec.huge_pages,
            links,
            knobs: Arc::new(knobs),
            events: Arc::clone(&events),
        };
        let parts = Parts {
            name: spec.name.clone(),
            processors: self.processors(spec)?,
            exits: (0..spec.cpu_count).map(|_| Arc::default()).collect(),
            memory_bytes,
            huge_pages: spec.huge_pages,
            generation,
            events,
            images,
            devices,
            console,
            hello,
            saved: None,
        };
        Ok((parts, levers))
    }

    fn processors(&self, spec: &MachineSpec) -> Result<Processors, String> {
        let template = Template::find(spec.cpu_template.as_deref()).map_err(|error| error.to_string())?;
        if spec.nested && !cpuid::can_nest(self.hypervisor.cpuid()) {
            return Err(
                "nested virtualization: this host's KVM does not offer it (parameter nested of kvm_intel, kvm_amd)"
                    .into(),
            );
        }
        let tsc_deadline = self.hypervisor.has_tsc_deadline();
        Ok(Processors { count: spec.cpu_count, template, nested: spec.nested, tsc_deadline })
    }

    /// What is the state of everything?
    pub fn status(&self) -> Status {
        let record = lock(&self.record);
        let machines = record.machines.iter().map(|machine| MachineStatus {
            name: machine.name.clone(),
            state: machine.state.clone(),
            paused: machine.is_paused(),
            full_drives: machine.full_drives.clone(),
            boot_us: machine.boot_us.clone(),
            faults: machine.faults.iter().map(|faults| (faults.device().to_owned(), faults.count())).collect(),
            balloon: Some(machine.levers.balloon_status()),
            counters: machine.counters.iter().map(published).collect(),
            page_size: machine.page_size,
        });
        Status { protocol: PROTOCOL, machines: machines.collect(), last_event: record.last_event }
    }

    /// The first kept event after number `after`, with the descriptor beside it; `None` if none comes within `wait`.
    pub fn event_after(&self, after: u64, wait: Duration) -> Option<(Event, Option<OwnedFd>)> {
        let record = lock(&self.record);
        let waited = self.changed.wait_timeout_while(record, wait, |record| record.last_event <= after);
        let (mut record, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let Record { events, unclaimed, .. } = &mut *record;
        let (event, descriptor) = events.iter_mut().find(|(event, _)| event.number > after)?;
        let descriptor = descriptor.take();
        *unclaimed -= usize::from(descriptor.is_some());
        Some((event.clone(), descriptor))
    }

    /// Waits until a machine has ended; its last state.
    ///
    /// # Errors
    /// Where there is no machine of this name.
    pub fn wait(&self, machine: &str) -> Result<MachineState, String> {
        let mut record = lock(&self.record);
        loop {
            match record.machines.iter().find(|known| known.name == machine) {
                None => return Err(unknown(machine)),
                Some(known) if known.state != MachineState::Running => return Ok(known.state.clone()),
                Some(_) => record = self.changed.wait(record).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Connects to a port of a guest.
    pub fn connect(&self, machine: &str, port: u32) -> Result<UnixStream, String> {
        let hub = self.handle(machine, |handle| Arc::clone(&handle.levers.hub))?;
        hub.connect(port, CONNECT_DEADLINE).map_err(|error| format!("machine {machine}: {error}"))
    }

    /// Watches a machine's console.
    pub fn console(&self, machine: &str) -> Result<UnixStream, String> {
        let console = self.handle(machine, |handle| Arc::clone(&handle.levers.console))?;
        console.attach(machine).map_err(|error| format!("machine {machine}: its console: {error}"))
    }

    /// Changes a machine, or the playground, while it runs.
    pub fn change(&self, machine: Option<&str>, change: Change) -> Result<(), String> {
        match (machine, change) {
            (Some(name), change) => {
                let levers = self.handle(name, |handle| handle.levers.clone())?;
                levers.change(change).map_err(|error| format!("machine {name}: {error}"))
            }
            (None, Change::PlaygroundLimit { limits }) => {
                self.limits.drives.change(change::checked(&limits)?);
                Ok(())
            }
            (None, Change::NicsLimit { limits }) => {
                self.limits.nics.change(change::checked(&limits)?);
                Ok(())
            }
            (None, Change::DisturbNetwork { network, change }) => self.disturb_network(&network, change),
            (None, change) => Err(format!("which machine? {change:?} is of one machine, and none was named")),
        }
    }

    /// Presses a machine's power button. Whether its guest does something about it shows in its state.
    pub fn press_power_button(&self, machine: &str) -> Result<(), String> {
        let events = self.handle(machine, |handle| Arc::clone(&handle.levers.events))?;
        match events.raise(ged::Event::PowerButton) {
            true => Ok(()),
            false => Err(format!("machine {machine}: it does not run")),
        }
    }

    /// Cuts the power of one machine, or of all. Waits until they have ended.
    pub fn kill(&self, machine: Option<&str>) -> Result<(), String> {
        let mut handles = lock(&self.handles);
        if let Some(name) = machine.filter(|name| !handles.contains_key(*name)) {
            return Err(unknown(name));
        }
        let chosen = || |name: &String| machine.is_none_or(|machine| machine == name);
        let threads: Vec<_> = handles
            .iter_mut()
            .filter(|(name, _)| chosen()(name))
            .filter_map(|(_, handle)| {
                // First, for its thread may wait for a drive that waits for room.
                handle.levers.knobs.give_up();
                let _ = handle.signals.send(Signal::Kill); // ended already is as good
                handle.thread.take()
            })
            .collect();
        drop(handles);
        for thread in threads {
            let _ = thread.join(); // a panic was the machine's end, too
        }
        Ok(())
    }

    fn handle<T>(&self, machine: &str, take: impl FnOnce(&Handle) -> T) -> Result<T, String> {
        lock(&self.handles).get(machine).map(take).ok_or_else(|| unknown(machine))
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn milestone(&self, machine: &str, milestone: Milestone) {
        let at = self.now_us();
        let mut record = lock(&self.record);
        if let Some(machine) = record.machines.iter_mut().find(|known| known.name == machine)
            && machine.boot_us.iter().all(|(known, _)| *known != milestone)
        {
            machine.boot_us.push((milestone, at));
        }
    }

    fn event(&self, machine: &str, what: Happening, descriptor: Option<OwnedFd>) -> Event {
        let event = self.event_in(&mut lock(&self.record), machine, what, descriptor);
        self.changed.notify_all();
        event
    }

    /// The same for who changes the record with it, and tells of that.
    fn event_in(&self, record: &mut Record, machine: &str, what: Happening, descriptor: Option<OwnedFd>) -> Event {
        let at_us = self.now_us();
        record.last_event += 1;
        record.unclaimed += usize::from(descriptor.is_some());
        let event = Event { number: record.last_event, at_us, machine: machine.into(), what };
        record.events.push_back((event.clone(), descriptor));
        if record.events.len() > MAX_EVENTS
            && let Some((_, descriptor)) = record.events.pop_front()
        {
            record.unclaimed -= usize::from(descriptor.is_some());
        }
        event
    }

    fn end(&self, machine: &str, state: MachineState) {
        if let Some(record) = lock(&self.record).machines.iter_mut().find(|known| known.name == machine) {
            record.state = state.clone();
            (record.held, record.out_of_room) = (false, false);
            record.full_drives.clear();
        }
        let event = self.event(machine, Happening::Ended(state), None);
        match serde_json::to_vec(&event) {
            Ok(mut line) => {
                line.push(b'\n');
                if let Err(error) = lock(&self.last_words).write_all(&line) {
                    log::error!("writing last words: {error}");
                }
            }
            Err(error) => log::error!("last words of {machine}: {error}"),
        }
    }
}

/// Counters as status tells them.
fn published(counters: &Counters) -> (String, Vec<(String, u64)>) {
    let values = counters.read().into_iter().map(|(name, value)| (name.to_owned(), value));
    (counters.owner().to_owned(), values.collect())
}

fn unknown(machine: &str) -> String {
    format!("machine {machine}: there is none of this name")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the playground about one machine.
struct Watcher {
    playground: Arc<Playground>,
    name: String,
}

impl Witness for Watcher {
    fn booting(&self, log_bytes: u64) {
        self.playground.event(&self.name, Happening::Booting { log_bytes }, None);
    }

    fn mapped(&self, page_size: u64) {
        let mut record = lock(&self.playground.record);
        let known = record.machines.iter_mut().find(|known| known.name == self.name);
        let known = known.map(|machine| std::mem::replace(&mut machine.page_size, page_size));
        drop(record);
        if known != Some(page_size) {
            self.playground.event(&self.name, Happening::Mapped { page_size }, None);
        }
    }

    fn loaded(&self) {
        self.playground.milestone(&self.name, Milestone::Loaded);
    }

    fn first_run(&self) {
        self.playground.milestone(&self.name, Milestone::FirstRun);
    }

    fn started(&self) {
        self.playground.event(&self.name, Happening::Started, None);
    }

    fn rebooted(&self) {
        self.playground.event(&self.name, Happening::Rebooted, None);
    }

    fn out_of_room(&self, is_out: bool) {
        self.playground.stands_for_room(&self.name, is_out);
    }

    fn ended(&self, state: MachineState) {
        self.playground.end(&self.name, state);
    }
}

/// Streams that a guest opens: each becomes an event with one end beside it.
struct Visitors {
    playground: Arc<Playground>,
    machine: String,
    hello: Arc<AtomicBool>,
    /// Counted, so that a guest that knocks without end does not fill the log.
    refused: Faults,
}

impl Incoming for Visitors {
    fn accept(&mut self, port: u32) -> Option<UnixStream> {
        if lock(&self.playground.record).unclaimed >= MAX_UNCLAIMED {
            self.refused.note(format_args!("{MAX_UNCLAIMED} streams wait for the supervisor, one more is refused"));
            return None;
        }
        let (ours, theirs) = UnixStream::pair().map_err(|error| log::error!("a stream for a guest: {error}")).ok()?;
        if port == READY_PORT {
            self.hello.store(true, Ordering::SeqCst);
            self.playground.milestone(&self.machine, Milestone::InitHello);
        }
        self.playground.event(&self.machine, Happening::GuestConnected { port }, Some(theirs.into()));
        Some(ours)
    }
}
