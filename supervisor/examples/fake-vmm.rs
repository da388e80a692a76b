//! `labyard-vmm` for tests: speaks `spec::control` and `spec::agent`, and runs programs on the host in place of guests.
//!
//! A machine behaves as its name begins: `mute` never says hello, `crash` crashes, `hostile` floods the readiness port first,
//! `stubborn` does not power off, `doom` takes the whole process with it, `unsavable` cannot be saved, `lost` not be restored, `full`
//! has no room on the host's disk while a drive of it is limited, `unborn` and those beside it are never made, `endless` and
//! `cut` send a drive without an end and half of one. All others become ready at once.

#[path = "fake/access.rs"]
mod access;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use labyard_spec::agent::{self, Exit, HEADER_BYTES, Kind, MAX_FRAME_BYTES, parse_header};
use labyard_spec::control::{
    Change, Event, Happening, MAX_MESSAGE_BYTES, MachineState, MachineStatus, PROTOCOL, Reply, Request, RestoreSpec,
    SavedFiles, Status,
};
use labyard_spec::guest::{AGENT_PORT, Hello, READY_PORT};
use labyard_spec::jail::fd;
use labyard_spec::link::{LinkFaults, LinkStatus};
use labyard_spec::playground::{MachineSpec, NetworkSpec, PlaygroundSpec, Slot};
use labyard_sys::{exec, message};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What was passed on one connection, and goes with it.
type Passed = Mutex<HashMap<Slot, OwnedFd>>;

#[derive(Default)]
struct Vmm {
    machines: Mutex<Vec<(String, MachineState)>>,
    events: Mutex<Vec<(Event, Option<OwnedFd>)>>,
    bell: Condvar,
    /// Machines without room.
    full: Mutex<Vec<String>>,
    /// Taps by network.
    taps: Mutex<HashMap<String, OwnedFd>>,
}

fn main() {
    assert_eq!(std::env::args().nth(1).as_deref(), Some("--rings"), "what the vmm is told");
    let listener = UnixListener::from(exec::inherited(fd::CONTROL).expect("the control socket"));
    let vmm = Arc::new(Vmm::default());
    for stream in listener.incoming() {
        let (vmm, stream) = (Arc::clone(&vmm), stream.expect("a connection"));
        thread::spawn(move || converse(&vmm, &stream));
    }
}

