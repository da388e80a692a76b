//! The control socket of a vmm that has no processor to run anything on: requests in any order, playgrounds that nearly make
//! sense, messages that are cut or too long, descriptors that were not announced.
//!
//! Rules: each whole request has one reply; what cannot be is refused; events come once and in their order; the process goes on.

use std::cell::OnceCell;
use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use labyard_spec::control::{Change, Event, Limits, RateLimit, Reply, Request, RestoreSpec, SavedFiles};
use labyard_spec::link::{Direction, LinkChange};
use labyard_spec::net::{Ipv4Subnet, Mac};
use labyard_spec::playground::{
    BaseSpec, BootSpec, DriveSpec, Engine, Entry, InterfaceSpec, LayerSlots, MachineSpec, NetworkSpec, OverlaySpec,
    PlaygroundSpec, Slot,
};
use labyard_sys::{memfd, message};
use labyard_vmm::control::Control;
use labyard_vmm::kvm::Hypervisor;
use labyard_vmm::playground::Playground;
use labyard_vmm::snapshot::Saved;

use crate::input::Input;

/// Requests of one input at most.
const STEPS: usize = 24;
/// Memory of a machine in MiB: the least that is allowed.
const MEMORY_MIB: u64 = 32;

thread_local! {
    /// One socket for all inputs, under a name that only this process has.
    static LISTENER: OnceCell<(UnixListener, SocketAddr)> = const { OnceCell::new() };
}

/// Reads the bytes as a conversation.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let hypervisor = Hypervisor::nowhere().expect("/dev/null");
    let playground = Playground::new(hypervisor, memfd::create("last words", 0).expect("a memfd"), Instant::now());
    let playground = playground.expect("a handler");
    let control = Control::new(Arc::clone(&playground));
    let mut client = LISTENER.with(|listener| {
        let (listener, address) = listener.get_or_init(listen);
        let client = UnixStream::connect_addr(address).expect("a connection");
        // It does not wait for a second one.
        assert!(control.serve(listener).is_err(), "there was one connection");
        client
    });
    for _ in 0..STEPS {
        if input.is_empty() || say(&mut client, &mut input).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Write); // the other end may be gone
    events(&client);
    let _ = playground.kill(None); // so that its threads end with the input
    for machine in playground.status().machines {
        assert!(playground.wait(&machine.name).is_ok());
    }
}

/// Whatever was said, the conversation ends; what comes until then are events, each once and in order.
fn events(client: &UnixStream) {
    let mut last = 0;
    // Cut off is as good.
    while let Ok(Some((body, _))) = message::recv(client, 1 << 20) {
        let Ok(event) = serde_json::from_slice::<Event>(&body) else { continue };
        assert!(event.number > last, "event {} comes behind {last}", event.number);
        last = event.number;
    }
}

