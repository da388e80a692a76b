//! `labyard net …`, as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use labyard_spec::link::{ALL_PPM, Direction};

pub(crate) const HELP: &str = "\
A target is LAB/MACHINE:NETWORK, one NIC; LAB/MACHINE, all NICs of a machine; or LAB:NETWORK, all NICs of a network. What a NIC's link
does, it does to what the machine sends and to what it receives: a delay of 50ms lets a ping take 100ms. What a network's links do to a
frame they do once. Guests see nothing of it but its effect. It holds at once and until it is healed or the lab ends; a saved lab keeps it.

Examples:
  labyard net delay lab/db 50ms --jitter 5ms
  labyard net loss lab:lan 2%
  labyard net rate lab/db:lan 10Mbit --only sent
  labyard net cut lab/db
  labyard net heal lab/db
  labyard net show lab
  labyard net pcap lab:lan -w lan.pcap";

#[derive(Debug, Args)]
pub(crate) struct Net {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Let frames take their time
    #[command(after_help = "\
Frames of one link do not overtake each other, however the time varies. At most 4 MiB are on their way to a machine; more is lost and counted.

Examples:
  labyard net delay lab/db 50ms --jitter 5ms
  labyard net delay lab:lan 1s
  labyard net delay lab/db 0")]
    Delay(Delay),
    /// Lose frames by chance
    #[command(after_help = "\
A machine's frames are lost in the same places each time: chance depends on its hardware address alone.

Examples:
  labyard net loss lab/db 2%
  labyard net loss lab/db:lan 0.1% --only received
  labyard net loss lab/db 0%")]
    Loss(Loss),
    /// Let so many bits pass in a second
    #[command(after_help = "\
128 KiB wait in front of a slow link; more is lost and counted.

Examples:
  labyard net rate lab/db 10Mbit
  labyard net rate lab:lan 512kbit
  labyard net rate lab/db none")]
    Rate(Rate),
    /// Let nothing pass
    #[command(after_help = "\
The guest does not see it, as if the cable were cut beyond the next switch; with --carrier it sees its carrier go.

Examples:
  labyard net cut lab/db
  labyard net cut lab/db:lan --carrier
  labyard net cut lab:lan")]
    Cut(Cut),
    /// Let everything pass at once again; what is under way arrives now
    #[command(after_help = "\
Examples:
  labyard net heal lab/db
  labyard net heal lab:lan")]
    Heal(Heal),
    /// Show all links, what they do to frames and what was lost
    #[command(after_help = "\
Examples:
  labyard net show lab
  labyard net show lab --json | jq '.links[] | select(.sent.cut)'")]
    Show(Show),
    /// Write what is sent to a file that tcpdump and wireshark read, until Ctrl-C
    #[command(after_help = "\
Of a network: every frame once, as it was sent. Of a machine: what it sends and what reaches it. Large segments are cut and checksums
finished, as on a wire. Frames that cannot be written as fast as they come are left out and counted in the lab's log.

Examples:
  labyard net pcap lab:lan -w lan.pcap
  labyard net pcap lab/db:lan -w - | tcpdump -nr -")]
    Pcap(Pcap),
}

/// Whose links.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// `LAB/MACHINE[:NETWORK]` or LAB:NETWORK
    pub(super) target: String,
    /// The lab that MACHINE belongs to
    #[arg(short, long, value_name = "LAB")]
    pub(super) playground: Option<String>,
}

/// One direction, as the machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Only {
    /// What it sends
    Sent,
    /// What it receives
    Received,
}

impl Only {
    pub(super) fn direction(self) -> Direction {
        match self {
            Self::Sent => Direction::Sent,
            Self::Received => Direction::Received,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Delay {
    #[command(flatten)]
    pub(super) target: Target,
    /// Such as 50ms, 200us or 1s; a minute at most
    #[arg(value_parser = parse_time)]
    pub(super) time: u64,
    /// By how much it varies, up and down
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_time)]
    pub(super) jitter: u64,
    /// Only what the machine sends, or receives
    #[arg(long, value_enum)]
    pub(super) only: Option<Only>,
}

#[derive(Debug, Args)]
pub(super) struct Loss {
    #[command(flatten)]
    pub(super) target: Target,
    /// Such as 2% or 0.1%
    #[arg(value_parser = parse_percent)]
    pub(super) share: u32,
    /// Only what the machine sends, or receives
    #[arg(long, value_enum)]
    pub(super) only: Option<Only>,
}

/// Bits in a second, or no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bits(pub(super) Option<u64>);

#[derive(Debug, Args)]
pub(super) struct Rate {
    #[command(flatten)]
    pub(super) target: Target,
    /// Such as 10Mbit, 512kbit or 1Gbit; none lifts it
    #[arg(value_parser = parse_rate)]
    pub(super) rate: Bits,
    /// Only what the machine sends, or receives
    #[arg(long, value_enum)]
    pub(super) only: Option<Only>,
}

#[derive(Debug, Args)]
pub(super) struct Cut {
    #[command(flatten)]
    pub(super) target: Target,
    /// Only what the machine sends, or receives
    #[arg(long, value_enum, conflicts_with = "carrier")]
    pub(super) only: Option<Only>,
    /// Let the guest see it
    #[arg(long)]
    pub(super) carrier: bool,
}

#[derive(Debug, Args)]
pub(super) struct Heal {
    #[command(flatten)]
    pub(super) target: Target,
    /// Only what the machine sends, or receives
    #[arg(long, value_enum)]
    pub(super) only: Option<Only>,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The lab; the only one where not given
    pub(super) name: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Pcap {
    #[command(flatten)]
    pub(super) target: Target,
    /// The file, made anew; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub(super) write: PathBuf,
}

/// A number of at most six decimals, times a million.
fn millionths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 6 || whole.is_empty() {
        return None;
    }
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part)
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()))
}

