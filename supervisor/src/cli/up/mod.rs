//! `up`: from a manifest to machines that can be used.
//!
//! ```text
//!   read, check the host ──> lock, write the state ──> images, kernels ──> disks ──> plan ──> supervisor ──> Ready
//!   nothing made so far      everything from here on is removed where it fails           stays where it fails
//! ```
//!
//! A lab that is there already is brought to what the manifest asks for, as far as that goes without losing anything ([`again`]).

mod again;
pub(in crate::cli) mod follow;
mod members;
mod needs;
pub(in crate::cli) mod prepare;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use labyard_spec::manifest::{Manifest, check_name};
use labyard_supervisor::disks::Blanks;
use labyard_supervisor::home::{Home, names};
use labyard_supervisor::host::{self, Programs};
use labyard_supervisor::journal::Reader;
use labyard_supervisor::record::State;
use labyard_supervisor::tasks::Tasks;
use labyard_supervisor::{addresses, client, end, ports, quota, scope};
use tokio::signal::unix::{SignalKind, signal};

use super::access::publish;
use super::args::Up;
use super::{Failure, Outcome, code, event_loop, output};

/// How long guests may take to power off when `up` is interrupted.
const CLEANUP_GRACE: Duration = Duration::from_secs(5);
/// How long another command that changes the same lab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Lines of progress, each with the time since the command began.
pub(in crate::cli) struct Progress {
    since: Instant,
    to_stderr: bool,
}

impl Progress {
    /// Time counts from now.
    pub(in crate::cli) fn new(to_stderr: bool) -> Self {
        Self { since: Instant::now(), to_stderr }
    }

    /// Prints a line.
    pub(in crate::cli) fn say(&self, text: &str) {
        let line = format!("[{:7.2} s] {text}", self.since.elapsed().as_secs_f64());
        if self.to_stderr { output::complain(&line) } else { output::line(&line) }
    }
}

/// Set once the person wants no more of it.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Cancel {
    flag: Arc<AtomicBool>,
    bell: Arc<tokio::sync::Notify>,
    /// What the person is asked first, once, at the terminal.
    question: Arc<Mutex<Option<String>>>,
}

impl Cancel {
    fn set(&self) {
        self.flag.store(true, Ordering::SeqCst);
        self.bell.notify_waiters();
    }

    /// The flag, for what blocks.
    pub(super) fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// Waits for it.
    pub(in crate::cli) async fn wait(&self) {
        loop {
            let rings = self.bell.notified();
            tokio::pin!(rings);
            // Listening begins before the look at the flag, so that no ring is missed.
            rings.as_mut().enable();
            if self.flag.load(Ordering::SeqCst) {
                return;
            }
            rings.await;
        }
    }

    /// The failure that it is.
    pub(in crate::cli) fn failure() -> Failure {
        Failure { code: code::INTERRUPTED, error: anyhow::anyhow!("interrupted") }
    }

    /// Sets it on the signals that end a command.
    pub(in crate::cli) fn on_signals(&self) -> std::io::Result<()> {
        for kind in [SignalKind::terminate(), SignalKind::hangup()] {
            let (cancel, mut signal) = (self.clone(), signal(kind)?);
            tokio::spawn(async move {
                signal.recv().await;
                cancel.set();
            });
        }
        let (cancel, mut interrupt) = (self.clone(), signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            loop {
                interrupt.recv().await;
                // Whoever does not answer and presses Ctrl-C again has answered. The work goes on meanwhile.
                let stops = tokio::select! {
                    stops = cancel.ask() => stops,
                    _ = interrupt.recv() => true,
                };
                if stops {
                    return cancel.set();
                }
            }
        });
        Ok(())
    }

    /// From here on Ctrl-C asks this first, if there is somebody to ask.
    fn asks_first(&self, question: String) {
        if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            *self.question.lock().unwrap_or_else(PoisonError::into_inner) = Some(question);
        }
    }

    /// Asks the person, the first time; whether it is to stop.
    async fn ask(&self) -> bool {
        let Some(question) = self.question.lock().unwrap_or_else(PoisonError::into_inner).take() else { return true };
        let answer = tokio::task::spawn_blocking(move || {
            output::ask(&question);
            let mut answer = String::new();
            // A terminal that is gone has no more to say.
            std::io::stdin().read_line(&mut answer).map(|_| answer)
        });
        !matches!(answer.await, Ok(Ok(answer)) if answer.trim().to_lowercase().starts_with('n'))
    }
}

