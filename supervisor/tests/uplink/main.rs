//! `labyard-uplink` between a guest, a host and the world, each a network namespace of the test's own. Needs root, nft, ip and pasta.

mod six;
mod world;

use std::io::Write;
use std::net::Ipv4Addr;

use labyard_sys::message;
use rustix::process::Signal;
use serde_json::json;
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
        lab.host.ip("addr add 203.0.113.99/24 dev out0");
        let late = Ipv4Addr::new(203, 0, 113, 99);
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

/// What a resolver says of a name: the last byte of its address, or the code that says that there is none.
fn resolved(lab: &Lab, name: &'static str) -> Result<u8, u8> {
    let answer = lab.guests[0].run(move || world::ask(Ipv4Addr::new(172, 16, 0, 1), name, 1)).expect("an answer");
    match answer[3] & 0xf {
        0 => Ok(*answer.last().expect("an address")),
        code => Err(code),
    }
}

fn table(names: &[(&str, u8)], others: &[&str]) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|(name, last)| json!([name, format!("172.16.0.{last}")])).collect();
    json!({ "network": "net0", "names": names, "others": others }).to_string().into_bytes()
}

#[test]
fn who_comes_and_leaves_is_known_at_once_and_only_its_owner_may_say_so() {
    each(|starter| {
        let lab = Lab::up(starter);
        assert_eq!((resolved(&lab, "web"), resolved(&lab, "db")), (Ok(10), Err(3)));
        assert_eq!(lab.tell(&table(&[("web", 10), ("db", 11)], &[])), Some(Ok(())));
        assert_eq!((resolved(&lab, "web"), resolved(&lab, "db")), (Ok(10), Ok(11)));
        // One with a new address, and one that is gone.
        assert_eq!(lab.tell(&table(&[("db", 12)], &[])), Some(Ok(())));
        assert_eq!((resolved(&lab, "web"), resolved(&lab, "db")), (Err(3), Ok(12)));
        // The other network is as it was.
        let other = lab.guests[1].run(|| world::ask(Ipv4Addr::new(172, 17, 0, 1), "web", 1));
        assert!(other.is_ok_and(|answer| answer.ends_with(&[172, 17, 0, 10])));

        // Another user is hung up on.
        let stranger = lab.caller(12_345);
        let _ = message::send(&stranger, &table(&[("evil", 66)], &[]), &[]);
        assert!(!message::recv(&stranger, 1024).is_ok_and(|said| said.is_some()), "a stranger was answered");
        // So is who sends too much, half a message, or nothing; and they hold up nobody for long.
        let full: Vec<_> = (0..65).map(|at| json!([format!("m{at}"), "172.16.0.11"])).collect();
        let full = json!({ "network": "net0", "names": full, "others": [] }).to_string().into_bytes();
        for (said, why) in [
            (b"{".to_vec(), "EOF"),
            (table(&[("a.b", 9)], &[]), "is not a name"),
            (table(&[("db", 255)], &[]), "is not a host"),
            (table(&[], &["172.16.0.0/16"]), "shares addresses"),
            (full, "65 names"),
            (json!({ "network": "net2", "names": [], "others": [] }).to_string().into_bytes(), "no network `net2`"),
        ] {
            let answer = lab.tell(&said);
            assert!(matches!(&answer, Some(Err(said)) if said.contains(why)), "{why}: {answer:?}");
        }
        assert_eq!(lab.tell(&vec![b'['; 100 << 10]), None);
        let silent: Vec<_> = (0..2).map(|_| lab.caller(0)).collect();
        let half = lab.caller(0);
        (&half).write_all(&[200, 0, 0, 0, b'{']).expect("writing");
        assert_eq!((resolved(&lab, "db"), resolved(&lab, "evil")), (Ok(12), Err(3)));
        assert_eq!(lab.tell(&table(&[("db", 13)], &[])), Some(Ok(())));
        assert_eq!(resolved(&lab, "db"), Ok(13));
        drop((silent, half, stranger));
    });
}

#[test]
fn other_networks_of_the_lab_are_refused_from_when_it_is_told_of_them() {
    each(|starter| {
        let lab = Lab::up(starter);
        lab.world.ip("addr add 198.51.100.1/24 dev in0");
        let other = Ipv4Addr::new(198, 51, 100, 1);
        let peer = lab.world.serve(other, 8000);
        assert_eq!(lab.guests[0].run(move || reach(other, 8000)), Ok("hello".into()));
        peer.recv().expect("it came");
        assert_eq!(lab.tell(&table(&[], &["198.51.100.0/24", "10.0.0.0/8"])), Some(Ok(())));
        assert!(lab.guests[0].run(move || reach(other, 8000)).is_err(), "another network of the lab");
        assert_eq!(lab.tell(&table(&[], &["10.0.0.0/8"])), Some(Ok(())));
        assert_eq!(lab.guests[0].run(move || reach(other, 8000)), Ok("hello".into()), "it has gone");
    });
}

