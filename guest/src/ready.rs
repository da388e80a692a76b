//! Telling the host how far this guest has come: JSON lines to CID 2 over one vsock stream.
//!
//! A host without vsock is tolerated: the guest then boots all the same and nobody hears of it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use labyard_spec::guest::{Hello, READY_PORT};
use vsock::VsockStream;

/// How long the host may take to read a last line.
const FAREWELL: Duration = Duration::from_secs(2);

/// The stream to the host.
pub(crate) struct Ready(VsockStream);

impl Ready {
    /// Connects to the host's readiness port.
    pub(crate) fn connect() -> io::Result<Self> {
        VsockStream::connect_with_cid_port(vsock::VMADDR_CID_HOST, READY_PORT).map(Self)
    }

    /// Continues a stream that another role has begun.
    pub(crate) fn from_stream(stream: OwnedFd) -> Self {
        Self(stream.into())
    }

    /// Sends one line.
    pub(crate) fn say(&mut self, hello: &Hello) -> io::Result<()> {
        let mut line = serde_json::to_vec(hello)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    /// Sends one line and waits until the host has closed, so that a power-off does not overtake it.
    pub(crate) fn say_last(mut self, hello: &Hello) -> io::Result<()> {
        self.say(hello)?;
        self.0.shutdown(std::net::Shutdown::Write)?;
        self.0.set_read_timeout(Some(FAREWELL))?;
        let _ = self.0.read(&mut [0]);
        Ok(())
    }

    /// The stream itself, to hand it to the agent.
    pub(crate) fn into_stream(self) -> OwnedFd {
        self.0.into()
    }
}
