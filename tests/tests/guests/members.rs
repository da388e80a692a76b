//! Machines and networks that `up` has come to a lab that runs, and leave it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{self, Traces};
use crate::lab::{self, Lab};
use crate::uplink::{SERVER, World, fetch};

const TWO: &str = "    - name: web
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
    - name: db
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
";
const MAIL: &str = "    - name: mail
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
";

fn boot_ids(lab: &Lab) -> Result<[String; 2]> {
    let id = |machine| {
        Ok::<_, anyhow::Error>(lab.exec(machine, &["cat", "/proc/sys/kernel/random/boot_id"])?.expect(0)?.text())
    };
    Ok([id("web")?, id("db")?])
}

fn ping(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let said = lab.exec(from, &["ping", "-c", "3", "-W", "10", to])?.expect(0)?.text();
    ensure!(said.contains("3 received, 0% packet loss"), "{said}");
    Ok(())
}

#[test]
fn a_machine_comes_to_a_lab_that_runs_and_leaves_it() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let two = lab::manifest(folder.path(), "members", TWO)?;
    let more = tempfile::tempdir()?;
    let three = lab::manifest(more.path(), "members", &(TWO.to_owned() + MAIL))?;
    {
        let mut lab = Lab::new("members");
        lab.up(&two)?;
        let (ids, processes) = (boot_ids(&lab)?, lab.processes()?);
        let same = |lab: &Lab| -> Result<()> {
            ensure!(boot_ids(lab)? == ids, "a machine has booted again");
            ensure!(lab.processes()? == processes, "{processes:?}, now {:?}", lab.processes()?);
            Ok(())
        };
        lab.check("a third machine comes, and the others have not noticed", |lab| {
            lab.up(&three)?;
            same(lab)
        });
        lab.check("it is found by name, and finds the others", |lab| {
            ping(lab, "mail", "web")?;
            ping(lab, "web", "mail")?;
            ping(lab, "db", "mail")
        });
        lab.check("a machine that reboots still knows of it", |lab| {
            let db = boot_ids(lab)?[1].clone();
            // The program ends with its machine, in whatever way.
            lab.exec("db", &["systemctl", "reboot"])?;
            let rebooted = || {
                let now = lab.exec("db", &["cat", "/proc/sys/kernel/random/boot_id"])?;
                Ok((now.code == 0 && now.text() != db).then_some(()))
            };
            host::wait_for("db has rebooted", Duration::from_secs(120), rebooted, || lab.words())?;
            ping(lab, "db", "mail")
        });
        let ids = boot_ids(&lab)?;
        lab.check("it leaves, its name and its drives with it", |lab| {
            lab.up(&two)?;
            ensure!(boot_ids(lab)? == ids, "a machine has booted again");
            let shown = lab.ps()?.context("the lab")?;
            ensure!(shown["machines"].as_array().map(Vec::len) == Some(2), "{shown}");
            for machine in ["web", "db"] {
                let said = lab.exec(machine, &["cat", "/etc/hosts"])?.expect(0)?.text();
                ensure!(!said.contains("mail") && said.contains(" web\n"), "{said}");
            }
            let folder = host::given("LABYARD_HOME")?.join("playgrounds/members/machines/mail");
            ensure!(!folder.exists(), "{} is there", folder.display());
            ping(lab, "web", "db")
        });
        lab.verdict()?;
    }
    drop((folder, more));
    before.wait_until_back()
}

/// One on the network that comes, and one that comes there later.
const GATE: &str = "    - name: gate
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: edge}]}
      resources: {ramSize: 256MiB}
";
const LATE: &str = "    - name: late
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: edge}]}
      resources: {ramSize: 256MiB}
";
const PRIVATE: &str = "{name: local, subnet: 172.16.0.0/24, private: true}";

/// A manifest whose lab has the network `edge`, too, which has a way out.
fn with_edge(folder: &Path, name: &str, machines: &str) -> Result<PathBuf> {
    let manifest = lab::manifest(folder, name, machines)?;
    let text = std::fs::read_to_string(&manifest)?;
    std::fs::write(&manifest, text.replace(PRIVATE, &format!("{PRIVATE}, {{name: edge, subnet: 10.10.0.0/24}}")))?;
    Ok(manifest)
}

/// What the gateway's resolver says of a name, asked by `gate`: the last number of its address, or nothing where there is none.
fn resolved(lab: &Lab, name: &str) -> Result<Option<u8>> {
    let ask = "import socket, sys; name = sys.argv[1].encode(); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); \
        s.sendto(b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + bytes([len(name)]) + name + b'\\0\\0\\1\\0\\1', ('10.10.0.1', 53)); \
        answer = s.recv(512); print(answer[3] & 15, answer[-1])";
    let said = lab.exec("gate", &["python3", "-c", ask, name])?.expect(0)?.text();
    match said.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["0", last] => Ok(Some(last.parse()?)),
        ["3", _] => Ok(None),
        _ => anyhow::bail!("{name}: {said}"),
    }
}

