//! The threads of a machine, who makes them, and the loop that its devices share.
//!
//! | thread | what it runs |
//! |---|---|
//! | `spawner` | makes all others, where there are filters ([`crate::seccomp`]) |
//! | `control` | one for each connection to the control socket |
//! | `MACHINE` | the machine's life: build, wait for a signal, stop ([`crate::machine`]) |
//! | `MACHINE kvm` | making the machine in KVM, while memory is filled |
//! | `MACHINE io` | workers of all its devices: one event loop |
//! | `MACHINE cpuN` | one vCPU ([`crate::vcpu`]) |

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberOps};
use labyard_devices::host::{GaveUp, Host, Running};
use labyard_devices::worker::{Rest, Source, Worker};
use vmm_sys_util::epoll::EventSet;

use crate::seccomp::{self, Otherwise, Role};

/// What the spawner is asked for: one thread.
type Order = Box<dyn FnOnce() + Send>;

/// There in a process that has filters.
static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();

/// For tests of filters: what each thread does once it has its own.
#[cfg(debug_assertions)]
pub static HOOK: OnceLock<fn(Role)> = OnceLock::new();

/// Takes on the filter of a role, or ends the process.
fn enter(role: Role) {
    if let Err(error) = seccomp::enter(role) {
        log::error!("the filter of system calls: {error}");
        std::process::abort();
    }
    #[cfg(debug_assertions)]
    if let Some(hook) = HOOK.get() {
        hook(role);
    }
}

/// Filters this process, whose only thread calls this: from now on one thread makes all others, and each has the filter of its role.
///
/// # Errors
/// That there is no thread to be had. A filter that the kernel does not take is the end of the process.
pub fn confine(otherwise: Otherwise) -> std::io::Result<()> {
    seccomp::prepare(otherwise)?;
    let (orders, ordered) = channel::<Order>();
    let (told, entered) = sync_channel(1);
    named("spawner").spawn(move || {
        enter(Role::Spawner);
        let _ = told.send(()); // who asked waits for it
        ordered.iter().for_each(|order| order());
    })?;
    entered.recv().map_err(std::io::Error::other)?;
    let _ = SPAWNER.set(orders); // a second one would have no threads to make
    enter(Role::Main);
    Ok(())
}

/// A thread, named for `ps` and profiles; Linux keeps 15 bytes.
pub fn spawn<T: Send + 'static>(
    role: Role,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    let thread = named(name);
    let body = move || {
        enter(role);
        body()
    };
    let Some(spawner) = SPAWNER.get() else { return thread.spawn(body) };
    let (answer, answered) = sync_channel(1);
    let order = Box::new(move || {
        let _ = answer.send(thread.spawn(body)); // who ordered it waits for it
    });
    spawner.send(order).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
    answered.recv().map_err(std::io::Error::other)?
}

/// Of each thread's stack. Less than a huge page of 2 MiB: where the host makes those for any memory, the first touch of a stack of 2 MiB
/// would clear one and keep it.
const STACK_BYTES: usize = 1 << 20;

fn named(name: &str) -> Builder {
    let builder = Builder::new().stack_size(STACK_BYTES);
    builder.name(name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= 15).map(|(_, c)| c).collect())
}

/// The event loop of a machine's devices.
pub struct DeviceLoop {
    endpoint: RemoteEndpoint<Seat>,
    end: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DeviceLoop {
    /// Starts the loop.
    pub fn start(machine: &str) -> std::io::Result<Arc<Self>> {
        let mut manager = EventManager::<Seat>::new().map_err(std::io::Error::other)?;
        let endpoint = manager.remote_endpoint();
        let end = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&end);
        let thread = spawn(Role::Io, &format!("{machine} io"), move || {
            while !seen.load(Ordering::SeqCst) {
                if let Err(error) = manager.run() {
                    log::error!("the devices' event loop: {error}");
                    break;
                }
            }
        })?;
        Ok(Arc::new(Self { endpoint, end, thread: Mutex::new(Some(thread)) }))
    }

    /// Ends the loop. Workers were stopped before.
    pub fn end(&self) {
        self.end.store(true, Ordering::SeqCst);
        if let Err(error) = self.endpoint.kick() {
            log::error!("waking the devices' event loop: {error}");
        }
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join(); // a panic of the loop was printed when it happened
        }
    }
}

impl Host for DeviceLoop {
    fn start(&self, worker: Box<dyn Worker>, gave_up: GaveUp) -> Box<dyn Running> {
        let seat = Seat { sources: worker.sources(), worker, gave_up, failed: false };
        let id = self.endpoint.call_blocking(move |ops| Ok::<_, event_manager::Error>(ops.add_subscriber(seat)));
        match id {
            Ok(id) => Box::new(OnLoop { endpoint: self.endpoint.clone(), id }),
            Err(error) => {
                log::error!("starting a device: {error}");
                Box::new(Nowhere)
            }
        }
    }
}

/// A worker on the loop.
struct Seat {
    sources: Vec<Source>,
    worker: Box<dyn Worker>,
    gave_up: GaveUp,
    failed: bool,
}

impl MutEventSubscriber for Seat {
    fn init(&mut self, ops: &mut EventOps) {
        for Source { fd, token } in &self.sources {
            if let Err(error) = ops.add(Events::with_data_raw(*fd, *token, EventSet::IN)) {
                log::error!("waiting on a device's descriptor: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.failed {
            return;
        }
        // A panic in a device is the device's end, not the machine's.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.worker.on_event(events.data())));
        let reason = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(fault)) => chain(&fault),
            Err(_) => "the device panicked".into(),
        };
        self.failed = true;
        for Source { fd, token } in &self.sources {
            let _ = ops.remove(Events::with_data_raw(*fd as RawFd, *token, EventSet::IN)); // not there is as good
        }
        (self.gave_up)(&reason);
    }
}

/// An error with its sources, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

struct OnLoop {
    endpoint: RemoteEndpoint<Seat>,
    id: event_manager::SubscriberId,
}

impl Running for OnLoop {
    fn stop(self: Box<Self>) -> Option<Rest> {
        let id = self.id;
        let seat = self
            .endpoint
            .call_blocking(move |ops: &mut dyn SubscriberOps<Subscriber = Seat>| ops.remove_subscriber(id));
        let worker = seat.map_err(|error| log::error!("stopping a device: {error}")).ok()?.worker;
        catch_unwind(AssertUnwindSafe(|| worker.deactivate())).ok()
    }
}

struct Nowhere;

impl Running for Nowhere {
    fn stop(self: Box<Self>) -> Option<Rest> {
        None
    }
}
