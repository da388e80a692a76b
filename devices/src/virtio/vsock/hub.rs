//! Where the rest of the process asks for connections to a guest.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::irq::Line;

/// A connection to a guest did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or the guest has too many connections.
    #[error("port {0} of the guest: connection refused")]
    Refused(u32),
    /// The driver is not up.
    #[error("port {0} of the guest: its vsock driver is not up")]
    NoDriver(u32),
    /// The guest said nothing.
    #[error("port {port} of the guest: no answer within {seconds} s")]
    Silent {
        /// The port.
        port: u32,
        /// How long was waited.
        seconds: u64,
    },
    /// The host has no stream for it.
    #[error("port {port} of the guest: making a stream")]
    Host {
        /// The port.
        port: u32,
        /// Why.
        source: std::io::Error,
    },
}

/// A wish that travels to the worker. Who has given it up has dropped the other end of its stream.
pub(super) struct Wish {
    pub(super) port: u32,
    pub(super) stream: UnixStream,
    pub(super) answer: Answer,
}

/// Who waits for the guest's answer.
pub(super) type Answer = mpsc::SyncSender<Result<(), ConnectError>>;

struct Inbox {
    at_work: bool,
    wishes: Vec<Wish>,
}

/// Shared between a device and those who want to talk to its guest.
pub struct Hub {
    /// What the worker has not seen yet. No other lock is taken under it.
    inbox: Mutex<Inbox>,
    pub(super) wake: EventFd,
}

impl Hub {
    /// A hub whose device is at rest.
    pub fn new() -> std::io::Result<Arc<Self>> {
        let inbox = Mutex::new(Inbox { at_work: false, wishes: Vec::new() });
        Ok(Arc::new(Self { inbox, wake: EventFd::new(EFD_NONBLOCK)? }))
    }

    /// Connects to a port of the guest and returns the host's end. Waits for the guest's answer, not longer than `deadline`.
    pub fn connect(&self, port: u32, deadline: Duration) -> Result<UnixStream, ConnectError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let (stream, theirs) = UnixStream::pair().map_err(|source| ConnectError::Host { port, source })?;
        {
            let mut inbox = self.lock();
            if !inbox.at_work {
                return Err(ConnectError::NoDriver(port));
            }
            inbox.wishes.push(Wish { port, stream, answer });
        }
        self.wake.raise();
        match answered.recv_timeout(deadline) {
            Ok(outcome) => outcome.map(|()| theirs),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ConnectError::Silent { port, seconds: deadline.as_secs() }),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(ConnectError::NoDriver(port)),
        }
    }

    pub(super) fn set_at_work(&self, at_work: bool) {
        let mut inbox = self.lock();
        inbox.at_work = at_work;
        if !at_work {
            inbox.wishes.clear();
        }
    }

    pub(super) fn take(&self) -> Vec<Wish> {
        let _ = self.wake.read(); // taken already is as good
        std::mem::take(&mut self.lock().wishes)
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
