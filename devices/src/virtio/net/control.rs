//! Commands of the control queue (VIRTIO 1.2, §5.1.6.5): which offloads the driver wants towards it, and that it has told its
//! network where it is.

use crate::Memory;
use crate::switch::offload::GUEST_OFFLOADS;
use crate::virtio::chain::Chain;

/// VIRTIO_NET_CTRL_GUEST_OFFLOADS and VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (§5.1.6.5.6).
const SET_OFFLOADS: [u8; 2] = [5, 0];
/// VIRTIO_NET_CTRL_ANNOUNCE and VIRTIO_NET_CTRL_ANNOUNCE_ACK (§5.1.6.5.4), which have no data.
const ANNOUNCED: [u8; 2] = [3, 0];
/// VIRTIO_NET_OK and VIRTIO_NET_ERR.
pub(super) const OK: u8 = 0;
pub(super) const ERR: u8 = 1;
/// Class, command, and a little-endian u64.
const COMMAND_BYTES: usize = 10;

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Offloads to turn on; all others go off.
    Offloads(u64),
    /// The network knows where the driver is.
    Announced,
}

/// A command that is not carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a command of {0} bytes")]
    Length(u64),
    #[error("command {1} of class {0}, which was not offered")]
    Unknown(u8, u8),
    #[error("offloads {wanted:#x} of {accepted:#x} that were accepted")]
    Offloads { wanted: u64, accepted: u64 },
}

/// The command in a chain. `accepted` are the driver's features.
pub(super) fn command(mem: &Memory, chain: &Chain, accepted: u64) -> Result<Command, Refusal> {
    let mut bytes = [0; COMMAND_BYTES];
    let read = chain.read_at(mem, 0, &mut bytes);
    let [class, command, value @ ..] = bytes;
    if read < 2 {
        return Err(Refusal::Length(chain.readable_len()));
    }
    if [class, command] == ANNOUNCED && accepted & super::F_GUEST_ANNOUNCE != 0 {
        return if chain.readable_len() == 2 {
            Ok(Command::Announced)
        } else {
            Err(Refusal::Length(chain.readable_len()))
        };
    }
    if [class, command] != SET_OFFLOADS || accepted & super::F_CTRL_GUEST_OFFLOADS == 0 {
        return Err(Refusal::Unknown(class, command));
    }
    if chain.readable_len() != COMMAND_BYTES as u64 || read != COMMAND_BYTES {
        return Err(Refusal::Length(chain.readable_len()));
    }
    let (wanted, accepted) = (u64::from_le_bytes(value), accepted & GUEST_OFFLOADS);
    if wanted & !accepted != 0 {
        return Err(Refusal::Offloads { wanted, accepted });
    }
    Ok(Command::Offloads(wanted))
}
