//! Real network stacks on a switch: the same bytes with and without offloads, cables that are pulled, and a flood of which every
//! frame that is missing is explained by a counter.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use labyard_spec::control::{Change, Reply, Request};
use serde_json::Value;

use crate::host;
use crate::lab::{self, Lab};

const MACHINES: &str = "    - name: a
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.10}]}
      resources: {cpuCount: 1, ramSize: 256MiB}
    - name: b
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.11}]}
      resources: {cpuCount: 1, ramSize: 256MiB}
    - name: c
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.12}]}
      resources: {cpuCount: 1, ramSize: 256MiB}
";
/// Emulated guests are slow, and a reboot under a flood slower.
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends numbered datagrams to everybody until it is told to stop; prints how many.
const FLOOD: &str = "
import os, socket, sys, time
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
count, pause = 0, float(sys.argv[1])
while not os.path.exists('/run/stop'):
    for _ in range(64):
        out.sendto(count.to_bytes(8, 'little') * 8, ('172.16.0.255', 7000))
        count += 1
    time.sleep(pause)
print(count)
";

/// Counts datagrams until it is told to stop and none comes any more; prints how many, and how many its socket had no room for.
const LISTEN: &str = "
import os, socket
def lost():
    lines = [line.split() for line in open('/proc/net/snmp') if line.startswith('Udp:')]
    return int(dict(zip(*lines))['RcvbufErrors'])
before = lost()
into = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
into.bind(('', 7000))
into.settimeout(2)
open('/run/listening', 'w').close()
seen = set()
while True:
    try:
        seen.add(int.from_bytes(into.recv(100)[:8], 'little'))
    except TimeoutError:
        if os.path.exists('/run/stop'):
            break
print(len(seen), lost() - before)
";

#[test]
fn guests_talk_with_and_without_offloads_and_every_missing_frame_is_explained() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), "wires", MACHINES)?;
    let mut lab = Lab::new("wires");
    lab.up(&manifest)?;
    lab.check("offloads are agreed on", offloads_are_on);
    lab.check("the same bytes arrive with offloads", |lab| same_bytes_both_ways(lab, "with offloads"));
    lab.check("large segments are cut for a machine that takes none", cut_for_one);
    lab.check("the same bytes arrive without offloads", without_offloads);
    lab.check("a pulled cable is seen by the guest", cable);
    lab.check("a flood while one reboots loses nothing without a counter", flood);
    lab.check("no driver has made a mistake", no_faults);
    lab.verdict()
}

/// How long the long version of a thing is, or the short one.
fn soak<T>(long: T, short: T) -> T {
    if crate::is_soak() { long } else { short }
}

fn shell(lab: &Lab, machine: &str, script: &str) -> Result<String> {
    Ok(lab.exec(machine, &["sh", "-ec", script])?.expect(0).with_context(|| format!("{machine}: {script}"))?.text())
}

fn offloads_are_on(lab: &Lab) -> Result<()> {
    // Linux takes this one only when it is asked to; it could not if the device had not offered it.
    let shown = shell(lab, "a", "ethtool -K eth0 tx-udp-segmentation on; ethtool -k eth0")?;
    let wanted = [
        "tx-checksumming",
        "rx-checksumming",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
        "tx-udp-segmentation",
        "rx-gro-hw",
    ];
    for name in wanted {
        let on = shown.lines().any(|line| line.trim().starts_with(&format!("{name}: on")));
        ensure!(on, "{name} is not on:\n{shown}");
    }
    Ok(())
}

