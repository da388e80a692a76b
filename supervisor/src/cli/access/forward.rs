//! Forwards in the foreground: from here into a machine, and from a machine to here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use labyard_spec::agent::{Arrival, Kind, Listen, Protocol, Request};
use labyard_spec::guest::AGENT_PORT;
use labyard_spec::manifest::Manifest;
use labyard_supervisor::client::{self, Client, Stream};
use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::ports::Forward;
use labyard_supervisor::words::printable;
use labyard_supervisor::{call, forward};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::super::args::Machine;
use super::super::naming::{self, Among};
use super::super::{Failure, Outcome, code, event_loop, output};
use super::args::PortForward;

/// A forward with its machine.
struct Wanted {
    machine: String,
    remote: bool,
    forward: Forward,
}

pub(crate) fn port_forward(home: &Home, asked: PortForward) -> Outcome {
    let (folder, wanted) = wanted(home, asked)?;
    let client = client::attach(&folder)?;
    event_loop()?.block_on(async {
        // Before the first line says that it works.
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let (failed, mut failures) = mpsc::channel(1);
        for Wanted { machine, remote, forward } in wanted {
            let to = Arc::new(To { client: client.clone(), machine, failed: failed.clone() });
            if remote { from_machine(to, forward).await? } else { from_here(to, forward).await? }
        }
        tokio::select! {
            _ = interrupt.recv() => Ok(code::INTERRUPTED),
            _ = terminate.recv() => Ok(code::INTERRUPTED),
            Some(failure) = failures.recv() => Err(failure),
        }
    })
}

fn wanted(home: &Home, asked: PortForward) -> Result<(Folder, Vec<Wanted>), Failure> {
    let given = !asked.local.is_empty() || !asked.remote.is_empty();
    let names_machine = given || asked.playground.is_some() || asked.target.contains('/');
    let (folder, machine) = if names_machine {
        let machine = Machine { machine: asked.target, playground: asked.playground };
        let (folder, machine) = naming::machine(home, &machine, Among::Running)?;
        (folder, Some(machine))
    } else {
        (naming::lab(home, &asked.target)?, None)
    };
    if let (Some(machine), true) = (&machine, given) {
        let of = |remote| move |forward| Wanted { machine: machine.clone(), remote, forward };
        let all = asked.local.into_iter().map(of(false)).chain(asked.remote.into_iter().map(of(true))).collect();
        return Ok((folder, all));
    }
    let found = saved(&folder, machine.as_deref())?;
    if found.is_empty() {
        return Err(Failure::input(
            "nothing to forward: give -L or -R, or save forwards in the manifest (`portForwards`)",
        ));
    }
    // Whoever wrote the manifest need not be who runs this.
    let (open, held): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| asked.saved || one.reaches_out().is_none());
    for one in &held {
        let (what, why) = (one.shown(), one.reaches_out().unwrap_or_default());
        output::complain(&format!("not opened: {what}, for {why}; --saved opens what the manifest saves"));
    }
    if open.is_empty() {
        return Err(Failure::input("nothing to forward without --saved: give that, or -L and -R"));
    }
    Ok((folder, open))
}

impl Wanted {
    /// Why it is more than a way from this host's own programs into a machine.
    fn reaches_out(&self) -> Option<&'static str> {
        match self.forward.local() {
            _ if self.remote => Some("it lets the machine connect from here"),
            Ok(at) if !at.ip().is_loopback() => Some("other hosts can connect to it"),
            // One that cannot be opened says why when it is.
            _ => None,
        }
    }

    fn shown(&self) -> String {
        let Self { machine, remote, forward: Forward { bind, port, host, host_port, .. } } = self;
        let bind = if bind.is_empty() { "localhost" } else { bind };
        match remote {
            true => format!("{machine}: {bind}:{port} -> {host}:{host_port}"),
            false => format!("{bind}:{port} -> {machine}: {host}:{host_port}"),
        }
    }
}

/// The forwards that the lab's manifest saves.
fn saved(folder: &Folder, machine: Option<&str>) -> Result<Vec<Wanted>, Failure> {
    let text = folder.read(names::MANIFEST)?.context("the lab has no manifest")?;
    let manifest = Manifest::read(&String::from_utf8_lossy(&text), names::MANIFEST)?;
    let mut all = Vec::new();
    for saved in
        manifest.lab.port_forwards.iter().filter(|saved| machine.is_none_or(|machine| machine == saved.machine))
    {
        let remote = saved.kind == "remote";
        let (host, port) = (saved.local_host.clone(), saved.local_port);
        let (far_host, far_port) = (saved.remote_host.clone(), saved.remote_port);
        let (bind, listening, host, inner) =
            if remote { (far_host, far_port, host, port) } else { (host, port, far_host, far_port) };
        let (Some(inner), Some(listening)) = (inner.or(listening), listening.or(inner)) else {
            return Err(Failure::input(format!("portForwards of machine `{}`: one has no port", saved.machine)));
        };
        let host = host.unwrap_or_else(|| "localhost".to_owned());
        let bind = bind.unwrap_or_default();
        let forward = Forward { protocol: Protocol::Tcp, bind, port: listening, host, host_port: inner };
        all.push(Wanted { machine: saved.machine.clone(), remote, forward });
    }
    Ok(all)
}

