//! The caller's side of the control socket: one connection, one request at a time, each with a deadline.
//!
//! The vmm may have been taken over by a guest. What it sends is bounded, parsed strictly, and never trusted with more than its
//! own machines: a reply that makes no sense is an error of this one request.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use labyard_spec::control::{Event, MAX_MESSAGE_BYTES, PROTOCOL, Reply, Request, Status};
use labyard_sys::message;

use crate::home::{Folder, HomeError, names};

/// How long the vmm may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ControlError {
    #[error(transparent)]
    Connect(#[from] HomeError),
    #[error("the vmm's control socket: {doing}")]
    Socket { doing: &'static str, source: io::Error },
    #[error("the vmm hung up")]
    Closed,
    #[error("the vmm's answer makes no sense")]
    Nonsense(#[from] serde_json::Error),
    #[error("the vmm answered something else: {0}")]
    Unexpected(String),
    #[error("the vmm speaks protocol {vmm}, this labyard {PROTOCOL}; use programs of one version")]
    Protocol { vmm: u32 },
    #[error("{0}")]
    Failed(String),
}

/// A connection.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
}

impl Control {
    /// Connects to a playground's vmm.
    ///
    /// # Errors
    /// Where nobody listens, or it is not the same user.
    pub fn connect(folder: &Folder) -> Result<Self, ControlError> {
        let control = Self { stream: folder.connect(names::CONTROL_SOCKET)? };
        control.patience(Some(PATIENCE))?;
        Ok(control)
    }

    /// How long the vmm may take from now on; for ever where missing.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn patience(&self, limit: Option<Duration>) -> Result<(), ControlError> {
        let set = self.stream.set_read_timeout(limit).and_then(|()| self.stream.set_write_timeout(limit));
        set.map_err(|source| ControlError::Socket { doing: "setting a deadline", source })
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// [`ControlError::Failed`] with the vmm's words where it refuses; anything else where the conversation breaks.
    pub fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ControlError> {
        let body = serde_json::to_vec(request)?;
        message::send(&self.stream, &body, descriptors)
            .map_err(|source| ControlError::Socket { doing: "sending a request", source })?;
        let (body, descriptors) = self.receive("waiting for an answer")?;
        match serde_json::from_slice(&body)? {
            Reply::Failed(text) => Err(ControlError::Failed(text)),
            reply => Ok((reply, descriptors)),
        }
    }

    /// Sends a request that is answered by `Done`.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn tell(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        match self.ask(request, descriptors)? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(ControlError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Asks for the state of everything, and makes sure that both speak one protocol.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn status(&self) -> Result<Status, ControlError> {
        match self.ask(&Request::Status, &[])? {
            (Reply::Status(status), _) if status.protocol == PROTOCOL => Ok(status),
            (Reply::Status(status), _) => Err(ControlError::Protocol { vmm: status.protocol }),
            (other, _) => Err(ControlError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Sends a request whose answer brings one end of a stream.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn stream(&self, request: &Request) -> Result<UnixStream, ControlError> {
        match self.ask(request, &[])? {
            (Reply::Done, descriptors) => {
                let mut descriptors = descriptors.into_iter();
                match (descriptors.next(), descriptors.next()) {
                    (Some(stream), None) => Ok(stream.into()),
                    _ => Err(ControlError::Unexpected("not exactly one descriptor came with it".to_owned())),
                }
            }
            (other, _) => Err(ControlError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Turns this connection into a stream of events, which has no reply and no deadline.
    ///
    /// # Errors
    /// Where the request cannot be sent.
    pub fn events(self, after: u64) -> Result<Events, ControlError> {
        let body = serde_json::to_vec(&Request::Events { after })?;
        message::send(&self.stream, &body, &[])
            .map_err(|source| ControlError::Socket { doing: "asking for events", source })?;
        self.patience(None)?;
        Ok(Events { control: self })
    }

    fn receive(&self, doing: &'static str) -> Result<(Vec<u8>, Vec<OwnedFd>), ControlError> {
        message::recv(&self.stream, MAX_MESSAGE_BYTES)
            .map_err(|source| ControlError::Socket { doing, source })?
            .ok_or(ControlError::Closed)
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    control: Control,
}

impl Events {
    /// The next one, with the stream that may have come beside it.
    ///
    /// # Errors
    /// Where the vmm hangs up or talks nonsense.
    pub fn next(&self) -> Result<(Event, Option<UnixStream>), ControlError> {
        let (body, descriptors) = self.control.receive("waiting for an event")?;
        Ok((serde_json::from_slice(&body)?, descriptors.into_iter().next().map(UnixStream::from)))
    }
}