fn converse(vmm: &Arc<Vmm>, stream: &UnixStream) -> Option<()> {
    let passed = Passed::default();
    loop {
        let (body, descriptors) = message::recv(stream, MAX_MESSAGE_BYTES).ok()??;
        let request: Request = serde_json::from_slice(&body).expect("a request");
        let end = matches!(request, Request::Kill { machine: None });
        let (reply, beside) = match request {
            Request::Events { after } => return tell_events(vmm, stream, after),
            Request::Descriptors { first, count } => {
                assert_eq!(descriptors.len(), count as usize);
                let slots = (first.0..).map(Slot);
                passed.lock().expect("files").extend(slots.zip(descriptors));
                (Reply::Done, None)
            }
            Request::Create(spec) if spec.machines.iter().any(|machine| machine.name.starts_with("unborn")) => loop {
                thread::park();
            },
            Request::Create(spec) => (create(vmm, &passed, &spec), None),
            Request::Start(spec) => (start(vmm, &passed, &spec), None),
            Request::Add(spec) => (add(vmm, &passed, &spec), None),
            Request::Remove { machine } => (remove(vmm, &machine), None),
            Request::AddNetwork(network) => {
                eprintln!("network: {}", network.name);
                take_tap(vmm, &passed, &network);
                (Reply::Done, None)
            }
            Request::RemoveNetwork { network } => {
                eprintln!("no network: {network}");
                vmm.taps.lock().expect("taps").remove(&network);
                (Reply::Done, None)
            }
            Request::Save(files) => (save(vmm, &passed, &files), None),
            Request::Restore(spec) => (restore(vmm, &passed, &spec), None),
            Request::Pause { machine } => (stand_still(vmm, machine.as_deref(), &Happening::Paused), None),
            Request::Resume { machine } => (resume(vmm, machine.as_deref()), None),
            Request::Status => (status(vmm), None),
            Request::Connect { machine, port: AGENT_PORT }
                if !["mute", "deaf"].iter().any(|name| machine.starts_with(name)) =>
            {
                let (here, there) = UnixStream::pair().expect("a pair");
                let vmm = Arc::clone(vmm);
                thread::spawn(move || call(&vmm, &machine, &here));
                (Reply::Done, Some(OwnedFd::from(there)))
            }
            Request::Connect { machine, port } => {
                (Reply::Failed(format!("machine `{machine}`: nobody listens on port {port}")), None)
            }
            Request::Console { .. } => {
                let (mut here, there) = UnixStream::pair().expect("a pair");
                thread::spawn(move || {
                    let mut typed = [0; 256];
                    here.write_all(b"login: ").ok()?;
                    loop {
                        let n = here.read(&mut typed).ok().filter(|n| *n > 0)?;
                        here.write_all(&typed[..n].to_ascii_uppercase()).ok()?;
                    }
                    #[expect(unreachable_code, reason = "gives the closure its type")]
                    Some(())
                });
                (Reply::Done, Some(OwnedFd::from(there)))
            }
            Request::Links => {
                let link = |machine: &String| LinkStatus {
                    machine: machine.clone(),
                    interface: 0,
                    network: "local".into(),
                    carrier: true,
                    sent: LinkFaults { loss_ppm: 20_000, ..LinkFaults::default() },
                    received: LinkFaults::default(),
                    counters: vec![("lost_sent".into(), 3)],
                };
                let machines = vmm.machines.lock().expect("machines");
                (Reply::Links(machines.iter().map(|(name, _)| link(name)).collect()), None)
            }
            Request::Capture { network, .. } if network != "local" => {
                (Reply::Failed(format!("network {network}: no machine is plugged into one of this name")), None)
            }
            Request::Capture { .. } => {
                let (mut here, there) = UnixStream::pair().expect("a pair");
                thread::spawn(move || {
                    here.write_all(b"captured").ok()?;
                    // Until nobody reads any more.
                    let _ = here.read(&mut [0]);
                    Some(())
                });
                (Reply::Done, Some(OwnedFd::from(there)))
            }
            Request::Change { machine, change } => {
                // To the log, for whoever wants to see it.
                eprintln!("change: {}", serde_json::json!({ "machine": &machine, "change": &change }));
                if let (Some(machine), Change::DriveLimit { serial, limits }) = (&machine, &change)
                    && machine.starts_with("full")
                {
                    host_disk(vmm, machine, serial, limits.operations.is_some());
                }
                let refused = matches!(change, Change::DriveResize { bytes, .. } if bytes > 1 << 40);
                (if refused { Reply::Failed("there is no room for that".into()) } else { Reply::Done }, None)
            }
            // A guest without an agent has a button.
            Request::PowerButton { machine } => {
                if machine.starts_with("deaf") {
                    ended(vmm, &machine, MachineState::PoweredOff);
                }
                (Reply::Done, None)
            }
            Request::Kill { machine } => {
                let names: Vec<_> =
                    vmm.machines.lock().expect("machines").iter().map(|(name, _)| name.clone()).collect();
                for name in names.iter().filter(|name| machine.as_ref().is_none_or(|machine| machine == *name)) {
                    ended(vmm, name, MachineState::Killed);
                }
                (Reply::Done, None)
            }
        };
        let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
        message::send(stream, &serde_json::to_vec(&reply).expect("plain data"), &beside).ok()?;
        if end {
            std::process::exit(0);
        }
    }
}

