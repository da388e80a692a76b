//! A listening Unix socket that answers its owner alone.

use std::io;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use crate::words::log;

/// After a failed accept, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that hangs up on other users (peer credentials, unix(7)).
pub struct SameUser(UnixListener);

impl SameUser {
    /// This socket, within an event loop.
    ///
    /// # Errors
    /// What the event loop says.
    pub fn new(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self(UnixListener::from_std(listener)?))
    }
}

impl axum::serve::Listener for SameUser {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let own = rustix::process::geteuid().as_raw();
                    if stream.peer_cred().is_ok_and(|peer| peer.uid() == own) {
                        return (stream, ());
                    }
                }
                Err(error) => {
                    log(&format!("accepting a connection: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}
