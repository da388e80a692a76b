//! Guests on threads of their own: everybody sends to everybody while one resets again and again, and another comes and goes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::packets::{FORMS, noise, packet};
use super::*;
use crate::switch::offload::GUEST_OFFLOADS;
use crate::virtio::net::F_CTRL_GUEST_OFFLOADS;

const ALL: u64 = !feature::EVENT_IDX;
const NOTHING: u64 = ALL & !GUEST_OFFLOADS & !F_CTRL_GUEST_OFFLOADS;
/// Far more than a loaded machine needs; only a deadlock takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn nothing_deadlocks_and_every_frame_is_counted_while_one_resets_one_comes_and_goes_and_cables_are_pulled() {
    let specs: Vec<_> = (1..=4).map(|n| PortSpec { mac: mac(n), mtu: 1500 }).collect();
    let plugs = Switch::with_ports("local", &specs);
    let (done, waiting) = mpsc::channel();
    let working = Arc::new(AtomicUsize::new(3));
    let mut threads = Vec::new();
    for (number, plug) in (0..4usize).zip(plugs.clone()) {
        let (done, working) = (done.clone(), Arc::clone(&working));
        threads.push(std::thread::spawn(move || {
            let mask = if number == 1 { NOTHING } else { ALL };
            let net = Net::new("eth0", plug.clone());
            let link = net.link();
            let mut driver = GuestDriver::power_on(Box::new(net));
            driver.set_up(mask);
            let mut nic = Nic { driver, plug, posted: HashMap::new(), next: BUFFERS, offered: 0 };
            match number {
                // Resets while it is delivered to, with buffers and without.
                3 => {
                    while working.load(Ordering::SeqCst) != 0 {
                        nic.post(8, 1600);
                        nic.driver.write(0x70, 0);
                        nic.driver.set_up(mask);
                        nic.offered = 0;
                    }
                }
                _ => {
                    for round in 0..300usize {
                        let to = if round % 3 == 0 { BROADCAST } else { mac((round % 4) as u8 + 1) };
                        let mut sent = packet(FORMS[round % FORMS.len()], to, &noise(round * 61 % 9000 + 1));
                        sent.bytes[6..12].copy_from_slice(&mac(number as u8 + 1));
                        nic.send(sent.claim(1000), &sent.bytes);
                        nic.received();
                        // Too few for everything, so that frames wait and are dropped, too.
                        nic.post(60 - nic.offered, 1600);
                        if number == 2 && round % 50 == 0 {
                            link.set(round % 100 != 0);
                        }
                    }
                    link.set(true);
                    working.fetch_sub(1, Ordering::SeqCst);
                }
            }
            done.send(number).expect("the test waits");
            nic
        }));
    }
    let (switch, still) = (Arc::clone(&plugs[0].switch), Arc::clone(&working));
    let coming = std::thread::spawn(move || {
        while still.load(Ordering::SeqCst) != 0 {
            let plug = switch.add(PortSpec { mac: mac(5), mtu: 1500 }).expect("it has left");
            let mut driver = GuestDriver::power_on(Box::new(Net::new("eth0", plug.clone())));
            driver.set_up(ALL);
            let mut nic = Nic { driver, plug, posted: HashMap::new(), next: BUFFERS, offered: 0 };
            nic.post(8, 1600);
            nic.send(COMPLETE, &frame(BROADCAST, mac(5), b"I am here"));
            nic.plug.leave();
        }
    });
    for _ in 0..4 {
        waiting.recv_timeout(DEADLINE).expect("a guest stands still");
    }
    let nics: Vec<Nic> = threads.into_iter().map(|thread| thread.join().expect("a guest")).collect();
    coming.join().expect("who comes and goes");
    let snapshots: Vec<_> = plugs.iter().map(|plug| plug.port().expect("a port").snapshot()).collect();
    let sum = |count: fn(&counters::Snapshot) -> u64| snapshots.iter().map(count).sum::<u64>();
    // A third of all frames went to all three others, the rest to one or nobody: what was offered lies between.
    let (sent, offered) =
        (sum(|s| s.get(Count::SentFrames) - s.get(Count::SentToNobody)), sum(counters::Snapshot::offered_frames));
    assert!(offered > sent && offered < sent * 3, "{sent} sent, {offered} offered");
    assert_eq!(nics.iter().map(|nic| nic.driver.faults()).collect::<Vec<_>>(), [0; 4]);
}
