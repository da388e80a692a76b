//! What a person types, and what comes back. Each verb is a file; errors become one line and an exit code here.

mod access;
mod args;
mod bake;
mod building;
mod console;
mod down;
mod drive;
mod exec;
mod expire;
mod hold;
mod image;
mod kernel;
mod limit;
mod logs;
mod man;
mod manifest;
mod naming;
mod net;
mod output;
mod ps;
mod quota;
mod rename;
mod saved;
mod serve;
mod start;
mod status;
mod stop;
mod supervise;
mod tasks;
mod terminal;
mod transfer;
mod up;
mod users;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use labyard_spec::manifest::Fault;
use labyard_supervisor::builder::BuilderError;
use labyard_supervisor::client::ClientError;
use labyard_supervisor::export::{ChainError, DraftError, ExportError};
use labyard_supervisor::home::{Home, HomeError};
use labyard_supervisor::host::HostError;
use labyard_supervisor::jailed::StartError;
use labyard_supervisor::quota::{AdmitError, QuotaError};

use args::{Command, DriveVerb, ImageVerb, KernelVerb, Verb};

/// Exit codes.
pub(crate) mod code {
    /// It failed.
    pub(crate) const FAILED: u8 = 1;
    /// Wrong input, or the lab is not in a state for it.
    pub(crate) const INPUT: u8 = 2;
    /// A deadline passed.
    pub(crate) const DEADLINE: u8 = 3;
    /// An init task failed.
    pub(crate) const TASK: u8 = 4;
    /// `exec`: labyard itself failed, not the program.
    pub(crate) const OWN: u8 = 125;
    /// Interrupted.
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// An error with the code that it ends with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) error: anyhow::Error,
}

/// What a verb returns: an exit code, or why there is none.
pub(crate) type Outcome = Result<u8, Failure>;

impl Failure {
    /// Wrong input or state.
    pub(crate) fn input(text: impl Into<String>) -> Self {
        Self { code: code::INPUT, error: anyhow::Error::msg(text.into()) }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Self { code: code_of(&error), error }
    }
}

/// What the person can mend is 2, all else is 1.
fn code_of(error: &anyhow::Error) -> u8 {
    let input = error.chain().any(|cause| {
        cause.is::<Fault>()
            || matches!(
                cause.downcast_ref(),
                Some(HostError::NoVirtualisation | HostError::NoKvm { .. } | HostError::Memory { .. })
            )
            || matches!(cause.downcast_ref(), Some(ClientError::Missing(_) | ClientError::NotRunning { .. }))
            || matches!(cause.downcast_ref(), Some(ClientError::Refused { status: 404 | 409, .. }))
            || matches!(
                cause.downcast_ref(),
                Some(
                    HomeError::Busy { .. } | HomeError::Nowhere | HomeError::Foreign { .. } | HomeError::Shared { .. }
                )
            )
            || matches!(cause.downcast_ref(), Some(ExportError::Chain(ChainError::InUse { .. })))
            || matches!(
                cause.downcast_ref(),
                Some(ExportError::Draft(DraftError::Exists { .. } | DraftError::Place { .. }))
            )
            || matches!(cause.downcast_ref(), Some(AdmitError::Quota(_)))
            || cause.is::<QuotaError>()
            || matches!(cause.downcast_ref(), Some(StartError::Descriptors { .. }))
            || matches!(cause.downcast_ref(), Some(BuilderError::Refused { input: true, .. }))
    });
    if input { code::INPUT } else { code::FAILED }
}

