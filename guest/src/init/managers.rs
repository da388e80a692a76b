//! Telling the image's own network manager what the interfaces are, so that it does not take away what init has set up.
//!
//! One file for each manager that the image has, in its folder, with a name of ours. systemd-networkd is told the addresses, because what
//! waits for the network waits for an interface that it manages; ifupdown (Debian's and busybox's) and NetworkManager are told to leave
//! the interfaces as they are.

use labyard_spec::guest::{Interface, Interface6};

use super::files::FileError;
use crate::below::Below;

/// Writes what the image's managers read.
pub(super) fn write(root: &Below, interfaces: &[Interface]) -> Result<(), FileError> {
    let put = |path: &str, contents: &str| {
        root.put_file(path, contents).map_err(|source| FileError { path: path.to_owned(), source })
    };
    if root.has_dir("/etc/systemd/network") {
        for (number, interface) in interfaces.iter().enumerate() {
            // Before any other file that would match: the first one counts (systemd.network(5)).
            put(&format!("/etc/systemd/network/00-labyard-eth{number}.network"), &networkd(interface))?;
        }
    }
    if root.has_dir("/etc/network") {
        put("/etc/network/interfaces", &ifupdown(interfaces.len()))?;
    }
    if root.has_dir("/etc/NetworkManager") {
        put("/etc/NetworkManager/conf.d/00-labyard.conf", &network_manager(interfaces))?;
    }
    Ok(())
}

fn networkd(interface: &Interface) -> String {
    let Interface { mac, address, prefix, gateway, mtu, six } = interface;
    let mut text = format!(
        "# Written by labyard at every boot.\n[Match]\nMACAddress={mac}\n\n[Link]\nMTUBytes={mtu}\n\n[Network]\nAddress={address}/{prefix}\n"
    );
    if let Some(gateway) = gateway {
        text.push_str(&format!("Gateway={gateway}\n"));
    }
    if let Some(Interface6 { address, prefix, gateway }) = six {
        // No probes for duplicates: init has said why (`network.rs`).
        text.push_str(&format!("Address={address}/{prefix}\nIPv6DuplicateAddressDetection=0\n"));
        if let Some(gateway) = gateway {
            text.push_str(&format!("Gateway={gateway}\n"));
        }
    }
    text.push_str("DHCP=no\nIPv6AcceptRA=no\nKeepConfiguration=yes\n");
    text
}

fn ifupdown(count: usize) -> String {
    let mut text =
        "# Written by labyard at every boot: its init has set the interfaces up.\nauto lo\niface lo inet loopback\n"
            .to_owned();
    for number in 0..count {
        text.push_str(&format!("\nauto eth{number}\niface eth{number} inet manual\n"));
    }
    text.push_str("\nsource /etc/network/interfaces.d/*\n");
    text
}

fn network_manager(interfaces: &[Interface]) -> String {
    let macs: Vec<_> = interfaces.iter().map(|interface| format!("mac:{}", interface.mac)).collect();
    format!(
        "# Written by labyard at every boot: its init has set the interfaces up.\n[keyfile]\nunmanaged-devices={}\n",
        macs.join(";")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use labyard_spec::net::Mac;
    use std::fs;

    fn interface(gateway: bool) -> Interface {
        let mac = Mac([2, 0, 0, 0, 0, 10]);
        let gateway = gateway.then(|| [10, 0, 0, 1].into());
        Interface { mac, address: [10, 0, 0, 2].into(), prefix: 24, gateway, mtu: 1500, six: None }
    }

    #[test]
    fn only_managers_that_the_image_has_are_told_and_each_in_its_words() {
        let image = tempfile::tempdir().expect("a folder");
        let root = Below::open(image.path()).expect("opening it");
        write(&root, &[interface(true)]).expect("writing");
        assert_eq!(fs::read_dir(image.path()).expect("listing").count(), 0);
        for folder in ["etc/systemd/network", "etc/network", "etc/NetworkManager"] {
            fs::create_dir_all(image.path().join(folder)).expect("a folder");
        }
        write(&root, &[interface(true), interface(false)]).expect("writing");
        let read = |path: &str| fs::read_to_string(image.path().join(path)).expect("a file");
        let first = read("etc/systemd/network/00-labyard-eth0.network");
        assert!(
            first.contains("MACAddress=02:00:00:00:00:0a\n")
                && first.contains("Address=10.0.0.2/24\nGateway=10.0.0.1\n"),
            "{first}"
        );
        assert!(!read("etc/systemd/network/00-labyard-eth1.network").contains("Gateway"));
        assert!(read("etc/network/interfaces").contains("auto eth1\niface eth1 inet manual\n"));
        let told = read("etc/NetworkManager/conf.d/00-labyard.conf");
        assert!(told.ends_with("unmanaged-devices=mac:02:00:00:00:00:0a;mac:02:00:00:00:00:0a\n"), "{told}");
    }

    #[test]
    fn ipv6_is_told_to_who_manages_addresses_and_the_others_still_leave_them_alone() {
        let image = tempfile::tempdir().expect("a folder");
        for folder in ["etc/systemd/network", "etc/network", "etc/NetworkManager"] {
            fs::create_dir_all(image.path().join(folder)).expect("a folder");
        }
        let root = Below::open(image.path()).expect("opening it");
        let read = |path: &str| fs::read_to_string(image.path().join(path)).expect("a file");
        let others = || ["etc/network/interfaces", "etc/NetworkManager/conf.d/00-labyard.conf"].map(read);
        write(&root, &[interface(true), interface(false)]).expect("writing");
        let (plain, without) = (read("etc/systemd/network/00-labyard-eth1.network"), others());
        let address = "fd00:10::2".parse().expect("an address");
        let six = |gateway: Option<&str>| Interface {
            six: Some(Interface6 { address, prefix: 64, gateway: gateway.map(|ip| ip.parse().expect("an address")) }),
            ..interface(gateway.is_some())
        };
        write(&root, &[six(Some("fd00:10::1")), six(None)]).expect("writing");
        let first = read("etc/systemd/network/00-labyard-eth0.network");
        let both = "Address=10.0.0.2/24\nGateway=10.0.0.1\nAddress=fd00:10::2/64\nIPv6DuplicateAddressDetection=0\nGateway=fd00:10::1\n";
        assert!(first.contains(both) && first.contains("IPv6AcceptRA=no\n"), "{first}");
        let second = read("etc/systemd/network/00-labyard-eth1.network");
        assert_eq!(second.replace("Address=fd00:10::2/64\nIPv6DuplicateAddressDetection=0\n", ""), plain);
        assert_eq!(others(), without);
    }
}