/// Microseconds.
fn parse_time(text: &str) -> Result<u64, String> {
    let wrong = || "write it as 50ms, 200us or 1s".to_owned();
    let (number, unit) = split(text);
    let millionths = millionths(number).ok_or_else(wrong)?;
    match unit {
        "us" => Ok(millionths / 1_000_000),
        "ms" => Ok(millionths / 1000),
        "s" => Ok(millionths),
        "" if millionths == 0 => Ok(0),
        _ => Err(wrong()),
    }
}

fn parse_percent(text: &str) -> Result<u32, String> {
    let wrong = || "write it as 2% or 0.1%, 100% at most".to_owned();
    let number = text.strip_suffix('%').or((text == "0").then_some(text)).ok_or_else(wrong)?;
    let share = millionths(number).ok_or_else(wrong)? / 100;
    u32::try_from(share).ok().filter(|share| *share <= ALL_PPM).ok_or_else(wrong)
}

fn parse_rate(text: &str) -> Result<Bits, String> {
    if text == "none" {
        return Ok(Bits(None));
    }
    let wrong = || "write it as 10Mbit, 512kbit or 1Gbit, or none".to_owned();
    let (number, unit) = split(text);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "bit" => 1,
        "kbit" => 1000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let bits = u128::from(millionths(number).ok_or_else(wrong)?) * factor / 1_000_000;
    u64::try_from(bits).map(|bits| Bits(Some(bits))).map_err(|_| wrong())
}

/// Microseconds in words.
pub(super) fn time(us: u64) -> String {
    match us {
        0 => "0".to_owned(),
        us if us % 1_000_000 == 0 => format!("{}s", us / 1_000_000),
        us if us % 1000 == 0 => format!("{}ms", us / 1000),
        us => format!("{us}us"),
    }
}

pub(super) fn percent(ppm: u32) -> String {
    let text = format!("{}.{:04}", ppm / 10_000, ppm % 10_000);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

pub(super) fn rate(bits: Option<u64>) -> String {
    match bits {
        None => "no limit".to_owned(),
        Some(bits) if bits % 1_000_000_000 == 0 => format!("{}Gbit", bits / 1_000_000_000),
        Some(bits) if bits % 1_000_000 == 0 => format!("{}Mbit", bits / 1_000_000),
        Some(bits) if bits % 1000 == 0 => format!("{}kbit", bits / 1000),
        Some(bits) => format!("{bits}bit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_shares_and_rates_are_read_as_they_are_written() {
        for (text, us) in [("50ms", 50_000), ("1.5s", 1_500_000), ("200us", 200), ("0", 0), ("0.25ms", 250)] {
            assert_eq!(parse_time(text), Ok(us), "{text}");
        }
        for (text, ppm) in [("2%", 20_000), ("0.1%", 1000), ("100%", 1_000_000), ("0", 0), ("0.0001%", 1)] {
            assert_eq!(parse_percent(text), Ok(ppm), "{text}");
        }
        for (text, bits) in [("10Mbit", Some(10_000_000)), ("1.5mbit", Some(1_500_000)), ("none", None)] {
            assert_eq!(parse_rate(text), Ok(Bits(bits)), "{text}");
        }
        for text in ["", "50", "ms", "1.2.3s", "-1s", "5 ms", "1.0000001s", "99999999999999999999s"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
        for text in ["", "2", "101%", "%", "x%"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
        for text in ["", "10", "10Mb", "Mbit", "99999999999999gbit"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_can_be_typed_again() {
        for us in [0, 1, 1500, 50_000, 60_000_000] {
            assert_eq!(parse_time(&time(us)), Ok(us));
        }
        for ppm in [0, 1, 1000, 20_000, 1_000_000] {
            assert_eq!(parse_percent(&percent(ppm)), Ok(ppm));
        }
        for bits in [1000, 1500, 10_000_000, 2_000_000_000] {
            assert_eq!(parse_rate(&rate(Some(bits))), Ok(Bits(Some(bits))));
        }
    }
}
