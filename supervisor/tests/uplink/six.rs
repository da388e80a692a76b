//! The same for IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

use crate::world::{self, As, Lab, Space, ask, reach};
use crate::{HOST, SERVER, each};

const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2);
const GUEST: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x10);
const OTHER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x17, 0, 0, 0, 0, 0, 0x10);

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// World and host, with IPv6 between them.
fn cabled(world: &Space, host: &Space) {
    world.ip("addr add 2001:db8:113::1/64 dev in0 nodad");
    host.ip("addr add 2001:db8:113::2/64 dev out0 nodad");
    host.ip("addr add 2001:db8:7::7/64 dev lo nodad");
    host.ip("route add default via 2001:db8:113::1");
}

fn up(starter: As) -> Lab {
    Lab::up_with(starter, [true, true], cabled)
}

/// A setting of a space's IPv6.
fn setting(space: &Space, name: &'static str) -> String {
    let read = move || std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}")).expect("a setting");
    space.run(read).trim().to_owned()
}

#[test]
fn a_guest_reaches_the_world_as_its_host_and_nothing_reaches_in() {
    each(|starter| {
        let lab = up(starter);
        assert!(lab.way.ends_with("; IPv6, too"), "{}", lab.way);
        let peer = lab.world.serve(SERVER6, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER6, 8000)), Ok("hello".into()));
        assert_eq!(peer.recv().expect("somebody came"), HOST6, "it looks like the host");
        assert_eq!(lab.guests[1].run(|| reach(SERVER6, 8000)), Ok("hello".into()), "the other network, too");
        let peer = lab.world.serve(SERVER, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER, 8000)), Ok("hello".into()));
        assert_eq!(peer.recv().expect("somebody came"), HOST, "IPv4 as ever");

        let listener = lab.guests[0].serve(GUEST, 9000);
        assert_eq!(lab.guests[0].run(|| reach(GUEST, 9000)), Ok("hello".into()));
        lab.world.ip("route add fd00:16::/64 via 2001:db8:113::2");
        for from in [&lab.world, &lab.host] {
            assert!(from.run(|| reach(GUEST, 9000)).is_err(), "something reached in");
        }
        assert_eq!(listener.try_iter().count(), 1, "nobody but itself came");
    });
}

#[test]
fn no_address_of_the_host_is_reached_and_no_other_network() {
    each(|starter| {
        let lab = up(starter);
        let extra = address("2001:db8:7::7");
        let came: Vec<_> =
            [HOST6, extra, Ipv6Addr::LOCALHOST].map(|address| lab.host.serve(address, 7000)).into_iter().collect();
        let _other = lab.guests[1].serve(OTHER, 9000);
        let between = lab.host.addresses_of::<Ipv6Addr>("-6").into_iter().filter(|ip| ip.segments()[0] == 0xfd6c);
        let between: Vec<_> = between.collect();
        assert_eq!(between.len(), usize::from(starter == As::Root), "a veth has one: {between:?}");
        // A router answers at the first address of each prefix, too.
        let mut refused = vec![HOST6, extra, address("2001:db8:113::"), address("2001:db8:7::"), OTHER];
        refused.extend([address("fd00:16::1"), address("fd00:17::1"), address("fd00:16::"), address("fd00:17::")]);
        refused.extend(between);
        for address in refused {
            for port in [7000, 22, 53, 9000] {
                let reached = lab.guests[0].run(move || reach(address, port));
                assert!(reached.is_err(), "{address} port {port}: {reached:?}");
            }
        }

        // An address that the host gets later.
        lab.host.ip("addr add 2001:db8:113::99/64 dev out0 nodad");
        let late = address("2001:db8:113::99");
        let later = lab.host.serve(late, 7000);
        world::until("the new address is known", || lab.rules_name(late));
        assert!(lab.guests[0].run(move || reach(late, 7000)).is_err(), "a new address of the host");
        assert!(came.iter().chain([&later]).all(|came| came.try_iter().count() == 0), "somebody came");
        // And what is allowed still is.
        let _peer = lab.world.serve(SERVER6, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER6, 8000)), Ok("hello".into()));
    });
}

