//! The control socket: requests of the supervisor, one thread for each connection (`labyard_spec::control`).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use labyard_spec::control::{MAX_MESSAGE_BYTES, Reply, Request};
use labyard_spec::playground::Slot;
use labyard_sys::message;

use crate::playground::Playground;
use crate::runtime;
use crate::seccomp::Role;

/// Connections at most; one more is closed at once.
const MAX_CONNECTIONS: usize = 64;
/// How often a stream of events looks whether somebody still listens.
const LOOK: Duration = Duration::from_secs(2);

/// The socket's side of a playground.
pub struct Control {
    playground: Arc<Playground>,
    connections: AtomicUsize,
}

impl Control {
    /// Serves `playground`.
    pub fn new(playground: Arc<Playground>) -> Arc<Self> {
        Arc::new(Self { playground, connections: AtomicUsize::new(0) })
    }

    /// Accepts connections until the process ends.
    pub fn serve(self: &Arc<Self>, listener: &UnixListener) -> io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
                log::warn!("{MAX_CONNECTIONS} connections to the control socket, one more is closed");
                self.connections.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let this = Arc::clone(self);
            let spawned = runtime::spawn(Role::Control, "control", move || {
                if let Err(error) = this.converse(&stream) {
                    log::warn!("a connection to the control socket: {error}");
                }
                this.connections.fetch_sub(1, Ordering::SeqCst);
            });
            if let Err(error) = spawned {
                log::error!("a thread for the control socket: {error}");
                self.connections.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn converse(&self, stream: &UnixStream) -> io::Result<()> {
        // Descriptors that wait for the request that takes them. They go with the connection: whoever passed them may have been killed.
        let mut passed = HashMap::new();
        while let Some((body, descriptors)) = message::recv(stream, MAX_MESSAGE_BYTES)? {
            let request = serde_json::from_slice(&body)?;
            if let Request::Events { after } = request {
                return self.tell_events(stream, after);
            }
            let end = matches!(request, Request::Kill { machine: None });
            let (reply, beside) = match self.answer(request, descriptors, &mut passed) {
                Ok((reply, beside)) => (reply, beside),
                Err(error) => (Reply::Failed(error), None),
            };
            let beside: Vec<BorrowedFd<'_>> = beside.iter().map(AsFd::as_fd).collect();
            message::send(stream, &serde_json::to_vec(&reply)?, &beside)?;
            if end {
                std::process::exit(0);
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        passed: &mut HashMap<Slot, OwnedFd>,
    ) -> Result<(Reply, Option<OwnedFd>), String> {
        match request {
            Request::Descriptors { first, count } => {
                if descriptors.len() != count as usize {
                    return Err(format!("{count} descriptors were announced, {} came", descriptors.len()));
                }
                let slots = (u64::from(first.0)..).map(|slot| u32::try_from(slot).map(Slot));
                for (slot, descriptor) in slots.zip(descriptors) {
                    let slot = slot.map_err(|_| format!("slot {} + {count} is too large", first.0))?;
                    if passed.insert(slot, descriptor).is_some() {
                        return Err(format!("{slot:?} was filled before"));
                    }
                }
                Ok(())
            }
            Request::Create(spec) => self.playground.create(&spec, std::mem::take(passed)),
            Request::Restore(spec) => self.playground.restore(&spec, std::mem::take(passed)),
            Request::Start(spec) => self.playground.start(&spec, std::mem::take(passed)),
            Request::Add(spec) => self.playground.add(&spec, std::mem::take(passed)),
            Request::AddNetwork(spec) => self.playground.add_network(&spec, std::mem::take(passed)),
            Request::Save(files) => self.playground.save(&files, std::mem::take(passed)),
            other => return self.answer_running(other),
        }
        .map(|()| (Reply::Done, None))
    }

    fn answer_running(&self, request: Request) -> Result<(Reply, Option<OwnedFd>), String> {
        let done = |stream: UnixStream| (Reply::Done, Some(stream.into()));
        match request {
            Request::Status => Ok((Reply::Status(self.playground.status()), None)),
            Request::Connect { machine, port } => self.playground.connect(&machine, port).map(done),
            Request::Console { machine } => self.playground.console(&machine).map(done),
            Request::Links => Ok((Reply::Links(self.playground.links()), None)),
            Request::Capture { network, machine } => self.playground.capture(&network, machine.as_deref()).map(done),
            Request::Change { machine, change } => {
                self.playground.change(machine.as_deref(), change).map(|()| (Reply::Done, None))
            }
            Request::PowerButton { machine } => {
                self.playground.press_power_button(&machine).map(|()| (Reply::Done, None))
            }
            Request::Pause { machine } => self.playground.pause(machine.as_deref()).map(|()| (Reply::Done, None)),
            Request::Resume { machine } => self.playground.resume(machine.as_deref()).map(|()| (Reply::Done, None)),
            Request::Remove { machine } => self.playground.remove(&machine).map(|()| (Reply::Done, None)),
            Request::RemoveNetwork { network } => {
                self.playground.remove_network(&network).map(|()| (Reply::Done, None))
            }
            Request::Kill { machine } => self.playground.kill(machine.as_deref()).map(|()| (Reply::Done, None)),
            Request::Descriptors { .. }
            | Request::Create(_)
            | Request::Restore(_)
            | Request::Save(_)
            | Request::Start(_)
            | Request::Add(_)
            | Request::AddNetwork(_)
            | Request::Events { .. } => Err("this request is not answered here".into()),
        }
    }

    /// Sends events until the peer leaves.
    fn tell_events(&self, stream: &UnixStream, mut after: u64) -> io::Result<()> {
        loop {
            match self.playground.event_after(after, LOOK) {
                Some((event, descriptor)) => {
                    after = event.number;
                    let beside: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
                    message::send(stream, &serde_json::to_vec(&event)?, &beside)?;
                }
                // Nobody sends on this connection any more: what can be read is its end.
                None if labyard_sys::wait::readable(stream.as_fd(), Some(Duration::ZERO))? => return Ok(()),
                None => {}
            }
        }
    }
}
