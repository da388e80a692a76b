//! IPv6: by the rules of IPv4, and nothing where nobody asks.

use super::*;

const WHOLE: &str = include_str!("../../../testdata/six.yaml");

fn read_with(text: &str, by: &str) -> Result<Manifest, Fault> {
    assert_eq!(WHOLE.matches(text).count(), 1, "`{text}` must stand there once");
    Manifest::read(&WHOLE.replace(text, by), "lab.yaml")
}

fn lab() -> Lab {
    read_with("name: six", "name: six").expect("it keeps every rule").lab
}

#[test]
fn addresses_are_static_or_the_first_free_ones_after_the_gateway() {
    let lab = lab();
    let networks: Vec<_> = lab
        .networks
        .iter()
        .map(|network| network.six.map(|six| format!("{} {}", six.subnet, six.gateway)).unwrap_or_default())
        .collect();
    assert_eq!(networks, ["fd00:16::/64 fd00:16::1", "", "fd00:10::/64 fd00:10::ff", "fd00:20::/126 fd00:20::1"]);
    let addresses = |machine: usize| -> Vec<String> {
        let nics = lab.machines[machine].interfaces.iter();
        nics.map(|nic| nic.six.map(|six| format!("{}/{}", six.address, six.prefix)).unwrap_or_default()).collect()
    };
    assert_eq!(addresses(0), ["fd00:16::3/64", "", "fd00:10::2/64", "fd00:20::2/126"], "db has ::2 and ::1 of two");
    assert_eq!(addresses(1), ["fd00:16::2/48", "fd00:10::1/64", "fd00:20::3/126"]);
}

#[test]
fn the_first_network_with_a_way_out_and_ipv6_gives_its_default_route() {
    let lab = lab();
    let gateways = |machine: usize| -> Vec<_> {
        let nics = lab.machines[machine].interfaces.iter();
        nics.map(|nic| (nic.gateway.is_some(), nic.six.and_then(|six| six.gateway).map(|ip| ip.to_string()))).collect()
    };
    let edge = Some("fd00:10::ff".to_owned());
    assert_eq!(gateways(0), [(false, None), (true, None), (false, edge.clone()), (false, None)]);
    assert_eq!(gateways(1), [(false, None), (true, edge), (false, None)]);
}

#[test]
fn a_machine_may_be_the_gateway_of_a_private_network_only() {
    let gateway = "subnet6: 'fd00:16::/64', gateway6: 'fd00:16::2'";
    let lab = read_with("subnet6: 'fd00:16::/64'", gateway).expect("it is private").lab;
    let six = lab.machines[0].interfaces[0].six.expect("it has IPv6");
    assert_eq!(six.address.to_string(), "fd00:16::1", "the gateway's address is nobody else's");
}

#[test]
fn an_effective_manifest_asks_for_the_same() {
    let lab = lab();
    let shown = effective::to_yaml(&effective::effective(&lab));
    let again = Manifest::read(&shown, "shown.yaml").unwrap_or_else(|fault| panic!("{fault}\n{shown}")).lab;
    assert_eq!((&lab.networks, &lab.machines[0].interfaces), (&again.networks, &again.machines[0].interfaces));
    assert_eq!(effective::differences(&lab, &again), []);
    let other = read_with("'fd00:16::2/48'", "'fd00:16::2'").expect("it keeps every rule").lab;
    let found = effective::differences(&lab, &other);
    let paths: Vec<_> = found.iter().map(|difference| difference.path.as_str()).collect();
    assert_eq!(paths, ["machines[db].network.interfaces[0].labyard.address6"]);
    let plain = super::lab();
    assert!(!format!("{}", effective::effective(&plain)["playground"]["networks"]).contains("labyard"), "nothing new");
}

