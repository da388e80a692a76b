//! Labs, machines and what their devices counted, in the text format of OpenMetrics 1.0.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use labyard_spec::control::{Milestone, Status};
use labyard_supervisor::client::Client;
use labyard_supervisor::home::Home;
use labyard_supervisor::record::Standing;
use labyard_supervisor::words::log;

use super::super::ps::Lab;

/// Content type of the format (OpenMetrics 1.0, Protocol Negotiation).
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A vmm that is slower than this has no counters this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a NIC counts that goes down, too.
const WAITING_FRAMES: &str = "waiting_frames";

/// What the vmms of labs that run say, by lab.
pub(super) async fn ask(home: &Home, labs: &[Lab]) -> BTreeMap<String, Status> {
    let mut asked = tokio::task::JoinSet::new();
    for lab in labs.iter().filter(|lab| lab.standing == Standing::Running) {
        let folder = home.folder(&lab.name);
        asked.spawn(async move {
            let name = folder.name.clone();
            let Some(client) = Client::of(&folder) else { return (name, None) };
            match tokio::time::timeout(PATIENCE, client.vmm()).await {
                Ok(Ok(status)) => (name, Some(status)),
                Ok(Err(error)) => {
                    log(&format!("metrics of lab `{name}`: {error}"));
                    (name, None)
                }
                Err(_) => (name, None),
            }
        });
    }
    let mut all = BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        if let Ok((name, Some(status))) = answer {
            all.insert(name, status);
        }
    }
    all
}

/// A value of a label (OpenMetrics 1.0, ABNF `escaped-string`).
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// One family: its head once, then its samples.
struct Family<'a> {
    text: &'a mut String,
    sample: String,
}

