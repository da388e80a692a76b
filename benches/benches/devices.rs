//! Requests through a device's registers, rings and worker, without a guest: 32 of them for each kick.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use labyard_devices::REGISTRY;
use labyard_devices::limiter::Rate;
use labyard_devices::testing::{Buffer, GuestDriver, readable, writable};
use labyard_devices::virtio::rng::{HostEntropy, Rng};

/// Requests for each kick.
const BATCH: u64 = 32;

fn guest(name: &str) -> GuestDriver {
    let entry = REGISTRY.iter().find(|entry| entry.name == name).expect("a device of the list");
    GuestDriver::attach((entry.sample)())
}

fn serve(criterion: &mut Criterion, name: &str, mut guest: GuestDriver, request: &[Buffer]) {
    let mut group = criterion.benchmark_group("devices");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                guest.offer(0, request);
            }
            guest.kick(0);
            let used = guest.used(0);
            assert_eq!(used.len() as u64, BATCH, "every request comes back");
        });
    });
    group.finish();
}

fn devices(criterion: &mut Criterion) {
    // Without the rate that machines' have, which would make the requests wait.
    let rng = Rng::with_entropy(Box::new(HostEntropy), Rate { per_second: u64::MAX / 2, burst: u64::MAX / 2 });
    serve(criterion, "rng, 64 bytes", GuestDriver::attach(Box::new(rng)), &[writable(0x1000, 64)]);
    let block = guest("block");
    // VIRTIO_BLK_T_IN of sector 0.
    block.put(0x1000, &[0; 16]);
    serve(criterion, "block, read 4 KiB", block, &[readable(0x1000, 16), writable(0x4000, 4096), writable(0x2000, 1)]);
    let block = guest("block");
    block.put(0x1100, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    serve(criterion, "block, write 4 KiB", block, &[readable(0x1100, 16), readable(0x4000, 4096), writable(0x2000, 1)]);
}

criterion_group!(benches, devices);
criterion_main!(benches);
