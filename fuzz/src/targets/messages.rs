//! What crosses a process as JSON, and the frames of the agent. What is understood must come out again as it went in.

use std::fmt::Debug;
use std::path::Path;
use std::str::FromStr;

use labyard_spec::agent::{
    self, Arrival, Dial, Exec, Exit, HEADER_BYTES, Hosts, Kind, Listen, MAX_FRAME_BYTES, Pack, Protocol, Unpack,
};
use labyard_spec::control::{
    Change, Event, FullDrive, Happening, Limits, MachineState, MachineStatus, Milestone, RateLimit, Reply, Request,
    SavedFiles, Status,
};
use labyard_spec::guest::{Drive, Entrypoint, Hello, HostEntry, MachineConfig};
use labyard_spec::jail::JailSpec;
use labyard_spec::playground::{
    BaseSpec, BootSpec, DriveSpec, Engine, Entry, LayerSlots, MachineSpec, OverlaySpec, PlaygroundSpec, Slot,
};
use labyard_spec::source::Source;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where a manifest may lie: a colon in it is not that of a tag.
const LABS: &str = "/labs/a:1";

/// Takes the bytes for each message that there is.
pub(super) fn run(bytes: &[u8]) {
    both_ways::<Request>(bytes);
    both_ways::<Reply>(bytes);
    both_ways::<Event>(bytes);
    both_ways::<agent::Request>(bytes);
    both_ways::<Exit>(bytes);
    both_ways::<MachineConfig>(bytes);
    both_ways::<Hello>(bytes);
    both_ways::<JailSpec>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        source(text);
    }
}

/// A source, which a manifest below [`LABS`] names.
fn source(text: &str) {
    let source = match Source::from_str(text) {
        Ok(source) => source,
        Err(error) => return assert!(error.starts_with(&format!("source `{text}`")), "{error}"),
    };
    let labs = Path::new(LABS);
    let below = source.below(labs);
    for source in [&source, &below] {
        assert_eq!(Source::from_str(&source.to_string()).as_ref(), Ok(source), "what was read can be written");
    }
    assert_eq!(below.below(Path::new("/elsewhere")), below, "a path that is whole stays");
    match source.path() {
        None => assert_eq!(below, source, "it names no file"),
        Some(path) => assert_eq!(below.path(), Some(&*labs.join(path)), "{text}"),
    }
}

fn both_ways<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_vec(&message).expect("what was read can be written");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(message, again);
}

/// Takes the bytes for a stream of the agent's frames.
pub(super) fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok((kind, len)) = agent::parse_header(*header) else { return };
        assert!(len <= MAX_FRAME_BYTES, "a frame of {len} bytes");
        assert_eq!(agent::header(kind, len), *header);
        let Some((payload, behind)) = behind.split_at_checked(len as usize) else { return };
        match kind {
            Kind::Request => asked(payload),
            Kind::Exit => both_ways::<Exit>(payload),
            Kind::Stdout => both_ways::<Arrival>(payload),
            _ => {}
        }
        rest = behind;
    }
}

/// A protocol is told to people by the word that it has in a request.
fn asked(payload: &[u8]) {
    both_ways::<agent::Request>(payload);
    let protocol = match serde_json::from_slice(payload) {
        Ok(agent::Request::Dial(Dial { protocol, .. }) | agent::Request::Listen(Listen { protocol, .. })) => protocol,
        _ => return,
    };
    let word = serde_json::to_value(protocol).expect("plain data has a JSON form");
    assert_eq!(word, protocol.name());
}

/// The calls that there are, from both ends.
pub(super) fn calls() -> Vec<Vec<u8>> {
    let frame = |kind, payload: &[u8]| [&agent::header(kind, payload.len() as u32)[..], payload].concat();
    let json = |message: serde_json::Result<Vec<u8>>| message.expect("plain data has a JSON form");
    let exec = Exec { argv: vec!["cat".into()], env: Vec::new(), working_dir: Some("/".into()), user: None, tty: None };
    let entry = HostEntry { address: [10, 0, 0, 2].into(), names: vec!["db".into()] };
    let requests = [
        agent::Request::Exec(exec),
        agent::Request::PowerOff,
        agent::Request::Hosts(Hosts { here: vec![entry], gone: vec!["web".into()] }),
        agent::Request::Dial(Dial { protocol: Protocol::Udp, host: "localhost".into(), port: 53 }),
        agent::Request::Listen(Listen { protocol: Protocol::Tcp, host: "::".into(), port: 0 }),
        agent::Request::Accept { id: 1 },
        agent::Request::Pack(Pack { path: "/etc/.".into(), follow: true, archive: false }),
        agent::Request::Unpack(Unpack { path: "/srv".into(), archive: true }),
        agent::Request::Bake { serial: "d00".into() },
    ];
    let mut calls: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| {
            let input = [frame(Kind::Stdin, b"a line\n"), frame(Kind::Stdin, b"")].concat();
            let levers = [frame(Kind::Resize, &[80, 0, 24, 0]), frame(Kind::Signal, &[15])].concat();
            [frame(Kind::Request, &json(serde_json::to_vec(request))), input, levers].concat()
        })
        .collect();
    let arrivals = [Arrival::Listening(8080), Arrival::Connection(1)].map(|arrival| json(serde_json::to_vec(&arrival)));
    calls.push(arrivals.map(|arrival| frame(Kind::Stdout, &arrival)).concat());
    let exit = json(serde_json::to_vec(&Exit::Code(0)));
    calls.push([frame(Kind::Stderr, b"a word"), frame(Kind::Exit, &exit)].concat());
    calls.push(frame(Kind::Error, b"no such user"));
    calls
}

