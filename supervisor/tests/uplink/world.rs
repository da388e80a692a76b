//! Network namespaces, each with a thread that lives in it, and cables between them.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use labyard_spec::net::{Ipv6Subnet, Mac, Network6};
use labyard_spec::uplink::{Answer, MAX_ANSWER_BYTES, Taken, UplinkNetwork, UplinkSpec, fd};
use labyard_sys::{confine, message, spawn, tap, wait};
use rustix::process::{Pid, PidfdFlags, Signal, Uid, pidfd_open};

const PATIENCE: Duration = Duration::from_secs(20);
/// Where tables come.
const SOCKET: &str = "uplink.sock";

/// Who starts the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    Root,
    Nobody,
}

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace, which ends with its thread.
pub(crate) struct Space {
    tid: i32,
    work: Sender<Work>,
}

impl Space {
    pub(crate) fn new(name: &str) -> Self {
        let (work, todo) = mpsc::channel::<Work>();
        let (tell, told) = mpsc::channel();
        let live = move || {
            confine::enter_network_namespace().expect("these tests need root");
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("somebody listens");
            todo.into_iter().for_each(|work: Work| work());
        };
        std::thread::Builder::new().name(name.into()).spawn(live).expect("a thread");
        let space = Self { tid: told.recv().expect("a namespace"), work };
        space.ip("link set lo up");
        space
    }

    /// Does something there.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.work.send(Box::new(move || drop(tell.send(work())))).expect("it lives");
        told.recv().expect("it did it")
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        self.run(move || {
            let output = Command::new("ip").args(&arguments).output().expect("ip is here");
            assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub(crate) fn addresses(&self) -> Vec<Ipv4Addr> {
        self.addresses_of("-4")
    }

    pub(crate) fn addresses_of<T: std::str::FromStr>(&self, family: &str) -> Vec<T> {
        let said = self.ip(&format!("-o {family} addr show"));
        said.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok()).collect()
    }

    /// Says hello to whoever comes; tells who did.
    pub(crate) fn serve(&self, address: impl Into<IpAddr>, port: u16) -> Receiver<IpAddr> {
        let address = address.into();
        let listener = self.run(move || TcpListener::bind((address, port))).expect("listening");
        let (tell, came) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a stream");
                let _ = stream.write_all(b"hello");
                if let Ok(peer) = stream.peer_addr()
                    && tell.send(peer.ip()).is_err()
                {
                    return;
                }
            }
        });
        came
    }
}

/// What a server says.
pub(crate) fn reach(address: impl Into<IpAddr>, port: u16) -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let address = (address.into(), port).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).map_err(failed)?;
    let mut said = [0; 5];
    stream.read_exact(&mut said).map_err(failed)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Asks a resolver for a machine's address of a type; its answer.
pub(crate) fn ask(resolver: Ipv4Addr, name: &str, kind: u8) -> Result<Vec<u8>, String> {
    let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
    message.extend(name.bytes());
    message.extend([0, 0, kind, 0, 1]);
    let exchange = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect((resolver, 53))?;
        socket.send(&message)?;
        let mut answer = vec![0; 512];
        let len = socket.recv(&mut answer)?;
        answer.truncate(len);
        Ok::<_, std::io::Error>(answer)
    };
    exchange().map_err(|error| error.to_string())
}

/// A host with a world behind it, a lab of two networks, and a guest on each.
pub(crate) struct Lab {
    pub(crate) world: Space,
    pub(crate) host: Space,
    pub(crate) guests: Vec<Space>,
    pub(crate) uplink: Child,
    starter: As,
    folder: tempfile::TempDir,
    /// What the uplink says that it is.
    pub(crate) way: String,
    vmm: Child,
    /// What ends each, and the uplink's tap at its end.
    cables: Vec<(Sender<()>, File)>,
}

/// Networks, of which those have IPv6 that say so.
fn networks(with_six: [bool; 2]) -> Vec<UplinkNetwork> {
    let six = |number: u8| {
        let subnet: Ipv6Subnet = format!("fd00:{}::/64", 16 + number).parse().expect("a subnet");
        let host = |last: u128| Ipv6Addr::from_bits(subnet.network().to_bits() + last);
        (Network6 { subnet, gateway: host(1) }, ("web".to_owned(), host(0x10)))
    };
    let network = |number: u8, with_six: bool| UplinkNetwork {
        name: format!("net{number}"),
        subnet: format!("172.{}.0.0/24", 16 + number).parse().expect("a subnet"),
        gateway: Ipv4Addr::new(172, 16 + number, 0, 1),
        mac: Mac([2, 0, 0, 0, 1, number]),
        mtu: 1500,
        names: vec![("web".into(), Ipv4Addr::new(172, 16 + number, 0, 10))],
        six: with_six.then(|| six(number).0),
        names6: with_six.then(|| six(number).1).into_iter().collect(),
    };
    let [first, second] = with_six;
    vec![network(0, first), network(1, second)]
}

