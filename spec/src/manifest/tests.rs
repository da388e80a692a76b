mod six;

use super::*;
use crate::net::Mac;
use crate::playground::Entry;

/// A manifest that keeps every rule, with one `text` replaced.
fn read_with(text: &str, by: &str) -> Result<Manifest, Fault> {
    let whole = "\
kind: playground
name: pair
title: Two machines
playground:
  networks:
    - name: local
      subnet: 172.16.0.0/24
    - name: back
      subnet: 10.0.0.0/30
      private: true
  machines:
    - name: web
      drives:
        - {source: debian-12, mount: /}
      network:
        interfaces:
          - {network: local}
          - {network: back}
    - name: db
      drives:
        - {source: 'oci-layout:./img', mount: /, size: 8GiB}
        - {size: 1GiB}
      network:
        interfaces:
          - {network: local, address: 172.16.0.2}
      resources: {cpuCount: 2, ramSize: 1GiB}
  initTasks:
    first: {init: true, machine: web, run: 'true'}
    second: {init: true, machine: db, needs: [first], run: 'true'}
";
    assert_eq!(whole.matches(text).count(), 1, "`{text}` must stand there once");
    Manifest::read(&whole.replace(text, by), "lab.yaml")
}

fn lab() -> Lab {
    read_with("kind: playground", "kind: playground").expect("it keeps every rule").lab
}

#[test]
fn addresses_are_static_or_the_first_free_ones_after_the_gateway() {
    let lab = lab();
    let addresses = |machine: usize| -> Vec<String> {
        lab.machines[machine].interfaces.iter().map(|nic| format!("{}/{}", nic.address, nic.prefix)).collect()
    };
    assert_eq!(lab.networks[0].gateway.to_string(), "172.16.0.1");
    assert_eq!(addresses(0), ["172.16.0.3/24", "10.0.0.2/30"], "172.16.0.2 was taken by db, which comes later");
    assert_eq!(addresses(1), ["172.16.0.2/24"]);
}

#[test]
fn the_first_network_that_is_not_private_gives_the_default_route() {
    let lab = lab();
    let gateways: Vec<_> = lab.machines[0].interfaces.iter().map(|nic| nic.gateway).collect();
    assert_eq!(gateways, [Some(lab.networks[0].gateway), None]);
}

