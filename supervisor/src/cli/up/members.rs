//! `up` of a lab that runs, with other machines than it has: those that are missing come, those that are too many leave, and nobody else
//! notices but by `/etc/hosts`.
//!
//! It can be killed at any moment: the manifest is kept last, so that the next `up` finds what is left to do.

use anyhow::Context;
use labyard_spec::manifest::effective::Difference;
use labyard_supervisor::client::{Client, Members};
use labyard_supervisor::home::names;
use labyard_supervisor::plan::Plan;
use labyard_supervisor::quota;
use labyard_supervisor::record::State;
use labyard_supervisor::tasks::Tasks;
use labyard_supervisor::wayout::ANSWER_WITHIN;

use super::super::{Failure, code};
use super::again::{Again, GRACE, SUPERVISOR_WITHIN, is_shown};

/// Whether all of it can be done while the lab runs.
pub(super) fn only_members(changed: &[Difference]) -> bool {
    changed.iter().all(|one| is_shown(one) || comes_or_goes(one))
}

/// A machine or a network that is new or gone.
fn comes_or_goes(difference: &Difference) -> bool {
    let path = match difference {
        Difference { path, from: None, to: Some(_) } | Difference { path, from: Some(_), to: None } => path,
        _ => return false,
    };
    let is_item = |list: &str| {
        let name =
            path.strip_prefix(list).and_then(|rest| rest.strip_prefix('[')).and_then(|rest| rest.strip_suffix(']'));
        name.is_some_and(|name| !name.contains(['[', ']']))
    };
    is_item("machines") || is_item("networks")
}

