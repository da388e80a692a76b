//! Addresses that a lab has, for the manifest that it is to have next: who stays keeps its own.
//!
//! A manifest alone gives the first free addresses in its order, so a machine that leaves from the middle would move those behind it. What
//! the manifest names counts; what it leaves open is as it was, where that still fits; whoever is new gets the first free ones.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Addresses that are there; none of them for a lab that is new.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// The gateway of each network.
    pub gateways: BTreeMap<String, Ipv4Addr>,
    /// Of each machine network and address of its interfaces, in their order.
    pub machines: BTreeMap<String, Vec<(String, Ipv4Addr)>>,
    /// As `gateways`, of networks that have IPv6.
    pub gateways6: BTreeMap<String, Ipv6Addr>,
    /// As `machines`, of interfaces that have IPv6.
    pub machines6: BTreeMap<String, Vec<(String, Ipv6Addr)>>,
}

impl Kept {
    /// The address of a machine's interface on a network, its `nth` there.
    pub(super) fn address(&self, machine: &str, network: &str, nth: usize) -> Option<Ipv4Addr> {
        find(&self.machines, machine, network, nth)
    }

    /// The same of IPv6.
    pub(super) fn address6(&self, machine: &str, network: &str, nth: usize) -> Option<Ipv6Addr> {
        find(&self.machines6, machine, network, nth)
    }
}

fn find<A: Copy>(machines: &BTreeMap<String, Vec<(String, A)>>, machine: &str, network: &str, nth: usize) -> Option<A> {
    let own = machines.get(machine)?.iter().filter(|(known, _)| known == network);
    own.map(|(_, address)| *address).nth(nth)
}

#[cfg(test)]
mod tests {
    use super::super::{Lab, Manifest, lab};
    use super::*;

    /// Three machines on a network, of which `db` may be missing or have an address.
    fn three(db: Option<&str>, more: &str) -> String {
        let one = |name: &str, own: &str| {
            format!(
                "    - {{name: {name}, drives: [{{source: x, mount: /}}], network: {{interfaces: [{{network: lan{own}}}]}}}}\n"
            )
        };
        let db = db.map(|own| one("db", own)).unwrap_or_default();
        format!(
            "kind: playground\nname: three\nplayground:\n  networks: [{{name: lan, subnet: 10.0.0.0/29}}]\n  machines:\n{more}{}{db}{}",
            one("web", ""),
            one("mail", "")
        )
    }

    fn kept(lab: &Lab) -> Kept {
        let own = |machine: &lab::Machine| {
            let nics = machine.interfaces.iter().map(|nic| (nic.network.clone(), nic.address));
            (machine.name.clone(), nics.collect())
        };
        let own6 = |machine: &lab::Machine| {
            let nics = machine.interfaces.iter().filter_map(|nic| Some((nic.network.clone(), nic.six?.address)));
            (machine.name.clone(), nics.collect())
        };
        let gateway6 = |network: &lab::Network| Some((network.name.clone(), network.six?.gateway));
        Kept {
            gateways: lab.networks.iter().map(|network| (network.name.clone(), network.gateway)).collect(),
            machines: lab.machines.iter().map(own).collect(),
            gateways6: lab.networks.iter().filter_map(gateway6).collect(),
            machines6: lab.machines.iter().map(own6).collect(),
        }
    }

    fn last_numbers(lab: &Lab) -> Vec<(String, u8)> {
        let number = |machine: &lab::Machine| (machine.name.clone(), machine.interfaces[0].address.octets()[3]);
        lab.machines.iter().map(number).collect()
    }

    #[test]
    fn who_stays_keeps_its_address_and_who_is_new_gets_the_first_free_one() {
        let read =
            |text: &str, kept: &Kept| Manifest::read_for(text, "lab.yaml", kept).expect("it keeps every rule").lab;
        let is = |lab: &Lab, wanted: &[(&str, u8)]| {
            let wanted: Vec<_> = wanted.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
            assert_eq!((last_numbers(lab), &lab.notes), (wanted, &vec![]));
        };
        let all = read(&three(Some(""), ""), &Kept::default());
        is(&all, &[("web", 2), ("db", 3), ("mail", 4)]);
        let two = read(&three(None, ""), &kept(&all));
        is(&two, &[("web", 2), ("mail", 4)]);
        is(&read(&three(None, ""), &kept(&two)), &[("web", 2), ("mail", 4)]);
        // Somebody else comes, in front of all: the gap is the first free address.
        let new = "    - {name: new, drives: [{source: x, mount: /}], network: {interfaces: [{network: lan}]}}\n";
        is(&read(&three(None, new), &kept(&two)), &[("new", 3), ("web", 2), ("mail", 4)]);
        // What the manifest says counts.
        is(&read(&three(Some(", address: 10.0.0.6"), ""), &kept(&all)), &[("web", 2), ("db", 6), ("mail", 4)]);
        is(
            &read(&three(Some(""), ""), &kept(&read(&three(Some(", address: 10.0.0.6"), ""), &Kept::default()))),
            &[("web", 2), ("db", 6), ("mail", 3)],
        );
        // Another subnet has other addresses.
        let elsewhere = three(Some(""), "").replace("10.0.0.0/29", "10.0.1.0/29");
        is(&read(&elsewhere, &kept(&all)), &[("web", 2), ("db", 3), ("mail", 4)]);
        assert_eq!(read(&elsewhere, &kept(&all)).networks[0].gateway, Ipv4Addr::new(10, 0, 1, 1));
    }

