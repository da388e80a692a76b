//! Something between the builder and a registry that breaks connections, or lets nothing through, and counts.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What happens to a connection's bytes on their way back.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// All of them pass.
    None,
    /// The connection is cut after so many.
    Cut(u64),
    /// After so many nothing passes any more, and the connection stays.
    Silence(u64),
    /// After so many of all connections together, every connection is cut at once.
    Dies(u64),
    /// What the builder sends is cut after so many bytes of a connection, on the first so many connections that get there.
    CutUploads(u64, u64),
}

/// A proxy that runs until the tests end.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    connections: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    most: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) fn new(to: u16, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let cuts = Arc::new(AtomicU64::new(0));
        let (count, sum) = (Arc::clone(&connections), Arc::clone(&bytes));
        let (open, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let peak = Arc::clone(&most);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                let (from, into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let cuts = Arc::clone(&cuts);
                std::thread::spawn(move || {
                    let left = |after| match fault {
                        Fault::CutUploads(_, times) => cuts.fetch_add(1, Ordering::Relaxed) < times && after > 0,
                        _ => false,
                    };
                    upload(from, into, fault, left);
                });
                peak.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let (sum, open) = (Arc::clone(&sum), Arc::clone(&open));
                std::thread::spawn(move || {
                    pass(server, client, fault, &sum);
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { port, connections, bytes, most }
    }

    /// Most connections that were open at once so far.
    pub(crate) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Bytes that the registry has sent through it so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What the builder sends; `cuts` says whether this connection is one to be cut, once it has got that far.
fn upload(mut from: TcpStream, mut to: TcpStream, fault: Fault, cuts: impl Fn(u64) -> bool) {
    let mut chunk = [0; 16 << 10];
    let (mut done, mut asked) = (0, false);
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        if to.write_all(&chunk[..len]).is_err() {
            break;
        }
        done += len as u64;
        if let Fault::CutUploads(after, _) = fault
            && done >= after
            && !std::mem::replace(&mut asked, true)
            && cuts(after)
        {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn pass(mut from: TcpStream, mut to: TcpStream, fault: Fault, sum: &AtomicU64) {
    let mut chunk = [0; 16 << 10];
    let mut done = 0;
    while let Ok(len) = from.read(&mut chunk) {
        let before = sum.fetch_add(len as u64, Ordering::Relaxed);
        let is_dead = matches!(fault, Fault::Dies(after) if before >= after);
        if len == 0 || is_dead || to.write_all(&chunk[..len]).is_err() {
            break;
        }
        done += len as u64;
        match fault {
            Fault::Cut(after) if done >= after => break,
            Fault::Silence(after) if done >= after => {
                // Until the builder goes away.
                to.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                let _ = to.read(&mut chunk);
                break;
            }
            _ => {}
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
