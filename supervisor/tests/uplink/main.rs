//! `labyard-uplink` between a guest, a host and the world, each a network namespace of the test's own. Needs root, nft, ip and pasta.

mod six;
mod world;

use std::net::Ipv4Addr;

use rustix::process::Signal;
use world::{As, Lab, reach};

const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// Both ways out, whoever starts them.
fn each(test: impl Fn(As)) {
    for starter in [As::Root, As::Nobody] {
        eprintln!("as {starter:?}");
        test(starter);
    }
}

#[test]
fn a_guest_reaches_the_world_as_its_host_and_nothing_reaches_in() {
    each(|starter| {
        let lab = Lab::up(starter);
        let peer = lab.world.serve(SERVER, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER, 8000)), Ok("hello".into()));
        assert_eq!(peer.recv().expect("somebody came"), HOST, "it looks like the host");
        assert_eq!(lab.guests[1].run(|| reach(SERVER, 8000)), Ok("hello".into()), "the other network, too");

        let listener = lab.guests[0].serve(Ipv4Addr::new(172, 16, 0, 10), 9000);
        assert_eq!(lab.guests[0].run(|| reach(Ipv4Addr::new(172, 16, 0, 10), 9000)), Ok("hello".into()));
        lab.world.ip("route add 172.16.0.0/24 via 203.0.113.2");
        for from in [&lab.world, &lab.host] {
            assert!(from.run(|| reach(Ipv4Addr::new(172, 16, 0, 10), 9000)).is_err(), "something reached in");
        }
        assert_eq!(listener.try_iter().count(), 1, "nobody but itself came");
    });
}

#[test]
fn no_address_of_the_host_is_reached_and_no_other_network() {
    each(|starter| {
        let lab = Lab::up(starter);
        let came: Vec<_> = [HOST, Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::LOCALHOST]
            .map(|address| lab.host.serve(address, 7000))
            .into();
        let _other = lab.guests[1].serve(Ipv4Addr::new(172, 17, 0, 10), 9000);
        let between: Vec<Ipv4Addr> = lab.host.addresses().into_iter().filter(|ip| ip.octets()[0] == 198).collect();
        let mut refused =
            vec![HOST, Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(172, 17, 0, 1)];
        refused.extend(between);
        for address in refused {
            for port in [7000, 22, 53, 9000] {
                let reached = lab.guests[0].run(move || reach(address, port));
                assert!(reached.is_err(), "{address} port {port}: {reached:?}");
            }
        }
        assert!(
            lab.guests[0].run(|| reach(Ipv4Addr::new(172, 17, 0, 10), 9000)).is_err(),
            "another network of the lab"
        );
        assert!(lab.guests[0].run(|| reach(Ipv4Addr::new(169, 254, 169, 254), 80)).is_err(), "link-local");

        // An address that the host gets later.
        lab.host.ip("addr add 192.0.2.99/24 dev out0");
        let late = Ipv4Addr::new(192, 0, 2, 99);
        let later = lab.host.serve(late, 7000);
        world::until("the new address is known", || lab.rules_name(late));
        assert!(lab.guests[0].run(move || reach(late, 7000)).is_err(), "a new address of the host");
        assert!(came.iter().chain([&later]).all(|came| came.try_iter().count() == 0), "somebody came");
        // And what is allowed still is.
        let _peer = lab.world.serve(SERVER, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER, 8000)), Ok("hello".into()));
    });
}

#[test]
fn the_gateway_knows_the_machines_of_its_network_by_name() {
    each(|starter| {
        let lab = Lab::up(starter);
        let answer = lab.guests[0].run(|| world::ask(Ipv4Addr::new(172, 16, 0, 1), "web", 1));
        assert_eq!(answer.as_deref().map(|answer| answer.ends_with(&[172, 16, 0, 10])), Ok(true), "{answer:?}");
        let answer = lab.guests[0].run(|| world::ask(Ipv4Addr::new(172, 16, 0, 1), "nobody", 1));
        assert_eq!(answer.map(|answer| answer[3] & 0xf), Ok(3), "there is none of this name");
        let answer = lab.guests[0].run(|| world::ask(Ipv4Addr::new(172, 17, 0, 1), "web", 1));
        assert!(answer.is_err(), "another network's gateway: {answer:?}");
    });
}

#[test]
fn it_ends_with_the_vmm_and_leaves_nothing() {
    each(|starter| {
        let mut lab = Lab::up(starter);
        lab.end_vmm();
        assert_eq!(lab.uplink.wait().expect("waiting").code(), Some(0));
        lab.assert_nothing_is_left();
    });
}

#[test]
fn killed_in_any_part_it_leaves_nothing_once_the_vmm_is_gone() {
    each(|starter| {
        for part in 0.. {
            let mut lab = Lab::up(starter);
            let parts = lab.parts();
            assert_eq!(parts.len(), 3, "the uplink, its child, and pasta or nft: {parts:?}");
            let Some(pid) = parts.get(part) else { break };
            world::kill(*pid, Signal::KILL);
            assert!(!lab.uplink.wait().expect("waiting").success());
            world::until("all parts have ended", || lab.parts().is_empty());
            lab.end_vmm();
            lab.assert_nothing_is_left();
        }
    });
}

/// A field of `/proc/PID/status`.
fn status(pid: i32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn once_guests_are_heard_it_has_no_more_than_it_needs() {
    // CAP_NET_ADMIN (linux/capability.h), of its own network namespace's owner.
    const NET_ADMIN: u64 = 1 << 12;
    each(|starter| {
        let lab = Lab::up(starter);
        for pid in lab.parts() {
            let inside = world::is_named(pid, "inside");
            if pid != lab.uplink.id().cast_signed() && !inside {
                continue; // pasta, which has a sandbox of its own, or the nft that owns the host's rules
            }
            let name = if inside { "its child" } else { "the uplink" };
            let bits = |field| u64::from_str_radix(&status(pid, field), 16).expect("a number");
            let may = if inside { NET_ADMIN } else { 0 };
            assert_eq!((bits("CapPrm"), bits("CapEff")), (may, may), "{name}");
            if inside {
                assert_eq!(bits("CapBnd"), may, "{name}: by exec");
            }
            assert_eq!(status(pid, "NoNewPrivs"), "1", "{name}");
            assert_eq!(status(pid, "Seccomp"), "2", "{name}");
        }
    });
}

#[test]
fn what_is_missing_is_told() {
    let host = world::Space::new("host");
    // No default route: pasta has nothing to copy.
    let failed = world::start(&host, As::Nobody, [false, false]).expect_err("it cannot be");
    assert!(failed.contains("default route"), "{failed}");
}
