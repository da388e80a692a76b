//! Many machines in one lab, the largest lab, and two labs that look alike.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::host::{self, Traces};
use crate::lab::{self, Lab};
use crate::tiny::Tiny;

/// How long a machine's systemd may take in the emulated host.
const PATIENCE: Duration = Duration::from_secs(120);

fn machine(name: &str, address: &str) -> String {
    format!(
        "    - name: {name}\n      drives: [{{source: 'IMAGE', mount: /, size: 4GiB}}]
      network: {{interfaces: [{{network: local, address: {address}}}]}}\n      resources: {{ramSize: 160MiB}}\n"
    )
}

/// A target with nothing in it: systemd comes up, and starts no service. What sixteen systemds start at once keeps the one emulated
/// processor busy for more than ten minutes.
const NOTHING: &str = "      startupFiles: [{path: /etc/systemd/system/default.target, \
                       content: \"[Unit]\\nDescription=Nothing\\nDefaultDependencies=no\\n\"}]\n";

#[test]
fn five_machines_find_each_other_by_name() -> Result<()> {
    all_find_each_other(5, "")
}

#[test]
fn sixteen_machines_find_each_other_by_name() -> Result<()> {
    all_find_each_other(16, NOTHING)
}

fn all_find_each_other(many: u32, more: &str) -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let mut machines = String::new();
    for number in 0..many {
        let _ = write!(machines, "{}{more}", machine(&format!("m{number}"), &format!("172.16.0.{}", 10 + number)));
    }
    let manifest = lab::manifest(folder.path(), "many", &machines)?;
    {
        let mut lab = Lab::new("many");
        lab.up(&manifest)?;
        lab.check("each reaches the next one by its name", |lab| {
            for number in 0..many {
                let next = format!("m{}", (number + 1) % many);
                let said = lab.exec(&format!("m{number}"), &["ping", "-c", "1", "-W", "10", &next])?.expect(0)?.text();
                ensure!(said.contains(&format!("PING {next} (172.16.0.{})", 10 + (number + 1) % many)), "{said}");
            }
            Ok(())
        });
        lab.check("`ps` shows all of them ready", |lab| {
            let shown = lab.ps()?.context("the lab")?;
            let ready = shown["machines"].as_array().into_iter().flatten().filter(|machine| machine["ready"] == true);
            ensure!(ready.count() == many as usize, "{shown}");
            Ok(())
        });
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

#[test]
fn two_labs_with_the_same_addresses_see_nothing_of_each_other() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let machines = machine("a", "172.16.0.10") + &machine("b", "172.16.0.11");
    let manifests = ["left", "right"].map(|name| lab::manifest(folder.path(), name, &machines));
    {
        let (mut left, right) = (Lab::new("left"), Lab::new("right"));
        for (lab, manifest) in [&left, &right].into_iter().zip(manifests) {
            lab.up(&manifest?)?;
            let leave = format!("mkdir /srv/www && echo {} > /srv/www/who", lab.name());
            lab.exec("b", &["sh", "-ec", &leave])?.expect(0)?;
            let serve = [
                "systemd-run",
                "--quiet",
                "--unit",
                "www",
                "--working-directory",
                "/srv/www",
                "python3",
                "-m",
                "http.server",
                "80",
            ];
            // Its agent is there before its systemd.
            let asked = || Ok((lab.exec("b", &serve)?.code == 0).then_some(()));
            host::wait_for("systemd takes the wish", PATIENCE, asked, || lab.words())?;
        }
        let fetch = "import sys, time, urllib.request as u\nfor _ in range(60):\n    try: print(u.urlopen('http://b/who', timeout=10).read().decode()); break\n    \
                     except OSError as e: print(e, file=sys.stderr); time.sleep(1)\nelse: sys.exit(1)";
        left.check("the same name and address lead to the lab's own machine", |left| {
            for lab in [left, &right] {
                let said = lab.exec("a", &["python3", "-c", fetch])?.expect(0)?.text();
                ensure!(said.trim() == lab.name(), "in {}: {said}", lab.name());
            }
            Ok(())
        });
        left.check("with its own machine gone there is nobody, though the other lab has one", |left| {
            host::run(&["stop", "left/b", "--grace", "5s"])?.expect(0)?;
            let said = left.exec("a", &["ping", "-c", "2", "-W", "3", "b"])?;
            ensure!(said.code == 1 && said.text().contains("100% packet loss"), "{said:?}");
            let said = right.exec("a", &["ping", "-c", "2", "-W", "10", "b"])?.expect(0)?.text();
            ensure!(said.contains(" 0% packet loss"), "{said}");
            Ok(())
        });
        left.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

/// The largest lab: machines, drives of each, and networks.
const MACHINES: usize = 64;
const DRIVES: usize = 24;
const NETWORKS: usize = 32;

/// A manifest as large as one may be, of guests of a few bytes.
fn largest(tiny: &Tiny) -> Result<String> {
    let small = tiny.manifest("largest", &["one"])?;
    let mut manifest: Value = serde_json::from_slice(&fs::read(&small)?)?;
    let playground = &mut manifest["playground"];
    let one = playground["machines"][0].clone();
    let network = |number: usize| json!({ "name": format!("net{number}"), "subnet": format!("172.16.{number}.0/24"), "private": true });
    playground["networks"] = (0..NETWORKS).map(network).collect();
    let machine = |number: usize| {
        let mut machine = one.clone();
        machine["name"] = json!(format!("m{number}"));
        // Beside the root drive, empty ones that nobody formats.
        let drives = machine["drives"].as_array_mut().into_iter();
        drives.for_each(|drives| drives.resize(DRIVES, json!({ "size": "16MiB" })));
        let on = [number % NETWORKS, (number + 1) % NETWORKS].map(|on| json!({ "network": format!("net{on}") }));
        machine["network"]["interfaces"] = json!(on);
        machine
    };
    playground["machines"] = (0..MACHINES).map(machine).collect();
    fs::write(&small, manifest.to_string())?;
    Ok(small)
}

#[test]
fn the_largest_lab_comes_up_and_leaves_nothing() -> Result<()> {
    let before = Traces::now()?;
    let tiny = Tiny::new()?;
    let manifest = largest(&tiny)?;
    let start = Instant::now();
    host::run(&["up", &manifest, "--detach"])?.expect(0)?;
    host::run(&["wait", "largest", "--for", "kernel-started", "--timeout", "4m"])?.expect(0)?;
    eprintln!(
        "  {MACHINES} machines with {DRIVES} drives each on {NETWORKS} networks: {:.1} s",
        start.elapsed().as_secs_f32()
    );
    let said = host::run(&["status", "largest", "--json"])?.expect(0)?;
    let told: Value = serde_json::from_slice(&said.stdout)?;
    let count = |what: &str| told[what].as_array().map_or(0, Vec::len);
    ensure!(
        (count("machines"), count("drives"), count("networks"), count("nics"))
            == (MACHINES, MACHINES * DRIVES, NETWORKS, 2 * MACHINES),
        "{told}"
    );
    let has_started = |one: &Value| one["name"] == "KernelStarted";
    let is_up = |machine: &Value| machine["conditions"].as_array().is_some_and(|all| all.iter().any(has_started));
    ensure!(told["machines"].as_array().is_some_and(|machines| machines.iter().all(is_up)), "{}", told["machines"]);
    host::run(&["down", "largest", "--grace", "1s"])?.expect(0)?;
    drop(tiny);
    before.wait_until_back()
}
