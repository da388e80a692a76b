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

use labyard_devices::backend::engine::{self, Choice};
use labyard_devices::backend::raw::{self, RawFile};
use labyard_devices::fault::Faults;
use labyard_devices::limiter::{Bucket, Limits};
use labyard_devices::switch::{Plug, PortSpec, Switch};
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::console::Console;
use labyard_devices::virtio::device::VirtioDevice;
use labyard_devices::virtio::net::Net;
use labyard_devices::virtio::rng::Rng;
use labyard_devices::virtio::vsock::{Hub, Incoming, Vsock};
use labyard_spec::control::{Change, Event, Happening, MachineState, MachineStatus, Milestone, PROTOCOL, Status};
use labyard_spec::guest::READY_PORT;
use labyard_spec::playground::{Engine as DriveEngine, MachineSpec, PlaygroundSpec, Slot};

use crate::boot::{self, Images};
use crate::change::{self, Knobs};
use crate::console::ConsoleHub;
use crate::kvm::Hypervisor;
use crate::machine::{self, Parts, Witness};
use crate::vcpu::Signal;
use crate::{plan, runtime};

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
    boot_us: Vec<(Milestone, u64)>,
    faults: Vec<Faults>,
}

/// A running machine's handles.
struct Handle {
    signals: Sender<Signal>,
    hub: Arc<Hub>,
    console: Arc<ConsoleHub>,
    knobs: Knobs,
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
    /// By machine name; filled once, by `create`.
    handles: Mutex<HashMap<String, Handle>>,
    /// What limits all drives together.
    limit: Bucket,
}

impl Playground {
    /// An empty playground. Times count from `since`; ended machines are written to `last_words`.
    pub fn new(hypervisor: Hypervisor, last_words: File, since: Instant) -> Arc<Self> {
        Arc::new(Self {
            since,
            hypervisor: Arc::new(hypervisor),
            record: Mutex::default(),
            changed: Condvar::new(),
            last_words: Mutex::new(last_words),
            handles: Mutex::default(),
            limit: Bucket::new(Limits::default()),
        })
    }

    /// Builds and starts all machines, or none.
    pub fn create(self: &Arc<Self>, spec: &PlaygroundSpec, mut passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        let mut handles = lock(&self.handles);
        if !handles.is_empty() {
            return Err("the playground was created already".into());
        }
        let slots: HashSet<Slot> = passed.keys().copied().collect();
        plan::check(spec, &slots, self.hypervisor.max_vcpus()).map_err(|error| error.to_string())?;
        let files: HashMap<Slot, Arc<File>> =
            passed.drain().map(|(slot, descriptor)| (slot, Arc::new(File::from(descriptor)))).collect();
        let mut plugs = plugs(spec);

        // Everything that can be refused is built before anything runs.
        let mut built = Vec::new();
        for machine in &spec.machines {
            let made = self.build(machine, &files, &mut plugs);
            built.push(made.map_err(|error| format!("machine {}: {error}", machine.name))?);
        }
        lock(&self.record).machines = built
            .iter()
            .map(|(parts, ..)| MachineRecord {
                name: parts.name.clone(),
                state: MachineState::Running,
                boot_us: Vec::new(),
                faults: parts.faults(),
            })
            .collect();
        for (index, (parts, hub, knobs)) in built.into_iter().enumerate() {
            let (sender, signals) = mpsc::channel();
            let (name, console) = (parts.name.clone(), Arc::clone(&parts.console));
            let witness: Arc<dyn Witness> =
                Arc::new(Watcher { playground: Arc::clone(self), index, name: name.clone() });
            let (hypervisor, own) = (Arc::clone(&self.hypervisor), sender.clone());
            let thread = runtime::spawn(&name, move || machine::run(parts, &hypervisor, &signals, &own, &witness));
            match thread {
                Ok(thread) => {
                    handles.insert(name, Handle { signals: sender, hub, console, knobs, thread: Some(thread) });
                }
                Err(error) => {
                    self.end(index, &name, MachineState::Failed(format!("starting its thread: {error}")));
                }
            }
        }
        Ok(())
    }