    #[test]
    fn an_address_that_the_manifest_gives_to_another_is_lost_and_told_of() {
        let all = Manifest::read(&three(Some(""), ""), "lab.yaml").expect("it keeps every rule").lab;
        let text = three(Some(", address: 10.0.0.4"), "");
        let lab = Manifest::read_for(&text, "lab.yaml", &kept(&all)).expect("it keeps every rule").lab;
        assert_eq!(last_numbers(&lab), [("web".to_owned(), 2), ("db".to_owned(), 4), ("mail".to_owned(), 3)]);
        let note =
            "machine `mail` had 10.0.0.4 on network `lan`, which is the address of machine `db` now: it gets 10.0.0.3";
        assert!(lab.notes.len() == 1 && lab.notes[0].starts_with(note), "{:?}", lab.notes);
    }

    #[test]
    fn a_gateway_stays_where_it_is_also_when_what_was_in_its_way_has_gone() {
        let lab =
            |text: &str, kept: &Kept| Manifest::read_for(text, "lab.yaml", kept).expect("it keeps every rule").lab;
        let static_first = three(Some(", address: 10.0.0.1"), "");
        let before = lab(&static_first, &Kept::default());
        assert_eq!(before.networks[0].gateway, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(lab(&three(None, ""), &kept(&before)).networks[0].gateway, Ipv4Addr::new(10, 0, 0, 2));
        // It gives way to what is static, and takes nobody's place.
        let all = lab(&three(Some(""), ""), &Kept::default());
        let moved = lab(&static_first, &kept(&all));
        assert_eq!(moved.networks[0].gateway, Ipv4Addr::new(10, 0, 0, 3));
        assert_eq!(last_numbers(&moved), [("web".to_owned(), 2), ("db".to_owned(), 1), ("mail".to_owned(), 4)]);
    }

    #[test]
    fn interfaces_on_one_network_keep_their_addresses_in_order() {
        let two = "    - {name: two, drives: [{source: x, mount: /}], network: {interfaces: [{network: lan}, {network: lan}]}}\n";
        let numbers = |lab: &Lab| {
            let nics = lab.machines.iter().flat_map(|machine| &machine.interfaces);
            nics.map(|nic| nic.address.octets()[3]).collect::<Vec<_>>()
        };
        let all = Manifest::read(&three(Some(""), two), "lab.yaml").expect("it keeps every rule").lab;
        assert_eq!(numbers(&all), [2, 3, 4, 5, 6]);
        let fewer = Manifest::read_for(&three(None, two), "lab.yaml", &kept(&all)).expect("it keeps every rule").lab;
        assert_eq!(numbers(&fewer), [2, 3, 4, 6]);
    }

    #[test]
    fn addresses_of_ipv6_stay_as_those_of_ipv4_do() {
        let text = |db: Option<&str>, more: &str| {
            three(db, more).replace("subnet: 10.0.0.0/29", "subnet: 10.0.0.0/29, labyard: {subnet6: 'fd00:10::/64'}")
        };
        let read = |text: &str, kept: &Kept| Manifest::read_for(text, "lab.yaml", kept).expect("it keeps every rule");
        let last = |lab: &Lab| {
            let number = |machine: &lab::Machine| machine.interfaces[0].six.expect("IPv6").address.segments()[7];
            lab.machines.iter().map(|machine| (machine.name.clone(), number(machine))).collect::<Vec<_>>()
        };
        let is = |lab: &Lab, wanted: &[(&str, u16)]| {
            let wanted: Vec<_> = wanted.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
            assert_eq!(last(lab), wanted);
        };
        let all = read(&text(Some(""), ""), &Kept::default()).lab;
        is(&all, &[("web", 2), ("db", 3), ("mail", 4)]);
        let two = read(&text(None, ""), &kept(&all)).lab;
        is(&two, &[("web", 2), ("mail", 4)]);
        let new = "    - {name: new, drives: [{source: x, mount: /}], network: {interfaces: [{network: lan}]}}\n";
        is(&read(&text(None, new), &kept(&two)).lab, &[("new", 3), ("web", 2), ("mail", 4)]);
        // What the manifest gives to another is that one's, and who had it hears of it.
        let taken = new.replace("{network: lan}", "{network: lan, labyard: {address6: 'fd00:10::4'}}");
        let moved = read(&text(None, &taken), &kept(&two));
        is(&moved.lab, &[("new", 4), ("web", 2), ("mail", 3)]);
        assert!(
            moved.lab.notes.iter().any(|note| note.contains("machine `mail` had fd00:10::4")),
            "{:?}",
            moved.lab.notes
        );
    }
}