#[test]
fn what_leads_around_rules_is_not_passed_on() {
    each(|starter| {
        let lab = up(starter);
        // Translated addresses, IPv4 in 6to4, a site's: the world would answer at them.
        let around = ["64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::1", "fec0::1"].map(address);
        let served: Vec<_> = around
            .map(|around| {
                lab.world.ip(&format!("addr add {around}/128 dev in0 nodad"));
                lab.world.serve(around, 8000)
            })
            .into_iter()
            .collect();
        for around in around {
            assert_eq!(lab.host.run(move || reach(around, 8000)), Ok("hello".into()), "the host reaches {around}");
            let reached = lab.guests[0].run(move || reach(around, 8000));
            assert!(reached.is_err(), "{around}: {reached:?}");
        }
        assert!(served.iter().all(|served| served.try_iter().all(|came| came == HOST6)));
        // Within IPv6 an address of IPv4 is one of IPv4, whose rules hold.
        let came = lab.host.serve(HOST, 7000);
        let mapped = HOST.to_ipv6_mapped();
        assert!(lab.guests[0].run(move || reach(mapped, 7000)).is_err() && came.try_iter().count() == 0);
    });
}

#[test]
fn a_machine_speaks_for_its_own_network_only() {
    each(|starter| {
        let lab = up(starter);
        let came = [lab.world.serve(SERVER6, 8000), lab.world.serve(SERVER, 8000)];
        let guest = &lab.guests[0];
        let spoofed: [(&str, IpAddr); 4] = [
            ("fd00:17::10/128", SERVER6.into()),
            ("2001:db8:113::77/128", SERVER6.into()),
            ("172.17.0.10/32", SERVER.into()),
            ("203.0.113.77/32", SERVER.into()),
        ];
        for (from, to) in spoofed {
            let source = from.split('/').next().expect("an address").to_owned();
            let duplicates = if to.is_ipv6() { " nodad" } else { "" };
            guest.ip(&format!("addr add {from} dev eth0{duplicates}"));
            let route = if to.is_ipv6() { "fd00:16::1" } else { "172.16.0.1" };
            guest.ip(&format!("route replace {to} via {route} src {source}"));
            let reached = guest.run(move || reach(to, 8000));
            assert!(reached.is_err(), "{to} from {source}: {reached:?}");
            guest.ip(&format!("route del {to}"));
            guest.ip(&format!("addr del {from} dev eth0"));
        }
        assert!(came.iter().all(|came| came.try_iter().count() == 0), "somebody came");
        assert_eq!(guest.run(|| reach(SERVER6, 8000)), Ok("hello".into()));
    });
}

#[test]
fn a_network_without_it_has_none() {
    each(|starter| {
        let lab = Lab::up_with(starter, [true, false], cabled);
        let came = lab.world.serve(SERVER6, 8000);
        assert!(lab.guests[1].run(|| reach(SERVER6, 8000)).is_err(), "a guest that takes an address all the same");
        assert_eq!(came.try_iter().count(), 0);
        assert_eq!(lab.guests[0].run(|| reach(SERVER6, 8000)), Ok("hello".into()));
        assert_eq!(lab.inside("ip -6 addr show dev lab1"), "");

        let plain = Lab::up_with(starter, [false, false], cabled);
        assert!(!plain.way.contains("IPv6"), "{}", plain.way);
        assert_eq!(plain.inside("ip -6 addr show"), "");
        assert!(!plain.inside("nft list ruleset").contains("ip6"));
    });
}

#[test]
fn gateways_are_there_at_once_and_hear_no_router() {
    each(|starter| {
        let lab = up(starter);
        let said = lab.inside("ip -6 -o addr show");
        assert!(said.contains("fd00:16::1/64") && said.contains("fd00:17::1/64"), "{said}");
        assert!(!said.contains("tentative"), "{said}");
        for name in ["lab0", "lab1", "up0"] {
            let file = format!("cat /proc/sys/net/ipv6/conf/{name}/accept_ra");
            assert_eq!(lab.inside(&file).trim(), "0", "{name}");
        }
        let default = lab.inside("ip -6 -o route show default");
        assert!(default.lines().count() == 1 && default.contains("dev up0"), "{default}");
    });
}