fn listen() -> (UnixListener, SocketAddr) {
    let name = format!("labyard-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("a free name");
    listener.set_nonblocking(true).expect("a socket");
    (listener, address)
}

/// One message, and its reply where it was a whole request.
fn say(client: &mut UnixStream, input: &mut Input<'_>) -> std::io::Result<()> {
    if input.one_in(32) {
        // Whatever length they claim: no more comes.
        client.write_all(input.bytes(64))?;
        return Err(std::io::ErrorKind::Other.into());
    }
    let request = request(input);
    // It would end this process.
    if matches!(request, Request::Kill { machine: None }) {
        return Ok(());
    }
    let mut body = serde_json::to_vec(&request)?;
    let spoilt = input.one_in(16);
    if spoilt {
        let at = input.below(body.len());
        body[at] = input.byte();
        if serde_json::from_slice::<Request>(&body).is_ok_and(|it| matches!(it, Request::Kill { machine: None })) {
            return Ok(());
        }
    }
    let files = match &request {
        Request::Descriptors { count, .. } => (*count).min(16),
        _ => u32::from(input.one_in(16)),
    };
    let files = if input.one_in(16) { files + 1 } else { files };
    let files: Vec<File> = (0..files).map(|_| file(input)).collect();
    let beside: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    message::send(&*client, &body, &beside)?;
    if matches!(request, Request::Events { .. }) {
        return Err(std::io::ErrorKind::Other.into()); // a stream from now on, until we leave
    }
    let Some((reply, beside)) = message::recv(&*client, 1 << 20)? else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let reply: Reply = serde_json::from_slice(&reply)?;
    if let Reply::Failed(why) = &reply {
        assert!(!why.is_empty() && beside.is_empty(), "a refusal says why, and gives nothing");
    }
    Ok(())
}

/// What a supervisor passes: kernels, images, layers, logs.
fn file(input: &mut Input<'_>) -> File {
    let file = match input.byte() % 8 {
        0 => return File::open("/dev/null").expect("it is there"),
        1 => memfd::create("a file", u64::from(input.short())),
        3 => {
            let file = memfd::create("a state", 0).expect("a memfd");
            Saved { machines: Vec::new() }.write(&file).expect("written");
            return file;
        }
        2 => memfd::create("a file", 1 << 20),
        _ => memfd::create("a file", 0),
    };
    let mut file = file.expect("a memfd");
    if input.one_in(2) {
        file.write_all(&kernel()).expect("written");
    }
    file
}

/// The headers of a kernel that could be started, were there a processor.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2u16), (18, 62), (54, 56), (56, 1)] {
        put(at, &value.to_le_bytes());
    }
    for (at, value) in [(24, 0x20_0000u64), (32, 64), (64, 1), (72, 0x800), (88, 0x20_0000), (96, 16), (104, 16)] {
        put(at, &value.to_le_bytes());
    }
    file
}

fn name(input: &mut Input<'_>) -> String {
    input.pick(&["web", "web", "web", "db", "", "../etc"]).to_owned()
}

fn request(input: &mut Input<'_>) -> Request {
    let machine = name(input);
    match input.byte() % 28 {
        0..=3 => Request::Descriptors { first: slot(input), count: 1 + u32::from(input.byte() % 8) },
        4..=6 => Request::Create(Box::new(playground(input))),
        7 => Request::Status,
        8 => Request::Connect { machine, port: input.word() },
        9 => Request::Console { machine },
        10..=12 => Request::Change { machine: (!input.one_in(4)).then_some(machine), change: change(input) },
        13 => Request::PowerButton { machine },
        14 => Request::Kill { machine: Some(machine) },
        15 => Request::Pause { machine: (!input.one_in(2)).then_some(machine) },
        16 => Request::Resume { machine: (!input.one_in(2)).then_some(machine) },
        17 => Request::Save(saved(input)),
        18 => Request::Restore(Box::new(RestoreSpec { playground: playground(input), saved: saved(input) })),
        19 => Request::Start(Box::new(one_machine(input))),
        20 | 21 => Request::Add(Box::new(one_machine(input))),
        22 => Request::Remove { machine },
        23 => Request::Links,
        24 => {
            let network = input.pick(&["local", "local", "lan", ""]).into();
            Request::Capture { network, machine: (!input.one_in(2)).then_some(machine) }
        }
        25 => {
            let (private, tap) = (input.one_in(2), input.one_in(2).then(|| slot(input)));
            Request::AddNetwork(NetworkSpec { private, tap, ..network(input.pick(&["lan", "lan", "local", ""])) })
        }
        26 => Request::RemoveNetwork { network: input.pick(&["lan", "lan", "local", ""]).into() },
        // Rarely: the other end looks only every two seconds whether we are still there.
        _ if input.one_in(64) => Request::Events { after: u64::from(input.byte() % 4) },
        _ => Request::Status,
    }
}

fn saved(input: &mut Input<'_>) -> SavedFiles {
    SavedFiles { state: slot(input), memory: (0..input.byte() % 3).map(|_| slot(input)).collect() }
}

fn slot(input: &mut Input<'_>) -> Slot {
    Slot(if input.one_in(16) { input.word() } else { u32::from(input.byte() % 16) })
}

fn rate(input: &mut Input<'_>) -> Option<RateLimit> {
    (!input.one_in(3)).then(|| RateLimit { per_second: u64::from(input.byte()), burst: input.long() })
}

