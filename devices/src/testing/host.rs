//! Workers that run when the test says so, and a line that counts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::host::{GaveUp, Host, Running};
use crate::irq::Line;
use crate::worker::{Rest, Worker};

/// Runs workers on the thread that calls [`InlineHost::run`].
#[derive(Clone, Default)]
pub struct InlineHost {
    seats: Arc<Mutex<Vec<Seat>>>,
}

type Seat = Arc<Mutex<Option<Seated>>>;

struct Seated {
    worker: Box<dyn Worker>,
    failed: bool,
    gave_up: GaveUp,
}

struct InlineRunning(Seat);

impl InlineHost {
    /// Handles everything that is ready, until nothing is. Panics of a worker count as its failure.
    pub fn run(&self) {
        while self.step() {}
    }

    fn step(&self) -> bool {
        let seats = lock(&self.seats).clone();
        let mut handled = false;
        for seat in seats {
            let mut seated = lock(&seat);
            let Some(Seated { worker, failed, gave_up }) = seated.as_mut() else { continue };
            for source in worker.sources() {
                if *failed || !is_readable(source.fd) {
                    continue;
                }
                handled = true;
                match catch_unwind(AssertUnwindSafe(|| worker.on_event(source.token))) {
                    Ok(Ok(())) => continue,
                    Ok(Err(fault)) => gave_up(&fault.to_string()),
                    Err(_) => gave_up("a panic"),
                }
                *failed = true;
            }
        }
        handled
    }
}

impl Host for InlineHost {
    fn start(&self, worker: Box<dyn Worker>, gave_up: GaveUp) -> Box<dyn Running> {
        let seat: Seat = Arc::new(Mutex::new(Some(Seated { worker, failed: false, gave_up })));
        let mut seats = lock(&self.seats);
        seats.retain(|seat| lock(seat).is_some());
        seats.push(Arc::clone(&seat));
        Box::new(InlineRunning(seat))
    }
}

impl Running for InlineRunning {
    fn stop(self: Box<Self>) -> Option<Rest> {
        let seated = lock(&self.0).take()?;
        Some(seated.worker.deactivate())
    }
}

fn is_readable(fd: std::os::fd::RawFd) -> bool {
    let epoll = Epoll::new().expect("epoll");
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).expect("a descriptor that can be waited on");
    epoll.wait(0, &mut [EpollEvent::default()]).expect("epoll") > 0
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that counts its edges.
#[derive(Clone, Default)]
pub struct Recorder(Arc<AtomicU64>);

impl Recorder {
    /// Edges so far.
    pub fn edges(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Line for Recorder {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
