//! Starts `labyard-uplink` for networks that have a way out, one for each, and hands their taps to the vmm.
//!
//! A lab comes up without its ways out, too, and says so: machines reach each other all the same. An uplink lives as long as somebody has
//! its tap, which is the vmm from then on, whoever supervises: so it ends with its network, with the vmm, or with a supervisor that is
//! killed before it has handed the tap over.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use labyard_spec::control::Request;
use labyard_spec::playground::{PlaygroundSpec, Slot};
use labyard_spec::uplink::{Answer, MAX_ANSWER_BYTES, Table, Taken, UplinkSpec, fd};
use labyard_sys::{message, spawn};

use crate::control::{Control, ControlError};
use crate::home::{Folder, append_to, names};
use crate::host::Programs;
use crate::plan::Plan;
use crate::record::{Uplink, Who};
use crate::words::{chain, printable};

/// How long it may take until it answers.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to answer once it runs.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to end once nobody has its tap.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The way out of one network, or why it has none.
#[derive(Debug)]
struct WayOut {
    network: String,
    opened: Result<Opened, String>,
}

#[derive(Debug)]
struct Opened {
    child: Child,
    uplink: Uplink,
    /// Until the vmm has it.
    tap: Option<OwnedFd>,
}

/// Ways out that were asked for together.
#[derive(Debug, Default)]
pub struct WaysOut(Vec<WayOut>);

/// What each uplink of a plan is told: one for each network that has a way out.
pub fn specs(plan: &Plan) -> Vec<UplinkSpec> {
    let Some(UplinkSpec { lab, networks, .. }) = &plan.uplink else { return Vec::new() };
    let alone = networks.iter().map(|network| {
        let others = networks.iter().filter(|other| other.name != network.name).map(|other| other.subnet);
        let others6 = networks.iter().filter(|other| other.name != network.name).filter_map(|other| other.six);
        UplinkSpec {
            lab: lab.clone(),
            networks: vec![network.clone()],
            others: others.collect(),
            others6: others6.map(|six| six.subnet).collect(),
        }
    });
    alone.collect()
}

impl WaysOut {
    /// Starts an uplink for each of these, at the same time.
    pub fn open(folder: &Folder, specs: &[UplinkSpec], vmm: BorrowedFd<'_>) -> Self {
        let ways = std::thread::scope(|scope| {
            let opening: Vec<_> =
                specs.iter().map(|spec| scope.spawn(move || WayOut::open(folder, spec, vmm))).collect();
            let opened = opening.into_iter().zip(specs);
            opened.map(|(one, spec)| one.join().unwrap_or_else(|_| WayOut::lost(spec))).collect()
        });
        Self(ways)
    }

    /// Gives the taps to the vmm under slots from `first` on, and puts them into the spec; the next free slot.
    ///
    /// # Errors
    /// What the vmm says.
    pub fn hand_over(&mut self, control: &Control, first: u32, spec: &mut PlaygroundSpec) -> Result<u32, ControlError> {
        let mut next = first;
        for (network, tap) in self.take_taps() {
            control.tell(&Request::Descriptors { first: Slot(next), count: 1 }, &[tap.as_fd()])?;
            if let Some(network) = spec.networks.iter_mut().find(|other| other.name == network) {
                network.tap = Some(Slot(next));
            }
            next += 1;
        }
        Ok(next)
    }

    /// The taps, each with its network.
    pub fn take_taps(&mut self) -> Vec<(String, OwnedFd)> {
        let opened = self.0.iter_mut().filter_map(|way| way.opened.as_mut().ok());
        opened.filter_map(|opened| Some((opened.uplink.network.clone(), opened.tap.take()?))).collect()
    }

    /// One line for the journal; nothing where none was asked for.
    pub fn note(&self) -> Option<String> {
        let list = |is_meant: bool, what: &str| {
            let meant = self.0.iter().filter(|way| way.opened.is_ok() == is_meant);
            let said: Vec<_> = meant.map(|way| format!("{} ({})", way.network, way.said())).collect();
            (!said.is_empty()).then(|| format!("networks {what} a way out: {}", said.join(", ")))
        };
        let said: Vec<_> = [list(true, "with"), list(false, "without")].into_iter().flatten().collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// Those that are there, for the state.
    pub fn uplinks(&self) -> Vec<Uplink> {
        self.0.iter().filter_map(|way| Some(way.opened.as_ref().ok()?.uplink.clone())).collect()
    }

    /// Their processes, for whoever waits for them.
    pub fn into_children(self) -> Vec<Child> {
        self.0.into_iter().filter_map(|way| Some(way.opened.ok()?.child)).collect()
    }
}

fn named(spec: &UplinkSpec) -> String {
    spec.networks.iter().map(|network| network.name.as_str()).collect::<Vec<_>>().join(", ")
}

impl WayOut {
    /// What was to open it has panicked.
    fn lost(spec: &UplinkSpec) -> Self {
        Self { network: named(spec), opened: Err("starting it panicked; see supervisor.log".to_owned()) }
    }

