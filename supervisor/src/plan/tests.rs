use super::*;
use labyard_rootfs_builder::store::KERNEL_FORMAT;
use labyard_spec::manifest::{Manifest, Place};
use labyard_spec::playground::Entry;
use std::net::Ipv4Addr;

fn lab() -> Lab {
    let text = "{kind: playground, name: two-machines, playground: {machines: [
        {name: web, drives: [{source: x, mount: /}], network: {interfaces: [{network: local, address: 172.16.0.10}]}},
        {name: db, drives: [{source: x, mount: /}], network: {interfaces: [{network: local}]}}]}}";
    Manifest::read(text, "lab.yaml").expect("it keeps every rule").lab
}

fn found() -> Found {
    Found {
        kernel: FoundKernel {
            record: KernelRecord {
                id: "6.12.1-abc".into(),
                version: "6.12.1".into(),
                series: "6.12".into(),
                digest: "sha256:0".into(),
                early_modules: vec!["virtio_blk.ko".into()],
                late_modules: vec!["vsock".into()],
                stock: false,
                min_memory_mib: 64,
                format: KERNEL_FORMAT,
            },
            vmlinux: "/k/vmlinux".into(),
            initramfs: "/k/initramfs.cpio".into(),
            modules: Some("/k/modules.ext4".into()),
        },
        root: ImageRecord {
            key: "k".into(),
            source: "s".into(),
            digest: "d".into(),
            layers: vec![],
            size_bytes: 0,
            filesystem: "ext4".into(),
            uuid: "u".into(),
            init: true,
            entrypoint: None,
            entries: 0,
            writer: 1,
            disk: None,
            blobs: vec![],
            kernel: labyard_spec::needs::KernelNeeds::default(),
            unproved: false,
        },
        bases: vec![Some(FoundBase { path: "/i/disk.ext4".into(), name: "k".into() })],
    }
}

fn folder() -> Folder {
    Folder { name: "two-machines".into(), path: "/p/two-machines".into() }
}

#[test]
fn every_slot_has_one_file_and_every_file_one_slot() {
    let plan = plan(&lab(), &[found(), found()], &folder());
    let mut slots: Vec<u32> = Vec::new();
    for machine in &plan.spec.machines {
        slots.push(machine.boot.kernel.0);
        slots.extend(machine.boot.initrd.iter().map(|slot| slot.0));
        slots.extend(machine.drives.iter().flat_map(|drive| drive.files().map(|(slot, _)| slot.0)));
        slots.push(machine.console_log.0);
    }
    slots.sort_unstable();
    assert_eq!(slots, (0..plan.files.len() as u32).collect::<Vec<_>>());
    assert!(plan.max_descriptors > plan.files.len() as u64);
}

#[test]
fn only_a_machine_s_own_files_can_be_written() {
    let plan = plan(&lab(), &[found(), found()], &folder());
    let own = folder().path;
    for file in plan.files.iter().filter(|file| file.access != FileAccess::Read) {
        assert!(file.path.starts_with(&own), "{file:?}");
    }
    let mut written: Vec<_> =
        plan.files.iter().filter(|file| file.access != FileAccess::Read).map(|file| &file.path).collect();
    written.dedup();
    assert_eq!(written.len(), 6, "data, a map and a log for each machine: {written:?}");
}

#[test]
fn the_modules_come_last_and_cannot_be_written() {
    let plan = plan(&lab(), &[found(), found()], &folder());
    let serials: Vec<_> =
        plan.spec.machines[1].drives.iter().map(|drive| (drive.serial.as_str(), drive.read_only)).collect();
    assert_eq!(serials, [("d00", false), ("modules", true)]);
}

#[test]
fn what_a_machine_asks_of_labyard_alone_reaches_the_vmm() {
    let mut lab = lab();
    let asked = &mut lab.machines[1];
    (asked.entry, asked.cpu_template, asked.nested) = (Entry::Pvh, Some("x86-64-v3".into()), true);
    asked.huge_pages = Some(Place { line: 1, column: 1 });
    let machines = plan(&lab, &[found(), found()], &folder()).spec.machines;
    let told =
        |machine: &MachineSpec| (machine.boot.entry, machine.cpu_template.clone(), machine.nested, machine.huge_pages);
    assert_eq!(told(&machines[0]), (Entry::Auto, None, false, false));
    assert_eq!(told(&machines[1]), (Entry::Pvh, Some("x86-64-v3".into()), true, true));
}

#[test]
fn machines_know_each_other_by_name() {
    let lab = lab();
    let config = machine_config(&lab, &lab.machines[0], &found());
    let hosts: Vec<_> = config.hosts.iter().map(|host| format!("{} {}", host.address, host.names.join(" "))).collect();
    assert_eq!(hosts, ["172.16.0.10 web", "172.16.0.2 db"]);
    assert_eq!(config.interfaces[0].gateway, None, "a private network leads nowhere");
    assert_eq!(config.nameservers, [Ipv4Addr::UNSPECIFIED; 0]);
}

