//! Tiny guests that end and start again, come and go, while another runs on.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use labyard_spec::control::{Reply, Request};
use labyard_spec::net::{Ipv4Subnet, Mac};
use labyard_spec::playground::{DriveSpec, Engine, InterfaceSpec, LayerSlots, NetworkSpec, OverlaySpec, Slot};
use labyard_sys::message;
use labyard_vmm::control::Control;

use super::*;

/// Files of a machine that has a drive in layers and a NIC.
struct Kept {
    code: Vec<u8>,
    log: File,
    layer: [File; 2],
}

impl Kept {
    fn new(code: Vec<u8>) -> Self {
        let file = || tempfile::tempfile().expect("a file");
        Self { code, log: file(), layer: [file(), file()] }
    }

    /// A machine that has them, in slots of `files`.
    fn machine(&self, name: &str, files: &mut Files) -> MachineSpec {
        let boot = BootSpec {
            kernel: files.add(kernel(&self.code)),
            initrd: Vec::new(),
            extra_cmdline: String::new(),
            entry: Entry::Pvh,
        };
        let mut copy = |file: &File| files.add(file.try_clone().expect("a copy"));
        let log = copy(&self.log);
        let [data, map] = [copy(&self.layer[0]), copy(&self.layer[1])];
        let mut machine = MachineSpec::new(name, boot, log);
        machine.memory_mib = 32;
        machine.interfaces =
            vec![InterfaceSpec { network: "local".into(), mac: Mac::derived("local", name, 0), mtu: 1500 }];
        machine.drives = vec![DriveSpec {
            serial: "d00".into(),
            read_only: false,
            base: None,
            overlay: Some(OverlaySpec { frozen: Vec::new(), top: LayerSlots { data, map }, capacity_bytes: 1 << 20 }),
            engine: Engine::Auto,
        }];
        machine
    }

    fn printed(&self) -> String {
        let mut log = self.log.try_clone().expect("a copy");
        log.seek(SeekFrom::Start(0)).expect("seeking");
        let mut text = String::new();
        log.read_to_string(&mut text).expect("text");
        text
    }
}

fn state(playground: &Playground, name: &str) -> MachineState {
    let found = playground.status().machines.into_iter().find(|machine| machine.name == name);
    found.expect("a machine").state
}

#[test]
fn a_machine_that_has_ended_starts_again_on_its_files_while_another_runs_on() {
    let once = Kept::new([print("once "), power_off()].concat());
    let other = Kept::new(HALT.to_vec());
    let playground = embed::playground().expect("KVM");
    let mut files = Files::default();
    let machines = vec![once.machine("once", &mut files), other.machine("other", &mut files)];
    let subnet = Ipv4Subnet::containing([10, 0, 0, 0].into(), 24).expect("a subnet");
    let network = NetworkSpec {
        name: "local".into(),
        subnet,
        gateway: [10, 0, 0, 1].into(),
        private: true,
        tap: None,
        six: None,
    };
    let spec = PlaygroundSpec { name: "lab".into(), networks: vec![network], machines };
    playground.create(&spec, files.into_slots()).expect("created");

    for times in 1..=3 {
        assert_eq!(playground.wait("once"), Ok(MachineState::PoweredOff));
        assert_eq!(once.printed(), "once ".repeat(times));
        if times < 3 {
            let mut files = Files::default();
            let machine = once.machine("once", &mut files);
            playground.start(&machine, files.into_slots()).expect("started again");
        }
    }
    assert_eq!(state(&playground, "other"), MachineState::Running);
    let events = (0..).map_while(|after| playground.event_after(after, Duration::ZERO)).map(|(event, _)| event);
    let boots = events.filter(|event| event.machine == "once").filter_map(|event| match event.what {
        Happening::Booting { log_bytes } => Some(log_bytes),
        _ => None,
    });
    assert_eq!(boots.collect::<Vec<_>>(), [0, 5, 10], "each boot begins where the one before has ended");

    let refuse = |name: &str, change: &dyn Fn(&mut MachineSpec)| {
        let mut files = Files::default();
        let mut machine = once.machine(name, &mut files);
        change(&mut machine);
        playground.start(&machine, files.into_slots()).expect_err("refused")
    };
    assert_eq!(refuse("other", &|_| {}), "machine other: it runs");
    assert_eq!(refuse("third", &|_| {}), "machine third: there is none of this name");
    let moved = refuse("once", &|machine| machine.interfaces[0].mac = Mac::derived("local", "other", 0));
    assert_eq!(moved, "machine once: interface 0 is not the one that it was created with");
    assert!(refuse("once", &|machine| machine.memory_mib = 1).contains("1 MiB of memory"));
    assert_eq!(state(&playground, "once"), MachineState::PoweredOff, "what was refused changed nothing");

    playground.kill(Some("other")).expect("killed");
    let mut files = Files::default();
    let machine = other.machine("other", &mut files);
    playground.start(&machine, files.into_slots()).expect("started again");
    playground.kill(None).expect("killed");
    assert_eq!(state(&playground, "other"), MachineState::Killed);
}

