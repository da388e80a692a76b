//! A NIC at work: takes frames from the transmit queue to the switch, and commands from the control queue.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::control::{self, Command};
use super::{F_CTRL_VQ, Net};
use crate::Memory;
use crate::irq::Interrupt;
use crate::switch::Touched;
use crate::switch::claim::BadClaim;
use crate::switch::frame::{Frame, Scratch};
use crate::virtio::chain::{Chain, RingFault};
use crate::worker::{ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// Tokens: the numbers of the queues.
const RECEIVE: Token = 0;
const TRANSMIT: Token = 1;
/// Token of the limits: what was held back may go.
const ADMISSION: Token = 3;
/// Token of the port's timer: a frame on its way to the guest is due.
const DUE: Token = 4;
/// Chains that are served before the other devices on the same thread, and whoever wants to stop this one, have a turn.
const BURST: u16 = 256;

pub(super) struct NetWorker {
    net: Net,
    receive_kick: Source,
    transmit: ActiveQueue,
    /// Served only where the feature was accepted.
    control: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    features: u64,
    /// Of the transmit queue. The control queue has one of its own: a frame may wait in this one.
    chain: Chain,
    order: Chain,
    /// The chain has what no limit has let through yet; while it waits nothing else is taken.
    held: bool,
    scratch: Scratch,
    touched: Touched,
}

impl NetWorker {
    pub(super) fn new(
        net: Net,
        receive_kick: Source,
        transmit: ActiveQueue,
        control: ActiveQueue,
        mem: Memory,
        irq: Arc<dyn Interrupt>,
        features: u64,
    ) -> Self {
        let (chain, order) = (Chain::with_capacity(transmit.ring.size()), Chain::with_capacity(control.ring.size()));
        let touched = net.plug.touched();
        Self {
            net,
            receive_kick,
            transmit,
            control,
            mem,
            irq,
            features,
            chain,
            order,
            held: false,
            scratch: Scratch::default(),
            touched,
        }
    }

    /// Serves one burst: every receiver is signalled once for it, and the sender once.
    fn serve_transmit(&mut self, token: Token) -> Result<(), RingFault> {
        match &self.net.limiter {
            Some(limiter) if token == ADMISSION => limiter.woken(),
            _ => self.transmit.take_kick(),
        }
        let mut left = BURST;
        let outcome = self.drain(&mut left);
        // Also after a fault: what was delivered before it is the receivers'.
        self.net.plug.signal(&mut self.touched);
        outcome?;
        if left == 0 {
            again(&self.transmit.kick);
        }
        self.transmit.ring.signal_if_needed(&self.mem, &*self.irq)
    }

    fn drain(&mut self, left: &mut u16) -> Result<(), RingFault> {
        let ring = &mut self.transmit.ring;
        loop {
            ring.disable_kicks(&self.mem)?;
            while *left != 0 && (self.held || ring.pop(&self.mem, &mut self.chain, &self.net.faults)?) {
                let bytes = self.chain.readable_len();
                self.held = self.net.limiter.as_mut().is_some_and(|limiter| !limiter.admit(bytes));
                if self.held {
                    return Ok(());
                }
                *left = left.saturating_sub(1);
                match Frame::in_chain(&self.mem, &self.chain, self.features, &mut self.scratch) {
                    Ok(frame) if self.chain.writable_len() == 0 => {
                        self.net.plug.send(&frame, &mut self.touched, &self.net.faults);
                    }
                    Ok(_) => refuse(&self.net, BadClaim::Answer),
                    Err(bad) => refuse(&self.net, bad),
                }
                // Whatever became of it, the sender gets its buffer back.
                ring.complete(&self.mem, self.chain.head(), 0)?;
            }
            if *left == 0 || !ring.enable_kicks(&self.mem)? {
                return Ok(());
            }
        }
    }

    fn serve_control(&mut self) -> Result<(), RingFault> {
        self.control.take_kick();
        let ActiveQueue { ring, kick } = &mut self.control;
        let mut left = ring.size();
        loop {
            while left != 0 && ring.pop(&self.mem, &mut self.order, &self.net.faults)? {
                left = left.saturating_sub(1);
                let answer = match control::command(&self.mem, &self.order, self.features) {
                    Ok(Command::Announced) => {
                        self.net.ask_to_announce(false);
                        control::OK
                    }
                    Ok(Command::Offloads(offloads)) => {
                        self.net.offloads = Some(offloads);
                        if let Some(port) = self.net.plug.port() {
                            port.set_offloads(offloads);
                        }
                        control::OK
                    }
                    Err(refusal) => {
                        self.net.faults.note(refusal);
                        control::ERR
                    }
                };
                let written = self.order.write_at(&self.mem, 0, &[answer]);
                ring.complete(&self.mem, self.order.head(), u32::from(written == 1))?;
            }
            if left == 0 {
                again(kick);
                break;
            }
            if !ring.enable_kicks(&self.mem)? {
                break;
            }
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }
}

/// There may be more: as if the driver had kicked again.
fn again(kick: &EventFd) {
    let _ = kick.write(1); // full is as good
}

fn refuse(net: &Net, bad: BadClaim) {
    net.plug.refused();
    net.faults.note(bad);
}

impl Worker for NetWorker {
    fn sources(&self) -> Vec<Source> {
        let control = (self.features & F_CTRL_VQ != 0).then(|| self.control.source());
        let admission = self.net.limiter.as_ref().map(|limiter| Source { fd: limiter.source(), token: ADMISSION });
        let timer = self.net.plug.port().and_then(|port| port.timer());
        let due = timer.map(|timer| Source { fd: timer.as_raw_fd(), token: DUE });
        [self.receive_kick, self.transmit.source()].into_iter().chain(control).chain(admission).chain(due).collect()
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        match token {
            RECEIVE => {
                if let Some(port) = self.net.plug.port() {
                    port.kicked();
                }
                Ok(())
            }
            DUE => {
                self.net.plug.come_due(Instant::now());
                Ok(())
            }
            TRANSMIT | ADMISSION => self.serve_transmit(token).map_err(|source| WorkerFault::Ring { queue: 1, source }),
            _ => self.serve_control().map_err(|source| WorkerFault::Ring { queue: 2, source }),
        }
    }

    fn deactivate(mut self: Box<Self>) -> Rest {
        if std::mem::take(&mut self.held) {
            // It was the last one that was taken.
            self.transmit.ring.put_back();
        }
        if let Some(limiter) = &mut self.net.limiter {
            limiter.forget();
        }
        let receive = self.net.plug.port().and_then(|port| port.unplug()).map(|receiver| receiver.queue);
        let queues = receive.into_iter().chain([self.transmit, self.control]).collect();
        Rest { queues, device: Box::new(self.net) }
    }
}
