//! `up` of a lab that is there: what has changed since, and what that takes.
//!
//! | | nothing has changed | only what is shown | machines, networks, drives' number |
//! |---|---|---|---|
//! | runs | machines that have ended start | kept with the lab | machines and networks come and go ([`super::members`]), else refused: `--restart`, or stop it first |
//! | stopped | starts | starts | made anew around the drives that are there, starts |
//!
//! A drive that would have to be made anew is refused either way: what it holds is not thrown away by `up`.

use std::time::Duration;

use anyhow::Context;
use labyard_rootfs_builder::store::KernelRecord;
use labyard_spec::manifest::effective::{Difference, differences};
use labyard_spec::manifest::{Lab, Manifest};
use labyard_supervisor::home::{Lock, names};
use labyard_supervisor::journal::Reader;
use labyard_supervisor::plan::Plan;
use labyard_supervisor::record::{ConditionName, End, Standing, State, TaskStatus, now_ms};
use labyard_supervisor::words::chain;
use labyard_supervisor::{addresses, client, end, quota, saved};
use serde_json::Value;

use super::super::args::Up;
use super::super::{Failure, code, start};
use super::{follow, members, prepare};

/// Differences that a refusal lists.
const LISTED: usize = 8;
/// What the supervisor needs beside the guests' grace.
pub(super) const SUPERVISOR_WITHIN: Duration = Duration::from_secs(45);
/// How long guests may take to power off, for a restart or when they leave.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// Fields that nothing is made from, or nothing any more: tasks run once.
const SHOWN: [&str; 11] = [
    "title",
    "description",
    "categories",
    "cover",
    "markdown",
    "base",
    "tabs",
    "accessControl",
    "initTasks",
    "initConditions",
    "portForwards",
];

/// A lab that is there, and what is asked of it now.
pub(super) struct Again<'a> {
    pub(super) up: &'a Up,
    pub(super) preparation: &'a prepare::Preparation<'a>,
    pub(super) text: &'a str,
    pub(super) kernels: &'a [KernelRecord],
}