#[test]
fn the_first_network_with_a_way_out_has_the_default_route_and_the_resolver() {
    let text = include_str!("../../../spec/testdata/segments.yaml");
    let segments = Manifest::read(text, "segments.yaml").expect("it keeps every rule").lab;
    let uplink = uplink(&segments).expect("one network is not private");
    let [edge] = uplink.networks.as_slice() else { panic!("{uplink:?}") };
    let names: Vec<_> = edge.names.iter().map(|(name, address)| format!("{name} {address}")).collect();
    assert_eq!((edge.name.as_str(), edge.gateway.to_string()), ("edge", "10.10.0.1".to_owned()));
    assert_eq!(names, ["bastion 10.10.0.5", "router 10.10.0.254"]);
    let configs: Vec<_> =
        segments.machines.iter().map(|machine| machine_config(&segments, machine, &found())).collect();
    let gateways = |config: &MachineConfig| config.interfaces.iter().map(|nic| nic.gateway).collect::<Vec<_>>();
    assert_eq!(gateways(&configs[1]), [Some(edge.gateway), None, None]);
    assert_eq!((gateways(&configs[2]), configs[2].nameservers.len()), (vec![None], 0));
    assert_eq!(configs[1].nameservers, [edge.gateway]);
}

#[test]
fn ipv6_goes_beside_ipv4_and_where_there_is_none_nothing_says_so() {
    let text = include_str!("../../../spec/testdata/six.yaml");
    let six = Manifest::read(text, "six.yaml").expect("it keeps every rule").lab;
    let planned = plan(&six, &[found(), found()], &folder());
    let subnets: Vec<_> = planned.spec.networks.iter().map(|network| network.six.map(|six| six.subnet)).collect();
    assert_eq!(subnets, six.networks.iter().map(|network| network.six.map(|six| six.subnet)).collect::<Vec<_>>());
    let uplink = planned.uplink.as_ref().expect("networks that are not private");
    let [old, edge, _] = uplink.networks.as_slice() else { panic!("{uplink:?}") };
    assert_eq!((old.six, old.names.len(), old.names6.len()), (None, 1, 0));
    assert_eq!(edge.six.map(|six| six.gateway.to_string()).as_deref(), Some("fd00:10::ff"));
    let names: Vec<_> = edge.names6.iter().map(|(name, address)| format!("{name} {address}")).collect();
    assert_eq!(names, ["web fd00:10::2", "db fd00:10::1"]);

    let config = machine_config(&six, &six.machines[0], &found());
    let hosts: Vec<_> = config.hosts.iter().map(|host| format!("{} {}", host.address, host.names.join(" "))).collect();
    let web = ["172.16.0.2", "10.0.0.2", "10.10.0.2", "10.20.0.2", "fd00:16::3", "fd00:10::2", "fd00:20::2"];
    let db = ["172.16.0.3", "10.10.0.3", "10.20.0.3", "fd00:16::2", "fd00:10::1", "fd00:20::3"];
    let lines = |addresses: &[&str], name| addresses.iter().map(|ip| format!("{ip} {name}")).collect::<Vec<_>>();
    assert_eq!(hosts, [lines(&web, "web"), lines(&db, "db")].concat());
    let gateways: Vec<_> = config.interfaces.iter().map(|nic| nic.six.and_then(|six| six.gateway)).collect();
    assert_eq!(gateways, [None, None, edge.six.map(|six| six.gateway), None]);
    assert!(config.nameservers.iter().all(|address| *address == old.gateway), "the resolver is at its IPv4 address");

    let written = |lab: &Lab, count: usize| {
        let plan = plan(lab, &vec![found(); count], &folder());
        let config = machine_config(lab, &lab.machines[0], &found());
        format!("{} {}", serde_json::to_string(&plan).expect("JSON"), serde_json::to_string(&config).expect("JSON"))
    };
    let text = include_str!("../../../spec/testdata/segments.yaml");
    let segments = Manifest::read(text, "segments.yaml").expect("it keeps every rule").lab;
    assert!(!written(&segments, segments.machines.len()).contains("six"));
    assert!(!written(&segments, segments.machines.len()).contains("names6"));
    assert!(written(&six, 2).contains(r#""six":{"address":"fd00:10::2","prefix":64,"gateway":"fd00:10::ff"}"#));
}

#[test]
fn every_example_keeps_every_rule() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let manifests =
        std::fs::read_dir(&examples).expect("examples").flatten().map(|entry| entry.path().join("lab.yaml"));
    let manifests: Vec<_> = manifests.filter(|path| path.exists()).collect();
    assert!(manifests.len() >= 3, "{manifests:?}");
    for path in manifests {
        let text = std::fs::read_to_string(&path).expect("reading");
        let read = Manifest::read(&text, &path.display().to_string());
        assert!(read.is_ok(), "{}", read.err().map(|fault| fault.to_string()).unwrap_or_default());
    }
}