/// What is replaced, by what, and the complaint.
#[test]
fn every_broken_rule_is_one_complaint_with_its_place() {
    let cases = [
        (
            "subnet6: fd00:10::/64",
            "subnet6: fd00:16::/32",
            "lab.yaml:14:18: networks[2].labyard.subnet6: fd00:16::/32 shares addresses with fd00:16::/64 of network `lan`",
        ),
        (
            "subnet6: fd00:10::/64",
            "subnet6: fd00:10::1/64",
            "lab.yaml:14:18: networks[2].labyard.subnet6: `fd00:10::1/64` has host bits set: the subnet is fd00:10::/64",
        ),
        ("subnet6: fd00:10::/64", "subnet6: fd00:10::/127", "prefix /127 is not between /16 and /126: take /64"),
        ("subnet6: fd00:10::/64", "subnet6: 'fd00:10::'", "`fd00:10::` is not a subnet such as fd00:10::/64"),
        ("subnet6: fd00:10::/64", "subnet6: 10.1.0.0/24", "`10.1.0.0` is not an IPv6 address"),
        ("subnet6: fd00:10::/64", "subnet6: fe80::/64", "fe80::/64 is link-local"),
        ("subnet6: fd00:10::/64", "subnet6: ff05::/64", "ff05::/64 is multicast"),
        ("subnet6: fd00:10::/64", "subnet6: '::ffff:10.0.0.0/104'", "is reserved"),
        ("subnet6: fd00:10::/64", "subnet6: ::/64", "is reserved"),
        (
            "subnet6: fd00:10::/64\n        ",
            "",
            "lab.yaml:14:19: networks[2].labyard.gateway6: a gateway of a network without `subnet6`: give it one such as fd00:10::/64",
        ),
        (
            "gateway6: fd00:10::ff",
            "gateway6: fd00:11::ff",
            "lab.yaml:15:19: networks[2].labyard.gateway6: fd00:11::ff is not a host of fd00:10::/64",
        ),
        ("gateway6: fd00:10::ff", "gateway6: 'fd00:10::'", "fd00:10:: is not a host of fd00:10::/64"),
        (
            "gateway6: fd00:10::ff",
            "gateway6: fd00:10::ff/64",
            "`fd00:10::ff/64` is not an IPv6 address without a mask, such as fd00:10::1",
        ),
        ("gateway6: fd00:10::ff", "gateway6: 10.10.0.1", "`10.10.0.1` is not an IPv6 address"),
        (
            "gateway6: fd00:10::ff",
            "gateway: fd00:10::ff",
            "lab.yaml:15:9: networks[2].labyard.gateway: no such field `gateway`: known here are subnet6, gateway6",
        ),
        (
            "address6: 'fd00:10::1'",
            "address6: 'fd00:10::ff'",
            "machines[1].network.interfaces[1].labyard.address6: fd00:10::ff on network `edge` is the address of the gateway already",
        ),
        (
            "address6: 'fd00:10::1'",
            "address6: 'fd00:1::1'",
            "lab.yaml:34:49: machines[1].network.interfaces[1].labyard.address6: fd00:1::1 is not a host of fd00:10::/64 of network `edge`",
        ),
        ("address6: 'fd00:10::1'", "address6: 'fd00:10::'", "fd00:10:: is not a host of fd00:10::/64"),
        ("address6: 'fd00:10::1'", "address6: 'fe80::1'", "fe80::1 is not a host of fd00:10::/64"),
        ("address6: 'fd00:10::1'", "address6: 'ff02::1'", "ff02::1 is not a host of fd00:10::/64"),
        ("address6: 'fd00:10::1'", "address6: '::ffff:10.10.0.5'", "::ffff:10.10.0.5 is not a host of"),
        (
            "address6: 'fd00:10::1'",
            "address6: 10.10.0.5",
            "`10.10.0.5` is not an IPv6 address such as fd00:10::10 or fd00:10::10/64",
        ),
        ("address6: 'fd00:10::1'", "address6: 'fd00:10::1%eth0'", "`fd00:10::1%eth0` is not an IPv6 address"),
        ("address6: 'fd00:10::1'", "address6: 'fd00:10::1/129'", "/129 is not a prefix length"),
        ("address6: 'fd00:10::1'", "adress6: 'fd00:10::1'", "did you mean `address6`?"),
        (
            "- network: edge\n",
            "- {network: edge, labyard: {address6: 'fd00:10::1'}}\n",
            "fd00:10::1 on network `edge` is the address of machine `web` already",
        ),
        (
            "- {network: old}",
            "- {network: old, labyard: {address6: 'fd00:10::5'}}",
            "machines[0].network.interfaces[1].labyard.address6: network `old` has no IPv6: give it `labyard: {subnet6: fd00:10::/64}`",
        ),
        (
            "- network: edge\n",
            "- {network: tiny, labyard: {address6: 'fd00:20::3'}}\n",
            "no address of fd00:20::/126 of network `tiny` is left for db: take a shorter prefix",
        ),
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