fn create(vmm: &Arc<Vmm>, passed: &Passed, spec: &PlaygroundSpec) -> Reply {
    let mut files = passed.lock().expect("files");
    let mut slots: Vec<u32> = files.keys().map(|slot| slot.0).collect();
    slots.sort_unstable();
    assert_eq!(slots, (0..slots.len() as u32).collect::<Vec<_>>(), "every slot is filled");
    for machine in &spec.machines {
        power_on(vmm, &mut files, machine);
    }
    drop(files);
    spec.networks.iter().for_each(|network| take_tap(vmm, passed, network));
    Reply::Done
}

/// A machine that has ended starts anew, on files that were passed before.
fn start(vmm: &Arc<Vmm>, passed: &Passed, machine: &MachineSpec) -> Reply {
    let mut machines = vmm.machines.lock().expect("machines");
    match machines.iter().position(|(name, _)| *name == machine.name) {
        Some(position) if machines[position].1 == MachineState::Running => {
            return Reply::Failed(format!("machine {}: it runs", machine.name));
        }
        Some(position) => drop(machines.remove(position)),
        None => return Reply::Failed(format!("machine {}: there is none of this name", machine.name)),
    }
    drop(machines);
    let mut files = std::mem::take(&mut *passed.lock().expect("files"));
    power_on(vmm, &mut files, machine);
    Reply::Done
}

/// A machine comes while others run.
fn add(vmm: &Arc<Vmm>, passed: &Passed, machine: &MachineSpec) -> Reply {
    let mut files = std::mem::take(&mut *passed.lock().expect("files"));
    if machine.name.starts_with("unwelcome") {
        return Reply::Failed(format!("machine {}: nobody wants it", machine.name));
    }
    if vmm.machines.lock().expect("machines").iter().any(|(name, _)| *name == machine.name) {
        return Reply::Failed(format!("machine {}: there is one of this name", machine.name));
    }
    power_on(vmm, &mut files, machine);
    Reply::Done
}

fn remove(vmm: &Vmm, machine: &str) -> Reply {
    let mut machines = vmm.machines.lock().expect("machines");
    if machines.iter().any(|(name, state)| name == machine && *state == MachineState::Running) {
        return Reply::Failed(format!("machine {machine}: it runs"));
    }
    machines.retain(|(name, _)| name != machine);
    Reply::Done
}

fn power_on(vmm: &Arc<Vmm>, files: &mut HashMap<Slot, OwnedFd>, machine: &MachineSpec) {
    let mut log = File::from(files.remove(&machine.console_log).expect("a log"));
    let log_bytes = log.metadata().expect("metadata").len();
    happened(vmm, &machine.name, Happening::Booting { log_bytes }, None);
    writeln!(log, "{}: \x1b[1mbooting\x1b[0m", machine.name).expect("a log that can be written");
    if let [drive, ..] = machine.drives.as_slice() {
        let mut start = [0; 8];
        let (base, overlay) = (drive.base.as_ref().expect("an image"), drive.overlay.as_ref().expect("an overlay"));
        let mut image = File::from(files[&base.file].try_clone().expect("a copy"));
        // Machines of one image share it, each under a slot of its own.
        image.read_exact(&mut start).expect("reading the image");
        assert_eq!(&start, b"an image");
        assert!(image.write_all(b"x").is_err(), "an image cannot be written");
        let [mut data, map] =
            [overlay.top.data, overlay.top.map].map(|slot| File::from(files.remove(&slot).expect("a layer")));
        assert_eq!(map.metadata().expect("metadata").len(), 0, "a new layer");
        data.write_all(b"written").expect("writing the layer");
    }
    vmm.machines.lock().expect("machines").push((machine.name.clone(), MachineState::Running));
    happened(vmm, &machine.name, Happening::Started, None);
    let (vmm, name) = (Arc::clone(vmm), machine.name.clone());
    thread::spawn(move || boot(&vmm, &name));
}

