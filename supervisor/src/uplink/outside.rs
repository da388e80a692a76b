//! The parent's side: builds the uplink, keeps it true while it is there, and takes it down.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use labyard_spec::net::Ipv4Subnet;
use labyard_spec::uplink::UplinkSpec;
use labyard_sys::filter::{self, Leave};
use labyard_sys::landlock::{self, Access, Beside};
use labyard_sys::{confine, message, spawn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::inside::{self, ARGUMENT, Ask, MAX_BYTES, SOCKET, Told};
use super::names::{Names, RESOLV_CONF};
use super::netlink;
use super::rules::{self, Host, Others, Prefix, UP};
use super::six;
use super::tables::{Known, Tables};

/// How long pasta may take until its device is there.
const PASTA_WITHIN: Duration = Duration::from_secs(10);
/// How much longer for IPv6, which it configures right after IPv4 or not at all.
const PASTA_SIX_WITHIN: Duration = Duration::from_secs(1);
/// How long the child may take to cut the way out.
const CUT_WITHIN: Duration = Duration::from_secs(5);
const PASTA_LOOK: Duration = Duration::from_millis(20);
/// Between the namespace and the host: addresses for benchmarks between networks (RFC 2544), which nobody should meet. Of these 131,072,
/// four are taken at a time.
const BETWEEN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const BLOCKS: u32 = 1 << 15;

/// A way out.
pub(super) struct Uplink {
    /// What it is, in words.
    pub(super) way: String,
    child: Namespace,
    host: Host,
    /// Where the host's addresses are read, opened while files could be.
    addresses: Addresses,
    changes: OwnedFd,
    /// Where the namespace's devices come and go, and the taps among them: it ends with the last one.
    devices: OwnedFd,
    taps: Vec<String>,
    tables: Tables,
    others: Others,
    /// Whatever else must live as long: pasta, or who owns the host's rules.
    helper: Child,
    is_root: bool,
}

/// The child that keeps the namespace.
struct Namespace {
    socket: UnixStream,
    child: Child,
}

impl Namespace {
    fn start() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("starting its own child: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        spawn::give(&mut command, vec![(theirs.into(), SOCKET)]);
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let namespace = Self { socket: ours, child };
        namespace.told()?;
        Ok(namespace)
    }

    fn ask(&self, ask: &Ask) -> Result<(String, Vec<OwnedFd>), String> {
        self.ask_with(ask, &[])
    }

    fn ask_with(&self, ask: &Ask, beside: &[BorrowedFd<'_>]) -> Result<(String, Vec<OwnedFd>), String> {
        let body = serde_json::to_vec(ask).map_err(|error| error.to_string())?;
        message::send(&self.socket, &body, beside).map_err(|error| format!("its own child: {error}"))?;
        self.told()
    }

    fn told(&self) -> Result<(String, Vec<OwnedFd>), String> {
        let received = message::recv(&self.socket, MAX_BYTES).map_err(|error| format!("its own child: {error}"))?;
        let (body, beside) = received.ok_or("its own child ended")?;
        let told: Told = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        told.map(|said| (said, beside))
    }

    fn run(&self, argv: &[&str], input: &str) -> Result<String, String> {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        self.ask(&Ask::Run(argv, input.to_owned())).map(|(said, _)| said)
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        self.ask(&Ask::Set(name.to_owned(), value.to_owned())).map(|_| ())
    }

    fn ip(&self, batch: &str) -> Result<(), String> {
        self.run(&["ip", "-batch", "-"], batch).map(|_| ())
    }
}

impl Uplink {
    /// Builds it, with the taps in the order of the networks.
    pub(super) fn build(spec: &UplinkSpec, listener: UnixListener) -> Result<(Self, Vec<OwnedFd>), String> {
        let asked = six::is_asked(spec);
        let spec = &if six::is_there() { spec.clone() } else { six::without(spec) };
        let child = Namespace::start()?;
        let names: Vec<_> = (0..spec.networks.len()).map(rules::tap).collect();
        let devices = child.ask(&Ask::Devices)?.1.pop().ok_or("no socket that follows devices")?;
        let (_, taps) = child.ask(&Ask::Taps(names.clone()))?;
        if taps.len() != spec.networks.len() {
            return Err(format!("{} taps for {} networks", taps.len(), spec.networks.len()));
        }
        // Before anything can pass: nobody is to see the moment between.
        let changes = netlink::follow(netlink::ADDRESSES)
            .map_err(|error| format!("listening for the host's addresses: {error}"))?;
        let addresses = Addresses::open(six::is_asked(spec))?;
        let host = addresses.read()?;
        let others = Others { four: spec.others.clone(), six: host.six.is_some().then(|| spec.others6.clone()) };
        child.run(&["nft", "-f", "-"], &(rules::inside(&spec.networks, &host) + &rules::others(&others)))?;
        let is_root = rustix::process::geteuid().is_root();
        let mut block6 = host.six.as_ref().map(|host| {
            if is_root { six::have_host_forward() } else { six::has_route() }.and_then(|()| six::free_block(spec, host))
        });
        if host.six.is_some() {
            for (name, value) in six::settings(spec, block6.as_ref().is_some_and(Result::is_ok)) {
                child.set(&name, value)?;
            }
        } else {
            // Of a kernel without IPv6 there is nothing to switch off.
            let _ = child.set("ipv6/conf/all/disable_ipv6", "1");
        }
        let mut batch = String::from("link set lo up\n");
        for (network, index) in spec.networks.iter().zip(0..) {
            let (tap, prefix) = (rules::tap(index), network.subnet.prefix());
            let (mac, mtu, gateway) = (network.mac, network.mtu, network.gateway);
            batch.push_str(&format!(
                "link set {tap} address {mac} mtu {mtu} up\naddr add {gateway}/{prefix} dev {tap}\n"
            ));
            if let Some(six) = network.six {
                batch.push_str(&format!("addr add {}/{} dev {tap} nodad\n", six.gateway, six.subnet.prefix()));
            }
        }
        child.ip(&batch)?;
        child.set("ipv4/ip_forward", "1")?;
        let gateways = spec.networks.iter().map(|network| network.gateway).collect();
        let (_, sockets) = child.ask(&Ask::Resolvers(gateways))?;
        let known: Vec<_> = spec.networks.iter().map(|network| Known::new(&network.names, &network.names6)).collect();
        let serving = |error: std::io::Error| format!("answering about names: {error}");
        let resolvers = Names::new(&known, sockets).map_err(serving)?;
        let tables = Tables::new(listener, spec, &known).map_err(serving)?;
        let block = free_block(spec, &host.four)?;
        let led6 = block6.as_ref().and_then(|block| block.as_ref().ok());
        let (mut way, helper) = match is_root {
            true => (format!("veth and nftables, {}", block.host), veth(&child, &block, led6)?),
            false => match pasta(&child, &block, led6) {
                Err(why) if led6.is_some() => {
                    block6 = Some(Err(why));
                    child.set("ipv6/conf/default/disable_ipv6", "1")?;
                    ("pasta".to_owned(), pasta(&child, &block, None)?)
                }
                built => ("pasta".to_owned(), built?),
            },
        };
        way.push_str(&match block6 {
            Some(Ok(_)) => "; IPv6, too".to_owned(),
            Some(Err(why)) => format!("; no IPv6: {why}"),
            None if asked => "; no IPv6: the host's kernel has none".to_owned(),
            None => String::new(),
        });
        // From here on strangers are heard: guests ask for names.
        child.ask(&Ask::Seal)?;
        confine_self(&[child.child.id(), helper.id()])?;
        std::thread::Builder::new().name("names".to_owned()).spawn(|| resolvers.serve()).map_err(serving)?;
        Ok((Self { way, child, host, addresses, changes, devices, taps: names, tables, others, helper, is_root }, taps))
    }

    /// Keeps the host's addresses out of reach until the vmm has ended, or has let go of all taps.
    pub(super) fn stay(mut self, vmm: &OwnedFd) -> Result<(), String> {
        let child = self.child.child.id().cast_signed();
        let [child, helper] = [child, self.helper.id().cast_signed()].map(|pid| {
            let pid = Pid::from_raw(pid).ok_or("no pid")?;
            pidfd_open(pid, PidfdFlags::empty()).map_err(|error| format!("watching a child: {error}"))
        });
        let (child, helper) = (child?, helper?);
        let mut guards_alone = false;
        while self.is_used() {
            let told = self.tables.listener();
            let mut fds =
                [vmm.as_fd(), child.as_fd(), helper.as_fd(), self.changes.as_fd(), self.devices.as_fd(), told.as_fd()]
                    .map(|fd: BorrowedFd<'_>| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(|error| format!("waiting: {error}"))?,
            };
            let [ended, lost, broken, changed, devices, told] = fds.map(|fd| !fd.revents().is_empty());
            if ended {
                return Ok(());
            }
            if broken || lost && !self.is_root {
                let what = if broken { &self.way } else { "its own child" };
                return Err(format!("{what} ended: its networks have no way out any more"));
            }
            if lost {
                // The veth is there as long as somebody has a tap, and nobody is left who could take it away: the host's own rules stay.
                eprintln!(
                    "error: uplink: its own child ended: the host's rules stand, and nothing is changed any more"
                );
                guards_alone = true;
            }
            if guards_alone {
                return self.guard(vmm);
            }
            if changed {
                netlink::take(&self.changes);
                let now = self.addresses.read()?;
                if now != self.host {
                    self.child.ask(&Ask::Addresses(now.clone()))?;
                    self.host = now;
                }
            }
            if devices {
                netlink::take(&self.devices);
            }
            if told {
                let Self { tables, child, others, .. } = &mut self;
                tables.hear(|four, six| {
                    let now = Others { four: four.to_vec(), six: others.six.is_some().then(|| six.to_vec()) };
                    if *others != now {
                        child.ask(&Ask::Others(now.clone()))?;
                        *others = now;
                    }
                    Ok(())
                });
            }
        }
        Ok(())
    }

    /// Keeps the host's rules until the vmm has ended, or has let go of all taps.
    fn guard(&self, vmm: &OwnedFd) -> Result<(), String> {
        while self.is_used() {
            let mut fds = [vmm.as_fd(), self.devices.as_fd()]
                .map(|fd: BorrowedFd<'_>| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(|error| format!("waiting: {error}"))?,
            };
            let [ended, _] = fds.map(|fd| !fd.revents().is_empty());
            if ended {
                break;
            }
            netlink::take(&self.devices);
        }
        Err("its own child ended before".to_owned())
    }

    /// Whether anybody has a tap of it still. Whoever was to have them may have been killed before.
    fn is_used(&self) -> bool {
        self.taps.iter().any(|tap| netlink::has_device(&self.devices, tap))
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        // The child goes when nobody speaks to it any more, and takes the way out with it. Only then nobody needs the host's rules.
        let _ = rustix::net::shutdown(&self.child.socket, rustix::net::Shutdown::Both);
        let until = Instant::now() + CUT_WITHIN;
        while Instant::now() < until && self.child.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(PASTA_LOOK);
        }
        for child in [&mut self.child.child, &mut self.helper] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Four addresses between the namespace and the host.
struct Block {
    host: Ipv4Addr,
    inner: Ipv4Addr,
}

/// A block that neither the lab nor the host has a use for.
fn free_block(spec: &UplinkSpec, host: &[Prefix<Ipv4Addr>]) -> Result<Block, String> {
    let begin = std::process::id();
    let block = (0..BLOCKS).find_map(|step| {
        let first = BETWEEN.to_bits() + (begin.wrapping_add(step) % BLOCKS) * 4;
        let subnet = Ipv4Subnet::containing(Ipv4Addr::from_bits(first), 30)?;
        let free = spec.networks.iter().all(|network| !network.subnet.overlaps(subnet))
            && !host.iter().any(|own| own.is_beside(subnet.network(), 30));
        let address = |number| Ipv4Addr::from_bits(first + number);
        free.then(|| Block { host: address(1), inner: address(2) })
    });
    block.ok_or_else(|| format!("no four free addresses in {BETWEEN}/15"))
}

/// The way out for root.
fn veth(child: &Namespace, Block { host, inner }: &Block, six: Option<&six::Block>) -> Result<Child, String> {
    let pid = child.child.id();
    let (device, table) = (format!("ly-{pid}"), format!("labyard_{pid}"));
    let owner = own_rules(child, &rules::outside(&table, &device, *inner, six.map(|six| six.inner)), &table)?;
    let own = |batch: &str| inside::run_program(&["ip", "-batch", "-"].map(str::to_owned), batch).map(|_| ());
    let built = (|| {
        own(&format!(
            "link add {device} type veth peer name {UP} netns {pid}\naddr add {host}/30 dev {device}\nlink set {device} up\n"
        ))?;
        child.ip(&format!("addr add {inner}/30 dev {UP}\nlink set {UP} up\nroute add default via {host}\n"))?;
        if let Some(block) = six {
            six::open_device(&device)?;
            let [ours, theirs] = six::veth(block, &device);
            own(&ours)?;
            child.ip(&theirs)?;
        }
        let forward = "/proc/sys/net/ipv4/ip_forward";
        match std::fs::read_to_string(forward).is_ok_and(|text| text.trim() == "1") {
            true => Ok(()),
            false => std::fs::write(forward, "1").map_err(|error| format!("{forward}: {error}")),
        }
    })();
    match built {
        Ok(()) => Ok(owner),
        Err(why) => {
            let mut owner = owner;
            let _ = owner.kill();
            let _ = owner.wait();
            Err(why)
        }
    }
}

/// Rules of the host that belong to a process of ours: the kernel removes them when it ends (nft(8), flags owner). It ends when nobody can
/// tell it anything any more, neither this process nor the child, which takes the way out with it: there is never one without rules.
fn own_rules(child: &Namespace, text: &str, table: &str) -> Result<Child, String> {
    let mut command = Command::new("nft");
    command.arg("-i").env("PATH", inside::PATH).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut owner = command.spawn().map_err(|error| format!("nft: {error}; install {}", inside::package("nft")))?;
    let mut told = || -> Result<(), String> {
        let stdin = owner.stdin.as_mut().ok_or("nft has no standard input")?;
        child.ask_with(&Ask::Hold, &[stdin.as_fd()])?;
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).map_err(|error| format!("nft: {error}"))?;
        let until = Instant::now() + PASTA_WITHIN;
        loop {
            let argv = ["nft", "list", "table", "inet", table].map(str::to_owned);
            match inside::run_program(&argv, "") {
                Ok(there) if there.matches("ip saddr").count() == 1 && there.contains("masquerade") => return Ok(()),
                _ if owner.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until => {}
                other => return Err(format!("the host's rules did not come to be: {other:?}")),
            }
            std::thread::sleep(PASTA_LOOK);
        }
    };
    match told() {
        Ok(()) => Ok(owner),
        Err(why) => {
            let _ = owner.kill();
            let _ = owner.wait();
            Err(why)
        }
    }
}

/// The way out for everybody else.
fn pasta(child: &Namespace, Block { host, inner }: &Block, six: Option<&six::Block>) -> Result<Child, String> {
    let (pid, host, inner) = (child.child.id().to_string(), host.to_string(), inner.to_string());
    let mut command = Command::new("pasta");
    command.args(["-f", "-q", "-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw", "--config-net"]);
    command.args(["--no-dhcp", "-I", UP, "-a", &inner, "-n", "255.255.255.252", "-g", &host]);
    match six {
        None => command.arg("-4"),
        Some(six::Block { host, inner }) => {
            let (host, inner) = (host.to_string(), inner.to_string());
            command.args(["--no-dhcpv6", "--no-ra", "-a", &inner, "-g", &host])
        }
    };
    command.arg(&pid);
    command.env("PATH", inside::PATH).stdin(Stdio::null()).stdout(Stdio::null());
    spawn::dies_with_parent(&mut command);
    let mut pasta = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("the program `pasta` is not there: install {}", inside::package("pasta"))
        }
        _ => format!("pasta: {error}"),
    })?;
    let mut until = Instant::now() + PASTA_WITHIN;
    let mut has_four = false;
    loop {
        let leads = |family| {
            child.run(&["ip", "-o", family, "route", "show", "default"], "").is_ok_and(|said| said.contains(UP))
        };
        if leads("-4") {
            if six.is_none() || leads("-6") {
                return Ok(pasta);
            }
            if !has_four {
                (has_four, until) = (true, Instant::now() + PASTA_SIX_WITHIN);
            }
        }
        let ended = pasta.try_wait().map_err(|error| format!("pasta: {error}"))?;
        if let Some(status) = ended {
            return Err(format!("pasta ended ({status}): the host may have no default route"));
        }
        if Instant::now() > until {
            let _ = pasta.kill();
            let _ = pasta.wait();
            let of = if has_four { " of IPv6" } else { "" };
            return Err(format!("pasta brought no default route{of} in time"));
        }
        std::thread::sleep(PASTA_LOOK);
    }
}

