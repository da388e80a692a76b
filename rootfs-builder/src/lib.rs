//! rootfs-builder