/// The network's way out goes through this one from now on.
fn take_tap(vmm: &Vmm, passed: &Passed, network: &NetworkSpec) {
    if let Some(slot) = network.tap {
        let tap = passed.lock().expect("files").remove(&slot).expect("a tap");
        vmm.taps.lock().expect("taps").insert(network.name.clone(), tap);
    }
}

fn runs(vmm: &Vmm, machine: Option<&str>) -> Vec<String> {
    let machines = vmm.machines.lock().expect("machines");
    let meant = |name: &String| machine.is_none_or(|machine| machine == name);
    let running = machines.iter().filter(|(name, state)| meant(name) && *state == MachineState::Running);
    running.map(|(name, _)| name.clone()).collect()
}

fn stand_still(vmm: &Vmm, machine: Option<&str>, what: &Happening) -> Reply {
    let chosen = runs(vmm, machine);
    if let (Some(machine), true) = (machine, chosen.is_empty()) {
        return Reply::Failed(format!("machine {machine}: it does not run"));
    }
    for name in chosen {
        happened(vmm, &name, what.clone(), None);
    }
    Reply::Done
}

/// Its drive finds no room, or finds it again.
fn host_disk(vmm: &Vmm, machine: &str, drive: &str, full: bool) {
    let errno = full.then_some(28);
    happened(vmm, machine, Happening::HostDisk { drive: drive.to_owned(), full, errno }, None);
    let mut names = vmm.full.lock().expect("names");
    names.retain(|name| name != machine);
    names.extend(full.then(|| machine.to_owned()));
    happened(vmm, machine, if full { Happening::Paused } else { Happening::Resumed }, None);
}

fn resume(vmm: &Vmm, machine: Option<&str>) -> Reply {
    let full = vmm.full.lock().expect("names").clone();
    match full.iter().find(|name| machine.is_none_or(|machine| machine == *name)) {
        Some(name) => Reply::Failed(format!("machine {name}: it stays paused")),
        None => stand_still(vmm, machine, &Happening::Resumed),
    }
}

fn save(vmm: &Vmm, passed: &Passed, files: &SavedFiles) -> Reply {
    let mut slots = passed.lock().expect("files");
    let mut file = |slot: &Slot| File::from(slots.remove(slot).expect("a file to write to"));
    let (mut state, memory) = (file(&files.state), files.memory.iter().map(file).collect::<Vec<_>>());
    let names: Vec<_> = vmm.machines.lock().expect("machines").iter().map(|(name, _)| name.clone()).collect();
    if names.iter().any(|name| name.starts_with("unsavable")) {
        return Reply::Failed("machine unsavable: it cannot be saved".into());
    }
    assert_eq!(memory.len(), names.len(), "a file for each machine");
    for mut memory in memory {
        memory.write_all(b"memory").expect("writing");
    }
    state.write_all(b"saved").expect("writing");
    stand_still(vmm, None, &Happening::Paused)
}

fn restore(vmm: &Arc<Vmm>, passed: &Passed, spec: &RestoreSpec) -> Reply {
    let mut slots = passed.lock().expect("files");
    let mut text = String::new();
    let mut read =
        |slot: &Slot| File::from(slots.remove(slot).expect("a file")).read_to_string(&mut text).expect("text");
    read(&spec.saved.state);
    for slot in &spec.saved.memory {
        read(slot);
    }
    assert_eq!(text, format!("saved{}", "memory".repeat(spec.playground.machines.len())));
    for machine in &spec.playground.machines {
        if machine.name.starts_with("lost") {
            return Reply::Failed("machine lost: it was saved on another kind of processor".into());
        }
        vmm.machines.lock().expect("machines").push((machine.name.clone(), MachineState::Running));
        happened(vmm, &machine.name, Happening::Started, None);
    }
    drop(slots);
    spec.playground.networks.iter().for_each(|network| take_tap(vmm, passed, network));
    Reply::Done
}