/// Gives up all but what is needed now: reading where the resolver is, datagrams to it, and ending children.
fn confine_self(children: &[u32]) -> Result<(), String> {
    let failed = |step: &'static str| move |error: std::io::Error| format!("giving up rights, {step}: {error}");
    confine::drop_capabilities_but(&[]).map_err(failed("capabilities"))?;
    confine::no_new_privileges().map_err(failed("no_new_privs"))?;
    // Whoever manages the file puts another one in its place, so its folder is read.
    let real = std::fs::canonicalize(RESOLV_CONF).unwrap_or_else(|_| RESOLV_CONF.into());
    let folder = real.parent().unwrap_or(&real);
    let beside = Beside { signals: true, ..Beside::default() };
    landlock::allow_only(&[(folder, Access::Read)], beside).map_err(failed("Landlock"))?;
    filter::forbid(Leave::Datagrams(children)).map_err(failed("filter"))
}

/// Where all addresses are at which the host answers (proc(5)).
const FIB_TRIE: &str = "/proc/net/fib_trie";

/// The files of the kernel that tell of them.
struct Addresses {
    trie: File,
    /// Where the lab has IPv6: interfaces' own, and routes.
    six: Option<[File; 2]>,
}

impl Addresses {
    fn open(with_six: bool) -> Result<Self, String> {
        let open = |path: &str| File::open(path).map_err(|error| format!("{path}: {error}"));
        Ok(Self {
            trie: open(FIB_TRIE)?,
            six: with_six.then(|| Ok::<_, String>([open(six::ADDRESSES)?, open(six::ROUTES)?])).transpose()?,
        })
    }