    fn open(folder: &Folder, spec: &UplinkSpec, vmm: BorrowedFd<'_>) -> Self {
        let network = named(spec);
        let opened = start(folder, &network, spec, vmm);
        Self { network, opened }
    }

    fn said(&self) -> &str {
        match &self.opened {
            Ok(opened) => &opened.uplink.way,
            Err(why) => why,
        }
    }
}

fn start(folder: &Folder, network: &str, spec: &UplinkSpec, vmm: BorrowedFd<'_>) -> Result<Opened, String> {
    let failed = |error: std::io::Error| format!("starting labyard-uplink: {error}");
    let programs = Programs::locate().map_err(|error| chain(&error))?;
    let program = programs.find("labyard-uplink").map_err(|error| chain(&error))?;
    let log = append_to(&folder.file(names::UPLINK_LOG)).map_err(|error| chain(&error))?;
    let tables = folder.bind(&names::uplink_socket(network)).map_err(|error| chain(&error))?;
    let (reader, mut writer) = std::io::pipe().map_err(failed)?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    spawn::in_own_session(&mut command);
    let vmm = vmm.try_clone_to_owned().map_err(failed)?;
    let given =
        vec![(reader.into(), fd::SPEC), (vmm, fd::VMM), (theirs.into(), fd::ANSWER), (tables.into(), fd::TABLES)];
    spawn::give(&mut command, given);
    let mut child = command.spawn().map_err(failed)?;
    // Our copies of its ends go with the command: were one kept, its end would not be seen.
    drop(command);
    let converse = || {
        let text = serde_json::to_vec(spec).map_err(|error| error.to_string())?;
        writer.write_all(&text).map_err(failed)?;
        drop(writer);
        let received = message::recv(&ours, MAX_ANSWER_BYTES).map_err(failed)?;
        let (body, mut taps) = received.ok_or("labyard-uplink ended without a word; see uplink.log")?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| format!("labyard-uplink: {error}"))?;
        match (answer, taps.pop(), taps.len()) {
            (Answer::Up(way), Some(tap), 0) => Ok((printable(&way), tap)),
            (Answer::Up(_), tap, more) => Err(format!("it made {} taps", more + usize::from(tap.is_some()))),
            (Answer::Failed(why), ..) => Err(printable(&why)),
        }
    };
    let opened = converse().and_then(|(way, tap)| {
        let process = Who::of(child.id()).map_err(failed)?;
        Ok((Uplink { network: network.to_owned(), way, process }, tap))
    });
    match opened {
        Ok((uplink, tap)) => Ok(Opened { child, uplink, tap: Some(tap) }),
        Err(why) => {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(folder.file(&names::uplink_socket(network)));
            Err(why)
        }
    }
}

/// Tells the uplink of a network who is there now.
///
/// # Errors
/// That nobody listens, or what it says.
pub fn tell(folder: &Folder, table: &Table) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let stream = folder.connect(&names::uplink_socket(&table.network)).map_err(|error| chain(&error))?;
    stream
        .set_read_timeout(Some(TOLD_WITHIN))
        .and_then(|()| stream.set_write_timeout(Some(TOLD_WITHIN)))
        .map_err(failed)?;
    let body = serde_json::to_vec(table).map_err(|error| error.to_string())?;
    message::send(&stream, &body, &[]).map_err(failed)?;
    let (body, _) = message::recv(&stream, MAX_ANSWER_BYTES).map_err(failed)?.ok_or("it hung up")?;
    let taken: Taken = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    taken.map_err(|why| printable(&why))
}

/// Waits for an uplink whose tap nobody has; one that does not end is killed, with all that it had.
pub fn end(folder: &Folder, uplink: &Uplink) {
    if let Some(process) = uplink.process.identity().and_then(|identity| identity.open().ok())
        && !process.wait(END_WITHIN).unwrap_or(false)
    {
        let _ = process.kill(); // it may have ended by itself
        let _ = process.wait(END_WITHIN);
    }
    let _ = std::fs::remove_file(folder.file(&names::uplink_socket(&uplink.network)));
}