/// Sends a file with netcat and compares checksums, then runs iperf3; both both ways.
fn same_bytes_both_ways(lab: &Lab, how: &str) -> Result<()> {
    let mebibytes = soak(512, 24);
    for (from, to) in [("a", "b"), ("b", "a")] {
        std::thread::scope(|scope| {
            let listener = scope.spawn(move || shell(lab, to, "nc -l -p 9000 | sha256sum"));
            // Tried again until somebody listens.
            let send = format!(
                "head -c {mebibytes}M /dev/urandom > /root/blob; sha256sum < /root/blob; \
                 until nc -N {to} 9000 < /root/blob 2>/dev/null; do sleep 0.2; done; rm /root/blob"
            );
            let sent = shell(lab, from, &send)?;
            let got = listener.join().ok().context("the listener's thread")??;
            ensure!(sent == got && sent.len() > 60, "{from} sent {sent}, {to} got {got}");
            Ok(())
        })?;
    }
    shell(lab, "b", "pidof iperf3 || iperf3 -s -D")?;
    let seconds = soak("60", "3");
    for (direction, extra) in [("a to b", ""), ("b to a", "-R")] {
        let run =
            format!("until iperf3 -c b -t {seconds} -J {extra} > /root/report; do sleep 0.2; done; cat /root/report");
        let report: Value = serde_json::from_str(&shell(lab, "a", &run)?)?;
        let received = report["end"]["sum_received"]["bits_per_second"].as_f64().context("bits_per_second")?;
        eprintln!("          {direction}, {how}: {:.0} Mbit/s", received / 1e6);
        ensure!(received > 0.0, "{report}");
    }
    Ok(())
}

/// b turns off what it takes through the control queue; a goes on sending large segments.
fn cut_for_one(lab: &Lab) -> Result<()> {
    shell(lab, "b", "ethtool -K eth0 rx-gro-hw off; ethtool -k eth0 | grep 'rx-gro-hw: off'")?;
    let before = counters(lab, "b")?;
    same_bytes_both_ways(lab, "one takes no large segments")?;
    let after = counters(lab, "b")?;
    let frames = after.get("received_frames") - before.get("received_frames");
    let own = shell(lab, "b", "cat /sys/class/net/eth0/statistics/rx_packets")?;
    ensure!(frames > 10_000, "{frames} frames for 24 MiB");
    ensure!(own.trim().parse::<u64>()? > frames, "the guest has seen {own} frames of {frames}");
    Ok(())
}

fn without_offloads(lab: &Lab) -> Result<()> {
    for machine in ["a", "b"] {
        // Checksums towards a guest are fixed in Linux's driver, so `rx off` may change nothing.
        shell(
            lab,
            machine,
            "ethtool -K eth0 tso off gso off tx off gro off rx-gro-hw off; ethtool -K eth0 rx off || true",
        )?;
        let shown = shell(lab, machine, "ethtool -k eth0")?;
        for name in ["tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"] {
            ensure!(shown.lines().any(|line| line.trim().starts_with(&format!("{name}: off"))), "{name}:\n{shown}");
        }
    }
    same_bytes_both_ways(lab, "without offloads")
}

fn cable(lab: &Lab) -> Result<()> {
    let pull = |up: bool| {
        let change = Change::Link { interface: 0, up };
        let reply = lab.control(&Request::Change { machine: Some("c".into()), change })?;
        ensure!(reply == Reply::Done, "{reply:?}");
        let carrier = format!("{}\n", u8::from(up));
        let look = || Ok((shell(lab, "c", "cat /sys/class/net/eth0/carrier")? == carrier).then_some(()));
        host::wait_for("the guest's carrier", PATIENCE, look, || lab.words())
    };
    pull(false)?;
    let shown = shell(lab, "c", "ip link show eth0")?;
    ensure!(shown.contains("NO-CARRIER"), "{shown}");
    let before = counters(lab, "c")?;
    let said = lab.exec("a", &["ping", "-c", "2", "-W", "1", "172.16.0.12"])?;
    ensure!(said.code != 0, "{said:?}");
    ensure!(counters(lab, "c")?.get("dropped_link_down") > before.get("dropped_link_down"), "not counted");
    pull(true)?;
    lab.exec("a", &["ping", "-c", "2", "-W", "20", "172.16.0.12"])?.expect(0)?;
    let none = Change::Link { interface: 7, up: true };
    let reply = lab.control(&Request::Change { machine: Some("c".into()), change: none })?;
    ensure!(matches!(&reply, Reply::Failed(why) if why.contains("interface 7")), "{reply:?}");
    Ok(())
}