impl Again<'_> {
    /// Names of machines that the lab has and the manifest has not, and the other way round.
    pub(super) fn gone_and_come(&self, now: &State) -> (Vec<String>, Vec<String>) {
        let asked = &self.preparation.manifest.lab.machines;
        let gone = now.machines.iter().filter(|known| asked.iter().all(|asked| asked.name != known.name));
        let come = asked.iter().filter(|asked| now.machines.iter().all(|known| known.name != asked.name));
        (gone.map(|one| one.name.clone()).collect(), come.map(|one| one.name.clone()).collect())
    }

    /// Has `gone` leave, and who is missing come. The manifest is for the caller to keep.
    pub(super) async fn members(
        &self,
        client: &Client,
        before: &Plan,
        (gone, come): (&[String], &[String]),
    ) -> Result<(), Failure> {
        let (preparation, folder) = (self.preparation, &self.preparation.folder);
        let progress = preparation.progress;
        // Left behind by somebody who was killed: a machine that comes is a new one.
        self.sweep_machines(&client.status().await?)?;
        let lab = &preparation.manifest.lab;
        let admitted = match come.is_empty() {
            true => None,
            false => Some(quota::admit(preparation.home, quota::Ask::of(lab), Some(&folder.name))?),
        };
        // What can be refused is refused before anybody leaves. Others are not kept waiting for guests to power off: what is asked
        // for is held against the quota once more below.
        drop(admitted);
        let plan = preparation.run(self.kernels, None, Some(before)).await?;
        for name in gone {
            for port in client.ports().await?.into_iter().filter(|shown| shown.port.machine == *name) {
                client.publish(&port.port, false).await?;
            }
            let leaving = tokio::time::timeout(GRACE + SUPERVISOR_WITHIN, client.remove_machine(name, GRACE));
            let how = leaving.await.map_err(|_| late(&folder.name))??;
            progress.say(&format!("{name}: {}", how.lines().next().unwrap_or_default()));
            self.forget_machine(name)?;
        }
        let _admitted = match come.is_empty() {
            true => None,
            false => Some(quota::admit(preparation.home, quota::Ask::of(lab), Some(&folder.name))?),
        };
        let members = Members {
            manifest: preparation.manifest.file.clone(),
            plan,
            machines: preparation.machines(),
            tasks: self.tasks(come)?,
        };
        let coming = tokio::time::timeout(SUPERVISOR_WITHIN + ANSWER_WITHIN, client.come(&members));
        coming.await.map_err(|_| late(&folder.name))??;
        come.iter().for_each(|name| progress.say(&format!("{name} is new and starts")));
        self.say_ways_out(before, &client.status().await?);
        Ok(())
    }

    /// Which way the networks that came lead out.
    fn say_ways_out(&self, before: &Plan, now: &State) {
        let is_new = |name: &str| before.spec.networks.iter().all(|known| known.name != name);
        let networks = self.preparation.manifest.lab.networks.iter();
        for network in networks.filter(|network| !network.private && is_new(&network.name)) {
            let uplink = now.uplinks.iter().find(|uplink| uplink.network == network.name);
            self.preparation.progress.say(&match uplink {
                Some(uplink) => format!("network {} is new, with a way out ({})", network.name, uplink.way),
                None => format!(
                    "network {} is new, without a way out: `labyard events {}` says why",
                    network.name, self.preparation.folder.name
                ),
            });
        }
    }

    /// The init tasks that the lab has from now on: those of machines that come are new, with the parameters that it was made with.
    fn tasks(&self, come: &[String]) -> Result<Tasks, Failure> {
        let lab = &self.preparation.manifest.lab;
        let before = Tasks::read(&self.preparation.folder)?;
        let known = before.parameters.iter().filter(|(key, _)| lab.conditions.iter().any(|known| known.key == **key));
        let given: Vec<_> = known.map(|(key, value)| (key.clone(), value.clone())).collect();
        let chosen = Tasks::choose(lab, &given).map_err(Failure::input)?;
        let comes = |machine: &str| come.iter().any(|name| name == machine);
        Ok(before.with(chosen, |machine| lab.machines.iter().any(|one| one.name == machine) && !comes(machine), comes))
    }

    /// Removes folders of machines that the lab does not have.
    pub(super) fn sweep_machines(&self, now: &State) -> Result<(), Failure> {
        let machines = self.preparation.folder.file(names::MACHINES);
        let listed = match std::fs::read_dir(&machines) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| machines.display().to_string())?,
        };
        for entry in listed {
            let entry = entry.with_context(|| machines.display().to_string())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if now.machines.iter().any(|known| known.name == name) {
                continue;
            }
            self.forget_machine(&name)?;
        }
        Ok(())
    }

    fn forget_machine(&self, name: &str) -> Result<(), Failure> {
        let path = self.preparation.folder.machine(name);
        std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        self.preparation.progress.say(&format!("{name}: gone, with its drives"));
        Ok(())
    }
}

fn late(lab: &str) -> Failure {
    Failure {
        code: code::DEADLINE,
        error: anyhow::anyhow!(
            "the supervisor does not answer; `labyard up` once more goes on, `labyard down {lab}` ends what is left"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn machines_and_networks_come_and_go_and_all_else_does_not() {
        let difference = |path: &str, from, to| Difference { path: path.to_owned(), from, to };
        let (there, private, open) = (json!({}), json!({"private": true}), json!({"private": false}));
        let good = [
            difference("machines[db]", None, Some(there.clone())),
            difference("machines[db]", Some(there.clone()), None),
            difference("networks[back]", None, Some(private.clone())),
            difference("networks[back]", Some(private.clone()), None),
            difference("networks[front]", None, Some(open.clone())),
            difference("networks[front]", Some(open), None),
            difference("title", Some(json!("a")), Some(json!("b"))),
        ];
        assert!(only_members(&good));
        for bad in [
            difference("networks[back].private", Some(json!(true)), Some(json!(false))),
            difference("networks[back].subnet", Some(json!("a")), Some(json!("b"))),
            difference("machines[db].drives[1]", None, Some(there.clone())),
            difference("machines[db].startupFiles[/a]", None, Some(there)),
            difference("machines[db].resources.ramSize", Some(json!("a")), Some(json!("b"))),
        ] {
            assert!(!only_members(std::slice::from_ref(&bad)), "{bad:?}");
        }
    }
}