#[test]
fn identities_come_from_the_manifest_alone() {
    let lab = lab();
    assert_eq!(lab.machines.iter().map(|machine| machine.cid).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(lab.machines[0].interfaces[1].mac, Mac::derived("back", "web", 1));
    assert_eq!(lab.machines[1].drives.iter().map(|drive| drive.serial.as_str()).collect::<Vec<_>>(), ["d00", "d01"]);
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let lab = lab();
    let web = &lab.machines[0];
    assert_eq!((web.cpu_count, web.memory_mib, web.drives[0].size_bytes.value), (1, 512, 4 << 30));
    assert_eq!((web.users[0].name.as_str(), web.kernel.as_ref(), web.no_ssh), ("root", None, false));
    assert_eq!(web.drives[0].filesystem, Some(lab::Filesystem::Ext4));
    assert_eq!(lab.machines[1].drives[1].filesystem, None, "no source, mount or file system: a raw disk");
    assert_eq!(lab.access.can_start, ["owner"]);
}

#[test]
fn without_networks_there_is_one_called_local() {
    let text = "{kind: playground, name: one, playground: {machines: [{name: a, drives: [{source: x, mount: /}], network: {interfaces: [{network: local}]}}]}}";
    let lab = Manifest::read(text, "lab.yaml").expect("it keeps every rule").lab;
    assert_eq!((lab.networks[0].name.as_str(), lab.networks[0].subnet.to_string()), ("local", "172.16.0.0/24".into()));
    assert_eq!(lab.machines[0].interfaces[0].address.to_string(), "172.16.0.2");
    assert_eq!(lab.about.title, "one");
}

#[test]
fn a_kernel_is_read_as_written_also_where_yaml_sees_a_number() {
    for (written, series) in [
        ("kernel: 6.10", "6.10"),
        ("kernel: '6.1'", "6.1"),
        ("kernel: {source: \"6.12\"}", "6.12"),
        ("kernel: {source: 6.10}", "6.10"),
    ] {
        let lab = read_with("resources: {cpuCount: 2, ramSize: 1GiB}", written).expect(written).lab;
        assert_eq!(lab.machines[1].kernel.as_ref().map(|kernel| kernel.value.as_str()), Some(series), "{written}");
    }
}

#[test]
fn fields_of_our_own_stand_apart_and_have_defaults() {
    let machines = lab().machines;
    let plain = &machines[1];
    assert_eq!((plain.entry, plain.nested, plain.huge_pages), (Entry::Auto, false, None));
    assert_eq!(plain.cpu_template, None);
    let own = "{entry: linux64, cpuTemplate: x86-64-v2, nestedVirtualization: true, hugePages: true}";
    let resources = "resources: {cpuCount: 2, ramSize: 1GiB}";
    let lab = read_with(resources, &format!("{resources}\n      labyard: {own}")).expect("it keeps every rule").lab;
    let machine = &lab.machines[1];
    assert_eq!((machine.entry, machine.nested), (Entry::Linux64, true));
    assert_eq!(machine.cpu_template.as_deref(), Some("x86-64-v2"));
    assert_eq!(machine.huge_pages, Some(Place { line: 27, column: 96 }));
    let off = read_with(resources, "labyard: {hugePages: false}").expect("it keeps every rule").lab;
    assert_eq!(off.machines[1].huge_pages, None);
}

#[test]
fn the_documented_examples_are_read_unchanged() {
    let storage = Manifest::read(include_str!("../../testdata/storage.yaml"), "storage.yaml").expect("storage").lab;
    assert_eq!(
        storage.machines[0].drives.iter().map(|drive| drive.filesystem.map(lab::Filesystem::name)).collect::<Vec<_>>(),
        [Some("ext4"), Some("xfs"), None]
    );
    assert_eq!(storage.machines[0].startup_files[0].content, "vm.swappiness = 1\n");
    assert_eq!(storage.tasks[1].conditions, [("dataset".to_owned(), "large".to_owned())]);

    let segments = Manifest::read(include_str!("../../testdata/segments.yaml"), "segments.yaml").expect("segments").lab;
    assert!(segments.machines[3].no_ssh && segments.machines[1].interfaces.len() == 3);
    assert_eq!(segments.machines[2].interfaces[0].gateway, None, "a private network routes nowhere");

    let cluster = Manifest::read(include_str!("../../testdata/cluster.yaml"), "cluster.yaml").expect("cluster").lab;
    let names: Vec<_> = cluster.machines.iter().map(|machine| machine.name.as_str()).collect();
    assert_eq!(names, ["cplane-01", "node-01", "node-02"]);
    assert_eq!(cluster.machines[2].interfaces[0].address.to_string(), "172.16.0.4", "merged, then overridden");
    assert!(cluster.tasks.iter().any(|task| task.machine == "node-01" && task.needs == ["init_server"]));
}

/// What is replaced, by what, and the complaint.
#[test]
fn every_broken_rule_is_one_complaint_with_its_place() {
    let cases = [
        ("kind: playground", "kind: course", "lab.yaml:1:7: kind: `course` is not `playground`"),
        ("name: pair", "name: Pair", "lab.yaml:2:7: name: `Pair` is not a name"),
        ("name: pair\n", "", "`name` is missing"),
        ("title: Two machines", "title: Two", "lab.yaml:3:8: title: 3 characters"),
        (
            "title: Two machines",
            "titel: Two machines",
            "lab.yaml:3:1: titel: no such field `titel`: known here are kind, name",
        ),
        (
            "subnet: 10.0.0.0/30",
            "subnet: 172.16.0.64/26",
            "lab.yaml:9:15: networks[1].subnet: 172.16.0.64/26 shares addresses with 172.16.0.0/24 of network `local`",
        ),
        ("subnet: 10.0.0.0/30", "subnet: 10.0.0.1/30", "networks[1].subnet: `10.0.0.1/30` has host bits set"),
        (
            "- name: back",
            "- name: local",
            "lab.yaml:8:13: networks[1].name: `local` is the name of networks[0] already",
        ),
        ("private: true", "private: yes", "lab.yaml:10:16: networks[1].private: `yes` is neither true nor false"),
        ("private: true", "gateway: 10.0.1.1", "networks[1].gateway: 10.0.1.1 is not a host of 10.0.0.0/30"),
        ("- name: db", "- name: web", "lab.yaml:19:13: machines[1].name: `web` is the name of machines[0] already"),
        (
            "{network: back}",
            "{network: lan}",
            "lab.yaml:18:23: machines[0].network.interfaces[1].network: no network `lan`: there is local, back",
        ),
        (
            "{network: back}",
            "{address: 10.0.0.2}",
            "lab.yaml:18:13: machines[0].network.interfaces[1].network: the name of a network is missing",
        ),
        (
            "address: 172.16.0.2",
            "address: 172.17.0.2",
            "lab.yaml:25:39: machines[1].network.interfaces[0].address: 172.17.0.2 is not a host of 172.16.0.0/24",
        ),
        ("address: 172.16.0.2", "address: 172.16.0.300", "`172.16.0.300` is not an IPv4 address"),
        (
            "{network: back}",
            "{network: local, address: 172.16.0.2}",
            "machines[1].network.interfaces[0].address: 172.16.0.2 on network `local` is the address of machine `web` already",
        ),
        (
            "- {source: debian-12, mount: /}",
            "- {source: debian-12}",
            "lab.yaml:14:9: machines[0].drives: no drive has `mount: /`",
        ),
        ("- {source: debian-12, mount: /}", "- {mount: /}", "lab.yaml:14:11: machines[0].drives[0].source: missing"),
        (
            "source: debian-12",
            "source: ./debian",
            "lab.yaml:14:20: machines[0].drives[0].source: source `./debian` is none of",
        ),
        ("size: 8GiB", "size: 8GB", "lab.yaml:21:56: machines[1].drives[0].size: `8GB` is not a size"),
        ("- {size: 1GiB}", "- {size: 1GiB, mount: /}", "lab.yaml:22:11: machines[1].drives[1].source: missing"),
        (
            "- {size: 1GiB}",
            "- {source: x, mount: //}",
            "machines[1].drives[1].mount: `/` is where drive 0 is mounted already",
        ),
        (
            "- {size: 1GiB}",
            "- {filesystem: zfs}",
            "machines[1].drives[1].filesystem: `zfs` is none of ext4, ext3, ext2, xfs, btrfs, erofs",
        ),
        (
            "- {size: 1GiB}",
            "- {source: x, filesystem: xfs}",
            "machines[1].drives[1].filesystem: `xfs`: a drive with a source is ext4, or erofs where it is read-only",
        ),
        (
            "- {size: 1GiB}",
            "- {source: x, filesystem: erofs}",
            "machines[1].drives[1].filesystem: `erofs`: nothing can be written to it: add `readOnly: true`",
        ),
        (
            "- {size: 1GiB}",
            "- {filesystem: erofs, readOnly: true}",
            "machines[1].drives[1].filesystem: `erofs`: nothing can be written to it, so it starts as an image",
        ),
        (
            "- {size: 1GiB}",
            "- {labyard: {engine: io}}",
            "machines[1].drives[1].labyard.engine: `io` is none of auto, sync, uring",
        ),
        ("- {size: 1GiB}", "- {engine: sync}", "no such field `engine`"),
        (
            "cpuCount: 2",
            "cpuCount: two",
            "lab.yaml:26:29: machines[1].resources.cpuCount: `two` is not a whole number in range",
        ),
        ("cpuCount: 2", "cpuCount: 0", "machines[1].resources.cpuCount: 0 vCPUs"),
        ("ramSize: 1GiB", "ramSize: 1MiB", "lab.yaml:26:41: machines[1].resources.ramSize: `1MiB` is less than 32MiB"),
        (
            "ramSize: 1GiB",
            "ramSize: 65537KiB",
            "lab.yaml:26:41: machines[1].resources.ramSize: `65537KiB` is not a whole number of MiB: write 64MiB or 65MiB",
        ),
        (
            "resources: {cpuCount: 2, ramSize: 1GiB}",
            "labyard: {entry: efi}",
            "lab.yaml:26:24: machines[1].labyard.entry: `efi` is none of auto, pvh, linux64",
        ),
        (
            "resources: {cpuCount: 2, ramSize: 1GiB}",
            "labyard: {cpuTemplate: T2}",
            "lab.yaml:26:30: machines[1].labyard.cpuTemplate: `T2` is none of host, x86-64-v2, x86-64-v3",
        ),
        (
            "resources: {cpuCount: 2, ramSize: 1GiB}",
            "labyard: {nestedVirtualization: yes}",
            "machines[1].labyard.nestedVirtualization: `yes` is neither true nor false",
        ),
        (
            "resources: {cpuCount: 2, ramSize: 1GiB}",
            "labyard: {nested: true}",
            "lab.yaml:26:17: machines[1].labyard.nested: no such field `nested`: known here are entry, cpuTemplate, nestedVirtualization, hugePages",
        ),
        (
            "resources: {cpuCount: 2, ramSize: 1GiB}",
            "resources: {ramSize: 513MiB}\n      labyard: {hugePages: true}",
            "lab.yaml:27:28: machines[1].labyard.hugePages: 513MiB of memory are not whole huge pages of 2MiB: make ramSize 514MiB",
        ),
        (
            "cpuCount: 2",
            "cpus: 2",
            "lab.yaml:26:19: machines[1].resources.cpus: no such field `cpus`: known here are cpuCount, ramSize",
        ),
        ("init: true, machine: web", "init: false, machine: web", "lab.yaml:28:19: initTasks.first.init: must be true"),
        (
            "init: true, machine: web",
            "init: true, machine: www",
            "initTasks.first.machine: no machine `www`: there is web, db",
        ),
        (
            "init: true, machine: web",
            "init: true, machine: web, needs: [second]",
            "initTasks.first.needs: a circle: first, second wait for each other",
        ),
        (
            "needs: [first]",
            "needs: [frist]",
            "lab.yaml:29:47: initTasks.second.needs[0]: no task `frist`: there is first, second",
        ),
        (
            "- {size: 1GiB}",
            "- {size: 5TiB, filesystem: ext4}",
            "machines[1].drives[1].size: `5TiB` is more than 4TiB for a blank drive that is made on the host",
        ),
        ("- {size: 1GiB}", "- {size: 8TiB, readOnly: true}", "`8TiB` is more than 4TiB"),
        ("- {size: 1GiB}", "- {size: 8TiB, mount: /srv}", "leave filesystem, mount and readOnly out"),
        ("title: Two machines", "title: [", "lab.yaml:"),
        ("title: Two machines", "name: again", "`name` is given twice"),
    ];
    let mut wrong = Vec::new();
    for (text, by, complaint) in cases {
        let fault = read_with(text, by).expect_err(by).to_string();
        if !fault.contains(complaint) || !fault.starts_with("lab.yaml:") || fault.contains('\n') {
            wrong.push(format!("{by}\n  is:     {fault}\n  wanted: {complaint}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_manifest_of_aliases_of_aliases_is_refused() {
    let mut text = String::from("kind: playground\nname: &a0 [x, x]\n");
    for depth in 1..40 {
        text.push_str(&format!("b{depth}: &a{depth} [*a{0}, *a{0}, *a{0}]\n", depth - 1));
    }
    assert!(Manifest::read(&text, "lab.yaml").is_err());
    assert!(Manifest::read(&"[".repeat(100_000), "lab.yaml").is_err());
    assert!(Manifest::read(&" ".repeat(MAX_BYTES + 1), "lab.yaml").is_err());
}

#[test]
fn the_largest_lab_is_planned_and_a_larger_one_is_refused_with_the_numbers() {
    let networks = |count: usize| -> String {
        (0..count).map(|n| format!("    - {{name: net{n}, subnet: 10.{n}.0.0/24, private: true}}\n")).collect()
    };
    let machines = |count: usize, drives: usize| -> String {
        let blank = "{size: 1GiB}, ".repeat(drives - 1);
        let machine = |n: usize| {
            format!(
                "    - {{name: m{n}, drives: [{blank}{{source: x, mount: /}}], network: {{interfaces: [{{network: net{}}}]}}}}\n",
                n % 32
            )
        };
        (0..count).map(machine).collect()
    };
    let read = |(hosts, nets, drives)| {
        let (machines, networks) = (machines(hosts, drives), networks(nets));
        let text = format!("kind: playground\nname: big\nplayground:\n  networks:\n{networks}  machines:\n{machines}");
        Manifest::read(&text, "big.yaml")
    };
    let lab = read((64, 32, 24)).expect("the largest").lab;
    assert_eq!((lab.machines.len(), lab.networks.len(), lab.machines[63].drives.len()), (64, 32, 24));
    assert_eq!(lab.machines[63].interfaces[0].address.to_string(), "10.31.0.3");
    assert_eq!(lab.machines[63].cid, 66);
    for (size, why) in [
        ((65, 32, 24), "65 machines, not 1 to 64"),
        ((64, 33, 24), "33 networks, more than 32"),
        ((64, 32, 25), "25 drives, more than 24"),
    ] {
        let error = read(size).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn an_image_that_is_only_read_may_be_on_erofs() {
    let manifest = read_with("- {size: 1GiB}", "- {source: x, filesystem: erofs, readOnly: true}").expect("a manifest");
    let drive = &manifest.lab.machines[1].drives[1];
    assert_eq!((drive.filesystem, drive.read_only), (Some(lab::Filesystem::Erofs), true));
}

#[test]
fn what_was_probably_meant_is_said_and_the_line_is_shown() {
    let fault = read_with("      resources: {cpuCount: 2, ramSize: 1GiB}", "      resuorces: {cpuCount: 2}")
        .expect_err("a misspelt field");
    assert!(fault.to_string().ends_with("did you mean `resources`?"), "{fault}");
    assert_eq!(fault.snippet.as_deref(), Some("   |\n26 |       resuorces: {cpuCount: 2}\n   |       ^^^^^^^^^"));
    for (text, by, meant) in [
        ("needs: [first]", "needs: [frist]", "there is first, second; did you mean `first`?"),
        ("machine: web", "machine: wbe", "did you mean `web`?"),
        ("{network: back}", "{network: bakc}", "did you mean `back`?"),
        ("{size: 1GiB}", "{size: 1GiB, filesystem: xsf}", "did you mean `xfs`?"),
    ] {
        let error = read_with(text, by).expect_err(by).to_string();
        assert!(error.ends_with(meant), "{error}");
    }
}

/// A manifest of one machine with these interfaces, conditions, users and tasks.
fn many(interfaces: usize, conditions: usize, users: usize, tasks: &str) -> Result<Manifest, Fault> {
    let list = |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(", ");
    let interfaces = list(interfaces, &|_| "{network: local}".to_owned());
    let conditions = list(conditions, &|number| format!("{{key: k{number}}}"));
    let users = list(users, &|number| format!("{{name: u{number}}}"));
    let text = format!(
        "kind: playground
name: many
playground:
  machines:
    - {{name: web, drives: [{{source: debian-12, mount: /}}], network: {{interfaces: [{interfaces}]}}, users: [{users}]}}
  initConditions: {{values: [{conditions}]}}
  initTasks:
{tasks}"
    );
    Manifest::read(&text, "lab.yaml")
}

#[test]
fn tasks_and_interfaces_are_counted() {
    let task = "    first: {init: true, machine: web, run: x}\n";
    assert!(many(MAX_INTERFACES, 1, 1, task).is_ok());
    let error = many(MAX_INTERFACES + 1, 1, 1, task).expect_err("too many").to_string();
    assert!(error.contains("machines[0].network.interfaces: 33 interfaces, more than 32"), "{error}");
    let tasks = |count: usize| -> String {
        (0..count).map(|number| format!("    t{number:04}: {{init: true, machine: web, run: x}}\n")).collect()
    };
    assert_eq!(many(1, 1, 1, &tasks(MAX_TASKS)).expect("as many as may be").lab.tasks.len(), MAX_TASKS);
    let error = many(1, 1, 1, &tasks(MAX_TASKS + 1)).expect_err("too many").to_string();
    assert!(error.contains("initTasks: 1025 tasks, more than 1024"), "{error}");
    let needs = vec!["first"; MAX_TASKS + 1].join(",");
    let error = many(1, 1, 1, &format!("{task}    second: {{init: true, machine: web, run: x, needs: [{needs}]}}\n"));
    let error = error.expect_err("too many").to_string();
    assert!(error.contains("initTasks.second.needs: 1025 tasks, more than 1024"), "{error}");
}

#[test]
fn a_long_chain_is_no_circle_and_a_circle_at_its_end_is_found() {
    let chain = |last: &str| -> String {
        (0..MAX_TASKS - 1)
            .map(|number| {
                let next = number + 1;
                format!("    t{number:04}: {{init: true, machine: web, run: x, needs: [t{next:04}, t{next:04}]}}\n")
            })
            .chain([format!("    t1023: {{init: true, machine: web, run: x{last}}}\n")])
            .collect()
    };
    assert_eq!(many(1, 1, 1, &chain("")).expect("a chain").lab.tasks.len(), MAX_TASKS);
    let error = many(1, 1, 1, &chain(", needs: [t1022]")).expect_err("a circle").to_string();
    assert!(error.contains("initTasks.t0000.needs: a circle: t0000, t0001") && error.contains("t1023"), "{error}");
    let lab = many(1, 20_000, 20_000, "    t: {init: true, machine: web, run: x}\n").expect("many names").lab;
    assert_eq!((lab.conditions.len(), lab.machines[0].users.len()), (20_000, 20_000));
}

#[test]
fn what_takes_nothing_of_the_host_until_it_is_written_may_be_long() {
    for drive in ["- {size: 8TiB}", "- {size: 4TiB, filesystem: ext4}"] {
        read_with("- {size: 1GiB}", drive).expect(drive);
    }
}