/// What runs once an uplink was started: its process, what stands for the vmm, the taps, and what it says that it is.
type Started = (Child, Child, Vec<OwnedFd>, String);

/// Starts an uplink in a host.
pub(crate) fn start(host: &Space, starter: As, folder: &Path, with_six: [bool; 2]) -> Result<Started, String> {
    let mut vmm = Command::new("sleep");
    vmm.arg("600");
    // A test that fails leaves nobody behind.
    spawn::dies_with_parent(&mut vmm);
    let vmm = vmm.spawn().expect("sleep");
    let pid = Pid::from_raw(vmm.id().cast_signed()).expect("a pid");
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let listener = UnixListener::bind(folder.join(SOCKET)).expect("a socket");
    // Whoever may not is told apart by who it is, not by what it can reach.
    for (path, mode) in [(folder.to_owned(), 0o755), (folder.join(SOCKET), 0o777)] {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
    }
    let program = env!("CARGO_BIN_EXE_labyard-uplink");
    let mut command = match starter {
        As::Root => Command::new(program),
        As::Nobody => {
            // A tun device that everybody may open, as on most hosts, and a program that everybody may run.
            let script = "mkdir -p $1 && mount -t tmpfs none $1 && cp $2 $1/labyard-uplink && mknod $1/tun c 10 200 && \
                chmod 755 $1 && chmod 666 $1/tun && mount --bind $1/tun /dev/net/tun && \
                exec setpriv --reuid 65534 --regid 65534 --clear-groups $1/labyard-uplink";
            let mut command = Command::new("unshare");
            command.args(["-m", "--propagation", "private", "sh", "-c", script, "sh", "/mnt", program]);
            command
        }
    };
    let given =
        vec![(reader.into(), fd::SPEC), (pidfd, fd::VMM), (theirs.into(), fd::ANSWER), (listener.into(), fd::TABLES)];
    spawn::give(&mut command, given);
    let uplink = host.run(move || command.stdin(Stdio::null()).spawn().expect("it starts"));
    let spec = UplinkSpec { lab: "lab".into(), networks: networks(with_six), others: vec![], others6: vec![] };
    writer.write_all(&serde_json::to_vec(&spec).expect("JSON")).expect("writing");
    drop(writer);
    let (body, taps) = message::recv(&ours, MAX_ANSWER_BYTES).expect("receiving").expect("an answer");
    match serde_json::from_slice(&body).expect("an answer") {
        Answer::Up(way) => Ok((uplink, vmm, taps, way)),
        Answer::Failed(why) => {
            let (mut uplink, mut vmm) = (uplink, vmm);
            vmm.kill().and_then(|()| vmm.wait()).expect("ending");
            uplink.wait().expect("waiting");
            Err(why)
        }
    }
}

impl Lab {
    pub(crate) fn up(starter: As) -> Self {
        Self::up_with(starter, [false, false], |_, _| {})
    }

    /// The same with IPv6 on some networks and whatever else world and host have.
    pub(crate) fn up_with(starter: As, with_six: [bool; 2], more: impl FnOnce(&Space, &Space)) -> Self {
        let (world, host) = (Space::new("world"), Space::new("host"));
        world.ip(&format!("link add in0 type veth peer name out0 netns {}", host.tid));
        for (space, device, address) in [(&world, "in0", "203.0.113.1/24"), (&host, "out0", "203.0.113.2/24")] {
            space.ip(&format!("addr add {address} dev {device}"));
            space.ip(&format!("link set {device} up"));
        }
        host.ip("addr add 192.0.2.7/24 dev lo");
        host.ip("route add default via 203.0.113.1");
        more(&world, &host);
        let folder = tempfile::tempdir().expect("a folder");
        let (uplink, vmm, taps, way) = start(&host, starter, folder.path(), with_six).expect("a way out");
        assert_eq!(taps.len(), 2);
        let mut cables = Vec::new();
        let guests = taps.into_iter().zip(0u8..).map(|(theirs, number)| {
            let guest = Space::new("guest");
            let own = guest.run(|| tap::create("eth0").expect("a tap"));
            guest.ip(&format!("addr add 172.{}.0.10/24 dev eth0", 16 + number));
            if with_six.iter().any(|with| *with) {
                guest.ip(&format!("addr add fd00:{}::10/64 dev eth0 nodad", 16 + number));
            }
            guest.ip("link set eth0 up");
            guest.ip(&format!("route add default via 172.{}.0.1", 16 + number));
            if with_six.iter().any(|with| *with) {
                guest.ip(&format!("route add default via fd00:{}::1", 16 + number));
            }
            let (end, ended) = mpsc::channel();
            let theirs = File::from(theirs);
            cables.push((end, theirs.try_clone().expect("a descriptor")));
            std::thread::spawn(move || cable(&own, &theirs, &ended));
            guest
        });
        let guests = guests.collect();
        Self { world, host, guests, uplink, starter, folder, way, vmm, cables }
    }