#[test]
fn a_machine_and_a_network_come_and_go_while_another_runs_on() {
    let stays = Kept::new(HALT.to_vec());
    let playground = embed::playground().expect("KVM");
    let mut files = Files::default();
    let machines = vec![stays.machine("stays", &mut files)];
    let subnet = |third| Ipv4Subnet::containing([10, 0, third, 0].into(), 24).expect("a subnet");
    let network = |name: &str, third| NetworkSpec {
        name: name.into(),
        subnet: subnet(third),
        gateway: [10, 0, third, 1].into(),
        private: true,
        tap: None,
        six: None,
    };
    let spec = PlaygroundSpec { name: "lab".into(), networks: vec![network("local", 0)], machines };
    playground.create(&spec, files.into_slots()).expect("created");

    let add = |kept: &Kept, name: &str, change: &dyn Fn(&mut MachineSpec)| {
        let mut files = Files::default();
        let mut machine = kept.machine(name, &mut files);
        change(&mut machine);
        playground.add(&machine, files.into_slots())
    };
    let also_back = |machine: &mut MachineSpec| {
        let mac = Mac::derived("back", "comes", 1);
        machine.interfaces.push(InterfaceSpec { network: "back".into(), mac, mtu: 1500 });
    };
    let comes = Kept::new([print("here "), power_off()].concat());
    let refused = add(&comes, "comes", &also_back).expect_err("refused");
    assert_eq!(refused, "machine comes: network back does not exist");
    for times in 1..=3 {
        playground.add_network(&network("back", 1), HashMap::new()).expect("a network");
        add(&comes, "comes", &also_back).expect("added");
        assert_eq!(playground.wait("comes"), Ok(MachineState::PoweredOff));
        assert_eq!(comes.printed(), "here ".repeat(times));
        assert_eq!(add(&comes, "comes", &|_| {}), Err("machine comes: there is one of this name".into()));
        let taken = |machine: &mut MachineSpec| machine.interfaces[0].mac = Mac::derived("local", "stays", 0);
        let refused = add(&comes, "other", &taken).expect_err("refused");
        assert!(refused.contains("machine other: network local: the hardware address"), "{refused}");
        let refused = playground.remove_network("back").expect_err("refused");
        assert_eq!(refused, "network back: a machine is plugged in");
        playground.remove("comes").expect("removed");
        playground.remove_network("back").expect("removed");
    }
    assert_eq!(playground.remove("stays"), Err("machine stays: it runs".into()));
    assert_eq!((playground.remove("comes"), playground.remove_network("back")), (Ok(()), Ok(())), "long ago");
    let names: Vec<_> = playground.status().machines.into_iter().map(|machine| (machine.name, machine.state)).collect();
    assert_eq!(names, [("stays".to_owned(), MachineState::Running)]);
    playground.kill(None).expect("killed");
}

/// What stands for a tap device, and the kernel's end of it, which tells whether anybody has it still.
fn tap() -> (HashMap<Slot, OwnedFd>, UnixDatagram) {
    let (ours, kernel) = UnixDatagram::pair().expect("a pair");
    ours.set_nonblocking(true).expect("a socket");
    (HashMap::from([(Slot(7), ours.into())]), kernel)
}

#[test]
fn a_network_with_a_way_out_comes_and_its_device_is_closed_when_it_goes() {
    let stays = Kept::new(HALT.to_vec());
    let playground = embed::playground().expect("KVM");
    let mut files = Files::default();
    let machines = vec![stays.machine("stays", &mut files)];
    let network = |name: &str, private, tap: Option<u32>| NetworkSpec {
        name: name.into(),
        subnet: Ipv4Subnet::containing([10, 0, 0, 0].into(), 24).expect("a subnet"),
        gateway: [10, 0, 0, 1].into(),
        private,
        tap: tap.map(Slot),
        six: None,
    };
    let spec = PlaygroundSpec { name: "lab".into(), networks: vec![network("local", true, None)], machines };
    playground.create(&spec, files.into_slots()).expect("created");
    let is_open = |kernel: &UnixDatagram| kernel.send(&[0; 40]).is_ok();

    let (passed, first) = tap();
    playground.add_network(&network("edge", false, Some(7)), passed).expect("a network");
    assert!(is_open(&first));
    // Whoever adds it once more brings another way out, and what is said of it must be the same.
    playground.add_network(&network("edge", false, None), HashMap::new()).expect("it is there");
    let (passed, second) = tap();
    playground.add_network(&network("edge", false, Some(7)), passed).expect("another way out");
    assert!(!is_open(&first) && is_open(&second));
    for (spec, why) in [
        (network("edge", true, None), "network edge: there is another of this name"),
        (network("other", false, Some(8)), "network other: the descriptor of its tap device was not passed"),
        (network("local", true, Some(7)), "network local: a private one has no way out"),
    ] {
        let (passed, refused) = tap();
        assert_eq!(playground.add_network(&spec, passed), Err(why.into()));
        assert!(!is_open(&refused), "{why}");
    }
    assert!(is_open(&second));
    playground.remove_network("edge").expect("removed");
    assert!(!is_open(&second));
    playground.remove_network("edge").expect("long ago");
    playground.kill(None).expect("killed");
}

#[test]
fn descriptors_that_nobody_took_go_with_the_connection_on_which_they_were_passed() {
    let control = Control::new(embed::playground().expect("KVM"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("control.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || control.serve(&listener));
    let pass = |tap: &OwnedFd| {
        let stream = UnixStream::connect(&path).expect("it listens");
        let request = Request::Descriptors { first: Slot(0), count: 1 };
        message::send(&stream, &serde_json::to_vec(&request).expect("JSON"), &[tap.as_fd()]).expect("sending");
        let (reply, _) = message::recv(&stream, 1024).expect("receiving").expect("a reply");
        assert_eq!(serde_json::from_slice::<Reply>(&reply).expect("a reply"), Reply::Done);
        stream
    };
    for _ in 0..2 {
        let (mut passed, kernel) = tap();
        let tap = passed.remove(&Slot(7)).expect("a tap");
        let stream = pass(&tap);
        drop(tap);
        kernel.send(&[0]).expect("the vmm has the other end");
        drop(stream);
        let until = Instant::now() + Duration::from_secs(20);
        while kernel.send(&[0]).is_ok() {
            assert!(Instant::now() < until, "it is open still");
            std::thread::yield_now();
        }
    }
}
