//! Connections of this host carried into a guest, over a call of its agent each (`labyard_spec::agent`).
//!
//! Each direction ends by itself, and what is reset on one side is reset on the other. What the guest sends is bytes for the socket,
//! nothing more.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use labyard_spec::agent::{Dial, Kind, Protocol, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::call;
use crate::words::printable;

/// Bytes that are taken from a socket at once.
const CHUNK: usize = 16 << 10;
/// Longest datagram.
const MAX_DATAGRAM: usize = 64 << 10;
/// Senders of datagrams at one time, for each port.
const MAX_FLOWS: usize = 256;
/// Datagrams that wait for a guest; further ones are lost, as datagrams are.
const MAX_WAITING: usize = 64;
/// How long a sender of datagrams may be quiet before it is forgotten.
const FLOW_IDLE: Duration = Duration::from_secs(120);

/// The call that connects to an address as a guest reaches it.
pub fn dial(protocol: Protocol, host: &str, port: u16) -> Request {
    Request::Dial(Dial { protocol, host: host.to_owned(), port })
}

/// Carries a connection over a stream to an agent, which is asked for `request`.
///
/// # Errors
/// Why the guest has refused or reset it, or what the streams say; the connection is reset then.
pub async fn carry<S>(guest: S, mut local: TcpStream, request: &Request) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = local.set_nodelay(true);
    let carried = both_ways(guest, &mut local, request).await;
    if carried.is_err() {
        // A close without a word would look like an orderly end.
        let _ = rustix::net::sockopt::set_socket_linger(&local, Some(Duration::ZERO));
    }
    carried
}

async fn both_ways<S>(guest: S, local: &mut TcpStream, request: &Request) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    call::send(&mut to_guest, Kind::Request, &serde_json::to_vec(request)?).await?;
    let (mut from_local, mut to_local) = local.split();
    let inwards = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = from_local.read(&mut buffer).await?;
            // A guest that is gone is told about by the other direction, which may have an answer to read still.
            if call::send(&mut to_guest, Kind::Stdin, buffer.get(..n).unwrap_or_default()).await.is_err() || n == 0 {
                return std::future::pending::<io::Result<()>>().await;
            }
        }
    };
    let outwards = async {
        loop {
            match call::receive(&mut from_guest).await? {
                Some((Kind::Stdout, bytes)) if bytes.is_empty() => to_local.shutdown().await?,
                Some((Kind::Stdout, bytes)) => to_local.write_all(&bytes).await?,
                Some((Kind::Exit, _)) => return Ok(()),
                Some((Kind::Error, text)) => {
                    return Err(io::Error::other(printable(&String::from_utf8_lossy(&text))));
                }
                Some((kind, _)) => return Err(io::Error::other(format!("the agent sent {kind:?}"))),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the machine's agent went away")),
            }
        }
    };
    tokio::select! {
        ended = outwards => ended,
        failed = inwards => failed,
    }
}

/// Carries datagrams between whoever sends to `socket` and an address of a guest. Each sender has a stream of its own, which `connect`
/// opens. Never ends by itself.
///
/// # Errors
/// What the socket says.
pub async fn datagrams<S, F>(
    socket: UdpSocket,
    request: Request,
    connect: impl Fn() -> F + Clone + Send + 'static,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
{
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An answer that found nobody (icmp(7)) is reported here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let datagram = buffer.get(..len).unwrap_or_default().to_vec();
        if flows.get(&from).is_none_or(mpsc::Sender::is_closed) {
            flows.retain(|_, flow| !flow.is_closed());
            if flows.len() >= MAX_FLOWS {
                continue;
            }
            let (sender, receiver) = mpsc::channel(MAX_WAITING);
            flows.insert(from, sender);
            let (socket, request, connect) = (Arc::clone(&socket), request.clone(), connect.clone());
            tokio::spawn(async move {
                // What goes wrong with one sender is told to nobody: datagrams get lost.
                let Ok(guest) = connect().await else { return };
                let _ = flow(guest, &socket, from, &request, receiver).await;
            });
        }
        if let Some(flow) = flows.get(&from) {
            let _ = flow.try_send(datagram);
        }
    }
}

/// Carries the datagrams of one sender in a guest to and from an address here, until it has been quiet for long; `request` takes the sender.
///
/// # Errors
/// What the socket or the stream says.
pub async fn flow_out<S>(guest: S, host: &str, port: u16, request: &Request) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let to = tokio::net::lookup_host((host, port)).await?.next();
    let to = to.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))?;
    let any: std::net::IpAddr =
        if to.is_ipv4() { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    let inwards = async {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            match socket.recv(&mut buffer).await {
                Ok(len) => drop(sender.try_send(buffer.get(..len).unwrap_or_default().to_vec())),
                // A datagram that found nobody (icmp(7)); the next one may find somebody.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
    };
    tokio::select! {
        ended = flow(guest, &socket, to, request, receiver) => ended,
        failed = inwards => failed,
    }
}

async fn flow<S>(
    guest: S,
    socket: &UdpSocket,
    sender: SocketAddr,
    request: &Request,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    call::send(&mut to_guest, Kind::Request, &serde_json::to_vec(request)?).await?;
    let (heard, last_heard) = watch::channel(Instant::now());
    let inwards = async {
        let mut last_sent = Instant::now();
        loop {
            let until = last_sent.max(*last_heard.borrow()) + FLOW_IDLE;
            match timeout_at(until, datagrams.recv()).await {
                Ok(Some(datagram)) => {
                    call::send(&mut to_guest, Kind::Stdin, &datagram).await?;
                    last_sent = Instant::now();
                }
                Ok(None) => return Ok(()),
                Err(_) if *last_heard.borrow() + FLOW_IDLE > Instant::now() => {}
                Err(_) => return Ok(()),
            }
        }
    };
    let outwards = async {
        while let Some((kind, bytes)) = call::receive(&mut from_guest).await? {
            if kind != Kind::Stdout {
                return Ok(());
            }
            heard.send_replace(Instant::now());
            let _ = socket.send_to(&bytes, sender).await;
        }
        Ok(())
    };
    tokio::select! {
        ended = inwards => ended,
        ended = outwards => ended,
    }
}