impl Again<'_> {
    /// Does what can be done, and looks on until all can be used.
    pub(super) async fn apply(&self, state: State, lock: Lock) -> Result<(), Failure> {
        let (folder, progress) = (&self.preparation.folder, self.preparation.progress);
        let name = &folder.name;
        let standing = state.standing();
        let Some(before) = folder.read(names::PLAN)? else {
            let word = standing.word();
            return Err(Failure::input(match standing {
                Standing::Interrupted | Standing::Ended => {
                    format!("lab `{name}` is {word} already: remove what is left of it with `labyard down {name}`")
                }
                _ => format!("lab `{name}` is {word} already: wait for it, or end it with `labyard down {name}`"),
            }));
        };
        let before: Plan = serde_json::from_slice(&before).context("the lab's plan.json")?;
        let changed = self.changed(&state)?;
        if standing == Standing::Ended {
            // Whoever saw it end may be about to say so: that is of before.
            end::supervisor_is_gone(&state)?;
        }
        let mut events = Reader::open(folder)?.context("the journal vanished")?;
        events.skip()?;
        match standing {
            Standing::Ended | Standing::Interrupted => self.bring_back(state, &before, &changed, &mut events).await?,
            _ if members::only_members(&changed) => {
                let client = client::attach_locked(folder, &lock)?;
                let now = client.status().await?;
                // Those that are there, whatever the manifest says that was kept: who changed it last may have been killed.
                let (gone, come) = self.gone_and_come(&now);
                let planned = self.is_planned(&before);
                let stays = gone.is_empty() && come.is_empty() && changed.iter().all(is_shown) && planned;
                if !stays {
                    progress.say(&format!("lab {name} runs already: changing {}", said(&changed)));
                    self.members(&client, &before, (&gone, &come)).await?;
                }
                let ended = now.machines.iter().filter(|one| one.ended.is_some() && !gone.contains(&one.name));
                let ended: Vec<_> = ended.map(|one| one.name.clone()).collect();
                start::start_machines(folder, &client, &ended, progress).await?;
                folder.write(names::MANIFEST, self.text.as_bytes())?;
                if stays {
                    let how = if changed.is_empty() { "nothing has changed" } else { "what is shown of it is kept" };
                    progress.say(&format!("lab {name} runs already: {how}"));
                }
                if self.preparation.limits.is_some_and(|limits| limits != before.limits) {
                    progress.say("note: what it may take of the host is chosen when it starts: stop it first");
                }
                let wanted = [ended, come].concat();
                let was_ready = now.conditions.iter().any(|one| one.name == ConditionName::Ready);
                if wanted.is_empty() && (was_ready || !stays) {
                    return Ok(());
                }
                drop(lock);
                // Whoever came with init tasks makes the lab ready when these are done, like a new one.
                let tasks = client.status().await?.tasks;
                let works = tasks.iter().any(|task| task.status != TaskStatus::Completed);
                return self.look_on(events, (!wanted.is_empty() && !works).then_some(wanted.as_slice())).await;
            }
            _ if self.up.restart => {
                self.check_drives(&state, &changed)?;
                let client = client::attach_locked(folder, &lock)?;
                progress.say(&format!("stopping lab {name} to change {}", said(&changed)));
                let stopped = tokio::time::timeout(GRACE + SUPERVISOR_WITHIN, client.down(GRACE)).await;
                stopped.map_err(|_| Failure {
                    code: code::DEADLINE,
                    error: anyhow::anyhow!("the supervisor does not answer; `labyard down {name}` ends what is left"),
                })??;
                let state = State::read(folder)?.context("the state vanished")?;
                end::supervisor_is_gone(&state)?;
                self.bring_back(state, &before, &changed, &mut events).await?;
            }
            _ => {
                self.check_drives(&state, &changed)?;
                let (said, file) = (said(&changed), self.up.file.display());
                return Err(Failure::input(format!(
                    "lab `{name}` is {} with another manifest: {said}; \
                     `labyard up {file} --restart` stops it, applies that and keeps its drives",
                    standing.word()
                )));
            }
        }
        drop(lock);
        self.look_on(events, None).await
    }

    async fn look_on(&self, events: Reader, machines: Option<&[String]>) -> Result<(), Failure> {
        if self.up.detach {
            return Ok(());
        }
        let (progress, cancel) = (self.preparation.progress, self.preparation.cancel);
        let folder = &self.preparation.folder;
        let reached = follow::until_ready(progress, folder, events, machines, self.up.timeout, cancel).await;
        reached.map_err(|failure| match failure.code {
            // It was there before, with drives that somebody wants.
            code::INTERRUPTED => Failure {
                error: anyhow::anyhow!(
                    "interrupted; lab `{0}` goes on starting: `labyard stop {0}` stops it",
                    folder.name
                ),
                ..failure
            },
            _ => failure,
        })
    }

    /// Whether the plan has the networks that are asked for, and no other: whoever let one come or leave may have been killed.
    fn is_planned(&self, before: &Plan) -> bool {
        let names = |name: &str| before.spec.networks.iter().any(|known| known.name == name);
        let asked = &self.preparation.manifest.lab.networks;
        asked.len() == before.spec.networks.len() && asked.iter().all(|network| names(&network.name))
    }

    /// What the manifest that the lab was made from says otherwise.
    fn changed(&self, state: &State) -> Result<Vec<Difference>, Failure> {
        let before = self.before(state)?;
        Ok(differences(&before, &self.preparation.manifest.lab))
    }

    fn before(&self, state: &State) -> Result<Lab, Failure> {
        let text = self.preparation.folder.read(names::MANIFEST)?.context("the lab's manifest.yaml is missing")?;
        let text = String::from_utf8(text).context("the lab's manifest.yaml")?;
        let mut lab =
            Manifest::read_for(&text, &state.manifest, &addresses::kept(&self.preparation.folder, state)?)?.lab;
        lab.name.clone_from(&self.preparation.folder.name);
        // Who let machines leave may have been killed before it kept the manifest: one that comes again is a new one.
        lab.machines.retain(|machine| state.machines.iter().any(|here| here.name == machine.name));
        Ok(lab)
    }

    /// Starts a lab that has ended; where its manifest is another, what is missing is made first.
    async fn bring_back(
        &self,
        mut state: State,
        before: &Plan,
        changed: &[Difference],
        events: &mut Reader,
    ) -> Result<(), Failure> {
        let (folder, progress) = (&self.preparation.folder, self.preparation.progress);
        if changed.iter().all(is_shown) && self.is_planned(before) {
            progress.say(&format!("lab {} starts again, on the drives that it left", folder.name));
            self.keep_limits(before)?;
            events.skip()?;
            start::whole(folder, &mut state)?;
            return Ok(folder.write(names::MANIFEST, self.text.as_bytes())?);
        }
        if saved::is_there(folder) {
            let name = &folder.name;
            let text = format!(
                "lab `{name}` was saved, and its manifest has changed since: {}; `labyard restore {name}` lets it go on as it was",
                said(changed)
            );
            return Err(Failure::input(text));
        }
        self.check_drives(&state, changed)?;
        progress.say(&format!("changing {}", said(changed)));
        let old = state.clone();
        // Somebody who let machines leave may have been killed: one that comes again is a new one.
        self.sweep_machines(&old)?;
        let admitted =
            quota::admit(self.preparation.home, quota::Ask::of(&self.preparation.manifest.lab), Some(&folder.name))?;
        state.begin_again()?;
        state.conditions.retain(|condition| condition.name == ConditionName::TasksDone);
        state.write(folder)?;
        drop(admitted);
        let made = async {
            let plan = self.preparation.run(self.kernels, Some(&mut state), Some(before)).await?;
            // The manifest comes last: whoever comes after a kill in between finds it changed still, and does the same again.
            folder.write(names::PLAN, &serde_json::to_vec(&plan)?)?;
            state.machines = self.preparation.machines();
            state.manifest.clone_from(&self.preparation.manifest.file);
            state.write(folder)?;
            folder.write(names::MANIFEST, self.text.as_bytes())?;
            self.sweep_machines(&state)?;
            Ok::<_, Failure>(())
        };
        if let Err(failure) = made.await {
            let error: &(dyn std::error::Error + 'static) = failure.error.as_ref();
            let reason = format!("changing it failed: {}", chain(error));
            let _ = State { end: Some(End { at_ms: now_ms(), reason }), ..old }.write(folder); // the reason is what counts
            return Err(failure);
        }
        // How it ended before is nobody's concern any more.
        events.skip()?;
        start::whole(folder, &mut state)
    }

    /// Writes down limits that are others than before; they hold from the next start on.
    fn keep_limits(&self, before: &Plan) -> Result<(), Failure> {
        let Some(limits) = self.preparation.limits.filter(|limits| *limits != before.limits) else { return Ok(()) };
        let plan = Plan { limits, ..before.clone() };
        Ok(self.preparation.folder.write(names::PLAN, &serde_json::to_vec(&plan)?)?)
    }

    /// Refuses what would throw away what a drive holds.
    fn check_drives(&self, state: &State, changed: &[Difference]) -> Result<(), Failure> {
        let before = self.before(state)?;
        let name = &self.preparation.folder.name;
        for machine in &self.preparation.manifest.lab.machines {
            let Some(old) = before.machines.iter().find(|old| old.name == machine.name) else { continue };
            for (new, old) in machine.drives.iter().zip(&old.drives) {
                let source = |drive: &labyard_spec::manifest::lab::Drive| {
                    drive.source.as_ref().map(|source| source.value.to_string())
                };
                let same = source(new) == source(old)
                    && new.filesystem == old.filesystem
                    && new.read_only == old.read_only
                    && new.size_bytes.value == old.size_bytes.value;
                if !same {
                    return Err(Failure::input(format!(
                        "drive {} of machine `{}` cannot be changed into another without losing what it holds: {}; \
                         `labyard drive resize` makes one larger, `labyard down {name}` and `labyard up` make all of them anew",
                        new.serial,
                        machine.name,
                        said(changed)
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Whether nothing is made from the field.
pub(super) fn is_shown(difference: &Difference) -> bool {
    let field = difference.path.split(['.', '[']).next().unwrap_or_default();
    SHOWN.contains(&field)
}

/// Differences in a sentence.
pub(in crate::cli) fn said(changed: &[Difference]) -> String {
    if changed.is_empty() {
        return "what was begun before".to_owned();
    }
    let value = |value: &Option<Value>| match value {
        None => "nothing".to_owned(),
        Some(Value::Object(_) | Value::Array(_)) => "there".to_owned(),
        Some(Value::String(text)) if text.len() > 60 || text.contains('\n') => "another text".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let one = |difference: &Difference| match (&difference.from, &difference.to) {
        (None, Some(Value::Object(_))) => format!("{} is new", difference.path),
        (Some(Value::Object(_)), None) => format!("{} is gone", difference.path),
        (from, to) => format!("{} was {}, is {}", difference.path, value(from), value(to)),
    };
    let mut said: Vec<String> = changed.iter().take(LISTED).map(one).collect();
    if changed.len() > LISTED {
        said.push(format!("{} more (`labyard manifest diff` shows all)", changed.len() - LISTED));
    }
    said.join(", ")
}