impl<'a> Family<'a> {
    fn new(text: &'a mut String, name: &str, kind: &str, unit: &str, help: &str) -> Self {
        let _ = writeln!(text, "# TYPE {name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(text, "# HELP {name} {help}");
        let sample = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        Self { text, sample }
    }

    fn put(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let _ = writeln!(self.text, "{}{{{}}} {value}", self.sample, labels.join(","));
    }
}

/// All of it.
pub(super) fn text(labs: &[Lab], vmms: &BTreeMap<String, Status>) -> String {
    let mut text = String::new();
    of_labs(&mut text, labs, vmms);
    of_machines(&mut text, labs);
    of_devices(&mut text, vmms);
    text.push_str("# EOF\n");
    text
}

fn of_labs(text: &mut String, labs: &[Lab], vmms: &BTreeMap<String, Status>) {
    let mut family = Family::new(text, "labyard_labs", "gauge", "", "Labs by what is true about them.");
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for standing in Standing::ALL {
        counts.insert(standing.word(), 0);
    }
    for lab in labs {
        *counts.entry(lab.standing.word()).or_default() += 1;
    }
    for (standing, count) in counts {
        family.put(&[("standing", standing)], count);
    }
    let help = "When a lab was made.";
    let mut family = Family::new(text, "labyard_lab_created_timestamp_seconds", "gauge", "seconds", help);
    for lab in labs {
        family.put(&[("lab", &lab.name)], seconds(lab.created_ms, 1000));
    }
    let help = "Whether the vmm of a lab that runs has told its counters.";
    let mut family = Family::new(text, "labyard_lab_answers", "gauge", "", help);
    for lab in labs.iter().filter(|lab| lab.standing == Standing::Running) {
        family.put(&[("lab", &lab.name)], u8::from(vmms.contains_key(&lab.name)));
    }
}

fn of_machines(text: &mut String, labs: &[Lab]) {
    let machines = || labs.iter().flat_map(|lab| lab.machines.iter().map(move |machine| (lab, machine)));
    let mut family = Family::new(text, "labyard_machine_ready", "gauge", "", "Whether a machine runs and can be used.");
    for (lab, machine) in machines() {
        family.put(&[("lab", &lab.name), ("machine", &machine.name)], u8::from(machine.ready));
    }
    let mut family = Family::new(text, "labyard_machine_cpus", "gauge", "", "vCPUs of a machine.");
    for (lab, machine) in machines() {
        family.put(&[("lab", &lab.name), ("machine", &machine.name)], machine.cpu_count);
    }
    let mut family = Family::new(text, "labyard_machine_memory_bytes", "gauge", "bytes", "Memory of a machine.");
    for (lab, machine) in machines() {
        family.put(&[("lab", &lab.name), ("machine", &machine.name)], machine.memory_mib << 20);
    }
}

fn of_devices(text: &mut String, vmms: &BTreeMap<String, Status>) {
    let machines = || vmms.iter().flat_map(|(lab, status)| status.machines.iter().map(move |machine| (lab, machine)));
    let help = "From the start of the vmm to a point of a machine's boot.";
    let mut family = Family::new(text, "labyard_machine_boot_seconds", "gauge", "seconds", help);
    for (lab, machine) in machines() {
        // A machine that has booted several times has each point several times; the last is of now.
        let points: BTreeMap<_, _> = machine.boot_us.iter().map(|(point, at_us)| (milestone(*point), *at_us)).collect();
        for (point, at_us) in points {
            let labels = [("lab", lab.as_str()), ("machine", &machine.name), ("point", point)];
            family.put(&labels, seconds(at_us, 1_000_000));
        }
    }
    let help = "Mistakes of a guest's drivers, by device.";
    let mut family = Family::new(text, "labyard_device_faults", "counter", "", help);
    for (lab, machine) in machines() {
        for (device, faults) in &machine.faults {
            family.put(&[("lab", lab), ("machine", &machine.name), ("device", device)], faults);
        }
    }
    let counters = || {
        machines().flat_map(|(lab, machine)| {
            let of = move |(device, values): &'_ (String, Vec<(String, u64)>)| {
                values.iter().map(|(name, value)| (device.clone(), name.clone(), *value)).collect::<Vec<_>>()
            };
            machine.counters.iter().flat_map(of).map(move |counter| (lab, machine, counter))
        })
    };
    let help = "What devices did, and exits of vCPUs by reason.";
    let mut family = Family::new(text, "labyard_device", "counter", "", help);
    for (lab, machine, (device, name, value)) in counters().filter(|(.., (_, name, _))| name != WAITING_FRAMES) {
        let labels = [("lab", lab.as_str()), ("machine", &machine.name), ("device", &device), ("counter", &name)];
        family.put(&labels, value);
    }
    let help = "Frames that a guest has not taken yet, or that are on their way to it.";
    let mut family = Family::new(text, "labyard_nic_waiting_frames", "gauge", "", help);
    for (lab, machine, (device, _, value)) in counters().filter(|(.., (_, name, _))| name == WAITING_FRAMES) {
        family.put(&[("lab", lab), ("machine", &machine.name), ("device", &device)], value);
    }
}

fn milestone(point: Milestone) -> &'static str {
    match point {
        Milestone::Loaded => "loaded",
        Milestone::FirstRun => "first-run",
        Milestone::FirstConsoleByte => "first-console-byte",
        Milestone::InitHello => "init-hello",
    }
}

/// A number of parts of a second as seconds, exactly.
fn seconds(parts: u64, in_a_second: u64) -> String {
    let digits = in_a_second.ilog10() as usize;
    format!("{}.{:0digits$}", parts / in_a_second, parts % in_a_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted_and_times_exact() {
        let mut text = String::new();
        let mut family = Family::new(&mut text, "labyard_x", "counter", "", "Help.");
        family.put(&[("lab", "a\"b\\c\nd")], 3);
        assert_eq!(
            text,
            "# TYPE labyard_x counter\n# HELP labyard_x Help.\nlabyard_x_total{lab=\"a\\\"b\\\\c\\nd\"} 3\n"
        );
        assert_eq!([seconds(1_700_000_000_042, 1000), seconds(7, 1_000_000)], ["1700000000.042", "0.000007"]);
    }
}
