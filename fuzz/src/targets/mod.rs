//! The list of targets, and which source files each answers for.

mod archives;
mod chain;
mod control;
mod device;
mod disks;
mod exports;
mod image;
mod ioapic;
mod kernel;
mod legacy;
mod messages;
mod overlay;
mod overlay_maps;
mod requests;
mod saved;
mod sources;
mod switch;
mod tars;
mod vsock;
mod worlds;

use labyard_devices::REGISTRY;

/// Panics where a rule is broken.
pub type Run = Box<dyn Fn(&[u8])>;

/// Something that takes bytes from others.
pub struct Target {
    /// Its name on the command line.
    pub name: String,
    /// What takes them.
    pub run: Run,
    /// Inputs to start from; none where every input means something.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Source files whose lines its inputs reach, from the top of the project; a name that ends in `/` is a folder with all that
    /// no other target names.
    pub files: Vec<String>,
}

fn target(name: &str, run: fn(&[u8]), files: &[&str]) -> Target {
    let files = files.iter().map(|file| (*file).to_owned()).collect();
    Target { name: name.to_owned(), run: Box::new(run), seeds: Vec::new, files }
}

/// Every target: one for each device, then the rest.
pub fn all() -> Vec<Target> {
    // One file or one folder is a device, and nobody else's.
    let mut targets: Vec<Target> = REGISTRY
        .iter()
        .map(|entry| Target {
            name: format!("device-{}", entry.name),
            run: Box::new(|bytes| device::run(entry, bytes)),
            seeds: Vec::new,
            files: ["", "/"]
                .map(|end| format!("devices/src/virtio/{}{}", entry.name, if end.is_empty() { ".rs" } else { end }))
                .into(),
        })
        .collect();
    targets.extend([
        target("mmio", device::any, &["devices/src/virtio/transport/mmio.rs", "devices/src/virtio/config.rs"]),
        target("chain", chain::run, &["devices/src/virtio/chain.rs"]),
        target(
            "vsock-packets",
            vsock::run,
            &[
                "devices/src/virtio/vsock/connection.rs",
                "devices/src/virtio/vsock/packet.rs",
                "devices/src/virtio/vsock/streams.rs",
                "devices/src/virtio/vsock/worker.rs",
            ],
        ),
        target("ioapic", ioapic::run, &["devices/src/legacy/ioapic.rs"]),
        target("legacy", legacy::run, &["devices/src/bus.rs", "devices/src/legacy/"]),
        target("switch", switch::run, &["devices/src/switch/"]),
        target("overlay", overlay::run, &["devices/src/backend/overlay/", "spec/src/overlay.rs"]),
        target("overlay-maps", overlay_maps::run, &["spec/src/overlay/fit.rs", "spec/src/overlay/runs.rs"]),
        target(
            "image-layers",
            image::run,
            &[
                "rootfs-builder/src/layer.rs",
                "rootfs-builder/src/layer/",
                "rootfs-builder/src/merge.rs",
                "rootfs-builder/src/baked.rs",
            ],
        ),
        target(
            "disks",
            disks::run,
            &["rootfs-builder/src/ext4/", "rootfs-builder/src/erofs/", "rootfs-builder/src/output.rs"],
        ),
        // dockerfile.rs is not among them: it starts buildah, and what that leaves is a layout.
        target(
            "image-source",
            sources::run,
            &[
                "rootfs-builder/src/source/archive.rs",
                "rootfs-builder/src/source/compatibility.rs",
                "rootfs-builder/src/source/config.rs",
                "rootfs-builder/src/source/docker.rs",
                "rootfs-builder/src/source/layout.rs",
                "rootfs-builder/src/source/manifest.rs",
                "rootfs-builder/src/source/parcel.rs",
                "rootfs-builder/src/source/rootfs.rs",
            ],
        ),
        target("image-files", exports::files, &["rootfs-builder/src/transfer.rs", "rootfs-builder/src/catalogue.rs"]),
        target("image-needs", exports::needs, &["spec/src/needs.rs"]),
        target(
            "kernel-store",
            kernel::store,
            &["rootfs-builder/src/kernel/image.rs", "rootfs-builder/src/kernel/elf.rs"],
        ),
        target(
            "copied-archives",
            archives::run,
            &["archive/src/read.rs", "archive/src/unpack.rs", "archive/src/unpack/folders.rs", "archive/src/below.rs"],
        ),
        target("kernel-load", kernel::load, &["vmm/src/kernel.rs", "vmm/src/boot.rs", "vmm/src/boot/linux64.rs"]),
        target("control", control::run, &["vmm/src/control.rs", "vmm/src/plan.rs", "sys/src/message.rs"]),
        Target { seeds: messages::seeds, ..target("messages", messages::run, &["spec/src/source.rs"]) },
        Target { seeds: messages::calls, ..target("agent-frames", messages::frames, &["spec/src/agent.rs"]) },
        Target { seeds: saved::bodies, ..target("saved-state", saved::body, &["vmm/src/snapshot/mod.rs"]) },
        Target {
            seeds: saved::devices,
            ..target("saved-devices", saved::device, &["devices/src/virtio/transport/mmio/state.rs"])
        },
    ]);
    targets
}