fn flood(lab: &Lab) -> Result<()> {
    let boot_id = || shell(lab, "b", "cat /proc/sys/kernel/random/boot_id");
    let first = boot_id()?;
    let before = [counters(lab, "a")?, counters(lab, "b")?, counters(lab, "c")?];
    let pause = soak("0", "0.01");
    let (sent, heard) = std::thread::scope(|scope| -> Result<_> {
        let listener = scope.spawn(|| lab.exec("c", &["python3", "-c", LISTEN])?.expect(0));
        let listening = || Ok((lab.exec("c", &["test", "-e", "/run/listening"])?.code == 0).then_some(()));
        host::wait_for("a listener", PATIENCE, listening, || lab.words())?;
        let sender = scope.spawn(move || lab.exec("a", &["python3", "-c", FLOOD, pause])?.expect(0));
        let reboot = || -> Result<()> {
            // The machine goes away under the program, so how that ends is not looked at.
            lab.exec("b", &["systemctl", "reboot", "--force"])?;
            host::wait_for(
                "b: another boot",
                PATIENCE,
                || Ok(boot_id().ok().filter(|now| *now != first)),
                || lab.words(),
            )?;
            Ok(())
        };
        let outcome = (0..soak(10, 1)).try_for_each(|_| reboot());
        shell(lab, "a", "touch /run/stop")?;
        let sent = sender.join().ok().context("the sender's thread")??;
        shell(lab, "c", "touch /run/stop")?;
        let heard = listener.join().ok().context("the listener's thread")??;
        outcome.map(|()| (sent.text(), heard.text()))
    })?;
    let sent: u64 = sent.trim().parse().with_context(|| sent.clone())?;
    let (got, no_room) = heard.trim().split_once(' ').context("two numbers")?;
    let (got, no_room): (u64, u64) = (got.parse()?, no_room.parse()?);
    let after = [counters(lab, "a")?, counters(lab, "b")?, counters(lab, "c")?];
    let grown = |machine: usize, name: &str| after[machine].get(name) - before[machine].get(name);
    let dropped = |machine| {
        let names = ["dropped_backlog_full", "dropped_link_down", "dropped_broken", "dropped_unplugged"];
        names.iter().map(|name| grown(machine, name)).sum::<u64>()
    };
    let offered = |machine| grown(machine, "received_frames") + dropped(machine) + after[machine].get("waiting_frames");
    eprintln!(
        "          {sent} sent; c: {got} heard, {} dropped by the switch, {no_room} by its socket; b, which rebooted: {} dropped",
        dropped(2),
        dropped(1)
    );
    ensure!(grown(0, "sent_frames") >= sent, "{sent} datagrams, {} frames", grown(0, "sent_frames"));
    for machine in [1, 2] {
        ensure!(offered(machine) >= sent, "machine {machine}: {} frames of {sent}", offered(machine));
    }
    ensure!(dropped(1) > 0, "b was away and missed nothing");
    let (missing, explained, others) = (sent - got, dropped(2) + no_room, offered(2) - sent);
    ensure!(missing <= explained, "{missing} are missing, {explained} are explained");
    // What was dropped beside the flood is at most what came beside it.
    ensure!(explained - missing <= others, "{explained} were dropped, {missing} are missing, {others} others came");
    Ok(())
}

fn no_faults(lab: &Lab) -> Result<()> {
    for machine in ["a", "b", "c"] {
        let counters = counters(lab, machine)?;
        ensure!(counters.get("faults") == 0, "{machine}: {counters:?}");
    }
    Ok(())
}

/// Counters of a machine's first NIC.
#[derive(Debug)]
struct Counters(Vec<(String, u64)>);

impl Counters {
    fn get(&self, name: &str) -> u64 {
        self.0.iter().find(|(found, _)| found == name).map_or(0, |(_, value)| *value)
    }
}

fn counters(lab: &Lab, machine: &str) -> Result<Counters> {
    let Reply::Status(status) = lab.control(&Request::Status)? else { anyhow::bail!("no status") };
    let machine = status.machines.into_iter().find(|found| found.name == machine).context("no such machine")?;
    let counters = machine.counters.into_iter().find(|(device, _)| device == "net eth0").context("no NIC")?;
    Ok(Counters(counters.1))
}
