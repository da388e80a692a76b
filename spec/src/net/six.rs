//! IPv6 of a network, beside its IPv4.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The IPv6 side of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network6 {
    /// Its addresses.
    pub subnet: Ipv6Subnet,
    /// The address of the way out, reserved also where there is none.
    pub gateway: Ipv6Addr,
}

/// An IPv6 network that hosts can have addresses of: its first address and the length of its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv6Subnet {
    network: Ipv6Addr,
    prefix: u8,
}

/// Addresses that no subnet of hosts has, and what they are. No prefix is shorter than 16 bits, so a subnet lies in one of them or shares
/// nothing with it.
const NOT_OF_HOSTS: [(Ipv6Addr, u8, &str); 4] = [
    // The unspecified address and loopback (RFC 4291, 2.5.2 and 2.5.3), IPv4 within IPv6 (2.5.5), translation (RFC 6052 and RFC 8215).
    (Ipv6Addr::UNSPECIFIED, 8, "reserved: loopback, IPv4 within IPv6 and translated addresses lie there"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local: every interface has an address of these already"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local, which is no longer used (RFC 3879)"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

impl Ipv6Subnet {
    /// The subnet that `address`/`prefix` lies in; `None` where the prefix is longer than 126 bits (no gateway and host fit) or shorter than 16.
    pub fn containing(address: Ipv6Addr, prefix: u8) -> Option<Self> {
        (16..=126)
            .contains(&prefix)
            .then(|| Self { network: Ipv6Addr::from_bits(address.to_bits() & mask(prefix)), prefix })
    }

    /// Its first address, which every router of it listens to and no host has (RFC 4291, 2.6.1).
    pub fn network(self) -> Ipv6Addr {
        self.network
    }

    /// Bits of the network part.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether a host of this subnet may have `address`.
    pub fn has_host(self, address: Ipv6Addr) -> bool {
        self.contains(address) && address != self.network
    }

    /// Whether `address` lies inside, the first one included.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Every host address in order.
    pub fn hosts(self) -> impl Iterator<Item = Ipv6Addr> {
        let network = self.network.to_bits();
        (network + 1..=network | !mask(self.prefix)).map(Ipv6Addr::from_bits)
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Ipv6Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Debug for Ipv6Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ipv6Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) =
            text.split_once('/').ok_or_else(|| format!("`{text}` is not a subnet such as fd00:10::/64"))?;
        let address: Ipv6Addr = address.parse().map_err(|_| format!("`{address}` is not an IPv6 address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| format!("`{prefix}` is not a prefix length"))?;
        let subnet = Self::containing(address, prefix)
            .ok_or_else(|| format!("prefix /{prefix} is not between /16 and /126: take /64"))?;
        for (first, bits, what) in NOT_OF_HOSTS {
            if address.to_bits() & mask(bits) == first.to_bits() {
                return Err(format!("{subnet} is {what}: take one such as fd00:10::/64"));
            }
        }
        if subnet.network != address {
            return Err(format!("`{text}` has host bits set: the subnet is {subnet}"));
        }
        Ok(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_knows_its_hosts() {
        let subnet: Ipv6Subnet = "fd00:10::/126".parse().expect("a subnet");
        let hosts: Vec<_> = subnet.hosts().map(|host| host.to_string()).collect();
        assert_eq!(hosts, ["fd00:10::1", "fd00:10::2", "fd00:10::3"]);
        assert!(!subnet.has_host(subnet.network()) && subnet.contains(subnet.network()));
        assert!(!subnet.has_host("fd00:10::4".parse().expect("an address")));
        let wide: Ipv6Subnet = "2001:db8::/32".parse().expect("a subnet");
        assert_eq!(wide.hosts().nth(1).map(|host| host.to_string()).as_deref(), Some("2001:db8::2"));
    }

    #[test]
    fn subnets_that_share_addresses_overlap_either_way() {
        let [wide, narrow, other] =
            ["fd00::/16", "fd00:10::/64", "fd01::/16"].map(|text| text.parse::<Ipv6Subnet>().expect(text));
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!wide.overlaps(other) && !other.overlaps(narrow));
    }

    #[test]
    fn a_subnet_that_no_host_can_be_of_is_refused_by_name() {
        for (text, part) in [
            ("fd00:10::1/64", "the subnet is fd00:10::/64"),
            ("fd00:10::/127", "/127"),
            ("fd00::/8", "/8"),
            ("fd00:10::/129", "/129"),
            ("fd00:10::/x", "`x`"),
            ("fd00:10::", "subnet"),
            ("10.0.0.0/24", "`10.0.0.0` is not an IPv6 address"),
            ("fe80::/64", "link-local"),
            ("febf:1::/64", "link-local"),
            ("fec0::/64", "site-local"),
            ("ff02::/64", "multicast"),
            ("::/64", "reserved"),
            ("::1/126", "reserved"),
            ("::ffff:10.0.0.0/120", "IPv4 within IPv6"),
            ("64:ff9b::/96", "translated"),
        ] {
            let error = text.parse::<Ipv6Subnet>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
