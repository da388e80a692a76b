//! What the vmm's filters of system calls cost requests and frames: the same work on threads without them and with those of the role that does
//! it, in turns, without guests.
//!
//! Drives lie on a file in the page cache and a tap is `/dev/null`, so that calls are as large a part of the work as they can be.

use std::fs::File;
use std::time::Instant;

use labyard_devices::backend::raw::RawFile;
use labyard_devices::switch::tap::Gateway;
use labyard_devices::switch::{PortSpec, Switch};
use labyard_devices::testing::{Buffer, GuestDriver, InlineHost, readable, writable};
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::feature;
use labyard_devices::virtio::net::{FEATURES, Net};
use labyard_vmm::seccomp::{self, Otherwise, Role};
use rustix::event::{EventfdFlags, eventfd};

/// Requests for each kick, kicks that are measured, and turns.
const BATCH: u32 = 32;
const KICKS: u32 = 20_000;
const TURNS: usize = 5;
const DISK_BYTES: u64 = 16 << 20;

/// Something that is done again and again, and how many of it one turn does.
type Work = Box<dyn FnMut() -> u32>;
/// Makes it, on the thread that does it.
type Make = fn() -> anyhow::Result<Work>;

fn block(request: u8) -> anyhow::Result<Work> {
    let file = tempfile::tempfile()?;
    std::io::Write::write_all(&mut &file, &vec![1; DISK_BYTES as usize])?;
    let backend = RawFile::new(file, false)?;
    let guest = GuestDriver::attach(Box::new(Block::new("d00", Box::new(backend))));
    guest.put(0x1000, &[request, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // VIRTIO_BLK_T_IN and VIRTIO_BLK_T_OUT (VIRTIO 1.2, §5.2.6) of sector 0.
    let data = if request == 0 { writable(0x4000, 4096) } else { readable(0x4000, 4096) };
    Ok(serve(guest, 0, vec![readable(0x1000, 16), data, writable(0x2000, 1)]))
}

fn net() -> anyhow::Result<Work> {
    let specs = [1, 2].map(|last| PortSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 });
    let mut plugs = Switch::with_ports("bench", &specs).into_iter();
    let (plug, outside) = plugs.next().zip(plugs.next()).ok_or_else(|| anyhow::anyhow!("two ports"))?;
    let gateway = Gateway::new(outside, File::options().read(true).write(true).open("/dev/null")?);
    let mut guest = GuestDriver::power_on_at(Box::new(Net::new("eth0", plug)), InlineHost::default());
    guest.set_up((FEATURES | feature::COMMON) & !feature::EVENT_IDX);
    let mut frame = vec![0; 12];
    frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]);
    frame.resize(12 + 1500, 0x5a);
    guest.put(0x1000, &frame);
    let mut send = serve(guest, 1, vec![readable(0x1000, frame.len() as u32)]);
    Ok(Box::new(move || {
        let _open = &gateway;
        send()
    }))
}

fn serve(mut guest: GuestDriver, queue: usize, request: Vec<Buffer>) -> Work {
    Box::new(move || {
        for _ in 0..BATCH {
            guest.offer(queue, &request);
        }
        guest.kick(queue);
        assert_eq!(guest.used(queue).len() as u32, BATCH, "every request comes back");
        BATCH
    })
}

/// What goes around the requests of a kick, beside epoll_wait(2): the thread hears of it, and tells the guest.
fn wake() -> anyhow::Result<Work> {
    let (kick, interrupt) = (eventfd(0, EventfdFlags::NONBLOCK)?, eventfd(0, EventfdFlags::NONBLOCK)?);
    Ok(Box::new(move || {
        rustix::io::write(&kick, &1u64.to_ne_bytes()).expect("it takes a number");
        rustix::io::read(&kick, &mut [0; 8]).expect("a number");
        rustix::io::write(&interrupt, &1u64.to_ne_bytes()).expect("it takes a number");
        1
    }))
}

/// Nanoseconds of one, on a thread of its own.
fn turn(make: Make, filtered: bool) -> anyhow::Result<f64> {
    let work = move || -> anyhow::Result<f64> {
        let mut work = make()?;
        for _ in 0..KICKS / 10 {
            work();
        }
        if filtered {
            // As in the vmm: a thread has inherited what its maker may not.
            seccomp::enter(Role::Spawner)?;
            seccomp::enter(Role::Io)?;
        }
        let since = Instant::now();
        let done: u32 = (0..KICKS).map(|_| work()).sum();
        let nanoseconds = since.elapsed().as_secs_f64() * 1e9 / f64::from(done);
        // What it holds is given back by calls that the role may not make; the bench's end does it.
        std::mem::forget(work);
        Ok(nanoseconds)
    };
    std::thread::spawn(work).join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

fn median(mut turns: Vec<f64>) -> f64 {
    turns.sort_unstable_by(f64::total_cmp);
    turns.get(turns.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> anyhow::Result<()> {
    seccomp::prepare(Otherwise::Kill)?;
    let rows: [(&str, Make); 4] = [
        ("block, read 4 KiB", || block(0)),
        ("block, write 4 KiB", || block(1)),
        ("net, 1,500 bytes to a tap", net),
        ("a kick and an interrupt", wake),
    ];
    println!("{:28} {:>12} {:>12} {:>8}", "ns each, medians of turns", "without", "filtered", "ratio");
    for (name, make) in rows {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            without.push(turn(make, false)?);
            with.push(turn(make, true)?);
        }
        let (without, with) = (median(without), median(with));
        println!("{name:28} {without:>12.0} {with:>12.0} {:>8.2}", with / without);
    }
    Ok(())
}
