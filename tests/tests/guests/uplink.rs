//! Networks with a way out, and links that are slow, lossy and cut, as Linux in machines sees them.
//!
//! The host of the test has a world behind it: a network namespace at the end of a veth, with a server.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{self, Said};
use crate::lab::{self, Lab};
use crate::six;

const MACHINES: &str = "    - name: a
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.10, labyard: {address6: 'fd00:16::10'}}, {network: edge, address: 10.10.0.10}]}
      resources: {cpuCount: 1, ramSize: 256MiB}
    - name: b
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.11}]}
      resources: {cpuCount: 1, ramSize: 256MiB}
";
pub(crate) const SERVER: &str = "203.0.113.1";
pub(crate) const SERVER6: &str = "2001:db8:113::1";
const HOST: &str = "203.0.113.2";
/// Says hello to whoever comes, with their address.
const GREETER: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], 8000), family=family)
print('listening', flush=True)
while True:
    stream, peer = listener.accept()
    stream.sendall(f'hello {peer[0]}\\n'.encode())
    stream.close()
";

/// A server in a namespace of its own, which is the host's default route. Who is not root finds one that root has made.
pub(crate) struct World {
    servers: Vec<Child>,
}

fn sh(line: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        if !host::is_root() {
            return Ok(Self { servers: Vec::new() });
        }
        let mut world = Self { servers: Vec::new() };
        sh("ip netns add world && ip link add out0 type veth peer name in0 netns world && \
            ip -n world addr add 203.0.113.1/24 dev in0 && ip -n world link set in0 up && ip -n world link set lo up && \
            ip addr add 203.0.113.2/24 dev out0 && ip link set out0 up && ip route add default via 203.0.113.1 && \
            ip -n world addr add 2001:db8:113::1/64 dev in0 nodad && ip addr add 2001:db8:113::2/64 dev out0 nodad && \
            ip route add default via 2001:db8:113::1")?;
        for server in [SERVER, SERVER6] {
            world.serve(&["ip", "netns", "exec", "world"], server)?;
        }
        for own in [HOST, six::HOST6] {
            world.serve(&[], own)?;
        }
        Ok(world)
    }

    fn serve(&mut self, before: &[&str], address: &str) -> Result<()> {
        let argv = [before, &["python3", "-c", GREETER, address]].concat();
        let (program, arguments) = argv.split_first().context("a program")?;
        let mut child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        let stdout = child.stdout.take().context("its standard output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said)?;
        self.servers.push(child);
        ensure!(said.contains("listening"), "a server at {address}: {said}");
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        if host::is_root() {
            // The device first: a namespace goes in the kernel's own time, and what is in it.
            let _ = sh("ip link del out0");
            let _ = sh("ip netns del world");
        }
    }
}

#[test]
fn machines_have_a_way_out_that_nothing_comes_in_by_and_links_do_what_they_are_asked_to() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _world = World::new()?;
    let manifest = lab::manifest(folder.path(), "open", MACHINES)?;
    let text = std::fs::read_to_string(&manifest)?;
    let private = "{name: local, subnet: 172.16.0.0/24, private: true}";
    let (local, edge) = (six::LOCAL, six::EDGE);
    let networks = format!(
        "{{name: local, subnet: 172.16.0.0/24, private: true, {local}}}, {{name: edge, subnet: 10.10.0.0/24, {edge}}}"
    );
    std::fs::write(&manifest, text.replace(private, &networks))?;
    let mut lab = Lab::new("open");
    let said = lab.up(&manifest)?;
    ensure!(said.text().contains("networks with a way out: edge"), "{}{}", said.text(), said.stderr);
    ensure!(said.text().contains("; IPv6, too)"), "{}{}", said.text(), said.stderr);
    six::check(&mut lab);
    lab.check("a server outside is reached, and sees the host", |lab| {
        let said = fetch(lab, "a", SERVER)?;
        ensure!(said.text() == format!("hello {HOST}\n"), "{said:?}");
        Ok(())
    });
    lab.check("the host itself is not", |lab| {
        for address in [HOST, "10.10.0.1", "169.254.169.254"] {
            let said = fetch(lab, "a", address)?;
            ensure!(said.code != 0 && said.stdout.is_empty(), "{address}: {said:?}");
        }
        Ok(())
    });
    lab.check("a private network has no way out", |lab| {
        let said = fetch(lab, "b", SERVER)?;
        ensure!(said.code != 0, "{said:?}");
        Ok(())
    });
    lab.check("the gateway's resolver knows the machines", |lab| {
        let ask = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); \
            s.sendto(b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\1\\0\\1', ('10.10.0.1', 53)); print(s.recv(512)[-4:])";
        let said = lab.exec("a", &["python3", "-c", ask])?.expect(0)?.text();
        ensure!(said.trim() == r"b'\n\n\x00\n'", "{said}");
        lab.exec("a", &["grep", "-q", "nameserver 10.10.0.1", "/etc/resolv.conf"])?.expect(0)?;
        Ok(())
    });
    lab.check("a delay is seen by ping, both ways", delayed);
    lab.check("a cut link lets nothing pass, and a healed one does", cut);
    lab.check("a slow link is slow", slow);
    lab.check("a capture has what was sent, with right checksums", |lab| captured(lab, folder.path()));
    lab.verdict()
}

