use super::*;
use labyard_spec::net::{Mac, Network6};
use labyard_spec::uplink::UplinkNetwork;
use std::net::Ipv4Addr;

fn network(subnet6: Option<&str>) -> UplinkNetwork {
    let six = subnet6.map(|text| {
        let subnet: Ipv6Subnet = text.parse().expect("a subnet");
        Network6 { subnet, gateway: subnet.hosts().next().expect("a host") }
    });
    UplinkNetwork {
        name: "lan".into(),
        subnet: "172.16.0.0/24".parse().expect("a subnet"),
        gateway: Ipv4Addr::new(172, 16, 0, 1),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        names: vec![("web".into(), Ipv4Addr::new(172, 16, 0, 2))],
        six,
        names6: six.map(|six| ("web".into(), six.gateway)).into_iter().collect(),
    }
}

fn spec(subnets: &[Option<&str>]) -> UplinkSpec {
    UplinkSpec {
        lab: "lab".into(),
        networks: subnets.iter().map(|subnet| network(*subnet)).collect(),
        others: vec![],
        others6: vec![],
    }
}

#[test]
fn the_host_answers_at_all_its_addresses_and_at_the_first_of_each_prefix() {
    let text = "00000000000000000000000000000001 01 80 10 80       lo\n\
        20010db8000000000000000000000002 04 40 00 80     eth0\n\
        fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
        20010db8000000000000000000000003 04 7f 00 80     eth0\n";
    let found: Vec<_> = addresses(text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["::1", "2001:db8::", "2001:db8::2", "2001:db8::3", "fe80::", "fe80::fc:ff:fe00:1"]);
    assert_eq!(addresses("nonsense\n\n12 34\n"), [Ipv6Addr::from_bits(0x12)]);
}

#[test]
fn the_host_answers_at_prefixes_that_a_route_calls_local() {
    let zero = "0".repeat(32);
    let line =
        |to: &str, bits: &str, flags: &str| format!("{to} {bits} {zero} 00 {zero} 00000000 1 0 {flags}     lo\n");
    let text = line("20010db8000700000000000000000000", "40", "80200001")
        + &line("20010db8000800000000000000000000", "40", "00000001")
        + "nonsense\n";
    let found: Vec<_> = local_routes(&text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["2001:db8:7::/64"]);
}

#[test]
fn a_route_to_everything_is_one_that_leads_somewhere() {
    let zero = "0".repeat(32);
    let line = |to: &str, bits: &str, flags: &str, device: &str| {
        format!("{to} {bits} {zero} 00 {zero} 00000400 1 0 {flags} {device}\n")
    };
    let lan = format!("fd{}", "0".repeat(30));
    for (text, there) in [
        (line(&zero, "00", "00450003", "eth0"), true),
        (line(&lan, "40", "00000001", "eth0") + &line(&zero, "00", "00000003", "wan"), true),
        (line(&zero, "00", "00200200", "lo"), false),
        (line(&zero, "00", "00000203", "eth0"), false),
        (line(&zero, "03", "00000003", "eth0"), false),
        (line(&lan, "00", "00000003", "eth0"), false),
        (line(&zero, "00", "00000002", "eth0"), false),
        (String::new(), false),
    ] {
        assert_eq!(has_default_route(&text), there, "{text}");
    }
}

#[test]
fn a_host_that_begins_to_forward_goes_on_hearing_its_routers() {
    let conf = tempfile::tempdir().expect("a folder");
    let host = [("all", "1", "0"), ("default", "1", "0"), ("eth0", "1", "0"), ("eth1", "0", "0"), ("br0", "1", "1")];
    for (interface, accept_ra, forwarding) in host {
        let folder = conf.path().join(interface);
        std::fs::create_dir(&folder).expect("an interface");
        for (name, value) in [("accept_ra", accept_ra), ("forwarding", forwarding), ("disable_ipv6", "0")] {
            std::fs::write(folder.join(name), format!("{value}\n")).expect("a setting");
        }
    }
    let read = |name: &str| std::fs::read_to_string(conf.path().join(name)).expect("a setting").trim().to_owned();
    have_forward(conf.path()).expect("told");
    let hear = host.map(|(interface, ..)| read(&format!("{interface}/accept_ra")));
    assert_eq!((hear.join(" "), read("all/forwarding")), ("1 2 2 0 1".into(), "1".into()));
    // One that forwards already is left alone.
    std::fs::write(conf.path().join("eth1/accept_ra"), "1").expect("a setting");
    have_forward(conf.path()).expect("told");
    assert_eq!(read("eth1/accept_ra"), "1");
    std::fs::write(conf.path().join("all/disable_ipv6"), "1\n").expect("a setting");
    assert!(have_forward(conf.path()).expect_err("it is off").contains("switched off"));
    assert!(have_forward(&conf.path().join("none")).is_err());
}

#[test]
fn the_network_between_is_nobody_s() {
    let block = free_block(&spec(&[Some("fd00:10::/64")]), &[]).expect("a block");
    let taken = Prefix { first: block.host, bits: 128 };
    let next = free_block(&spec(&[Some("fd00:10::/64"), None]), &[taken]).expect("another");
    assert_ne!(block, next);
    let error = free_block(&spec(&[Some("fd6c:6162:7961::/48")]), &[]).expect_err("all is the lab's");
    assert!(error.contains("fd6c:6162:7961::/48"), "{error}");
}

#[test]
fn only_networks_that_have_it_get_it() {
    let spec = spec(&[Some("fd00:10::/64"), None]);
    let of = |leads_out| settings(&spec, leads_out).into_iter().map(|(name, value)| format!("{name}={value}"));
    let (out, none): (Vec<_>, Vec<_>) = (of(true).collect(), of(false).collect());
    for set in
        ["lab0/disable_ipv6=0", "lab0/accept_dad=0", "lab0/accept_ra=0", "lab1/disable_ipv6=1", "all/forwarding=1"]
    {
        assert!(out.iter().any(|one| one.ends_with(set)), "{set}: {out:?}");
    }
    assert!(out.contains(&"ipv6/conf/default/disable_ipv6=0".to_owned()), "{out:?}");
    assert!(none.contains(&"ipv6/conf/default/disable_ipv6=1".to_owned()), "{none:?}");
    let without = without(&spec);
    assert!(is_asked(&spec) && !is_asked(&without));
    assert!(without.networks.iter().all(|network| network.names6.is_empty() && network.names.len() == 1));
}
