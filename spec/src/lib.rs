//! What is asked for, as plain data: the spec of a playground, and the messages that travel between Labyard's processes.
//!
//! Nothing here does input or output. Whoever reads one of these types from a socket or a file bounds the bytes first;
//! the types bound the rest. `docs/formats.md` shows each on the wire.
//!
//! - [`playground`]: what the supervisor asks of the vmm.
//! - [`net`]: addresses, and how they are given out.
//! - [`control`]: the supervisor's conversation with the vmm.
//! - [`guest`]: `/machine.json`, what `labyard-init` is told.
//! - [`agent`]: the conversation with the agent in the guest.
//! - [`jail`]: what `labyard-jail` is told.
//! - [`needs`]: what an image needs of the kernel.
//! - [`link`]: what links do to frames when they are asked to.
//! - `overlay` (feature `overlay`): the map of an overlay layer, as bytes.
//! - [`source`]: where an image comes from.
//! - [`text`]: what others wrote, as people read it.
//! - [`uplink`]: what `labyard-uplink` is told.
//! - `manifest` (feature `manifest`): the YAML that a person writes, its rules, and what it asks for.

#![forbid(unsafe_code)]

pub mod agent;
pub mod control;
pub mod guest;
pub mod jail;
pub mod link;
#[cfg(feature = "manifest")]
pub mod manifest;
pub mod needs;
pub mod net;
#[cfg(feature = "overlay")]
pub mod overlay;
pub mod playground;
pub mod source;
pub mod text;
pub mod uplink;
