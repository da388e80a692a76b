//! All links of a lab, as a table or as JSON.

use labyard_spec::link::{LinkFaults, LinkStatus};
use labyard_supervisor::client;
use labyard_supervisor::home::Home;
use serde_json::json;

use super::super::{Failure, Outcome, event_loop, naming, output};
use super::args::{self, Show};

pub(super) fn show(home: &Home, show: &Show) -> Outcome {
    let folder = naming::lab_or_only(home, show.name.as_deref())?.ok_or_else(|| Failure::input("no lab is there"))?;
    let client = client::attach(&folder)?;
    let links = event_loop()?.block_on(client.links())?;
    if show.json {
        let links: Vec<_> = links.iter().map(document).collect();
        output::document(&json!({ "lab": folder.name, "links": links }))?;
        return Ok(0);
    }
    let rows: Vec<_> = links.iter().map(row).collect();
    output::table(&["MACHINE", "NIC", "NETWORK", "SENT", "RECEIVED", "LOST"], &rows);
    Ok(0)
}

fn row(link: &LinkStatus) -> Vec<String> {
    let nic = if link.carrier { format!("eth{}", link.interface) } else { format!("eth{} unplugged", link.interface) };
    let lost =
        |part: &str| link.counters.iter().filter(|(name, _)| name.starts_with(part)).map(|(_, n)| n).sum::<u64>();
    vec![
        link.machine.clone(),
        nic,
        link.network.clone(),
        words(&link.sent),
        words(&link.received),
        (lost("lost_") + lost("dropped_line")).to_string(),
    ]
}

fn words(faults: &LinkFaults) -> String {
    let mut words = Vec::new();
    if faults.cut {
        words.push("cut".to_owned());
    }
    match (faults.delay_us, faults.jitter_us) {
        (0, _) => {}
        (delay, 0) => words.push(args::time(delay)),
        (delay, jitter) => words.push(format!("{}±{}", args::time(delay), args::time(jitter))),
    }
    if faults.loss_ppm != 0 {
        words.push(format!("loses {}", args::percent(faults.loss_ppm)));
    }
    if faults.bits_per_second.is_some() {
        words.push(args::rate(faults.bits_per_second));
    }
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn document(link: &LinkStatus) -> serde_json::Value {
    let faults = |faults: &LinkFaults| {
        let LinkFaults { delay_us, jitter_us, loss_ppm, bits_per_second, cut } = faults;
        json!({
            "delay_us": delay_us, "jitter_us": jitter_us, "loss_ppm": loss_ppm,
            "bits_per_second": bits_per_second, "cut": cut,
        })
    };
    let counters: serde_json::Map<_, _> =
        link.counters.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "machine": link.machine, "interface": format!("eth{}", link.interface), "network": link.network,
        "carrier": link.carrier, "sent": faults(&link.sent), "received": faults(&link.received), "counters": counters,
    })
}