pub(crate) fn fetch(lab: &Lab, machine: &str, address: &str) -> Result<Said> {
    lab.exec(machine, &["nc", "-w", "10", address, "8000"])
}

/// The least time of a few pings from b to a, in milliseconds.
fn ping_ms(lab: &Lab) -> Result<f64> {
    let said = lab.exec("b", &["ping", "-c", "5", "-i", "0.3", "-q", "172.16.0.10"])?.expect(0)?.text();
    let least = said.split("= ").nth(1).and_then(|rest| rest.split('/').next()).context(said.clone())?;
    least.parse().with_context(|| said.clone())
}

fn net(arguments: &[&str]) -> Result<Said> {
    host::run(&[&["net"], arguments].concat())?.expect(0)
}

fn delayed(lab: &Lab) -> Result<()> {
    let before = ping_ms(lab)?;
    net(&["delay", "open/b", "400ms"])?;
    let with = ping_ms(lab)?;
    net(&["heal", "open/b"])?;
    let after = ping_ms(lab)?;
    eprintln!("    least of five pings: {before} ms, {with} ms with 400 ms each way, {after} ms healed");
    ensure!(with >= 800.0 && before < 400.0 && after < 400.0, "{before} {with} {after}");
    Ok(())
}

fn cut(lab: &Lab) -> Result<()> {
    net(&["cut", "open:local"])?;
    let said = lab.exec("b", &["ping", "-c", "2", "-W", "3", "-q", "172.16.0.10"])?;
    ensure!(said.code == 1 && said.text().contains("100% packet loss"), "{said:?}");
    let shown: Value = serde_json::from_slice(&net(&["show", "open", "--json"])?.stdout)?;
    let lost: u64 = shown["links"]
        .as_array()
        .context("links")?
        .iter()
        .filter_map(|link| link["counters"]["lost_received_cut"].as_u64())
        .sum();
    ensure!(lost >= 2, "{shown}");
    net(&["heal", "open:local"])?;
    ping_ms(lab).map(drop)
}

fn slow(lab: &Lab) -> Result<()> {
    let send = "head -c 250000 /dev/zero | nc -N -w 60 172.16.0.10 7001";
    let receive = "nc -l 7001 | wc -c";
    let took = || -> Result<f64> {
        std::thread::scope(|scope| {
            let received = scope.spawn(|| lab.exec("a", &["sh", "-c", receive]));
            lab.exec("b", &["sh", "-c", "while ! nc -z -w 1 172.16.0.10 22 2>/dev/null; do break; done; sleep 3"])?;
            let start = std::time::Instant::now();
            lab.exec("b", &["sh", "-c", send])?.expect(0)?;
            let received = received.join().map_err(|_| anyhow::anyhow!("a panic"))??.expect(0)?.text();
            ensure!(received.trim() == "250000", "{received}");
            Ok(start.elapsed().as_secs_f64())
        })
    };
    let before = took()?;
    net(&["rate", "open/b", "200kbit", "--only", "sent"])?;
    let with = took()?;
    net(&["heal", "open/b"])?;
    eprintln!("    250,000 bytes: {before:.1} s, {with:.1} s at 200 kbit/s");
    // 2 Mbit take 10 s, the queue in front of the link lets the sender go 5 s earlier at most.
    ensure!(with > 8.0, "{with}");
    Ok(())
}

fn captured(lab: &Lab, folder: &Path) -> Result<()> {
    let file = folder.join("local.pcap");
    let path = file.to_str().context("UTF-8")?;
    let mut capture = host::labyard(&["net", "pcap", "open:local", "-w", path])?.stderr(Stdio::null()).spawn()?;
    let head = || Ok(std::fs::metadata(&file).is_ok_and(|meta| meta.len() >= 24).then_some(()));
    host::wait_for("the capture's head", Duration::from_secs(60), head, String::new)?;
    ping_ms(lab)?;
    lab.exec("b", &["nc", "-z", "-w", "5", "172.16.0.10", "22"])?;
    host::signal(capture.id(), "INT")?;
    let status = capture.wait()?;
    ensure!(status.success(), "{status}");
    let said = Command::new("tcpdump").args(["-nvvr", path]).output().context("tcpdump")?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let (requests, wrong) = (text.matches("echo request").count(), text.matches("incorrect").count());
    eprintln!("    {requests} requests, {} checksums of TCP right, {wrong} wrong", text.matches("(correct)").count());
    ensure!(requests == 5 && wrong == 0 && text.contains("(correct)"), "{text}");
    Ok(())
}
