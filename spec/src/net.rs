//! Addresses of a playground, and the rule by which they are given out.

mod six;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

pub use six::{Ipv6Subnet, Network6};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of interface number `position` of `machine` on `network`: `02` and 40 bits of a hash, so that a
    /// clone of the playground keeps it. `02` marks a locally administered unicast address (IEEE 802, bit 1 of the first octet).
    pub fn derived(network: &str, machine: &str, position: usize) -> Self {
        let mut hash = Sha256::new();
        for part in [network.as_bytes(), machine.as_bytes(), position.to_string().as_bytes()] {
            hash.update(part);
            hash.update([0]); // names hold no NUL, so parts cannot run together
        }
        let digest = hash.finalize();
        let mut octets = [0x02, 0, 0, 0, 0, 0];
        octets[1..].copy_from_slice(&digest[..5]);
        Self(octets)
    }
}

impl Mac {
    /// The address of a network's gateway: that of a machine without a name, which no machine is.
    pub fn gateway(network: &str) -> Self {
        Self::derived(network, "", 0)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2);
            *octet = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("`{text}` is not a hardware address such as 02:00:5e:10:00:01"))?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(format!("`{text}` has more than six octets")),
        }
    }
}

/// An IPv4 network: its first address and the length of its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Subnet {
    /// The subnet that `address`/`prefix` lies in; `None` where the prefix is longer than 30 bits (no two hosts fit) or shorter than 8.
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (8..=30)
            .contains(&prefix)
            .then(|| Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix })
    }

    /// The network address.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The broadcast address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix))
    }

    /// Bits of the network part.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether a host of this subnet may have `address`.
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network && address != self.broadcast()
    }

    /// Whether `address` lies inside, network and broadcast address included.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Every host address in order.
    pub fn hosts(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.network.to_bits() + 1..self.broadcast().to_bits()).map(Ipv4Addr::from_bits)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Debug for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ipv4Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) =
            text.split_once('/').ok_or_else(|| format!("`{text}` is not a subnet such as 172.16.0.0/24"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| format!("`{address}` is not an IPv4 address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| format!("`{prefix}` is not a prefix length"))?;
        let subnet =
            Self::containing(address, prefix).ok_or_else(|| format!("prefix /{prefix} is not between /8 and /30"))?;
        if subnet.network != address {
            return Err(format!("`{text}` has host bits set: the subnet is {subnet}"));
        }
        Ok(subnet)
    }
}

macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Mac, Ipv4Subnet, Ipv6Subnet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_mac_is_local_unicast_and_depends_on_every_part() {
        let mac = Mac::derived("local", "web", 0);
        assert_eq!(mac.0[0], 0x02);
        assert_eq!(mac, Mac::derived("local", "web", 0));
        for other in [Mac::derived("lan", "web", 0), Mac::derived("local", "db", 0), Mac::derived("local", "web", 1)] {
            assert_ne!(mac, other);
        }
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn a_subnet_knows_its_hosts() {
        let subnet: Ipv4Subnet = "172.16.0.0/30".parse().expect("a subnet");
        assert_eq!(subnet.hosts().map(|host| host.to_string()).collect::<Vec<_>>(), ["172.16.0.1", "172.16.0.2"]);
        assert!(!subnet.has_host(subnet.network()));
        assert!(!subnet.has_host(subnet.broadcast()));
    }

    #[test]
    fn subnets_that_share_addresses_overlap_either_way() {
        let wide: Ipv4Subnet = "10.0.0.0/8".parse().expect("a subnet");
        let narrow: Ipv4Subnet = "10.20.0.0/24".parse().expect("a subnet");
        let other: Ipv4Subnet = "172.16.0.0/24".parse().expect("a subnet");
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!wide.overlaps(other));
    }

    #[test]
    fn a_subnet_with_host_bits_or_a_silly_prefix_is_refused_by_name() {
        for (text, part) in
            [("10.0.0.1/24", "10.0.0.0/24"), ("10.0.0.0/33", "/33"), ("10.0.0.0", "subnet"), ("ten/8", "ten")]
        {
            let error = text.parse::<Ipv4Subnet>().expect_err(text);
            assert!(error.contains(part), "{error}");
        }
    }
}
