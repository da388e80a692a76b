//! Devices with the host's side at work: what a device does also depends on who pulls its cable, types, or fills the disk. A
//! device without a world of its own is its sample, alone.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use labyard_devices::Memory;
use labyard_devices::backend::block::BlockBackend;
use labyard_devices::backend::overlay::{Chain, LayerFiles, Overlay};
use labyard_devices::backend::raw::RawFile;
use labyard_devices::counters::Snapshot;
use labyard_devices::limiter::{Bucket, Limiter, Limits, Rate};
use labyard_devices::switch::{Plug, PortSpec, Switch};
use labyard_devices::testing::{GuestDriver, InlineHost, readable, writable};
use labyard_devices::virtio::Entry;
use labyard_devices::virtio::balloon::{Balloon, Reclaim};
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::console::{Console, ConsoleInput, ConsoleOutput};
use labyard_devices::virtio::device::{DeviceType, VirtioDevice};
use labyard_devices::virtio::net::Net;
use labyard_devices::virtio::rng::{Entropy, Rng};
use labyard_devices::virtio::vsock::{Hub, Incoming, Vsock};
use labyard_spec::link::{Direction, LinkChange};
use labyard_sys::memfd;

use super::requests::{HEADER, LARGE};
use crate::input::Input;

/// What the host does to a device.
pub(super) type HostSide = Box<dyn FnMut(&mut Input<'_>)>;

/// Bytes of a drive.
const DRIVE_BYTES: u64 = 1 << 20;

/// A device of the entry's kind and the host's side of it, both behind `host`'s workers.
pub(super) fn of(entry: &Entry, host: &InlineHost, input: &mut Input<'_>) -> (Box<dyn VirtioDevice>, HostSide) {
    // The sample is what a newcomer writes, so it is fuzzed, too.
    if input.one_in(8) {
        return ((entry.sample)(), Box::new(|_| ()));
    }
    match entry.device_type {
        DeviceType::Balloon => balloon(),
        DeviceType::Block => block(input),
        DeviceType::Console => console(),
        DeviceType::Net => net(host),
        DeviceType::Rng => random(input),
        DeviceType::Vsock => vsock(),
    }
}

/// Takes pages, and sometimes cannot.
struct Sometimes(u64);

impl Reclaim for Sometimes {
    fn give_back(&mut self, _: &Memory, start: u64, len_bytes: u64) -> io::Result<()> {
        assert!(
            start.is_multiple_of(4096) && len_bytes.is_multiple_of(4096),
            "{len_bytes} bytes at {start:#x} are no pages"
        );
        self.0 += 1;
        if self.0.is_multiple_of(8) { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }
}

fn balloon() -> (Box<dyn VirtioDevice>, HostSide) {
    let balloon = Balloon::new(Box::new(Sometimes(0))).expect("eventfds");
    let control = balloon.control();
    let host = move |input: &mut Input<'_>| match input.byte() % 2 {
        0 => control.set_target_pages(input.word()),
        _ => drop(control.statistics()),
    };
    (Box::new(balloon), Box::new(host))
}

/// A file that may grow, one that is only read, or a layer; with and without limits.
fn block(input: &mut Input<'_>) -> (Box<dyn VirtioDevice>, HostSide) {
    let file = |bytes| memfd::create("a drive", bytes).expect("a memfd");
    let what = input.byte() % 3;
    // Who makes a layer larger waits for its worker, which is this very thread: a layer is only ever refused.
    let most = if what == 2 { DRIVE_BYTES as u32 } else { 3 << 20 };
    let backend: Box<dyn BlockBackend> = match what {
        0 => {
            let grows = file(2 * DRIVE_BYTES);
            let engine =
                labyard_devices::backend::engine::SyncEngine::new(vec![grows.try_clone().expect("a descriptor")]);
            Box::new(RawFile::over(engine, DRIVE_BYTES, false).growing_with(grows.into()))
        }
        1 => Box::new(RawFile::new(file(DRIVE_BYTES), input.one_in(2)).expect("whole sectors")),
        _ => {
            let top = LayerFiles { data: file(0), map: file(0) };
            let chain = Chain { base: None, frozen: Vec::new(), top, live: false, capacity_bytes: DRIVE_BYTES };
            Box::new(Overlay::new(chain).expect("a new layer"))
        }
    };
    let bucket = Bucket::new(Limits::default());
    let limiter = Limiter::new(vec![bucket.clone()]).expect("a timer");
    let block = Block::new("d00", backend).limited_by(limiter);
    let handle = block.handle();
    let host = move |input: &mut Input<'_>| match input.byte() % 6 {
        3 => assert_eq!(handle.counters().snapshot().len(), 8),
        // Nothing waits where there is room, nor once the power is being cut; the target `overlay` fills the disk.
        4 => handle.retry().expect("a disk with room"),
        5 if input.one_in(4) => handle.give_up(),
        0 => {
            let rate = Rate { per_second: u64::from(input.short()), burst: u64::from(input.short()) };
            bucket.change(Limits { bytes: Some(rate), operations: None });
        }
        1 => bucket.change(Limits::default()),
        _ => {
            let _ = handle.resize(u64::from(input.word() % most) & !511); // refused is as good
        }
    };
    (Box::new(block), Box::new(host))
}