fn change(input: &mut Input<'_>) -> Change {
    let serial = input.pick(&["d00", "d01", "modules"]).to_owned();
    let limits = Limits { bytes: rate(input), operations: rate(input) };
    match input.byte() % 12 {
        10 => Change::Disturb {
            interface: u32::from(input.byte() % 3),
            direction: Direction::Both,
            change: disturbed(input),
        },
        11 => Change::DisturbNetwork { network: input.pick(&["local", "lan"]).to_owned(), change: disturbed(input) },
        0 => Change::Balloon { target_mib: if input.one_in(2) { input.long() } else { input.byte().into() } },
        1 => Change::ConsoleSize { cols: input.short(), rows: input.short() },
        2 => Change::Link { interface: u32::from(input.byte() % 3), up: input.one_in(2) },
        3 => Change::DriveLimit { serial, limits },
        4 => Change::MachineLimit { limits },
        5 => Change::PlaygroundLimit { limits },
        6 => Change::NicLimit { interface: u32::from(input.byte() % 3), limits },
        7 => Change::NicsLimit { limits },
        _ => Change::DriveResize { serial, bytes: if input.one_in(2) { input.long() } else { 1 << 20 } },
    }
}

fn disturbed(input: &mut Input<'_>) -> LinkChange {
    match input.byte() % 4 {
        0 => LinkChange::Delay { delay_us: input.word().into(), jitter_us: input.short().into() },
        1 => LinkChange::Loss { ppm: input.word() % 2_000_000 },
        2 => LinkChange::Cut,
        _ => LinkChange::Heal,
    }
}

/// Mostly one that can be built.
fn playground(input: &mut Input<'_>) -> PlaygroundSpec {
    let names = ["web", if input.one_in(8) { "web" } else { "db" }];
    let machines = names.iter().take(input.byte().into()).map(|name| machine(name, input)).collect();
    PlaygroundSpec { name: "lab".into(), networks: vec![network("local")], machines }
}

fn network(name: &str) -> NetworkSpec {
    let subnet = Ipv4Subnet::containing([172, 16, 0, 0].into(), 24).expect("a subnet");
    NetworkSpec { name: name.into(), subnet, gateway: [172, 16, 0, 1].into(), private: false, tap: None, six: None }
}

/// One that is there, or is to come.
fn one_machine(input: &mut Input<'_>) -> MachineSpec {
    let name = input.pick(&["web", "web", "db", "new", "new", ""]);
    machine(name, input)
}

fn machine(name: &str, input: &mut Input<'_>) -> MachineSpec {
    let initrd = (0..input.byte() % 2).map(|_| slot(input)).collect();
    let extra_cmdline = if input.one_in(16) { "x".repeat(3000) } else { String::new() };
    let boot = BootSpec { kernel: slot(input), initrd, extra_cmdline, entry: Entry::Auto };
    let interface = |input: &mut Input<'_>| InterfaceSpec {
        network: input.pick(&["local", "local", "lan"]).into(),
        mac: Mac([2, 0, 0, 0, 0, input.byte()]),
        mtu: input.pick(&[1500, 68, 0, u16::MAX]),
    };
    MachineSpec {
        cpu_count: if input.one_in(8) { input.byte().into() } else { 1 },
        memory_mib: if input.one_in(8) { input.long() % 64 } else { MEMORY_MIB },
        drives: (0..input.byte() % 3).map(|number| drive(number, input)).collect(),
        interfaces: (0..input.byte() % 3).map(|_| interface(input)).collect(),
        cpu_template: input.one_in(8).then(|| input.pick(&["host", "none such"]).into()),
        nested: input.one_in(16),
        huge_pages: input.one_in(16),
        ..MachineSpec::new(name, boot, slot(input))
    }
}

fn drive(number: u8, input: &mut Input<'_>) -> DriveSpec {
    let overlay = (!input.one_in(2)).then(|| OverlaySpec {
        frozen: Vec::new(),
        top: LayerSlots { data: slot(input), map: slot(input) },
        capacity_bytes: if input.one_in(8) { input.long() } else { 1 << 20 },
    });
    DriveSpec {
        serial: format!("d{number:02}"),
        read_only: input.one_in(4),
        base: (!input.one_in(4)).then(|| BaseSpec { file: slot(input), name: "image".into() }),
        overlay,
        engine: input.pick(&[Engine::Sync, Engine::Auto, Engine::Sync]),
    }
}
