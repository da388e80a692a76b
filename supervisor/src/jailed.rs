//! Starts the vmm: a socket, its few files and a `JailSpec` for `labyard-jail`, then descriptors and the spec over the socket.
//!
//! The jail says which process becomes the vmm, and waits. Only when that pid has been written down is it let go on, so a supervisor
//! that is killed in between leaves a jail that hears nothing and ends, never a vmm that nobody knows.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use labyard_spec::control::{MAX_DESCRIPTORS, Request, RestoreSpec};
use labyard_spec::jail::{GO, JailSpec, MAX_PID_BYTES, SPEC_FD, fd};
use labyard_spec::playground::{MachineSpec, Slot};
use labyard_sys::pidfd::Process;
use labyard_sys::{spawn, wait};

use crate::cgroup::{self, CgroupError, Confined};
use crate::control::{Control, ControlError};
use crate::home::{Folder, HomeError, append_to, names};
use crate::host::{HostError, Programs, kvm_device};
use crate::plan::{FileAccess, Plan, PlannedFile, STREAMS_PER_MACHINE};
use crate::record::Who;
use crate::saved::{self, SaveError};
use crate::starter::Starter;
use crate::wayout::{self, WaysOut};
use crate::words;

/// Numbers at which the jail finds what it passes on.
const PROGRAM: i32 = 10;
const LOG: i32 = 11;
const CONTROL: i32 = 12;
const KVM: i32 = 13;
const LAST_WORDS: i32 = 14;
const NULL: i32 = 15;
/// Machines that a lab of one is given room for.
const MOST_MACHINES: u64 = 64;

/// How long the jail may take until it says who becomes the vmm.
const JAIL_WITHIN: Duration = Duration::from_secs(60);