/// One of each message.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let json = |message: &dyn Fn() -> serde_json::Result<Vec<u8>>| message().expect("plain data has a JSON form");
    let boot = BootSpec {
        kernel: Slot(0),
        initrd: vec![Slot(1), Slot(2)],
        extra_cmdline: "quiet".into(),
        entry: Entry::Linux64,
    };
    let drives = vec![DriveSpec {
        serial: "d00".into(),
        read_only: false,
        base: Some(BaseSpec { file: Slot(3), name: "image".into() }),
        overlay: Some(OverlaySpec {
            frozen: Vec::new(),
            top: LayerSlots { data: Slot(5), map: Slot(6) },
            capacity_bytes: 1 << 30,
        }),
        engine: Engine::Auto,
    }];
    let machine = MachineSpec {
        cpu_count: 2,
        drives,
        cpu_template: Some("host".into()),
        ..MachineSpec::new("web", boot, Slot(4))
    };
    let spec = PlaygroundSpec { name: "lab".into(), networks: Vec::new(), machines: vec![machine] };
    let limits = Limits { bytes: Some(RateLimit { per_second: 1 << 20, burst: 0 }), operations: None };
    let requests = [
        Request::Descriptors { first: Slot(0), count: 5 },
        Request::Create(Box::new(spec)),
        Request::Status,
        Request::Events { after: 7 },
        Request::Connect { machine: "web".into(), port: 1024 },
        Request::Change { machine: Some("web".into()), change: Change::Link { interface: 0, up: false } },
        Request::PowerButton { machine: "web".into() },
        Request::Kill { machine: None },
        Request::Pause { machine: None },
        Request::Resume { machine: Some("web".into()) },
        Request::Save(SavedFiles { state: Slot(0), memory: vec![Slot(1)] }),
        Request::Change { machine: Some("web".into()), change: Change::DriveLimit { serial: "d00".into(), limits } },
        Request::Change {
            machine: Some("web".into()),
            change: Change::DriveResize { serial: "d00".into(), bytes: 5 << 30 },
        },
        Request::Change { machine: None, change: Change::PlaygroundLimit { limits } },
        Request::Change { machine: Some("web".into()), change: Change::NicLimit { interface: 0, limits } },
        Request::Change { machine: None, change: Change::NicsLimit { limits } },
    ];
    let status = MachineStatus {
        balloon: None,
        name: "web".into(),
        state: MachineState::Crashed("Kernel panic".into()),
        paused: false,
        full_drives: vec![FullDrive { drive: "d00".into(), errno: 28 }],
        boot_us: vec![(Milestone::FirstRun, 1234)],
        faults: vec![("rng".into(), 1)],
        counters: vec![("cpu0".into(), vec![("mmio_read".into(), 7)])],
        page_size: 4096,
    };
    let replies = [
        Reply::Done,
        Reply::Failed("no".into()),
        Reply::Status(Status { protocol: 1, machines: vec![status], last_event: 2 }),
    ];
    let event = Event { number: 1, at_us: 5, machine: "web".into(), what: Happening::GuestConnected { port: 1025 } };
    let exec = Exec {
        argv: vec!["ping".into(), "db".into()],
        env: vec!["A=b".into()],
        working_dir: None,
        user: Some("0".into()),
        tty: Some((80, 24)),
    };
    let config = MachineConfig {
        hostname: "web".into(),
        hosts: Vec::new(),
        interfaces: Vec::new(),
        nameservers: vec![[10, 0, 0, 1].into()],
        drives: vec![Drive {
            serial: "d00".into(),
            mount: Some("/".into()),
            filesystem: "ext4".into(),
            read_only: false,
        }],
        entrypoint: Some(Entrypoint {
            argv: vec!["/bin/sh".into()],
            env: Vec::new(),
            user: String::new(),
            working_dir: "/".into(),
            stop_signal: Some("SIGQUIT".into()),
        }),
        early_modules: vec!["virtio_mmio.ko.xz".into()],
        startup_files: Vec::new(),
        users: Vec::new(),
        late_modules: Vec::new(),
        bake: false,
        boot_marker: true,
    };
    let jail = JailSpec {
        program: 10,
        argv: vec!["labyard-vmm".into()],
        descriptors: vec![(11, 2), (12, 3)],
        max_descriptors: 1024,
        max_threads: Some(64),
        confine: true,
    };
    let mut seeds: Vec<Vec<u8>> = requests.iter().map(|request| json(&|| serde_json::to_vec(request))).collect();
    seeds.extend(replies.iter().map(|reply| json(&|| serde_json::to_vec(reply))));
    seeds.push(json(&|| serde_json::to_vec(&event)));
    seeds.push(json(&|| serde_json::to_vec(&agent::Request::Exec(exec.clone()))));
    seeds.push(json(&|| serde_json::to_vec(&Exit::Signal(9))));
    seeds.push(json(&|| serde_json::to_vec(&config)));
    seeds.push(json(&|| serde_json::to_vec(&Hello::InitDone { kernel: "6.12".into() })));
    seeds.push(json(&|| serde_json::to_vec(&jail)));
    let digest = format!("oci://registry.example:5000/a/b:1@sha256:{}", "0".repeat(64));
    let sources = [
        "oci-layout:layout:debian",
        "docker://registry/b",
        "docker-archive:a.tar",
        "rootfs-tar:b.tar",
        "dockerfile:./app",
        "dockerfile:",
        "oci-layout:/x:y/img:latest",
        "./image",
        "debian",
        &digest,
    ];
    seeds.extend(sources.map(|source| source.as_bytes().to_vec()));
    seeds
}