    /// Connects to where tables come, as a user.
    pub(crate) fn caller(&self, uid: u32) -> UnixStream {
        let path = self.folder.path().join(SOCKET);
        let connect = move || {
            // Of this thread alone.
            let user = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(user, user, user).expect("root may");
            UnixStream::connect(path).expect("somebody listens")
        };
        std::thread::spawn(connect).join().expect("a connection")
    }

    /// Says this where tables come, as who started it; the answer, or nothing where it hangs up.
    pub(crate) fn tell(&self, said: &[u8]) -> Option<Taken> {
        let stream = self.caller(if self.starter == As::Root { 0 } else { 65534 });
        // It may hang up before it has heard all of it.
        let _ = message::send(&stream, said, &[]);
        let (body, _) = message::recv(&stream, MAX_ANSWER_BYTES).ok().flatten()?;
        Some(serde_json::from_slice(&body).expect("an answer"))
    }

    /// Whether a process has the socket where tables come.
    pub(crate) fn hears_tables(&self, pid: i32) -> bool {
        let path = self.folder.path().join(SOCKET).display().to_string();
        let sockets = std::fs::read_to_string("/proc/net/unix").expect("sockets");
        let line = sockets.lines().find(|line| line.ends_with(&path)).expect("the socket");
        let link = format!("socket:[{}]", line.split_whitespace().nth(6).expect("an inode"));
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
        files.into_iter().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.display().to_string() == link))
    }

    /// A frame that no honest guest sends, behind a virtio header.
    pub(crate) fn inject(&self, network: usize, frame: &[u8]) {
        tap::send(&self.cables[network].1, frame).expect("a tap");
    }

    /// The vmm lets go of all taps, and lives.
    pub(crate) fn close_taps(&mut self) {
        self.cables.clear();
    }

    /// The vmm and all that it held is gone.
    pub(crate) fn end_vmm(&mut self) {
        self.cables.clear();
        let _ = self.vmm.kill();
        self.vmm.wait().expect("waiting");
    }

    /// Processes of the uplink.
    pub(crate) fn parts(&self) -> Vec<i32> {
        let uplink = self.uplink.id().cast_signed();
        let mut parts = vec![uplink];
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse::<i32>().ok()));
            let ours = parent == Some(uplink) || ORPHANS.iter().any(|name| is_of(pid, name, &self.host));
            if ours && state != Some("Z") {
                parts.push(pid);
            }
        }
        parts.retain(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        });
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    /// Whether the rules inside know of an address.
    pub(crate) fn rules_name(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        let set = if address.is_ipv4() { "host" } else { "host6" };
        self.inside(&format!("nft list set inet labyard {set}")).contains(&address.to_string())
    }

    /// What a command says in the namespace of the uplink.
    pub(crate) fn inside(&self, command: &str) -> String {
        let inside = self.parts().into_iter().find(|pid| is_named(*pid, "inside")).expect("the child");
        let said = Command::new("nsenter").args(["-t", &inside.to_string(), "-n"]).args(command.split(' ')).output();
        String::from_utf8_lossy(&said.expect("nsenter").stdout).into_owned()
    }

    pub(crate) fn assert_nothing_is_left(&self) {
        until("all processes have ended", || self.parts().is_empty());
        until("no device is left", || !self.host.ip("-o link show").contains("ly-"));
        let rules = self.host.run(|| Command::new("nft").args(["list", "tables"]).output().expect("nft"));
        assert_eq!(String::from_utf8_lossy(&rules.stdout), "", "rules");
        assert!(!self.host.addresses().iter().any(|address| address.octets()[0] == 198));
        assert!(!self.host.addresses_of::<Ipv6Addr>("-6").iter().any(|address| address.segments()[0] == 0xfd6c));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end_vmm();
        let _ = self.uplink.kill();
        let _ = self.uplink.wait();
    }
}

/// Programs that an uplink starts.
const ORPHANS: [&str; 3] = ["pasta", "nft\0-i", "labyard-uplink\0inside"];

pub(crate) fn is_named(pid: i32, part: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(part))
}

/// A process of this name that an uplink of this host has left: its parent is gone, and it has what was the host's or the child's space.
fn is_of(pid: i32, name: &str, host: &Space) -> bool {
    let space = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    is_named(pid, name) && space(pid).is_some() && space(pid) == space(host.tid)
}

/// Frames both ways until the test lets go.
fn cable(one: &File, two: &File, ended: &Receiver<()>) {
    let mut frame = vec![0; 70_000];
    while !matches!(ended.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
        let mut moved = false;
        for (from, to) in [(one, two), (two, one)] {
            while let Ok(Some(len)) = tap::receive(from, &mut frame) {
                let _ = tap::send(to, &frame[..len]);
                moved = true;
            }
        }
        if !moved {
            let _ = wait::readable(one.as_fd(), Some(Duration::from_millis(2)));
        }
    }
    let _ = (one.as_raw_fd(), two.as_raw_fd());
}

pub(crate) fn kill(pid: i32, signal: Signal) {
    let _ = rustix::process::kill_process(Pid::from_raw(pid).expect("a pid"), signal);
}

/// Looks until it holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
