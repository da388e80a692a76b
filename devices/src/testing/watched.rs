//! A device whose worker is watched while it handles events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::Faults;
use crate::virtio::device::{DeviceInfo, Refused, VirtioDevice};
use crate::worker::{Activation, Rest, Source, Token, Worker, WorkerFault};

/// The device, at rest; it stays watched over resets.
pub struct Watched {
    device: Box<dyn VirtioDevice>,
    watch: Watch,
}

/// What is counted, and how far it got while events were handled.
#[derive(Clone)]
struct Watch {
    count: fn() -> u64,
    sum: Arc<AtomicU64>,
}

struct WatchedWorker {
    worker: Box<dyn Worker>,
    watch: Watch,
}

impl Watched {
    /// The device, and by how much `count` grew in its worker's `on_event`. `count` speaks of the thread that asks.
    pub fn new(device: Box<dyn VirtioDevice>, count: fn() -> u64) -> (Box<Self>, Arc<AtomicU64>) {
        let sum = Arc::new(AtomicU64::new(0));
        (Box::new(Self { device, watch: Watch { count, sum: Arc::clone(&sum) } }), sum)
    }
}

impl VirtioDevice for Watched {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        Ok(Box::new(WatchedWorker { worker: self.device.activate(with)?, watch: self.watch }))
    }

    fn faults(&self) -> &Faults {
        self.device.faults()
    }
}

impl Worker for WatchedWorker {
    fn sources(&self) -> Vec<Source> {
        self.worker.sources()
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        let before = (self.watch.count)();
        let outcome = self.worker.on_event(token);
        self.watch.sum.fetch_add((self.watch.count)() - before, Ordering::SeqCst);
        outcome
    }

    fn deactivate(self: Box<Self>) -> Rest {
        let Rest { device, queues } = self.worker.deactivate();
        Rest { device: Box::new(Watched { device, watch: self.watch }), queues }
    }
}