    fn read(&self) -> Result<Host, String> {
        let six = self.six.as_ref().map(six::host_addresses).transpose()?;
        Ok(Host { four: host_addresses(&self.trie)?, six })
    }
}

fn host_addresses(mut trie: &File) -> Result<Vec<Prefix<Ipv4Addr>>, String> {
    let mut text = String::new();
    let read = trie.rewind().and_then(|()| trie.read_to_string(&mut text));
    read.map_err(|error| format!("{FIB_TRIE}: {error}"))?;
    Ok(local_addresses(&text))
}

fn local_addresses(trie: &str) -> Vec<Prefix<Ipv4Addr>> {
    let mut found = Vec::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if let Some(bits) = line.strip_suffix(" host LOCAL").and_then(|line| line.strip_prefix('/')) {
            let prefix = leaf.zip(bits.parse().ok()).map(|(first, bits)| Prefix { first, bits });
            found.extend(prefix);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host_are_those_that_the_kernel_calls_local() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 127.255.255.255\n        /32 link BROADCAST\n        |-- 203.0.113.2\n           /32 host LOCAL\n     |-- 198.51.100.0\n        /24 host LOCAL\n";
        let found = |trie: &str| local_addresses(trie).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found(trie), ["127.0.0.1/32", "198.51.100.0/24", "203.0.113.2/32"]);
        assert_eq!(found(&trie.repeat(2)).len(), 3);
    }

    #[test]
    fn the_addresses_between_are_nobody_s() {
        let network = |subnet: &str| labyard_spec::uplink::UplinkNetwork {
            name: "lan".into(),
            subnet: subnet.parse().expect("a subnet"),
            gateway: Ipv4Addr::UNSPECIFIED,
            mac: labyard_spec::net::Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            names: Vec::new(),
            six: None,
            names6: Vec::new(),
        };
        let spec =
            |subnet| UplinkSpec { lab: "lab".into(), networks: vec![network(subnet)], others: vec![], others6: vec![] };
        let block = free_block(&spec("10.0.0.0/8"), &[]).expect("a block");
        let taken = Prefix { first: block.host, bits: 32 };
        let next = free_block(&spec("10.0.0.0/8"), &[taken]).expect("another");
        assert_ne!(block.host, next.host);
        let all = Prefix { first: BETWEEN, bits: 15 };
        assert!(free_block(&spec("10.0.0.0/8"), &[all]).is_err());
        assert!(free_block(&spec("198.18.0.0/15"), &[]).is_err_and(|why| why.contains("198.18.0.0/15")));
    }
}