/// A message of ICMPv6 about neighbours or routers (RFC 4861, 4), behind a virtio header that leaves its checksum to the kernel.
fn message(from: Ipv6Addr, to: Ipv6Addr, hops: u8, body: &[u8]) -> Vec<u8> {
    const VIRTIO: [u8; 12] = [1, 0, 0, 0, 0, 0, 54, 0, 2, 0, 0, 0];
    let everybody = [0x33, 0x33, 0, 0, 0, 1];
    let ether = [&everybody[..], &[2, 0, 0, 0, 9, 9], &[0x86, 0xdd]].concat();
    let head = [0x60, 0, 0, 0, 0, body.len() as u8, 58, hops];
    [&VIRTIO[..], &ether, &head, &from.octets(), &to.octets(), body].concat()
}

#[test]
fn guests_that_feign_routers_and_neighbours_change_nothing() {
    const HERE: [u8; 8] = [1, 1, 2, 0, 0, 0, 9, 9];
    each(|starter| {
        let lab = up(starter);
        let gateway = address("fd00:16::1");
        let ask = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0], &gateway.octets()[..], &HERE].concat();
        let (local, all) = (address("fe80::bad"), address("ff02::1"));
        let prefix =
            [&[3, 4, 64, 0xc0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0][..], &SERVER6.octets()].concat();
        let router = [&[134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0][..], &HERE, &prefix].concat();
        let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &local.octets(), &SERVER6.octets()].concat();
        for hostile in [
            message(local, all, 255, &router),
            message(GUEST, gateway, 255, &redirect),
            message(HOST6, gateway, 255, &ask(135)),
            message(OTHER, gateway, 255, &ask(135)),
            message(address("fd00:16::66"), gateway, 64, &ask(135)),
        ] {
            lab.inject(0, &hostile);
        }
        // What is honest comes after it, and counts.
        lab.inject(0, &message(address("fd00:16::77"), gateway, 255, &ask(135)));
        let neighbours = || lab.inside("ip -6 neigh show dev lab0");
        world::until("the honest one is known", || neighbours().contains("fd00:16::77"));
        let known = neighbours();
        for feigned in ["2001:db8:113::2", "fd00:17::10", "fd00:16::66", "fe80::bad"] {
            assert!(!known.contains(feigned), "{feigned}: {known}");
        }
        let routes = lab.inside("ip -6 route show table all");
        assert!(!routes.contains("2001:db8") && !routes.contains("fe80::bad"), "{routes}");
        let _peer = lab.world.serve(SERVER6, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER6, 8000)), Ok("hello".into()));
    });
}

#[test]
fn the_gateway_knows_addresses_of_both_kinds() {
    each(|starter| {
        let lab = Lab::up_with(starter, [true, false], cabled);
        let answer = lab.guests[0].run(|| ask(Ipv4Addr::new(172, 16, 0, 1), "web", 28)).expect("an answer");
        assert!(answer[7] == 1 && answer.ends_with(&GUEST.octets()), "{answer:?}");
        let answer = lab.guests[0].run(|| ask(Ipv4Addr::new(172, 16, 0, 1), "web", 1)).expect("an answer");
        assert!(answer[7] == 1 && answer.ends_with(&[172, 16, 0, 10]), "{answer:?}");
        let answer = lab.guests[1].run(|| ask(Ipv4Addr::new(172, 17, 0, 1), "web", 28)).expect("an answer");
        assert_eq!((answer[3] & 0xf, answer[7]), (0, 0), "it is there, and has none: {answer:?}");
    });
}

