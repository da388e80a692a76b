//! Published ports: asked for, listed, taken back.

use labyard_spec::agent::Protocol;
use labyard_spec::manifest::lab::Lab;
use labyard_supervisor::client;
use labyard_supervisor::home::Home;
use labyard_supervisor::ports::{self, Port};
use labyard_supervisor::record::{Standing, State};

use super::super::args::Machine;
use super::super::naming::{self, Among};
use super::super::{Failure, Outcome, event_loop, output};
use super::args::Publish;

pub(crate) fn publish(home: &Home, wanted: &Publish) -> Outcome {
    if wanted.ports.is_empty() {
        return list(home, wanted);
    }
    let target = wanted.target.clone().ok_or_else(|| Failure::input("publish which machine's port?"))?;
    let (folder, machine) =
        naming::machine(home, &Machine { machine: target, playground: wanted.playground.clone() }, Among::Running)?;
    let client = client::attach(&folder)?;
    let runtime = event_loop()?;
    for mapping in &wanted.ports {
        let port = mapping.clone().into_machine(&machine);
        runtime.block_on(client.publish(&port, !wanted.off))?;
        if !wanted.json {
            let verb = if wanted.off { "not published any more" } else { "published" };
            output::complain(&format!("{verb}: {port}"));
        }
    }
    if wanted.json {
        list(home, &Publish { target: Some(folder.name), ports: Vec::new(), playground: None, off: false, json: true })
    } else {
        Ok(0)
    }
}

fn list(home: &Home, wanted: &Publish) -> Outcome {
    let lab =
        wanted.playground.as_deref().or(wanted.target.as_deref()).map(|name| name.split('/').next().unwrap_or(name));
    let folder = naming::lab_or_only(home, lab)?.ok_or_else(|| Failure::input("no lab is there"))?;
    let runs =
        State::read(&folder)?.is_some_and(|state| matches!(state.standing(), Standing::Running | Standing::Unattended));
    let shown = match runs.then(|| client::attach(&folder)).transpose()? {
        Some(client) => event_loop()?.block_on(client.ports())?,
        None => {
            // Nobody listens, and what will be is in the file.
            let ports = ports::read(&folder)?;
            ports.into_iter().map(|port| client::ShownPort { port, listening: false }).collect()
        }
    };
    if wanted.json {
        output::document(&serde_json::json!({ "lab": folder.name, "ports": shown }))?;
        return Ok(0);
    }
    let row = |shown: &client::ShownPort| {
        let to = format!("{}:{}", shown.port.machine, shown.port.port);
        let how = if shown.listening { "listening" } else { "not listening" };
        vec![shown.port.address().to_string(), shown.port.protocol.name().to_owned(), to, how.to_owned()]
    };
    output::table(&["HOST", "PROTOCOL", "MACHINE", "STATE"], &shown.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}

/// Whether ports that a new lab is to publish can be had now: it does not come up to find that they cannot.
pub(crate) fn check(lab: &Lab, ports: &[Port]) -> Result<(), Failure> {
    for (position, port) in ports.iter().enumerate() {
        if !lab.machines.iter().any(|machine| machine.name == port.machine) {
            return Err(Failure::input(format!("--publish {port}: the manifest has no machine `{}`", port.machine)));
        }
        let at = port.address();
        if ports.iter().take(position).any(|other| other.is_at(port)) {
            return Err(Failure::input(format!("--publish: {at} is published twice")));
        }
        let bound = match port.protocol {
            Protocol::Tcp => std::net::TcpListener::bind(at).map(drop),
            Protocol::Udp => std::net::UdpSocket::bind(at).map(drop),
        };
        bound.map_err(|error| Failure::input(format!("--publish {port}: {error}")))?;
    }
    Ok(())
}
