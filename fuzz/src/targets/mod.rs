//! The list of targets.

mod device;
mod image;
mod ioapic;
mod messages;
mod saved;
mod switch;
mod vsock;

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
}

fn target(name: &str, run: fn(&[u8])) -> Target {
    Target { name: name.to_owned(), run: Box::new(run), seeds: Vec::new }
}

/// Every target: one for each device, then the rest.
pub fn all() -> Vec<Target> {
    let mut targets: Vec<Target> = REGISTRY
        .iter()
        .map(|entry| Target {
            name: format!("device-{}", entry.name),
            run: Box::new(|bytes| device::run(entry, bytes)),
            seeds: Vec::new,
        })
        .collect();
    targets.extend([
        target("vsock-packets", vsock::run),
        target("ioapic", ioapic::run),
        target("switch", switch::run),
        target("image-layers", image::run),
        Target { seeds: messages::seeds, ..target("messages", messages::run) },
        target("agent-frames", messages::frames),
        Target { seeds: saved::bodies, ..target("saved-state", saved::body) },
        Target { seeds: saved::devices, ..target("saved-devices", saved::device) },
    ]);
    targets
}
