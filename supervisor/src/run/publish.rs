//! Published ports: listeners of the supervisor that lead into machines.
//!
//! What is published is in `ports.json` and listened to whenever a supervisor runs. A port that somebody else has at a supervisor's
//! start is tried again and again, and noted once.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use labyard_spec::agent::Protocol;
use labyard_spec::control::Request;
use labyard_spec::guest::AGENT_PORT;
use tokio::net::{TcpListener, UdpSocket, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::shared::Shared;
use crate::client::ShownPort as Shown;
use crate::control::Control;
use crate::forward;
use crate::ports::{self, MAX_PORTS, Port};
use crate::words::{chain, log};

/// Connections through all published ports of a lab at one time; further ones wait in the kernel.
const MAX_CONNECTIONS: usize = 1024;
/// Between two tries to get a port that somebody else has.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// After a failed accept, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Refusal = (StatusCode, String);

struct Ports {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    /// Ports with the task of each. Held while `ports.json` is written, so that file and tasks agree.
    open: Mutex<BTreeMap<Port, Listening>>,
}

struct Listening {
    task: AbortHandle,
    bound: Arc<std::sync::atomic::AtomicBool>,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// `GET`, `POST` and `DELETE /v1/ports`. What the lab has published before is listened to from here on.
pub(super) fn routes(shared: &Arc<Shared>) -> Router {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let ports = Arc::new(Ports { shared: Arc::clone(shared), room, open: Mutex::default() });
    match ports::read(&shared.folder) {
        Ok(saved) => saved.into_iter().for_each(|port| ports.open(port, None)),
        Err(error) => shared.note(None, &format!("published ports: {}", chain(&error))),
    }
    Router::new().route("/v1/ports", get(list).post(add).delete(remove)).with_state(ports)
}

async fn list(State(ports): State<Arc<Ports>>) -> Response {
    let open = ports.lock();
    let shown: Vec<_> = open
        .iter()
        .map(|(port, listening)| Shown {
            port: port.clone(),
            listening: listening.bound.load(std::sync::atomic::Ordering::Acquire),
        })
        .collect();
    axum::Json(shown).into_response()
}

async fn add(State(ports): State<Arc<Ports>>, axum::Json(port): axum::Json<Port>) -> Result<StatusCode, Refusal> {
    if !ports.shared.state().machines.iter().any(|machine| machine.name == port.machine) {
        return Err((StatusCode::NOT_FOUND, format!("no machine `{}` in this lab", port.machine)));
    }
    let taken = |other: &Port| {
        (StatusCode::CONFLICT, format!("{} leads to {}:{} already", other.address(), other.machine, other.port))
    };
    if let Some(other) = ports.lock().keys().find(|other| other.is_at(&port)) {
        // The same once more is no error.
        return if *other == port { Ok(StatusCode::NO_CONTENT) } else { Err(taken(other)) };
    }
    let socket =
        bind(&port).await.map_err(|error| (StatusCode::CONFLICT, format!("port {}: {error}", port.address())))?;
    let mut wanted: Vec<Port> = ports.lock().keys().cloned().collect();
    if wanted.len() >= MAX_PORTS {
        return Err((StatusCode::CONFLICT, format!("the lab publishes {MAX_PORTS} ports, which is the most")));
    }
    wanted.push(port.clone());
    ports.write(&wanted)?;
    ports.open(port, Some(socket));
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(State(ports): State<Arc<Ports>>, axum::Json(port): axum::Json<Port>) -> Result<StatusCode, Refusal> {
    let left: Vec<Port> = ports.lock().keys().filter(|other| **other != port).cloned().collect();
    if left.len() == ports.lock().len() {
        return Err((StatusCode::NOT_FOUND, format!("{port} is not published")));
    }
    ports.write(&left)?;
    if let Some(listening) = ports.lock().remove(&port) {
        listening.task.abort();
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn bind(port: &Port) -> io::Result<Socket> {
    match port.protocol {
        Protocol::Tcp => TcpListener::bind(port.address()).await.map(Socket::Tcp),
        Protocol::Udp => UdpSocket::bind(port.address()).await.map(Socket::Udp),
    }
}

impl Ports {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Port, Listening>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, wanted: &[Port]) -> Result<(), Refusal> {
        ports::write(&self.shared.folder, wanted).map_err(|error| (StatusCode::BAD_GATEWAY, chain(&error)))
    }

    /// Listens, on a task of its own.
    fn open(self: &Arc<Self>, port: Port, socket: Option<Socket>) {
        let bound = Arc::new(std::sync::atomic::AtomicBool::new(socket.is_some()));
        let (ports, own, seen) = (Arc::clone(self), port.clone(), Arc::clone(&bound));
        let task = tokio::spawn(async move {
            let socket = match socket {
                Some(socket) => socket,
                None => ports.bind_some_time(&own).await,
            };
            seen.store(true, std::sync::atomic::Ordering::Release);
            ports.serve(socket, &own).await;
        });
        self.lock().insert(port, Listening { task: task.abort_handle(), bound });
    }

    async fn bind_some_time(&self, port: &Port) -> Socket {
        let mut noted = false;
        loop {
            match bind(port).await {
                Ok(socket) => return socket,
                Err(error) if !noted => {
                    noted = true;
                    self.shared.note(
                        Some(&port.machine),
                        &format!("published port {}: {error}: it is tried again", port.address()),
                    );
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn serve(self: &Arc<Self>, socket: Socket, port: &Port) {
        let request = forward::dial(port.protocol, "localhost", port.port);
        let ports = Arc::clone(self);
        let machine = port.machine.clone();
        let connect = move || {
            let (ports, machine) = (Arc::clone(&ports), machine.clone());
            async move { ports.agent(&machine).await }
        };
        let listener = match socket {
            Socket::Udp(socket) => {
                if let Err(error) = forward::datagrams(socket, request, connect).await {
                    self.shared.note(Some(&port.machine), &format!("published port {}: {error}", port.address()));
                }
                return;
            }
            Socket::Tcp(listener) => listener,
        };
        loop {
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((local, _)) => {
                    let (request, connect) = (request.clone(), connect.clone());
                    tokio::spawn(async move {
                        match connect().await {
                            // Who has connected sees how it ends; nobody else wants to know.
                            Ok(guest) => drop(forward::carry(guest, local, &request).await),
                            Err(_) => drop(rustix::net::sockopt::set_socket_linger(&local, Some(Duration::ZERO))),
                        }
                        drop(room);
                    });
                }
                Err(error) => {
                    log(&format!("published port {}: {error}", port.address()));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A stream to a machine's agent.
    async fn agent(&self, machine: &str) -> io::Result<UnixStream> {
        let folder = self.shared.folder.clone();
        let request = Request::Connect { machine: machine.to_owned(), port: AGENT_PORT };
        let dial = move || Control::connect(&folder)?.stream(&request);
        let stream = tokio::task::spawn_blocking(dial).await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }
}
