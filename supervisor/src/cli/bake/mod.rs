//! `bake`: a lab whose init tasks have run becomes images, and a manifest that starts from them.
//!
//! ```text
//!   read, refuse ──> up, under a name of its own ──> stop ──> the same drives, under our init ──> tar ──> rootfs-builder ──> DIR
//!   nothing made     from here on the lab and the draft of DIR are removed, however it ends
//! ```
//!
//! What the machines send is a guest's: it is passed on in pieces, bounded by the builder, and never unpacked here.

mod draft;
mod tar;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use labyard_rootfs_builder::store::Store;
use labyard_spec::control::MachineState;
use labyard_spec::manifest::{Lab, Manifest, size};
use labyard_spec::source::Source;
use labyard_supervisor::bake::{self, Kept};
use labyard_supervisor::builder::{Baked, Builder};
use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::host::{self, Programs};
use labyard_supervisor::journal::Reader;
use labyard_supervisor::plan::Plan;
use labyard_supervisor::record::{Expiry, State, TaskState, ended_text};
use labyard_supervisor::words::printable;
use labyard_supervisor::{client, disks, end};
use serde_json::json;

use super::args::{Bake, HostLimits, Lifetime, Up};
use super::up::{self, Cancel, Progress, follow, prepare};
use super::{Failure, Outcome, code, event_loop, output, start};
use draft::Draft;

/// How long another command that changes the lab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);
/// What the supervisor needs beside the guests' grace.
const SUPERVISOR_WITHIN: Duration = Duration::from_secs(45);
/// Longest part of a lab's name that its temporary one begins with: names end at 63 characters.
const LONGEST_START: usize = 50;
/// Bytes of a task's output that are shown where it fails.
const LAST_OUTPUT_BYTES: u64 = 2 << 10;
/// The manifest in the folder that is made.
const MANIFEST: &str = "lab.yaml";

pub(crate) fn bake(home: &Home, asked: &Bake) -> Outcome {
    home.sweep();
    let (mut manifest, text) = super::manifest::read(&asked.file)?;
    let lab = manifest.lab.clone();
    let machines = match asked.machines.is_empty() {
        true => lab.machines.iter().map(|machine| machine.name.clone()).collect(),
        false => asked.machines.clone(),
    };
    let kept = bake::drives(&lab, &machines).map_err(Failure::input)?;
    // A host that can run nothing is known before anything is made or taken over.
    host::check_kvm()?;
    host::check_memory(&lab)?;
    host::check_huge_pages(&manifest)?;
    manifest.lab.name = temporary_name(&lab.name)?;
    let draft = Draft::begin(&asked.out)?;
    let work = Work {
        home,
        asked,
        base: std::path::absolute(&asked.file)?.parent().map(std::path::Path::to_owned).unwrap_or_default(),
        folder: home.folder(&manifest.lab.name),
        builder: Builder { program: Programs::locate()?.find("rootfs-builder")?, home: home.path.clone() },
        lab,
        kept,
        progress: Progress::new(asked.json),
        cancel: Cancel::default(),
    };
    let runtime = event_loop()?;
    let outcome = runtime.block_on(work.all(&(manifest, text), &draft));
    runtime.shutdown_background();
    let images = outcome?;
    draft.finish(&asked.out)?;
    let path = asked.out.join(MANIFEST);
    if asked.json {
        let image = |(kept, baked): &(&Kept, Baked)| {
            json!({
                "machine": kept.machine, "drive": kept.serial, "path": asked.out.join(&kept.image), "tag": bake::TAG,
                "digest": baked.digest, "entries": baked.entries, "bytes": baked.bytes,
            })
        };
        let images: Vec<_> = work.kept.iter().zip(images).collect();
        output::document(&json!({ "manifest": path, "images": images.iter().map(image).collect::<Vec<_>>() }))?;
    } else {
        work.progress.say(&format!("{0}: `labyard up {0}` starts from what was baked", path.display()));
    }
    Ok(0)
}

/// A name that no other lab has.
fn temporary_name(lab: &str) -> Result<String, Failure> {
    let mut id = [0; 4];
    labyard_sys::random::fill(&mut id).context("a name for the lab")?;
    let start = lab.get(..LONGEST_START).unwrap_or(lab).trim_end_matches('-');
    Ok(format!("{start}-bake-{:08x}", u32::from_le_bytes(id)))
}

struct Work<'a> {
    home: &'a Home,
    asked: &'a Bake,
    /// The manifest's folder.
    base: PathBuf,
    /// The lab under its temporary name.
    folder: Folder,
    builder: Builder,
    /// As it is called in the manifest.
    lab: Lab,
    kept: Vec<Kept>,
    progress: Progress,
    cancel: Cancel,
}