#[test]
fn a_host_without_it_leads_out_ipv4_and_says_so() {
    each(|starter| {
        let off = |_: &Space, host: &Space| {
            host.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")).expect("switched off");
        };
        let lab = Lab::up_with(starter, [true, true], off);
        let why = match starter {
            As::Root => "; no IPv6: the host has IPv6 switched off",
            As::Nobody => "; no IPv6: the host has no default route of IPv6",
        };
        assert!(lab.way.contains(why), "{}", lab.way);
        let _peer = lab.world.serve(SERVER, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER, 8000)), Ok("hello".into()));
        // Nobody waits: it is refused, and whoever asks takes IPv4.
        let refused = lab.guests[0].run(|| reach(SERVER6, 8000)).expect_err("there is no way");
        assert!(!refused.contains("timed out"), "{refused}");
        assert!(lab.inside("ip -6 -o addr show dev lab0").contains("fd00:16::1/64"), "the gateway is there");
    });
}

#[test]
fn a_host_whose_route_pasta_cannot_take_leads_out_ipv4() {
    // An interface without a link-local address, as tunnels are.
    let tunnel = |world: &Space, host: &Space| {
        cabled(world, host);
        host.ip("-6 addr flush dev out0 scope link");
    };
    let lab = Lab::up_with(As::Nobody, [true, true], tunnel);
    assert!(lab.way.ends_with("; no IPv6: pasta brought no default route of IPv6 in time"), "{}", lab.way);
    let _peer = lab.world.serve(SERVER, 8000);
    assert_eq!(lab.guests[0].run(|| reach(SERVER, 8000)), Ok("hello".into()));
    let refused = lab.guests[0].run(|| reach(SERVER6, 8000)).expect_err("there is no way");
    assert!(!refused.contains("timed out"), "{refused}");
}

#[test]
fn only_a_veth_makes_the_host_a_router_which_goes_on_hearing_routers() {
    each(|starter| {
        let lab = up(starter);
        let told = ["all/forwarding", "out0/accept_ra", "default/accept_ra"].map(|name| setting(&lab.host, name));
        let expected = if starter == As::Root { ["1", "2", "2"] } else { ["0", "1", "1"] };
        assert_eq!(told, expected);
        let plain = Lab::up(starter);
        assert_eq!(setting(&plain.host, "all/forwarding"), "0", "a lab without IPv6 changes nothing");
    });
}

/// The world says that it is a router (RFC 4861, 4.2), until the host has a route by that.
fn advertised(world: &Space, host: &Space) {
    world.ip("addr add 2001:db8:113::1/64 dev in0 nodad");
    host.ip("addr add 2001:db8:113::2/64 dev out0 nodad");
    world.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")).expect("a router");
    let advertise = || -> Result<(), Box<dyn std::error::Error>> {
        let index = std::fs::read_to_string("/proc/thread-self/net/if_inet6")?;
        let index = index.lines().find(|line| line.ends_with("in0")).and_then(|line| line.split(' ').nth(1));
        let index = u32::from_str_radix(index.ok_or("no in0")?, 16)?;
        let socket = socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6))?;
        sockopt::set_ipv6_multicast_hops(&socket, 255)?;
        let all = SocketAddrV6::new(address("ff02::1"), 0, 0, index);
        let message = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        sendto(&socket, &message, SendFlags::empty(), &all)?;
        Ok(())
    };
    world::until("the host has a route", || {
        // Until its own link-local address is found unique, the world cannot.
        let _ = world.run(move || advertise().map_err(|error| error.to_string()));
        host.ip("-6 route show default").contains("proto ra")
    });
}

#[test]
fn a_host_keeps_the_route_that_a_router_has_told_it() {
    each(|starter| {
        let lab = Lab::up_with(starter, [true, true], advertised);
        assert!(lab.host.ip("-6 route show default").contains("proto ra"), "forgotten");
        let peer = lab.world.serve(SERVER6, 8000);
        assert_eq!(lab.guests[0].run(|| reach(SERVER6, 8000)), Ok("hello".into()));
        assert_eq!(peer.recv().expect("somebody came"), HOST6);
    });
}

#[test]
fn it_ends_with_the_vmm_and_leaves_nothing() {
    each(|starter| {
        let mut lab = up(starter);
        lab.end_vmm();
        assert_eq!(lab.uplink.wait().expect("waiting").code(), Some(0));
        lab.assert_nothing_is_left();
    });
}
