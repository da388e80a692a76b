//! Examples keep what they promise in their first lines.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::Lab;
use crate::uplink::{SERVER, World, fetch};

/// How long a machine's own services may take in the emulated host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A file of the examples.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// The manifest of an example as it is, but for where the layout of its image lies.
fn example(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = file(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let layout = host::given("LABYARD_TEST_LAYOUT")?;
    let images = layout.ancestors().nth(2).context("the folder of images")?;
    let theirs = "oci-layout:../images/";
    ensure!(text.contains(theirs), "{}: another image than the tests have", path.display());
    let path = folder.join(name.replace('/', "-"));
    std::fs::write(&path, text.replace(theirs, &format!("oci-layout:{}/", images.display())))?;
    Ok(path)
}

/// Brings an example up, checks it, and sees that nothing of it stays.
fn with_example(name: &'static str, checks: impl FnOnce(&mut Lab)) -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = example(folder.path(), &format!("{name}/lab.yaml"))?;
    {
        let mut lab = Lab::new(name);
        lab.up(&manifest)?;
        checks(&mut lab);
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

/// What a shell in the machine prints, which must end well.
fn shell(lab: &Lab, machine: &str, script: &str) -> Result<String> {
    Ok(lab.exec(machine, &["sh", "-ec", script])?.expect(0)?.text())
}

/// Fails unless the text has each of these.
fn says(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "no `{word}` in:\n{text}");
    }
    Ok(())
}

fn pings(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    Ok(lab.exec(from, &["ping", "-c", "2", "-W", "5", to])?.code == 0)
}

#[test]
fn chaos_is_what_links_are_told_and_heals() -> Result<()> {
    with_example("chaos", |lab| {
        lab.check("a link that is delayed takes its time", |lab| {
            host::run(&["net", "delay", "chaos/b", "50ms", "--jitter", "10ms"])?.expect(0)?;
            let said = lab.exec("a", &["ping", "-c", "3", "-W", "10", "b"])?.expect(0)?.text();
            // rtt min/avg/max/mdev = 101.2/… ms
            let least = said.split(" = ").nth(1).and_then(|times| times.split('/').next());
            let least: f64 = least.and_then(|least| least.parse().ok()).with_context(|| said.clone())?;
            ensure!(least >= 80.0, "{said}");
            Ok(())
        });
        lab.check("who does not hear gets no answer", |lab| {
            host::run(&["net", "cut", "chaos/c", "--only", "received"])?.expect(0)?;
            ensure!(!pings(lab, "a", "c")?, "c answers");
            Ok(())
        });
        lab.check("healed links are as they were made", |lab| {
            host::run(&["net", "heal", "chaos:local"])?.expect(0)?;
            ensure!(pings(lab, "a", "c")? && pings(lab, "c", "b")?, "not healed");
            Ok(())
        });
    })
}

#[test]
fn router_joins_segments_that_have_no_other_way() -> Result<()> {
    let _world = World::new()?;
    with_example("router", |lab| {
        lab.check("the client reaches the server through the router", |lab| {
            ensure!(pings(lab, "client", "10.30.0.11")?, "it does not");
            says(&shell(lab, "client", "ip route get 10.30.0.11")?, &["via 10.20.0.254"])
        });
        lab.check("and the outside, masqueraded", |lab| says(&fetch(lab, "client", SERVER)?.text(), &["hello"]));
        lab.check("the bastion has no way into the dmz", |lab| {
            ensure!(!pings(lab, "bastion", "10.30.0.11")?, "it has one");
            Ok(())
        });
        lab.check("without the router's link there is none", |lab| {
            host::run(&["net", "cut", "router/router:dmz"])?.expect(0)?;
            ensure!(!pings(lab, "client", "10.30.0.11")?, "there is one");
            host::run(&["net", "heal", "router/router:dmz"])?.expect(0)?;
            ensure!(pings(lab, "client", "10.30.0.11")?, "not healed");
            Ok(())
        });
    })
}

#[test]
fn storage_has_a_mirror_volumes_and_a_pool_that_are_there_after_a_restart() -> Result<()> {
    let as_promised = |lab: &Lab| -> Result<()> {
        let said = shell(lab, "vault", "cat /proc/mdstat; lvs --noheadings vault; findmnt -rno TARGET,FSTYPE")?;
        says(&said, &["[UU]", "home", "/srv/home ext4", "/srv/pool btrfs", "/srv/data xfs"])
    };
    with_example("storage", |lab| {
        lab.check("a mirror, volumes on it, a pool, and a formatted drive", as_promised);
        lab.check("a drive of the mirror may fail", |lab| {
            shell(lab, "vault", "cp -a /usr/share/perl5 /srv/home/; cp -a /usr/share/perl5 /srv/pool/projects/; sync")?;
            let said = shell(lab, "vault", "mdadm --quiet /dev/md0 --fail $(readlink -f /dev/disk/by-id/virtio-d01); cat /proc/mdstat")?;
            says(&said, &["(F)"])?;
            let said = shell(lab, "vault", "cd /dev/disk/by-id; d=$(readlink -f virtio-d01); mdadm -q /dev/md0 --remove $d; mdadm -q /dev/md0 --re-add $d || mdadm -q /dev/md0 --add $d; mdadm -q --wait /dev/md0 || true; cat /proc/mdstat")?;
            says(&said, &["[UU]"])
        });
        lab.check("the pool finds no fault with itself", |lab| {
            says(&shell(lab, "vault", "btrfs scrub start -B /srv/pool")?, &["no errors found"])
        });
        lab.check("all of it is there after a restart", |lab| {
            host::run(&["restart", "storage/vault"])?.expect(0)?;
            // Its agent listens before systemd has put the drives together.
            let there = || Ok(as_promised(lab).ok());
            host::wait_for("what was promised", PATIENCE, there, || format!("{:?}", as_promised(lab)))?;
            shell(lab, "vault", "diff -r /srv/home/perl5 /srv/pool/projects/perl5").map(drop)
        });
    })
}

#[test]
fn docker_runs_a_container_that_the_other_machine_reaches() -> Result<()> {
    with_example("docker", |lab| {
        lab.check("the engine keeps its layers on the root drive", |lab| {
            says(&shell(lab, "host", "docker info")?, &["Storage Driver: overlay2", "Cgroup Version: 2"])
        });
        lab.check("a container says hello", |lab| {
            let said = lab.exec("host", &["docker", "run", "--rm", "busybox", "echo", "hello"])?.expect(0)?;
            ensure!(said.text() == "hello\n", "{said:?}");
            Ok(())
        });
        lab.check("its published port is reached from another machine", |lab| {
            let name = shell(lab, "host", "docker run -d --name web -p 80:80 busybox httpd -f -h /etc >/dev/null; docker exec web cat /etc/hostname")?;
            let fetch = "for try in 1 2 3 4 5 6 7 8 9 10; do busybox wget -qO- http://host/hostname && exit; sleep 1; done; exit 1";
            let seen = shell(lab, "peer", fetch)?;
            ensure!(!name.is_empty() && seen == name, "{seen:?}, and it is called {name:?}");
            Ok(())
        });
    })
}

#[test]
fn wireguard_joins_two_labs_for_as_long_as_it_is_asked_to() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    {
        let (mut left, right) = (Lab::new("wg-left"), Lab::new("wg-right"));
        let manifest = example(folder.path(), "wireguard/left.yaml")?;
        let manifest = manifest.to_str().context("a path in UTF-8")?;
        host::run(&["up", manifest, "--publish", "51820:gateway:51820/udp"])?.expect(0)?;
        right.up(&example(folder.path(), "wireguard/right.yaml")?)?;
        let programs = host::given("LABYARD_LIBEXEC")?;
        let path = std::env::join_paths(
            std::iter::once(programs).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )?;
        let mut join = Command::new(file("wireguard/join"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        BufReader::new(join.stdout.take().context("its output")?).read_line(&mut said)?;
        left.check("a host of one lab reaches a host of the other", |left| {
            ensure!(said.contains("51821/udp"), "join said {said:?}");
            shell(left, "host", "for try in 1 2 3 4 5 6 7 8 9 10; do ping -c 1 -W 5 10.2.0.10 && exit; done; exit 1")
                .map(drop)
        });
        left.check("and back, through the tunnel", |left| {
            ensure!(pings(&right, "host", "10.1.0.10")?, "it does not");
            says(&shell(left, "gateway", "wg show wg0")?, &["latest handshake", "endpoint: 127.0.0.1:"])
        });
        host::signal(join.id(), "INT")?;
        host::reap(&mut join)?;
        left.check("nothing leads there once the forward has gone", |left| {
            ensure!(!pings(left, "host", "10.2.0.10")?, "something does");
            Ok(())
        });
        left.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

#[test]
fn dhcp_server_gives_an_address_and_a_name() -> Result<()> {
    with_example("dhcp", |lab| {
        lab.check("the guest has an address of the pool, and the server knows whose", |lab| {
            let said = shell(lab, "guest", "ip -br -4 address show eth0")?;
            ensure!(said.contains(" 10.20.0.1"), "{said}");
            let leases = shell(lab, "server", "cat /var/lib/misc/dnsmasq.leases")?;
            let mac = shell(lab, "guest", "cat /sys/class/net/eth0/address")?;
            says(&leases, &[mac.trim(), "10.20.0.1"])
        });
        lab.check("a name that only the server knows", |lab| {
            ensure!(pings(lab, "guest", "printer.lab")?, "{}", shell(lab, "guest", "cat /etc/resolv.conf")?);
            Ok(())
        });
    })
}

#[test]
fn cluster_of_three_loses_one_and_nothing_else() -> Result<()> {
    let members = |lab: &Lab| shell(lab, "node-1", "ETCDCTL_API=3 etcdctl member list");
    with_example("cluster", |lab| {
        lab.check("two nodes have joined", |lab| {
            let said = members(lab)?;
            ensure!(said.matches(", started, ").count() == 3, "{said}");
            Ok(())
        });
        lab.check("what is written at one is read at another, after the control plane has gone", |lab| {
            shell(lab, "node-1", "ETCDCTL_API=3 etcdctl put color blue")?;
            host::run(&["stop", "cluster/cplane"])?.expect(0)?;
            let read = "until ETCDCTL_API=3 etcdctl get --print-value-only color; do sleep 1; done";
            ensure!(shell(lab, "node-2", read)? == "blue\n", "{}", members(lab)?);
            Ok(())
        });
    })
}