struct Nowhere;

impl ConsoleOutput for Nowhere {
    fn write(&mut self, bytes: &[u8]) {
        assert!(!bytes.is_empty(), "nothing is printed");
    }
}

fn console() -> (Box<dyn VirtioDevice>, HostSide) {
    let typed = ConsoleInput::new().expect("an eventfd");
    let console = Console::new(Box::new(Nowhere), typed.clone());
    let host = move |input: &mut Input<'_>| match input.byte() % 4 {
        0 => typed.set_size(input.short(), input.short()),
        1 => drop(typed.push(&[b'x'; 4096])),
        _ => {
            let len = input.byte().into();
            typed.push(input.bytes(len));
        }
    };
    (Box::new(console), Box::new(host))
}

/// With a neighbour that sends, and takes what it is sent.
fn net(host: &InlineHost) -> (Box<dyn VirtioDevice>, HostSide) {
    let specs = [1, 2].map(|last| PortSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 });
    let mut plugs = Switch::with_ports("fuzz", &specs).into_iter();
    let (Some(own), Some(theirs)) = (plugs.next(), plugs.next()) else { unreachable!("two ports were made") };
    let net = Net::new("eth0", own);
    let link = net.link();
    let mut other = GuestDriver::power_on_at(Box::new(Net::new("eth1", theirs)), host.clone());
    other.set_up(!labyard_devices::virtio::feature::EVENT_IDX);
    let side = move |input: &mut Input<'_>| match input.byte() % 10 {
        0 => link.set(false),
        1 => link.set(true),
        8 | 9 => disturb(link.plug(), input),
        2 => {
            other.offer(0, &[writable(LARGE, 2048)]);
            other.kick(0);
            other.used(0);
        }
        _ => {
            let to = if input.one_in(4) { [0xff; 6] } else { [2, 0, 0, 0, 0, 1] };
            other.put(HEADER, &[&[0; 12][..], &to, &[2, 0, 0, 0, 0, 2], &[8, 6]].concat());
            other.offer(1, &[readable(HEADER, 26), readable(LARGE, input.pick(&[46, 1500]))]);
            other.kick(1);
            other.used(1);
        }
    };
    (Box::new(net), Box::new(side))
}

/// The link of a NIC becomes slow, lossy, or well again: as it was asked, or not at all.
fn disturb(plug: &Plug, input: &mut Input<'_>) {
    let direction = input.pick(&[Direction::Both, Direction::Sent, Direction::Received]);
    let change = match input.byte() % 8 {
        // What is a minute on its way is there to be saved; what is a millisecond arrives meanwhile.
        0..=2 => {
            let delay_us = input.pick(&[60_000_000, 60_000_000, 1_000, 0, 60_000_001]);
            LinkChange::Delay { delay_us, jitter_us: u64::from(input.short()) }
        }
        3 => LinkChange::Loss { ppm: input.pick(&[0, 500_000, 1_000_000, 1_000_001]) },
        4 => LinkChange::Rate { bits_per_second: input.pick(&[None, Some(1000), Some(1 << 30), Some(999)]) },
        5 => LinkChange::Cut,
        _ => LinkChange::Heal,
    };
    let Some(port) = plug.port() else { return };
    let (sent, received) = port.link_faults();
    let changed = plug.change_link(direction, change);
    let wanted = [(sent, direction.has_sent()), (received, direction.has_received())].map(|(faults, meant)| {
        if meant && changed.is_ok() { faults.changed(change).expect("it was taken") } else { faults }
    });
    assert_eq!(<[_; 2]>::from(port.link_faults()), wanted, "{change:?} of {direction:?} frames: {changed:?}");
}

/// Randomness that runs out now and then.
struct Zeros(u32);

impl Entropy for Zeros {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.0 += 1;
        into.fill(0);
        if self.0.is_multiple_of(8) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

fn random(input: &mut Input<'_>) -> (Box<dyn VirtioDevice>, HostSide) {
    let rate = Rate { burst: input.short().into(), per_second: 1 << (input.byte() % 40) };
    // So that what waits for a timer goes on within one input.
    let host = |input: &mut Input<'_>| std::thread::sleep(Duration::from_micros(u64::from(input.byte() % 8)));
    (Box::new(Rng::with_entropy(Box::new(Zeros(0)), rate)), Box::new(host))
}

/// Says a few words to whoever connects, and hangs up.
struct Short;

impl Incoming for Short {
    fn accept(&mut self, port: u32) -> Option<UnixStream> {
        let (ours, mut theirs) = (port % 4 != 3).then(UnixStream::pair)?.ok()?;
        let _ = theirs.write_all(b"hello"); // a stream of one's own takes it
        Some(ours)
    }
}

fn vsock() -> (Box<dyn VirtioDevice>, HostSide) {
    let hub = Hub::new().expect("an eventfd");
    let host = {
        let hub = hub.clone();
        // Nobody answers in time: what matters is what the wish leaves behind.
        move |input: &mut Input<'_>| drop(hub.connect(input.byte().into(), Duration::ZERO))
    };
    (Box::new(Vsock::new(3, hub, Box::new(Short))), Box::new(host))
}