/// Does what the command line says, for a person whose files are made with this umask.
pub(crate) fn main(umask: u32) -> ExitCode {
    let command = Command::parse();
    match run(command, umask) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            complain(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// One line, and where it is about a manifest the line of that.
fn complain(failure: &Failure) {
    let error: &(dyn std::error::Error + 'static) = failure.error.as_ref();
    output::complain(&format!("error: {}", labyard_supervisor::words::chain(error)));
    let fault = failure.error.chain().find_map(|cause| cause.downcast_ref::<Fault>());
    if let Some(snippet) = fault.and_then(|fault| fault.snippet.as_ref()) {
        output::complain(snippet);
    }
}

fn run(command: Command, umask: u32) -> Outcome {
    if let Verb::Completion { shell } = command.verb {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Command::command(), "labyard", &mut script);
        output::bytes(&script);
        return Ok(0);
    }
    if let Verb::Man { folder } = &command.verb {
        return man::man(folder);
    }
    if let Verb::Manifest(manifest) = &command.verb {
        return manifest::manifest(&manifest.verb);
    }
    let home = Home::open()?;
    match command.verb {
        Verb::Up(up) => up::up(&home, &up),
        Verb::Bake(bake) => bake::bake(&home, &bake),
        Verb::Ps(json) => ps::ps(&home, json.json),
        Verb::Exec(exec) => exec::exec(&home, exec),
        Verb::Cp(copy) => access::copy::copy(&home, &copy, umask),
        Verb::PortForward(forward) => access::forward::port_forward(&home, forward),
        Verb::Publish(publish) => access::publish::publish(&home, &publish),
        Verb::Ssh(ssh) => access::ssh::ssh(&home, ssh),
        Verb::SshConfig(config) => access::ssh::config(&home, &config),
        Verb::SshProxy(proxy) => access::ssh::proxy(&home, &proxy),
        Verb::Journal(journal) => access::journal::journal(&home, journal),
        Verb::Console(machine) => console::console(&home, &machine),
        Verb::Logs(logs) => logs::logs(&home, &logs),
        Verb::Events(events) => logs::events(&home, &events),
        Verb::Stop(stop) => stop::stop(&home, &stop),
        Verb::Status(status) => status::status(&home, &status),
        Verb::Tasks(tasks) => tasks::tasks(&home, &tasks),
        Verb::Quota(json) => quota::quota(&home, json.json),
        Verb::Wait(wait) => wait::wait(&home, &wait),
        Verb::Rename(rename) => rename::rename(&home, &rename),
        Verb::Expire(expire) => expire::expire(&home, &expire),
        Verb::Start(start) => start::start(&home, &start),
        Verb::Restart(restart) => start::restart(&home, &restart),
        Verb::Pause(hold) => hold::hold(&home, &hold, hold::PAUSE),
        Verb::Resume(hold) => hold::hold(&home, &hold, hold::RESUME),
        Verb::Save(save) => saved::save(&home, &save),
        Verb::Restore(restore) => saved::restore(&home, &restore),
        Verb::Down(down) => down::down(&home, &down),
        Verb::Drive(drive) => match drive.verb {
            DriveVerb::Export(export) => drive::export(&home, &export),
            DriveVerb::Resize(resize) => drive::resize(&home, &resize),
        },
        Verb::Serve(serve) => serve::serve(&home, &serve),
        Verb::Limit(limit) => limit::limit(&home, &limit),
        Verb::Net(net) => net::net(&home, net),
        Verb::Kernel(kernel) => match kernel.verb {
            KernelVerb::Ls(json) => kernel::ls(&home, json.json),
            KernelVerb::Add(add) => kernel::add(&home, &add),
            KernelVerb::Build(build) => kernel::build(&home, &build),
            KernelVerb::Rm(rm) => kernel::rm(&home, &rm),
        },
        Verb::Image(image) => match image.verb {
            ImageVerb::Ls(json) => image::ls(&home, json.json),
            ImageVerb::Catalogue(json) => image::catalogue(&home, json.json),
            ImageVerb::Inspect { image } => image::inspect(&home, &image),
            ImageVerb::Pull(pull) => image::pull(&home, &pull),
            ImageVerb::Export(export) => transfer::export(&home, &export),
            ImageVerb::Import(import) => transfer::import(&home, &import),
            ImageVerb::Push(push) => transfer::push(&home, &push),
            ImageVerb::Verify(verify) => transfer::verify(&home, &verify),
            ImageVerb::Rm(rm) => image::rm(&home, &rm),
            ImageVerb::Prune(prune) => image::prune(&home, &prune),
        },
        Verb::Completion { .. } | Verb::Man { .. } | Verb::Manifest(_) => Ok(0),
        Verb::Supervise { name } => supervise::supervise(&home, &name),
    }
}

/// An event loop on this thread.
fn event_loop() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