#[test]
fn it_ends_when_nobody_has_its_taps_and_leaves_nothing() {
    each(|starter| {
        let mut lab = Lab::up(starter);
        lab.close_taps();
        assert_eq!(lab.uplink.wait().expect("waiting").code(), Some(0));
        lab.assert_nothing_is_left();
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
            // Who has the host's rules stays with them as long as there is a way out that nobody can take away.
            let guarded = starter == As::Root && world::is_named(*pid, "inside");
            world::kill(*pid, Signal::KILL);
            if guarded {
                lab.end_vmm();
            }
            // Where the vmm has ended, too, it may have heard of that first.
            assert!(guarded || !lab.uplink.wait().expect("waiting").success());
            world::until("all parts have ended", || lab.parts().is_empty());
            lab.end_vmm();
            lab.assert_nothing_is_left();
        }
    });
}

#[test]
fn killed_in_any_part_it_leads_to_no_address_that_the_host_gets_later() {
    each(|starter| {
        for part in 0.. {
            let mut lab = Lab::up(starter);
            let Some(pid) = lab.parts().get(part).copied() else { break };
            let guarded = starter == As::Root && world::is_named(pid, "inside");
            let helper = pid != lab.uplink.id().cast_signed() && !world::is_named(pid, "inside");
            world::kill(pid, Signal::KILL);
            if !guarded {
                lab.uplink.wait().expect("waiting");
                world::until("all parts have ended", || lab.parts().is_empty());
                world::until("the way out is gone", || !lab.host.ip("-o link show").contains("ly-"));
            }
            lab.host.ip("addr add 203.0.113.99/24 dev out0");
            let late = Ipv4Addr::new(203, 0, 113, 99);
            let came = lab.host.serve(late, 7000);
            assert!(lab.guests[0].run(move || reach(late, 7000)).is_err(), "part {part}, helper {helper}");
            assert_eq!(came.try_iter().count(), 0, "part {part} as {starter:?}: somebody came");
            lab.end_vmm();
            if guarded {
                lab.uplink.wait().expect("waiting");
            }
            lab.assert_nothing_is_left();
        }
    });
}

#[test]
fn whole_prefixes_that_the_host_calls_its_own_are_not_reached() {
    each(|starter| {
        let lab = Lab::up(starter);
        let came = lab.host.serve(Ipv4Addr::UNSPECIFIED, 7000);
        lab.host.ip("route add local 198.51.100.0/24 dev lo");
        let address = Ipv4Addr::new(198, 51, 100, 7);
        assert_eq!(lab.host.run(move || reach(address, 7000)), Ok("hello".into()), "the host answers there");
        assert_eq!(came.recv().expect("somebody came"), address, "and by that address");
        world::until("the prefix is known", || lab.rules_name(Ipv4Addr::new(198, 51, 100, 0)));
        assert!(lab.guests[0].run(move || reach(address, 7000)).is_err());
        assert_eq!(came.try_iter().count(), 0, "somebody came");
    });
}

#[test]
fn a_flow_ends_where_its_address_becomes_the_host_s() {
    each(|starter| {
        let lab = Lab::up(starter);
        lab.world.ip("addr add 203.0.113.50/24 dev in0");
        let moving = Ipv4Addr::new(203, 0, 113, 50);
        let answer = move |space: &world::Space| {
            let socket = space.run(move || std::net::UdpSocket::bind((moving, 9000))).expect("a socket");
            socket.set_read_timeout(Some(std::time::Duration::from_secs(3))).expect("a limit");
            socket
        };
        let there = answer(&lab.world);
        let guest = lab.guests[0].run(|| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
        guest.connect((moving, 9000)).expect("a route");
        guest.send(b"first").expect("sending");
        let (_, peer) = there.recv_from(&mut [0; 16]).expect("it came");
        there.send_to(b"answer", peer).expect("sending");
        guest.recv(&mut [0; 16]).expect("the answer");
        drop(there);
        lab.world.ip("addr del 203.0.113.50/24 dev in0");
        lab.host.ip("addr add 203.0.113.50/24 dev out0");
        world::until("the address is known", || lab.rules_name(moving));
        let here = answer(&lab.host);
        // It may be told that this is refused.
        let _ = guest.send(b"second");
        assert!(here.recv_from(&mut [0; 16]).is_err(), "the host was reached by a flow of before");
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
            let is_uplink = pid == lab.uplink.id().cast_signed();
            assert_eq!(lab.hears_tables(pid), is_uplink, "tables are for the uplink alone");
            if !is_uplink && !inside {
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
    let folder = tempfile::tempdir().expect("a folder");
    let failed = world::start(&host, As::Nobody, folder.path(), [false, false]).expect_err("it cannot be");
    assert!(failed.contains("default route"), "{failed}");
}