fn boot(vmm: &Vmm, name: &str) {
    if name.starts_with("doom") {
        eprintln!("error: out of luck");
        std::process::exit(125);
    }
    if name.starts_with("crash") {
        return ended(vmm, name, MachineState::Crashed("Kernel panic - not syncing: \x1b[31mno init".into()));
    }
    if name.starts_with("mute") {
        return;
    }
    let dial = || {
        let (here, there) = UnixStream::pair().expect("a pair");
        happened(vmm, name, Happening::GuestConnected { port: READY_PORT }, Some(there.into()));
        here
    };
    if name.starts_with("hostile") {
        for junk in [vec![b'x'; 1 << 16], b"{\"agent-ready\n".to_vec(), vec![0xff; 9], b"\n\n\n".to_vec()] {
            // Refused half way: the other end closes.
            let _ = dial().write_all(&junk);
        }
    }
    let mut hello = dial();
    let mut lines = vec![Hello::InitDone { kernel: "6.12".into() }];
    if !name.starts_with("deaf") {
        lines.push(Hello::AgentReady);
    }
    for line in lines {
        let mut line = serde_json::to_vec(&line).expect("plain data");
        line.push(b'\n');
        hello.write_all(&line).expect("saying hello");
    }
    thread::park();
}

fn status(vmm: &Vmm) -> Reply {
    let machines = vmm.machines.lock().expect("machines");
    let machines = machines.iter().map(|(name, state)| MachineStatus {
        balloon: None,
        name: name.clone(),
        state: state.clone(),
        paused: false,
        full_drives: vec![],
        boot_us: vec![],
        faults: vec![],
        counters: vec![("d00".into(), vec![("reads".into(), 7), ("writes".into(), 0)])],
        page_size: 4096,
    });
    let last_event = vmm.events.lock().expect("events").len() as u64;
    Reply::Status(Status { protocol: PROTOCOL, machines: machines.collect(), last_event })
}

fn happened(vmm: &Vmm, machine: &str, what: Happening, beside: Option<OwnedFd>) -> u64 {
    let mut events = vmm.events.lock().expect("events");
    let number = events.len() as u64 + 1;
    events.push((Event { number, at_us: number, machine: machine.to_owned(), what }, beside));
    vmm.bell.notify_all();
    number
}

fn ended(vmm: &Vmm, machine: &str, state: MachineState) {
    let mut machines = vmm.machines.lock().expect("machines");
    match machines.iter_mut().find(|(name, _)| name == machine) {
        Some((_, now)) if *now == MachineState::Running => *now = state.clone(),
        _ => return,
    }
    drop(machines);
    let number = happened(vmm, machine, Happening::Ended(state.clone()), None);
    let event = Event { number, at_us: 0, machine: machine.to_owned(), what: Happening::Ended(state) };
    let mut last_words = File::from(exec::inherited(fd::LAST_WORDS).expect("last words"));
    writeln!(last_words, "{}", serde_json::to_string(&event).expect("plain data")).expect("writing last words");
}

fn tell_events(vmm: &Vmm, stream: &UnixStream, after: u64) -> Option<()> {
    let mut next = after as usize;
    loop {
        let mut events = vmm.events.lock().expect("events");
        while events.len() <= next {
            events = vmm.bell.wait(events).expect("events");
        }
        let (event, beside) = events.get_mut(next)?;
        let (body, beside) = (serde_json::to_vec(event).expect("plain data"), beside.take());
        drop(events);
        let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
        message::send(stream, &body, &beside).ok()?;
        next += 1;
    }
}

