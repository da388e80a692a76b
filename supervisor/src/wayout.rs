//! Starts `labyard-uplink` for a lab whose networks have a way out, and hands its taps to the vmm.
//!
//! A lab comes up without its way out, too, and says so: machines reach each other all the same. The uplink lives as long as the vmm, whoever
//! supervises.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use labyard_spec::control::Request;
use labyard_spec::playground::{PlaygroundSpec, Slot};
use labyard_spec::uplink::{Answer, MAX_ANSWER_BYTES, UplinkSpec, fd};
use labyard_sys::{message, spawn};

use crate::control::{Control, ControlError};
use crate::home::{Folder, append_to, names};
use crate::host::Programs;
use crate::words::{chain, printable};

/// How long it may take until it answers.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to end once the vmm has.
const END_WITHIN: Duration = Duration::from_secs(10);
const END_LOOK: Duration = Duration::from_millis(5);

/// A lab's way out, as far as it has one.
#[derive(Debug, Default)]
pub struct WayOut {
    uplink: Option<Child>,
    taps: Vec<OwnedFd>,
    networks: Vec<String>,
    /// What it is, or why there is none.
    said: Option<Answer>,
}

impl WayOut {
    /// Starts the uplink, where the plan has networks for it.
    pub fn open(folder: &Folder, spec: Option<&UplinkSpec>, vmm: BorrowedFd<'_>) -> Self {
        let Some(spec) = spec else { return Self::default() };
        let networks = spec.networks.iter().map(|network| network.name.clone()).collect();
        let failed = |why: String| Self { said: Some(Answer::Failed(why)), ..Self::default() };
        let opened = match start(folder, spec, vmm) {
            Ok((mut uplink, answer, taps)) => match answer {
                Answer::Up(_) if taps.len() == spec.networks.len() => {
                    Self { uplink: Some(uplink), taps, said: Some(answer), ..Self::default() }
                }
                Answer::Up(_) => {
                    end(&mut uplink);
                    failed(format!("it made {} taps for {} networks", taps.len(), spec.networks.len()))
                }
                Answer::Failed(why) => {
                    end(&mut uplink);
                    failed(printable(&why))
                }
            },
            Err(why) => failed(why),
        };
        Self { networks, ..opened }
    }

    /// Gives the taps to the vmm under slots from `first` on, and puts them into the spec; the next free slot.
    ///
    /// # Errors
    /// What the vmm says.
    pub fn hand_over(&mut self, control: &Control, first: u32, spec: &mut PlaygroundSpec) -> Result<u32, ControlError> {
        let taps = std::mem::take(&mut self.taps);
        if taps.is_empty() {
            return Ok(first);
        }
        let borrowed: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
        let count = u32::try_from(taps.len()).unwrap_or(u32::MAX);
        control.tell(&Request::Descriptors { first: Slot(first), count }, &borrowed)?;
        for (name, slot) in self.networks.iter().zip(first..) {
            if let Some(network) = spec.networks.iter_mut().find(|network| network.name == *name) {
                network.tap = Some(Slot(slot));
            }
        }
        Ok(first + count)
    }

    /// One line for the journal; nothing where all networks are private.
    pub fn note(&self) -> Option<String> {
        let networks = self.networks.join(", ");
        self.said.as_ref().map(|said| match said {
            Answer::Up(way) => format!("networks with a way out: {networks} ({way})"),
            Answer::Failed(why) => format!("networks without a way out: {networks} ({why})"),
        })
    }

    /// Waits for the uplink, whose vmm has ended.
    pub fn end(mut self) {
        if let Some(uplink) = &mut self.uplink {
            end(uplink);
        }
    }
}

/// It ends by itself; one that does not is killed, with all that it had.
fn end(uplink: &mut Child) {
    let until = Instant::now() + END_WITHIN;
    while uplink.try_wait().is_ok_and(|ended| ended.is_none()) {
        if Instant::now() > until {
            let _ = uplink.kill();
            let _ = uplink.wait();
            return;
        }
        std::thread::sleep(END_LOOK);
    }
}

fn start(folder: &Folder, spec: &UplinkSpec, vmm: BorrowedFd<'_>) -> Result<(Child, Answer, Vec<OwnedFd>), String> {
    let failed = |error: std::io::Error| format!("starting labyard-uplink: {error}");
    let programs = Programs::locate().map_err(|error| chain(&error))?;
    let program = programs.find("labyard-uplink").map_err(|error| chain(&error))?;
    let log = append_to(&folder.file(names::UPLINK_LOG)).map_err(|error| chain(&error))?;
    let (reader, mut writer) = std::io::pipe().map_err(failed)?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    spawn::in_own_session(&mut command);
    let vmm = vmm.try_clone_to_owned().map_err(failed)?;
    spawn::give(&mut command, vec![(reader.into(), fd::SPEC), (vmm, fd::VMM), (theirs.into(), fd::ANSWER)]);
    let mut uplink = command.spawn().map_err(failed)?;
    // Our copies of its ends go with the command: were one kept, its end would not be seen.
    drop(command);
    let converse = || {
        let text = serde_json::to_vec(spec).map_err(|error| error.to_string())?;
        writer.write_all(&text).map_err(failed)?;
        drop(writer);
        let received = message::recv(&ours, MAX_ANSWER_BYTES).map_err(failed)?;
        let (body, taps) = received.ok_or("labyard-uplink ended without a word; see uplink.log")?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| format!("labyard-uplink: {error}"))?;
        Ok((answer, taps))
    };
    match converse() {
        Ok((answer, taps)) => Ok((uplink, answer, taps)),
        Err(why) => {
            let _ = uplink.kill();
            let _ = uplink.wait();
            Err(why)
        }
    }
}