    fn build(
        self: &Arc<Self>,
        spec: &MachineSpec,
        files: &HashMap<Slot, Arc<File>>,
        plugs: &mut HashMap<(String, usize), Plug>,
    ) -> Result<(Parts, Arc<Hub>, Knobs), String> {
        let file = |slot: Slot| files.get(&slot).cloned().ok_or_else(|| format!("descriptor {slot:?} was not passed"));
        let own = |slot: Slot| file(slot)?.try_clone().map_err(|error| format!("descriptor {slot:?}: {error}"));
        let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");

        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let mut knobs = Knobs::new(&self.limit);
        for drive in &spec.drives {
            let failed = |error: &dyn std::error::Error| format!("drive {}: {}", drive.serial, runtime::chain(error));
            let capacity_bytes = raw::capacity(&*file(drive.file)?).map_err(|error| failed(&error))?;
            let choice = match drive.engine {
                DriveEngine::Auto => Choice::Auto,
                DriveEngine::Sync => Choice::Sync,
                DriveEngine::Uring => Choice::Uring,
            };
            let (engine, told) = engine::choose(choice, vec![own(drive.file)?]).map_err(|error| failed(&error))?;
            log::info!("machine {}: drive {}: {told}", spec.name, drive.serial);
            let backend = RawFile::over(engine, capacity_bytes, drive.read_only).growing_with(file(drive.file)?);
            let block = Block::new(&drive.serial, Box::new(backend));
            devices.push(Box::new(knobs.add(&drive.serial, block).map_err(|error| failed(&error))?));
        }
        for (position, interface) in spec.interfaces.iter().enumerate() {
            let plug = plugs.remove(&(spec.name.clone(), position));
            let plug = plug.ok_or_else(|| format!("network {} does not exist", interface.network))?;
            devices.push(Box::new(Net::new(&format!("eth{position}"), plug)));
        }
        let (this, name) = (Arc::clone(self), spec.name.clone());
        let first_byte = Box::new(move || this.milestone(&name, Milestone::FirstConsoleByte));
        let console = ConsoleHub::new(own(spec.console_log)?, first_byte).map_err(said("its console"))?;
        devices.push(Box::new(Console::new(console.output(), console.input())));
        devices.push(Box::new(Rng::new()));
        let hub = Hub::new().map_err(said("its vsock"))?;
        let hello = Arc::new(AtomicBool::new(false));
        let visitors = Visitors { playground: Arc::clone(self), machine: spec.name.clone(), hello: Arc::clone(&hello) };
        devices.push(Box::new(Vsock::new(spec.cid, Arc::clone(&hub), Box::new(visitors))));

        let initrd = spec.boot.initrd.iter().map(|slot| file(*slot)).collect::<Result<_, _>>()?;
        let images =
            Images { kernel: file(spec.boot.kernel)?, initrd, cmdline: boot::command_line(&spec.boot.extra_cmdline) };
        let parts = Parts {
            name: spec.name.clone(),
            cpu_count: spec.cpu_count,
            memory_bytes: spec.memory_mib << 20,
            images,
            devices,
            console,
            hello,
        };
        Ok((parts, hub, knobs))
    }

    /// What is the state of everything?
    pub fn status(&self) -> Status {
        let record = lock(&self.record);
        let machines = record.machines.iter().map(|machine| MachineStatus {
            name: machine.name.clone(),
            state: machine.state.clone(),
            boot_us: machine.boot_us.clone(),
            faults: machine.faults.iter().map(|faults| (faults.device().to_owned(), faults.count())).collect(),
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

    /// Connects to a port of a guest.
    pub fn connect(&self, machine: &str, port: u32) -> Result<UnixStream, String> {
        let hub = self.handle(machine, |handle| Arc::clone(&handle.hub))?;
        hub.connect(port, CONNECT_DEADLINE).map_err(|error| format!("machine {machine}: {error}"))
    }

    /// Watches a machine's console.
    pub fn console(&self, machine: &str) -> Result<UnixStream, String> {
        let console = self.handle(machine, |handle| Arc::clone(&handle.console))?;
        console.attach(machine).map_err(|error| format!("machine {machine}: its console: {error}"))
    }

    /// Changes a machine, or the playground, while it runs.
    pub fn change(&self, machine: Option<&str>, change: Change) -> Result<(), String> {
        let failed = |machine: &str, error: String| format!("machine {machine}: {error}");
        match (machine, change) {
            (Some(name), change) => {
                self.handle(name, |handle| handle.knobs.change(&change))?.map_err(|error| failed(name, error))
            }
            (None, Change::PlaygroundLimit { limits }) => {
                self.limit.change(change::checked(&limits)?);
                Ok(())
            }
            (None, change) => Err(format!("which machine? {change:?} is of one machine, and none was named")),
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
        let at_us = self.now_us();
        let mut record = lock(&self.record);
        record.last_event += 1;
        record.unclaimed += usize::from(descriptor.is_some());
        let event = Event { number: record.last_event, at_us, machine: machine.into(), what };
        record.events.push_back((event.clone(), descriptor));
        if record.events.len() > MAX_EVENTS
            && let Some((_, descriptor)) = record.events.pop_front()
        {
            record.unclaimed -= usize::from(descriptor.is_some());
        }
        drop(record);
        self.changed.notify_all();
        event
    }

    fn end(&self, index: usize, machine: &str, state: MachineState) {
        if let Some(record) = lock(&self.record).machines.get_mut(index) {
            record.state = state.clone();
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

fn unknown(machine: &str) -> String {
    format!("machine {machine}: there is none of this name")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One switch for each network; plugs by machine and position of the interface.
fn plugs(spec: &PlaygroundSpec) -> HashMap<(String, usize), Plug> {
    let mut plugs = HashMap::new();
    for network in &spec.networks {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for machine in &spec.machines {
            for (position, interface) in machine.interfaces.iter().enumerate() {
                if interface.network == network.name {
                    names.push((machine.name.clone(), position));
                    ports.push(PortSpec { mac: interface.mac.0, mtu: interface.mtu });
                }
            }
        }
        plugs.extend(names.into_iter().zip(Switch::with_ports(&network.name, &ports)));
    }
    plugs
}

/// Tells the playground about one machine.
struct Watcher {
    playground: Arc<Playground>,
    index: usize,
    name: String,
}

impl Witness for Watcher {
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

    fn ended(&self, state: MachineState) {
        self.playground.end(self.index, &self.name, state);
    }
}

/// Streams that a guest opens: each becomes an event with one end beside it.
struct Visitors {
    playground: Arc<Playground>,
    machine: String,
    hello: Arc<AtomicBool>,
}

impl Incoming for Visitors {
    fn accept(&mut self, port: u32) -> Option<UnixStream> {
        if lock(&self.playground.record).unclaimed >= MAX_UNCLAIMED {
            log::warn!(
                "machine {}: {MAX_UNCLAIMED} streams wait for the supervisor, one more is refused",
                self.machine
            );
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