/// A machine, and whom to tell when its forwards cannot go on.
struct To {
    client: Client,
    machine: String,
    failed: mpsc::Sender<Failure>,
}

impl To {
    async fn agent(&self) -> io::Result<Stream> {
        self.client.connect(&self.machine, AGENT_PORT).await.map_err(io::Error::other)
    }

    /// Says what became of one connection, where that is not an orderly end.
    fn tell(&self, at: &str, carried: io::Result<()>) {
        if let Err(error) = carried {
            output::complain(&format!("{at}: {}", labyard_supervisor::words::chain(&error)));
        }
    }
}

async fn from_here(to: Arc<To>, wanted: Forward) -> Result<(), Failure> {
    let at = wanted.local().map_err(Failure::input)?;
    let bind = |source: io::Error| Failure::input(format!("listening on {at}/{}: {source}", wanted.protocol.name()));
    let request = forward::dial(wanted.protocol, &wanted.host, wanted.host_port);
    let line = |at: SocketAddr| {
        output::line(&format!(
            "{at}/{} -> {}: {}:{}",
            wanted.protocol.name(),
            to.machine,
            wanted.host,
            wanted.host_port
        ));
    };
    if wanted.protocol == Protocol::Udp {
        let socket = UdpSocket::bind(at).await.map_err(bind)?;
        line(socket.local_addr()?);
        let own = Arc::clone(&to);
        let connect = move || {
            let to = Arc::clone(&own);
            async move { to.agent().await }
        };
        tokio::spawn(async move {
            let Err(error) = forward::datagrams(socket, request, connect).await else { return };
            let _ = to.failed.send(error.into()).await;
        });
        return Ok(());
    }
    let listener = TcpListener::bind(at).await.map_err(bind)?;
    line(listener.local_addr()?);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((local, peer)) => {
                    let (to, request) = (Arc::clone(&to), request.clone());
                    tokio::spawn(async move {
                        let carried = match to.agent().await {
                            Ok(guest) => forward::carry(guest, local, &request).await,
                            Err(error) => Err(error),
                        };
                        to.tell(&peer.to_string(), carried);
                    });
                }
                Err(error) => {
                    let _ = to.failed.send(error.into()).await;
                    return;
                }
            }
        }
    });
    Ok(())
}

async fn from_machine(to: Arc<To>, wanted: Forward) -> Result<(), Failure> {
    let mut guest = to.agent().await?;
    let request = Request::Listen(Listen { protocol: wanted.protocol, host: wanted.bind.clone(), port: wanted.port });
    call::send(&mut guest, Kind::Request, &serde_json::to_vec(&request)?).await?;
    match arrival(&mut guest).await? {
        Some(Arrival::Listening(port)) => {
            let bind = if wanted.bind.is_empty() { "127.0.0.1" } else { &wanted.bind };
            let protocol = wanted.protocol.name();
            output::line(&format!("{}: {bind}:{port}/{protocol} -> {}:{}", to.machine, wanted.host, wanted.host_port));
        }
        _ => return Err(anyhow::anyhow!("machine `{}`: its agent did not say that it listens", to.machine).into()),
    }
    tokio::spawn(async move {
        let failure = loop {
            match arrival(&mut guest).await {
                Ok(Some(Arrival::Connection(id))) => {
                    let (to, host, port) = (Arc::clone(&to), wanted.host.clone(), wanted.host_port);
                    let protocol = wanted.protocol;
                    tokio::spawn(async move {
                        let carried = async {
                            // A connection whose way on is not there is taken and let go at once, which resets it.
                            let guest = to.agent().await?;
                            let request = Request::Accept { id };
                            if protocol == Protocol::Udp {
                                return forward::flow_out(guest, &host, port, &request).await;
                            }
                            match TcpStream::connect((host.as_str(), port)).await {
                                Ok(local) => forward::carry(guest, local, &request).await,
                                Err(error) => {
                                    let mut guest = guest;
                                    call::send(&mut guest, Kind::Request, &serde_json::to_vec(&request)?).await?;
                                    Err(error)
                                }
                            }
                        };
                        to.tell(&format!("{host}:{port}"), carried.await);
                    });
                }
                Ok(Some(Arrival::Listening(_))) => {}
                Ok(None) => break anyhow::anyhow!("machine `{}` does not listen any more", to.machine).into(),
                Err(failure) => break failure,
            }
        };
        let _ = to.failed.send(failure).await;
    });
    Ok(())
}

/// The next thing that a listener of a machine says; nothing at its end.
async fn arrival(guest: &mut Stream) -> Result<Option<Arrival>, Failure> {
    match call::receive(guest).await? {
        Some((Kind::Stdout, json)) => Ok(Some(serde_json::from_slice(&json)?)),
        Some((Kind::Error, text)) => Err(anyhow::Error::msg(printable(&String::from_utf8_lossy(&text))).into()),
        _ => Ok(None),
    }
}
