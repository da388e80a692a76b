//! A network: two honest guests, others that claim anything of any frame, and the host, which makes links slow, cuts them, listens,
//! saves, and plugs guests and a gateway in and out.
//!
//! Rules: a sender's buffers come back; what a receiver gets is what it agreed to and within its buffers; every frame that was sent was
//! received, dropped, waits, or was for nobody; whoever listens to the network hears of each; what was cut has right lengths and sums;
//! nobody speaks with another's address; what was saved can be restored; and what honest guests say arrives unchanged and in order, at
//! the latest when the host has made everything well.
//!
//! Nobody sleeps: links are slow by seconds, and what is under way is due when the target says so, as if it were so much later.

mod frames;
mod lab;
mod nic;

use std::time::Duration;

use labyard_devices::switch::Plug;
use labyard_spec::link::{Direction, LinkChange};

use crate::input::Input;
use lab::{Lab, Sender};

/// Things that one input does at most.
const STEPS: usize = 40;

/// Reads the bytes as what guests and the host do.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut lab = Lab::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut lab, &mut input);
        lab.look();
    }
    lab.end(|plug| plug.change_link(Direction::Both, LinkChange::Heal).expect("any link can be healed"));
}

fn step(lab: &mut Lab, input: &mut Input<'_>) {
    // One who is not honest, if there is one.
    let index = (2 + input.below((lab.nics.len() - 2).max(1))).min(lab.nics.len() - 1);
    match input.below(32) {
        0..=8 if index > 1 => lab.send(index, input),
        9..=12 if index > 1 => lab.nics[index].post_any(input),
        13..=15 => lab.kernel(input),
        16 if index > 1 => lab.nics[index].command(input),
        17 if index > 1 => match input.byte() % 2 {
            // A ring that makes no sense, until the driver begins anew.
            0 => lab.nics[index].driver.set_avail(nic::RX, 0x7000),
            _ => lab.nics[index].again(),
        },
        18..=20 => {
            let plug = lab.plug(lab.any(input));
            change_link(&plug, input);
        }
        21 => {
            if let Sender::Nic(index) = lab.any(input) {
                lab.nics[index].link.set(input.one_in(2));
            }
        }
        22 | 23 => {
            let after = input.pick(&[0, 1, 30, 60, 3600]);
            lab.come_due(Duration::from_secs(after));
        }
        24 => {
            if let Sender::Nic(index) = lab.any(input) {
                let nic = &mut lab.nics[index];
                nic.is_held = !nic.is_held;
                if nic.is_held { nic.driver.transport().hold() } else { nic.driver.transport().release() }
            }
        }
        25 => lab.come(input),
        26 if input.one_in(2) => lab.leave(input),
        26 if index > 1 => lab.flood(index, input),
        27 => lab.change_gateway(),
        28 => lab.listen(input),
        29 => lab.hear(input),
        30 => lab.save(input),
        _ => {
            let from = input.byte() % 2;
            if !lab.nics[usize::from(from)].is_held {
                lab.say(from, input.one_in(4));
            }
        }
    }
    if let Some(nic) = lab.nics.get_mut(index)
        && !nic.is_honest
        && nic.driver.needs_reset()
        && input.one_in(4)
    {
        nic.again(); // its ring was broken, or it has offered more buffers than that is long
    }
}

/// Asks for one thing, which can be or not, of one end or both.
fn change_link(plug: &Plug, input: &mut Input<'_>) {
    let port = plug.port().expect("a port");
    let direction = input.pick(&[Direction::Both, Direction::Sent, Direction::Received]);
    let change = match input.byte() % 8 {
        0 => LinkChange::Cut,
        1 | 2 => LinkChange::Heal,
        3 => LinkChange::Loss { ppm: input.pick(&[0, 20_000, 500_000, 1_000_000, 1_000_001]) },
        4 => LinkChange::Rate {
            bits_per_second: input.pick(&[None, Some(999), Some(1000), Some(1_000_000), Some(u64::MAX)]),
        },
        _ => LinkChange::Delay {
            delay_us: input.pick(&[1_000_000, 10_000_000, 60_000_000, 60_000_001]),
            jitter_us: input.pick(&[0, 0, 1_000_000, 10_000_000]),
        },
    };
    let (sent, received) = port.link_faults();
    let expected = (
        if direction.has_sent() { sent.changed(change) } else { Ok(sent) },
        if direction.has_received() { received.changed(change) } else { Ok(received) },
    );
    let changed = plug.change_link(direction, change);
    match expected {
        (Ok(sent), Ok(received)) => assert_eq!((changed, port.link_faults()), (Ok(()), (sent, received))),
        _ => assert_eq!((changed.is_err(), port.link_faults()), (true, (sent, received)), "nothing has changed"),
    }
}
