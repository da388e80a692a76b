//! Limits of what drives and NICs move, while machines run.

use labyard_spec::control::{Change, Limits, RateLimit};
use labyard_spec::manifest::check_name;
use labyard_supervisor::client::{self, Wish};
use labyard_supervisor::home::Home;

use super::args::{Limit, Machine};
use super::{Failure, Outcome, event_loop, naming, output};

pub(crate) fn limit(home: &Home, limit: &Limit) -> Outcome {
    let limits = limits(limit)?;
    let (target, device) = match limit.target.split_once(':') {
        Some((target, device)) => (target, Some(device)),
        None => (limit.target.as_str(), None),
    };
    let (folder, machine) = match (target.is_empty(), target.contains('/') || limit.machine_is_named(device)) {
        (true, _) => return Err(Failure::input("which lab or machine? Write LAB, LAB/MACHINE or LAB/MACHINE:DEVICE")),
        (_, true) => {
            let asked = Machine { machine: target.to_owned(), playground: limit.playground.clone() };
            let (folder, machine) = naming::machine(home, &asked, naming::Among::Running)?;
            (folder, Some(machine))
        }
        (_, false) => (naming::lab(home, target)?, None),
    };
    let change = match (device, limit.drives, limit.nics) {
        (Some(device), false, false) => of_device(device, limits)?,
        (None, true, false) if machine.is_some() => Change::MachineLimit { limits },
        (None, true, false) => Change::PlaygroundLimit { limits },
        (None, false, true) => Change::NicsLimit { limits },
        (None, ..) => {
            return Err(Failure::input(
                "all drives together or all NICs together? Give --drives or --nics, or one device as MACHINE:DEVICE",
            ));
        }
        (Some(device), ..) => {
            return Err(Failure::input(format!("`{device}` is one device: leave --drives and --nics out")));
        }
    };
    let client = client::attach(&folder)?;
    event_loop()?.block_on(client.change(&Wish { machine, change }))?;
    output::line(&format!("{}: {}", limit.target, words(limits)));
    Ok(0)
}

impl Limit {
    /// Whether the target is a machine though it has no slash.
    fn machine_is_named(&self, device: Option<&str>) -> bool {
        device.is_some() || self.playground.is_some()
    }
}

fn of_device(device: &str, limits: Limits) -> Result<Change, Failure> {
    if let Some(interface) = device.strip_prefix("eth").and_then(|number| number.parse().ok()) {
        return Ok(Change::NicLimit { interface, limits });
    }
    check_name(device).map_err(|error| Failure::input(format!("device {error}")))?;
    Ok(Change::DriveLimit { serial: device.to_owned(), limits })
}

fn limits(limit: &Limit) -> Result<Limits, Failure> {
    let rate = |per_second: Option<u64>, burst: Option<u64>, name: &str| match (per_second, burst) {
        (Some(0), _) => {
            Err(Failure::input(format!("--{name} 0 would stop everything: 1 is the least, --off lifts limits")))
        }
        (Some(per_second), burst) => Ok(Some(RateLimit { per_second, burst: burst.unwrap_or(0) })),
        (None, _) => Ok(None),
    };
    let bytes = rate(limit.bytes, limit.bytes_burst, "bytes")?;
    Ok(Limits { bytes, operations: rate(limit.ops, limit.ops_burst, "ops")? })
}

fn words(limits: Limits) -> String {
    let show = labyard_spec::manifest::size::show;
    let burst =
        |burst: u64, shown: String| if burst == 0 { String::new() } else { format!(", {shown} at once after a rest") };
    let bytes =
        limits.bytes.map(|rate| format!("{} a second{}", show(rate.per_second), burst(rate.burst, show(rate.burst))));
    let operations = limits
        .operations
        .map(|rate| format!("{} operations a second{}", rate.per_second, burst(rate.burst, rate.burst.to_string())));
    let all: Vec<_> = bytes.into_iter().chain(operations).collect();
    if all.is_empty() { "no limit".to_owned() } else { format!("at most {}", all.join(" and ")) }
}
