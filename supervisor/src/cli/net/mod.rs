//! What links of a running lab do to frames, and what is seen on them.

mod args;
mod capture;
mod show;

use labyard_spec::control::Change;
use labyard_spec::link::{Direction, LinkChange, LinkStatus};
use labyard_spec::manifest::check_name;
use labyard_supervisor::client::{self, Client, Wish};
use labyard_supervisor::home::{Folder, Home};

use super::args::Machine;
use super::{Failure, Outcome, event_loop, naming, output};
pub(super) use args::{HELP, Net};
use args::{Only, Target, Verb};

pub(super) fn net(home: &Home, net: Net) -> Outcome {
    match net.verb {
        Verb::Delay(delay) => {
            let change = LinkChange::Delay { delay_us: delay.time, jitter_us: delay.jitter };
            let jitter = if delay.jitter == 0 { String::new() } else { format!(" ± {}", args::time(delay.jitter)) };
            let words = format!("a delay of {}{jitter}", args::time(delay.time));
            disturb(home, &delay.target, delay.only, change, &words)
        }
        Verb::Loss(loss) => {
            let words = format!("{} of frames are lost", args::percent(loss.share));
            disturb(home, &loss.target, loss.only, LinkChange::Loss { ppm: loss.share }, &words)
        }
        Verb::Rate(rate) => {
            let change = LinkChange::Rate { bits_per_second: rate.rate.0 };
            disturb(home, &rate.target, rate.only, change, &args::rate(rate.rate.0))
        }
        Verb::Cut(cut) if cut.carrier => carrier(home, &cut.target, false),
        Verb::Cut(cut) => disturb(home, &cut.target, cut.only, LinkChange::Cut, "cut"),
        Verb::Heal(heal) => {
            if heal.only.is_none() {
                carrier_back(home, &heal.target)?;
            }
            disturb(home, &heal.target, heal.only, LinkChange::Heal, "as it was made")
        }
        Verb::Show(show) => show::show(home, &show),
        Verb::Pcap(pcap) => capture::pcap(home, &pcap),
    }
}

/// Which links are meant.
#[derive(Debug, PartialEq, Eq)]
enum Meant {
    /// All of a network.
    Network(String),
    /// Those of a machine, on one network or on all.
    Machine(String, Option<String>),
}

/// `LAB/MACHINE[:NETWORK]`, `LAB:NETWORK`, or a machine's name where only one running lab has it.
fn meant(home: &Home, target: &Target) -> Result<(Folder, Meant), Failure> {
    let (name, network) = match target.target.split_once(':') {
        Some((name, network)) => (name, Some(network)),
        None => (target.target.as_str(), None),
    };
    if let Some(network) = network {
        check_name(network).map_err(|error| Failure::input(format!("network {error}")))?;
    }
    if let (Some(network), false, None) = (network, name.contains('/'), &target.playground) {
        return Ok((naming::lab(home, name)?, Meant::Network(network.to_owned())));
    }
    let asked = Machine { machine: name.to_owned(), playground: target.playground.clone() };
    let (folder, machine) = naming::machine(home, &asked, naming::Among::Running)?;
    Ok((folder, Meant::Machine(machine, network.map(str::to_owned))))
}

/// Links of a machine; at least one.
async fn links_of(client: &Client, machine: &str, network: Option<&str>) -> Result<Vec<LinkStatus>, Failure> {
    let mut links = client.links().await?;
    links.retain(|link| link.machine == machine);
    let there: Vec<_> = links.iter().map(|link| link.network.clone()).collect();
    links.retain(|link| network.is_none_or(|network| network == link.network));
    match (links.is_empty(), network) {
        (false, _) => Ok(links),
        (true, Some(network)) => {
            let there = there.join(", ");
            Err(Failure::input(format!("machine `{machine}` is not plugged into `{network}`; it is into {there}")))
        }
        (true, None) => Err(Failure::input(format!("machine `{machine}` is not plugged into any network"))),
    }
}

fn disturb(home: &Home, target: &Target, only: Option<Only>, change: LinkChange, words: &str) -> Outcome {
    let (folder, meant) = meant(home, target)?;
    let direction = only.map_or(Direction::Both, Only::direction);
    let client = client::attach(&folder)?;
    event_loop()?.block_on(async {
        match meant {
            Meant::Network(_) if only.is_some() => {
                return Err(Failure::input("--only is of one machine: what a network does to a frame it does once"));
            }
            Meant::Network(network) => {
                let change = Change::DisturbNetwork { network, change };
                client.change(&Wish { machine: None, change }).await?;
            }
            Meant::Machine(machine, network) => {
                for LinkStatus { interface, .. } in links_of(&client, &machine, network.as_deref()).await? {
                    let change = Change::Disturb { interface, direction, change };
                    client.change(&Wish { machine: Some(machine.clone()), change }).await?;
                }
            }
        }
        Ok(())
    })?;
    let only = match only {
        Some(Only::Sent) => ", what it sends",
        Some(Only::Received) => ", what it receives",
        None => "",
    };
    output::line(&format!("{}{only}: {words}", target.target));
    Ok(0)
}

/// Pulls or plugs cables, which guests see.
fn carrier(home: &Home, target: &Target, up: bool) -> Outcome {
    set_carrier(home, target, up)?;
    output::line(&format!("{}: {}", target.target, if up { "plugged in" } else { "unplugged, as the guest sees" }));
    Ok(0)
}

fn carrier_back(home: &Home, target: &Target) -> Result<(), Failure> {
    set_carrier(home, target, true)
}

fn set_carrier(home: &Home, target: &Target, up: bool) -> Result<(), Failure> {
    let (folder, meant) = meant(home, target)?;
    let client = client::attach(&folder)?;
    event_loop()?.block_on(async {
        let links = match meant {
            Meant::Network(network) => {
                let mut links = client.links().await?;
                links.retain(|link| link.network == network);
                links
            }
            Meant::Machine(machine, network) => links_of(&client, &machine, network.as_deref()).await?,
        };
        for LinkStatus { machine, interface, carrier, .. } in links {
            if carrier != up {
                let change = Change::Link { interface, up };
                client.change(&Wish { machine: Some(machine), change }).await?;
            }
        }
        Ok(())
    })
}