/// Why the vmm does not run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("opening {path}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("starting {path}")]
    Spawn { path: PathBuf, source: std::io::Error },
    #[error("telling the jail what to do")]
    JailSpec(#[source] std::io::Error),
    #[error("the jail: {0}")]
    Jail(String),
    #[error(transparent)]
    Limits(#[from] CgroupError),
    #[error("writing down who the vmm is")]
    Record(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the vmm did not come up: {0}")]
    Silent(String),
    #[error(
        "the lab needs {needed} open descriptors, the limit is {limit}; raise it (ulimit -Hn) or take fewer machines"
    )]
    Descriptors { needed: u64, limit: u64 },
    #[error("handing over the lab's files")]
    HandOver(#[source] ControlError),
    #[error("creating the machines")]
    Create(#[source] ControlError),
    #[error("starting the way out")]
    Starter(#[source] std::io::Error),
    #[error("what was saved")]
    Saved(#[from] SaveError),
    #[error("restoring the machines")]
    Restore(#[source] ControlError),
}

/// Whether the host lets a process have as many descriptors as the plan needs.
///
/// # Errors
/// The two numbers.
pub fn check_descriptors(plan: &Plan) -> Result<(), StartError> {
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum {
        Some(limit) if limit < plan.max_descriptors => {
            Err(StartError::Descriptors { needed: plan.max_descriptors, limit })
        }
        _ => Ok(()),
    }
}

/// What the plan needs, and what streams and machines that come later want as far as the host allows.
fn limit(plan: &Plan) -> u64 {
    let wanted = plan.max_descriptors + STREAMS_PER_MACHINE * MOST_MACHINES.max(plan.spec.machines.len() as u64);
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    wanted.min(allowed).max(plan.max_descriptors)
}

/// A vmm that this process has started.
#[derive(Debug)]
pub struct Vmm {
    process: Process,
    pid: u32,
    /// What the host's control groups do about it.
    pub confined: Confined,
}

impl Vmm {
    /// Kills it and waits for its end.
    pub fn end(self) {
        let _ = self.process.kill(); // it is our child
        let _ = self.wait();
    }

    /// Waits for its end; nothing where that is not to be known.
    pub fn wait(self) -> Option<ExitStatus> {
        self.process.reap().ok()
    }
}

/// Starts the jail with the vmm in it. `record` writes down who it is before it may begin.
///
/// # Errors
/// Where a file, a program or the record is missing. The jail has ended then, or ends by itself.
pub fn start(
    folder: &Folder,
    plan: &Plan,
    programs: &Programs,
    record: impl FnOnce(&Who) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<Vmm, StartError> {
    let open = |path: PathBuf, options: &OpenOptions| {
        options.open(&path).map(OwnedFd::from).map_err(|source| StartError::Open { path, source })
    };
    let (read, read_write) = (OpenOptions::new().read(true).clone(), OpenOptions::new().read(true).write(true).clone());
    let jail = programs.find("labyard-jail")?;
    let program = open(programs.find("labyard-vmm")?, &read)?;
    // What an earlier vmm said and wrote down is not this one's.
    let _ = std::fs::rename(folder.file(names::VMM_LOG), folder.file(names::VMM_LOG_BEFORE));
    let _ = std::fs::remove_file(folder.file(names::LAST_WORDS));
    let log = append_to(&folder.file(names::VMM_LOG))?;
    let last_words = append_to(&folder.file(names::LAST_WORDS))?;
    let kvm = open(kvm_device(), &read_write)?;
    let null = open("/dev/null".into(), &read_write)?;
    let socket = folder.bind(names::CONTROL_SOCKET)?;
    let (theirs, ours) = UnixStream::pair().map_err(StartError::JailSpec)?;
    ours.set_read_timeout(Some(JAIL_WITHIN)).map_err(StartError::JailSpec)?;

    let mut command = Command::new(&jail);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log.try_clone().map_err(StartError::JailSpec)?);
    spawn::in_own_session(&mut command);
    let given = vec![
        (theirs.into(), SPEC_FD),
        (program, PROGRAM),
        (log.into(), LOG),
        (socket.into(), CONTROL),
        (kvm, KVM),
        (last_words.into(), LAST_WORDS),
        (null, NULL),
    ];
    spawn::give(&mut command, given);
    let mut launcher = command.spawn().map_err(|source| StartError::Spawn { path: jail, source })?;
    // Our copies go with the command: were the listening socket kept, nobody would learn that the vmm has gone.
    drop(command);

    let spec = JailSpec {
        program: PROGRAM,
        argv: vec!["labyard-vmm".to_owned(), "--rings".to_owned(), plan.rings().to_string()],
        descriptors: vec![
            (NULL, fd::STDIN),
            (NULL, fd::STDOUT),
            (LOG, fd::LOG),
            (CONTROL, fd::CONTROL),
            (KVM, fd::KVM),
            (LAST_WORDS, fd::LAST_WORDS),
        ],
        max_descriptors: limit(plan),
        max_threads: Some(plan.max_threads()),
        confine: true,
    };
    // What the jail makes of itself stays in its groups.
    let confined = cgroup::confine(folder, launcher.id(), &plan.host_limits(), plan.limits.allow_unlimited);
    let begun = confined.map_err(StartError::Limits).and_then(|confined| begin(&ours, &spec, confined, record));
    // A copy of the jail that is not let go on ends by itself.
    drop(ours);
    match &begun {
        // It has become the vmm without a copy.
        Ok(vmm) if vmm.pid == launcher.id() => return begun,
        Ok(_) => {}
        Err(_) => {
            let _ = launcher.kill(); // it is our child
        }
    }
    let _ = launcher.wait(); // what counts was said
    if begun.is_err() {
        cgroup::remove(folder);
    }
    begun.map_err(|error| match error {
        // The jail's log has its last words.
        StartError::Jail(_) => words::last_line(&folder.file(names::VMM_LOG)).map_or(error, StartError::Jail),
        other => other,
    })
}

/// Tells the jail what to do, hears who becomes the vmm and lets it begin.
fn begin(
    mut jail: &UnixStream,
    spec: &JailSpec,
    confined: Confined,
    record: impl FnOnce(&Who) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<Vmm, StartError> {
    let mut text = serde_json::to_vec(spec).expect("plain data has a JSON form");
    text.push(b'\n');
    jail.write_all(&text).map_err(StartError::JailSpec)?;
    let mut heard = Vec::new();
    while heard.last() != Some(&b'\n') {
        let mut part = [0; MAX_PID_BYTES];
        let read = jail.read(&mut part).map_err(|error| StartError::Jail(error.to_string()))?;
        heard.extend_from_slice(part.get(..read).unwrap_or_default());
        if read == 0 || heard.len() > MAX_PID_BYTES {
            return Err(StartError::Jail("it ended without a word".to_owned()));
        }
    }
    let pid = std::str::from_utf8(&heard).ok().and_then(|text| text.trim_end().parse::<u32>().ok());
    let pid = pid.ok_or_else(|| StartError::Jail(format!("it says `{}`", heard.escape_ascii())))?;
    let who = Who::of(pid).map_err(StartError::JailSpec)?;
    let process = who.identity().ok_or_else(|| StartError::Jail("no boot id".to_owned()))?;
    let vmm = Vmm { process: process.open().map_err(StartError::JailSpec)?, pid, confined };
    let recorded = record(&who).map_err(StartError::Record);
    match recorded.and_then(|()| jail.write_all(GO).map_err(StartError::JailSpec)) {
        Ok(()) => Ok(vmm),
        Err(error) => {
            vmm.end();
            Err(error)
        }
    }
}

/// Waits until the vmm answers, hands over every file and has the machines created and started; or restored and let go on, where
/// they were saved.
///
/// # Errors
/// What the vmm says, or that it died without a word.
pub fn create(
    folder: &Folder,
    plan: &Plan,
    starter: &Starter,
    vmm: &Arc<OwnedFd>,
    jailed: impl FnOnce(&WaysOut),
) -> Result<WaysOut, StartError> {
    let control = match answering(folder) {
        Ok(control) => control,
        Err(error) => {
            let gone = wait::readable(vmm.as_fd(), Some(Duration::from_secs(1))).unwrap_or(false);
            let last = words::last_line(&folder.file(names::VMM_LOG));
            let why = match (gone, last) {
                (true, Some(last)) => last,
                (true, None) => "it ended without a word".to_owned(),
                (false, _) => words::chain(&error),
            };
            return Err(StartError::Silent(why));
        }
    };
    let mut ways_out = {
        let (folder, specs, vmm) = (folder.clone(), wayout::specs(plan), Arc::clone(vmm));
        let open = move || WaysOut::open(&folder, &specs, vmm.as_fd());
        starter.run(open).map_err(StartError::Starter)?
    };
    let mut spec = plan.spec.clone();
    jailed(&ways_out);
    let mut first = 0;
    for batch in plan.files.chunks(MAX_DESCRIPTORS) {
        let opened = batch.iter().map(open_planned).collect::<Result<Vec<_>, _>>()?;
        let borrowed: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
        let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        control.tell(&Request::Descriptors { first: Slot(first), count }, &borrowed).map_err(StartError::HandOver)?;
        first += count;
    }
    first = ways_out.hand_over(&control, first, &mut spec).map_err(StartError::HandOver)?;
    let machines: Vec<_> = plan.spec.machines.iter().map(|machine| machine.name.clone()).collect();
    let Some(files) = saved::open(folder, &machines)? else {
        control.tell(&Request::Create(Box::new(spec)), &[]).map_err(StartError::Create)?;
        return Ok(ways_out);
    };
    let saved = saved::hand_over(&control, first, &files).map_err(StartError::HandOver)?;
    let restore = Request::Restore(Box::new(RestoreSpec { playground: spec, saved }));
    control.patience(Some(saved::PATIENCE)).and_then(|()| control.tell(&restore, &[])).map_err(StartError::Restore)?;
    saved::go_on(folder, &control)?;
    Ok(ways_out)
}

/// Hands over the files of one machine that has ended, and has the vmm start it anew.
///
/// # Errors
/// What the vmm says, or a file that is not there any more.
pub fn start_machine(folder: &Folder, plan: &Plan, machine: &MachineSpec) -> Result<(), StartError> {
    let control = Control::connect(folder).map_err(StartError::HandOver)?;
    let known = control.status().map_err(StartError::HandOver)?.machines;
    // Its supervisor may have been killed before it was there.
    let request = match known.iter().any(|known| known.name == machine.name) {
        true => Request::Start(Box::new(machine.clone())),
        false => Request::Add(Box::new(machine.clone())),
    };
    hand_over_and_tell(&control, plan, machine, &request)
}

/// Hands over the files of one machine that is not there yet, and has the vmm start it.
///
/// # Errors
/// What the vmm says, or a file that is not there any more.
pub fn add_machine(folder: &Folder, plan: &Plan, machine: &MachineSpec) -> Result<(), StartError> {
    let control = Control::connect(folder).map_err(StartError::HandOver)?;
    hand_over_and_tell(&control, plan, machine, &Request::Add(Box::new(machine.clone())))
}

fn hand_over_and_tell(
    control: &Control,
    plan: &Plan,
    machine: &MachineSpec,
    request: &Request,
) -> Result<(), StartError> {
    let mut slots = machine.slots();
    slots.sort_unstable();
    // Slots of one machine follow each other, but for files that it shares with others.
    for run in slots.chunk_by(|slot, next| slot.0 + 1 == next.0).flat_map(|run| run.chunks(MAX_DESCRIPTORS)) {
        let Some(first) = run.first().copied() else { continue };
        let planned = run.iter().filter_map(|slot| plan.files.get(slot.0 as usize));
        let opened = planned.map(open_planned).collect::<Result<Vec<_>, _>>()?;
        let borrowed: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
        let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
        control.tell(&Request::Descriptors { first, count }, &borrowed).map_err(StartError::HandOver)?;
    }
    control.tell(request, &[]).map_err(StartError::Create)
}

/// The socket listens from the start; the vmm answers once it has come through the jail, or the socket closes with it.
fn answering(folder: &Folder) -> Result<Control, ControlError> {
    let control = Control::connect(folder)?;
    control.status()?;
    Ok(control)
}

fn open_planned(file: &PlannedFile) -> Result<File, StartError> {
    let opened = match file.access {
        FileAccess::Read => File::open(&file.path),
        FileAccess::Write => OpenOptions::new().read(true).write(true).open(&file.path),
        FileAccess::Append => return Ok(append_to(&file.path)?),
    };
    opened.map_err(|source| StartError::Open { path: file.path.clone(), source })
}