/// What ways out are made of: processes of uplinks, tap devices that the vmm has, and of root devices and rules on the host, of anybody
/// else processes of pasta.
fn ways_out(lab: &Lab) -> Result<Vec<usize>> {
    let vmm = lab.ps()?.context("the lab")?["vmm_pid"].as_u64().context("a vmm")?;
    let descriptors = host::descriptors(u32::try_from(vmm)?)?;
    let taps = descriptors.iter().filter(|(link, _)| link == Path::new("/dev/net/tun")).count();
    // Of one that has ended the command line is empty, and its parent may not have heard of it.
    let processes = |part: &str| -> Result<usize> {
        let has = |pid: &Path| {
            std::fs::read(pid.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(part))
        };
        Ok(std::fs::read_dir("/proc")?.flatten().filter(|entry| has(&entry.path())).count())
    };
    let count = |program: &str, arguments: &[&str], part: &str| -> Result<usize> {
        let said = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
        Ok(String::from_utf8_lossy(&said.stdout).matches(part).count())
    };
    let mut found = vec![processes("labyard-uplink")?, taps];
    if host::is_root() {
        found.push(count("ip", &["-o", "link", "show"], ": ly-")?);
        found.push(count("nft", &["list", "tables"], "labyard_")?);
    } else {
        found.push(processes("pasta\0")?);
    }
    Ok(found)
}

/// Whether there are so many of each.
fn are(ways_out: &[usize], number: usize) -> bool {
    ways_out.iter().all(|found| *found == number)
}

#[test]
fn a_network_with_a_way_out_comes_to_a_lab_that_runs_and_leaves_it() -> Result<()> {
    // First: the first namespace with a name on a host leaves a mount behind.
    let world = World::new()?;
    let before = Traces::now()?;
    let folders = [(); 3].map(|()| tempfile::tempdir());
    let [small, large, larger] = folders;
    let (small, large, larger) = (small?, large?, larger?);
    let alone = lab::manifest(small.path(), "outward", MAIL)?;
    let open = with_edge(large.path(), "outward", &(MAIL.to_owned() + GATE))?;
    let more = with_edge(larger.path(), "outward", &(MAIL.to_owned() + GATE + LATE))?;
    {
        let mut lab = Lab::new("outward");
        lab.up(&alone)?;
        let boot = |lab: &Lab, machine| {
            Ok::<_, anyhow::Error>(lab.exec(machine, &["cat", "/proc/sys/kernel/random/boot_id"])?.expect(0)?.text())
        };
        let mail = boot(&lab, "mail")?;
        lab.check("a network with a way out comes, and its machine reaches a server outside", |lab| {
            ensure!(are(&ways_out(lab)?, 0), "{:?}", ways_out(lab)?);
            let said = lab.up(&open)?.text();
            ensure!(said.contains("network edge is new, with a way out"), "{said}");
            ensure!(are(&ways_out(lab)?, 1), "{:?}", ways_out(lab)?);
            let said = fetch(lab, "gate", SERVER)?;
            ensure!(said.text().starts_with("hello "), "{said:?}");
            ensure!(boot(lab, "mail")? == mail, "mail has booted again");
            Ok(())
        });
        lab.check("its gateway refuses the host, and who is on another network gets nowhere", |lab| {
            for (machine, address) in [("gate", "203.0.113.2"), ("gate", "10.10.0.1"), ("mail", SERVER)] {
                let said = fetch(lab, machine, address)?;
                ensure!(said.code != 0 && said.stdout.is_empty(), "{machine} to {address}: {said:?}");
            }
            Ok(())
        });
        lab.check("who comes later is found by name through the gateway, and goes out, too", |lab| {
            ensure!(resolved(lab, "late")?.is_none() && resolved(lab, "gate")? == Some(2), "before it came");
            lab.up(&more)?;
            ensure!(resolved(lab, "late")? == Some(3), "{:?}", resolved(lab, "late")?);
            let said = fetch(lab, "late", SERVER)?;
            ensure!(said.text().starts_with("hello "), "{said:?}");
            Ok(())
        });
        lab.check("who leaves is not found any more, also under another supervisor", |lab| {
            let supervisor = lab.ps()?.context("the lab")?["supervisor_pid"].as_u64().context("a supervisor")?;
            host::signal(u32::try_from(supervisor)?, "KILL")?;
            lab.up(&open)?;
            ensure!(resolved(lab, "late")?.is_none() && resolved(lab, "gate")? == Some(2), "after it left");
            Ok(())
        });
        lab.check("the network leaves, and nothing of its way out is left", |lab| {
            lab.up(&alone)?;
            // The kernel takes namespaces apart in its own time.
            let gone = || Ok(are(&ways_out(lab)?, 0).then_some(()));
            host::wait_for("nothing is left", Duration::from_secs(30), gone, || format!("{:?}", ways_out(lab)))?;
            let state = host::given("LABYARD_HOME")?.join("playgrounds/outward/state.json");
            let state: Value = serde_json::from_slice(&std::fs::read(state)?)?;
            ensure!(state["uplinks"] == Value::Array(Vec::new()), "{state}");
            ensure!(boot(lab, "mail")? == mail, "mail has booted again");
            Ok(())
        });
        lab.verdict()?;
    }
    drop((small, large, larger));
    before.wait_until_back()?;
    drop(world);
    Ok(())
}