impl Work<'_> {
    /// All of it; the lab is gone afterwards, unless it failed and is to be kept for a look.
    async fn all(&self, manifest: &(Manifest, String), draft: &Draft) -> Result<Vec<Baked>, Failure> {
        self.cancel.on_signals()?;
        let made = self.make(manifest, draft).await.map_err(|failure| self.explained(failure));
        if let Err(failure) = &made
            && self.asked.keep
            && failure.code != code::INTERRUPTED
            && self.folder.exists()
        {
            self.progress.say(&format!("lab {0} stays: `labyard down {0}` removes it", self.folder.name));
            return made;
        }
        match (made, self.remove().await) {
            (Ok(baked), removed) => removed.map(|()| baked),
            (Err(failure), removed) => {
                if let Err(error) = removed {
                    output::complain(&format!("removing lab {}: {:#}", self.folder.name, error.error));
                }
                Err(failure)
            }
        }
    }

    async fn make(&self, manifest: &(Manifest, String), draft: &Draft) -> Result<Vec<Baked>, Failure> {
        up::bring_up(self.home, &self.up(), manifest, &self.progress, &self.cancel).await?;
        let tasks = State::read(&self.folder)?.context("the state vanished")?.tasks;
        let text = bake::manifest(&self.lab, &self.kept, &self.base, &tasks).map_err(Failure::input)?;
        self.stop().await?;
        let plan = self.plan()?;
        self.boot(&plan, &manifest.0).await?;
        let client = client::attach(&self.folder)?;
        let mut baked = Vec::new();
        for kept in &self.kept {
            self.progress.say(&format!("{}: reading drive {}", kept.machine, kept.serial));
            let stream = client.connect(&kept.machine, labyard_spec::guest::AGENT_PORT).await?;
            let arguments = self.arguments(kept, &plan, draft)?;
            let one = tar::bake(stream, &kept.serial, &self.builder, &arguments, &self.progress, &self.cancel).await;
            let one = one.map_err(|failure| Failure {
                error: failure.error.context(format!("machine {}: drive {}", kept.machine, kept.serial)),
                ..failure
            })?;
            self.progress.say(&format!("{}: {} files, {} MiB packed", kept.image, one.entries, one.bytes >> 20));
            baked.push(one);
        }
        draft.write(MANIFEST, text.as_bytes(), self.lab.registry_auth.is_some())?;
        Ok(baked)
    }

    /// What `labyard up` would have been told.
    fn up(&self) -> Up {
        Up {
            file: self.asked.file.clone(),
            name: Some(self.folder.name.clone()),
            json: self.asked.json,
            inputs: self.asked.inputs.clone(),
            lifetime: Lifetime { lifetime: None, idle: None, on_expiry: Expiry::default().then },
            detach: false,
            restart: false,
            timeout: self.asked.timeout,
            publish: Vec::new(),
            allow_build: self.asked.allow_build,
            limits: HostLimits { limit_cpus: None, limit_memory: None, limit_io: None, allow_unlimited: false },
        }
    }

    /// Has the machines power off. One that does not may have something that is not on its drives yet.
    async fn stop(&self) -> Result<(), Failure> {
        self.progress.say("stopping the machines");
        let grace = self.asked.grace;
        let client = client::attach(&self.folder)?;
        let asked = tokio::time::timeout(grace + SUPERVISOR_WITHIN, client.down(grace));
        let stopped = tokio::select! {
            stopped = asked => stopped,
            () = self.cancel.wait() => return Err(Cancel::failure()),
        };
        stopped.map_err(|_| Failure {
            code: code::DEADLINE,
            error: anyhow::anyhow!("lab `{}`: its supervisor does not answer", self.folder.name),
        })??;
        let state = State::read(&self.folder)?.context("the state vanished")?;
        for machine in state.machines.iter().filter(|one| self.kept.iter().any(|kept| kept.machine == one.name)) {
            match &machine.ended {
                Some(MachineState::PoweredOff) => {}
                other => {
                    let how = other.as_ref().map_or_else(|| "its power was cut".to_owned(), ended_text);
                    return Err(anyhow::anyhow!(
                        "machine `{}` did not power off by itself within {} s ({}), so its drives may lack something: give it longer with --grace",
                        machine.name,
                        grace.as_secs(),
                        how.lines().next().unwrap_or_default(),
                    )
                    .into());
                }
            }
        }
        Ok(())
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let plan = self.folder.read(names::PLAN)?.context("the plan vanished")?;
        Ok(bake::plan(&serde_json::from_slice(&plan)?, &self.folder, &self.kept))
    }

    /// Boots what sends the drives.
    async fn boot(&self, plan: &Plan, manifest: &Manifest) -> Result<(), Failure> {
        let folder = &self.folder;
        let lock = folder.lock(false, LOCK_PATIENCE)?.context("the lab was removed by another command")?;
        let kernels = prepare::kernels(self.home, manifest)?;
        for (machine, kernel) in self.lab.machines.iter().zip(&kernels) {
            if self.kept.iter().any(|kept| kept.machine == machine.name) {
                let config = bake::machine_config(machine, kernel, &self.kept);
                disks::machine_archive(&bake::machine_archive(folder, &machine.name), &config)?;
            }
        }
        for kept in &self.kept {
            disks::layer(&bake::thrown_away(folder, &kept.machine, &kept.serial))?;
        }
        folder.write(names::PLAN, &serde_json::to_vec(plan)?)?;
        if let Some(state) = State::read(folder)? {
            end::supervisor_is_gone(&state)?;
        }
        let mut events = Reader::open(folder)?.context("the journal vanished")?;
        events.skip()?;
        let mut state = State::read(folder)?.context("the state vanished")?;
        state.machines.retain(|machine| self.kept.iter().any(|kept| kept.machine == machine.name));
        self.progress.say("the machines boot again, to have their drives read");
        start::whole(folder, &mut state)?;
        drop(lock);
        follow::until_ready(&self.progress, folder, events, None, self.asked.timeout, &self.cancel).await
    }

    /// What `rootfs-builder bake` is told.
    fn arguments(&self, kept: &Kept, plan: &Plan, draft: &Draft) -> Result<Vec<String>, Failure> {
        let path = draft.path.join(&kept.image);
        let path = path.to_str().with_context(|| format!("{}: not a path in UTF-8", path.display()))?.to_owned();
        let machine = self.lab.machines.iter().find(|machine| machine.name == kept.machine);
        let drive = machine.and_then(|machine| machine.drives.iter().find(|drive| drive.serial == kept.serial));
        let drive = drive.with_context(|| format!("machine {}: no drive {}", kept.machine, kept.serial))?;
        let size = size::show(drive.size_bytes.value);
        let mut arguments = vec![path, "--tag".to_owned(), bake::TAG.to_owned(), "--size".to_owned(), size];
        let like = match drive.source.as_ref().map(|source| source.value.below(&self.base)) {
            // They have no configuration.
            None | Some(Source::RootfsTar(_)) => None,
            // The very image that was started, whatever its name stands for by now.
            Some(Source::Registry(reference)) if !reference.contains('@') => {
                let key = plan.base(&kept.machine, &kept.serial).flatten().map(|base| base.name).unwrap_or_default();
                let record = Store::open(&self.home.path)?.image(&key)?;
                Some(match record {
                    Some(record) => format!("oci://{reference}@{}", record.digest),
                    None => format!("oci://{reference}"),
                })
            }
            Some(source) => Some(source.to_string()),
        };
        arguments.extend(like.into_iter().flat_map(|like| ["--like".to_owned(), like]));
        Ok(arguments)
    }

    /// The same failure, in the words of who has not asked for a lab that runs.
    fn explained(&self, failure: Failure) -> Failure {
        if self.asked.keep || failure.code == code::INTERRUPTED || !self.folder.exists() {
            return failure;
        }
        if failure.code != code::TASK {
            let error = failure.error.context("nothing was baked, and the lab is removed (--keep leaves it)");
            return Failure { error, ..failure };
        }
        let state = State::read(&self.folder).ok().flatten();
        let Some(task) = state.and_then(|state| state.tasks.into_iter().find(TaskState::has_failed)) else {
            return failure;
        };
        let said = labyard_supervisor::words::tail(&self.folder.task_log(&task.name), LAST_OUTPUT_BYTES);
        let said = said.filter(|text| !text.trim().is_empty());
        let said = said.map(|text| format!("\n--- last lines of its output\n{}\n---", printable(text.trim_end())));
        let why = task.why.unwrap_or_default();
        let error = anyhow::anyhow!(
            "init task `{}` failed: {why}{}\nnothing was baked, and the lab is removed: --keep leaves it for a look",
            task.name,
            said.unwrap_or_default()
        );
        Failure { error, ..failure }
    }

    /// Ends whatever runs of the lab. What its drives hold is in the images, or is of no use.
    async fn remove(&self) -> Result<(), Failure> {
        let Some(lock) = self.folder.lock(false, LOCK_PATIENCE)? else { return Ok(()) };
        Ok(end::end(&self.folder, &lock, Duration::ZERO, |note| self.progress.say(note)).await?)
    }
}