pub(crate) fn up(home: &Home, up: &Up) -> Outcome {
    home.sweep();
    let manifest = read_manifest(up)?;
    let runtime = event_loop()?;
    let outcome = runtime.block_on(async {
        let progress = Progress::new(up.json);
        let cancel = Cancel::default();
        cancel.on_signals()?;
        bring_up(home, up, &manifest, &progress, &cancel).await
    });
    runtime.shutdown_background();
    outcome?;
    if up.json {
        let folder = home.folder(&manifest.0.lab.name);
        output::document(&State::read(&folder)?.context("the state vanished")?)?;
    }
    Ok(0)
}

fn read_manifest(up: &Up) -> Result<(Manifest, String), Failure> {
    let (mut manifest, text) = super::manifest::read(&up.file)?;
    if let Some(name) = &up.name {
        check_name(name).map_err(|error| Failure::input(format!("--name: {error}")))?;
        manifest.lab.name = name.clone();
    }
    Ok((manifest, text))
}

/// Brings it up, and returns once it can be used.
pub(in crate::cli) async fn bring_up(
    home: &Home,
    up: &Up,
    (manifest, text): &(Manifest, String),
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let lab = &manifest.lab;
    for line in &lab.notes {
        progress.say(&format!("note: {line}"));
    }
    host::check_kvm()?;
    host::check_memory(lab)?;
    host::check_huge_pages(manifest)?;
    let preparation = prepare::Preparation {
        manifest,
        // Paths in a manifest are relative to it.
        base: std::path::absolute(&up.file)?.parent().map(std::path::Path::to_owned).unwrap_or_default(),
        home,
        folder: home.folder(&lab.name),
        programs: Programs::locate()?,
        progress,
        cancel,
        expiry: super::expire::of(&up.lifetime),
        tasks: Tasks::choose(lab, &up.inputs).map_err(Failure::input)?,
        limits: up.limits.said(),
        blanks: Blanks::rely_on(home)?,
    };
    let kernels = preparation.kernels()?;
    preparation.check_sources(up.allow_build)?;
    publish::check(lab, &up.publish)?;

    let folder = &preparation.folder;
    let lock = folder.lock(true, LOCK_PATIENCE)?.context("the folder vanished")?;
    if let Some(state) = State::read(folder)? {
        let stays = addresses::stay(manifest, &addresses::kept(folder, &state)?)?;
        for line in stays.lab.notes.iter().filter(|line| !lab.notes.contains(line)) {
            progress.say(&format!("note: {line}"));
        }
        let preparation = prepare::Preparation { manifest: &stays, ..preparation };
        let again = again::Again { up, preparation: &preparation, text, kernels: &kernels };
        return again.apply(state, lock).await;
    }
    let prepared = async {
        // Nobody else is let in until what this one takes is written down.
        let admitted = quota::admit(home, quota::Ask::of(lab), Some(&lab.name))?;
        let mut state = preparation.begin(text)?;
        cancel.asks_first(format!("stop, and remove what was made of lab `{}`? [Y/n] ", lab.name));
        ports::write(folder, &up.publish)?;
        drop(admitted);
        let plan = preparation.run(&kernels, Some(&mut state), None).await?;
        folder.write(names::PLAN, &serde_json::to_vec(&plan)?)?;
        let mut events = Reader::open(folder)?.context("the journal vanished")?;
        events.skip()?;
        client::launch(folder, &mut state)?;
        if let Some(warning) = scope::warning() {
            output::complain(&warning);
        }
        Ok::<_, Failure>(events)
    };
    let events = match prepared.await {
        Ok(events) => events,
        Err(failure) => {
            // What is half prepared helps nobody. The reason for it is what counts.
            if let Err(error) = end::end(folder, &lock, Duration::ZERO, |_| {}).await {
                output::complain(&format!("removing what was prepared: {}", labyard_supervisor::words::chain(&error)));
            }
            return Err(failure);
        }
    };
    // From here on another command may change the lab: this one only looks on.
    drop(lock);
    if up.detach {
        return Ok(());
    }
    let reached = follow::until_ready(progress, folder, events, None, up.timeout, cancel).await;
    if let Err(failure) = &reached
        && failure.code == code::INTERRUPTED
    {
        progress.say("interrupted: removing the lab");
        if let Some(lock) = folder.lock(false, LOCK_PATIENCE)? {
            end::end(folder, &lock, CLEANUP_GRACE, |note| progress.say(note)).await?;
        }
    }
    reached
}
