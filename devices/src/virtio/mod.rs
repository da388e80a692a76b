//! virtio devices (VIRTIO 1.2), one file or folder each, and the list of them.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod config;
pub mod console;
pub mod device;
pub mod net;
mod registry;
pub mod rng;
pub mod transport;
pub mod vsock;

pub use registry::{Entry, REGISTRY};

/// Features that belong to the ring and the transport, offered for every device.
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC (§6): a descriptor may point at a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX (§6): both sides say when they want to be told.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1 (§6): not a legacy driver. A driver that does not accept it is refused.
    pub const VERSION_1: u64 = 1 << 32;
    /// All of them.
    pub const COMMON: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}