/// One call of the agent.
fn call(vmm: &Vmm, machine: &str, stream: &UnixStream) -> Option<()> {
    let (Kind::Request, request) = receive(stream)? else { panic!("the request comes first") };
    match serde_json::from_slice(&request).expect("a request") {
        agent::Request::PowerOff => {
            if !machine.starts_with("stubborn") {
                send(stream, Kind::Exit, &serde_json::to_vec(&Exit::Code(0)).expect("plain data"));
                ended(vmm, machine, MachineState::PoweredOff);
            }
            receive(stream).map(|_| ())
        }
        agent::Request::Hosts(hosts) => {
            eprintln!("hosts of {machine}: {}", serde_json::json!(hosts));
            send(stream, Kind::Exit, &serde_json::to_vec(&Exit::Code(0)).expect("plain data"));
            Some(())
        }
        agent::Request::Dial(dial) => access::dial(stream, &dial),
        agent::Request::Pack(pack) => access::pack(stream, &pack),
        agent::Request::Unpack(unpack) => access::unpack(stream, &unpack),
        agent::Request::Bake { serial } => access::bake(stream, machine, &serial),
        agent::Request::Exec(exec) => {
            let mut command = Command::new(exec.argv.first().expect("a program"));
            command.args(&exec.argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.envs(exec.env.iter().filter_map(|variable| variable.split_once('=')));
            command.env("PATH", "/usr/bin:/bin").env("AS_USER", exec.user.unwrap_or_default());
            command.env("TTY", exec.tty.map(|(columns, rows)| format!("{columns}x{rows}")).unwrap_or_default());
            if let Some(folder) = exec.working_dir {
                command.current_dir(folder);
            }
            // A program of a machine ends with it; one that went on would hold on to the vmm's control group.
            labyard_sys::spawn::dies_with_parent(&mut command);
            match command.spawn() {
                Ok(child) => run(child, stream),
                Err(error) => {
                    let text = format!("{}: {error}", exec.argv.join(" "));
                    send(stream, Kind::Error, text.as_bytes());
                }
            }
            Some(())
        }
        other => {
            send(stream, Kind::Error, format!("a fake does not do {other:?}").as_bytes());
            Some(())
        }
    }
}

fn run(mut child: Child, stream: &UnixStream) {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid");
    // Once it was waited for, its number may be somebody else's.
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("a child");
    let mut stdin = child.stdin.take();
    let listen = stream.try_clone().expect("a copy");
    thread::spawn(move || {
        while let Some((kind, payload)) = receive(&listen) {
            match kind {
                Kind::Stdin if payload.is_empty() => stdin = None,
                Kind::Stdin => stdin = stdin.take().filter(|mut stdin| stdin.write_all(&payload).is_ok()),
                Kind::Signal => {
                    let signal = Signal::from_named_raw(payload[0].into()).expect("a signal");
                    let _ = pidfd_send_signal(&process, signal);
                }
                _ => {}
            }
        }
        // The caller has hung up.
        let _ = pidfd_send_signal(&process, Signal::KILL);
    });
    let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    thread::scope(|scope| {
        scope.spawn(|| forward(stdout, stream, Kind::Stdout));
        scope.spawn(|| forward(stderr, stream, Kind::Stderr));
    });
    let status = child.wait().expect("waiting");
    let exit = match status.code() {
        Some(code) => Exit::Code(code as u8),
        None => Exit::Signal(status.signal().expect("a signal") as u8),
    };
    send(stream, Kind::Exit, &serde_json::to_vec(&exit).expect("plain data"));
}

fn forward(mut from: impl Read, to: &UnixStream, kind: Kind) {
    let mut buffer = vec![0; MAX_FRAME_BYTES as usize];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        send(to, kind, &buffer[..n]);
    }
}

fn send(mut to: &UnixStream, kind: Kind, payload: &[u8]) {
    let mut frame = agent::header(kind, payload.len() as u32).to_vec();
    frame.extend_from_slice(payload);
    // The caller may have gone.
    let _ = to.write_all(&frame);
}

fn receive(mut from: &UnixStream) -> Option<(Kind, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    from.read_exact(&mut header).ok()?;
    let (kind, len) = parse_header(header).expect("a frame");
    let mut payload = vec![0; len as usize];
    from.read_exact(&mut payload).ok()?;
    Some((kind, payload))
}
