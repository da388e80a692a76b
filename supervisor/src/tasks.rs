//! Init tasks as they were chosen when a playground was made; kept as `tasks.json`.

use std::collections::BTreeMap;

use labyard_spec::manifest::Lab;
use serde::{Deserialize, Serialize};

use crate::home::{Folder, HomeError, names};
use crate::record::{TaskState, TaskStatus};

/// What is run once, and with which parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tasks {
    /// Each parameter with what was chosen for it.
    pub parameters: BTreeMap<String, String>,
    /// Those whose conditions hold, in the order of their names.
    pub tasks: Vec<Task>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub machine: String,
    /// Who runs it.
    pub user: String,
    /// A bash script.
    pub run: String,
    /// Tasks of this list that must have completed.
    pub needs: Vec<String>,
    /// How long it may take.
    pub timeout_seconds: u32,
}

impl Tasks {
    /// Those of a lab, with values for its parameters.
    ///
    /// # Errors
    /// A parameter that the lab does not have, or a value that it does not allow.
    pub fn choose(lab: &Lab, given: &[(String, String)]) -> Result<Self, String> {
        let mut parameters = BTreeMap::new();
        for (key, value) in given {
            let Some(known) = lab.conditions.iter().find(|known| known.key == *key) else {
                let there: Vec<_> = lab.conditions.iter().map(|known| known.key.as_str()).collect();
                let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                return Err(format!("-i {key}: no such parameter in lab `{}`: there is {there}", lab.name));
            };
            let may_be_left_out = known.nullable && value.is_empty();
            if !(known.options.is_empty() || known.options.contains(value) || may_be_left_out) {
                return Err(format!("-i {key}={value}: none of the options {}", known.options.join(", ")));
            }
            parameters.insert(key.clone(), value.clone());
        }
        for known in &lab.conditions {
            match &known.default {
                Some(default) => drop(parameters.entry(known.key.clone()).or_insert_with(|| default.clone())),
                None if known.nullable || parameters.contains_key(&known.key) => {}
                None => {
                    let options = known.options.join(", ");
                    let options = if options.is_empty() { String::new() } else { format!(" (one of {options})") };
                    return Err(format!(
                        "parameter `{0}` has no default: give one with -i {0}=VALUE{options}",
                        known.key
                    ));
                }
            }
        }
        let holds = |(key, value): &(String, String)| parameters.get(key) == Some(value);
        let chosen: Vec<_> = lab.tasks.iter().filter(|task| task.conditions.iter().all(holds)).collect();
        let is_chosen = |name: &String| chosen.iter().any(|task| task.name == *name);
        let tasks = chosen.iter().map(|task| Task {
            name: task.name.clone(),
            machine: task.machine.clone(),
            user: task.user.clone(),
            run: task.run.clone(),
            // One that was dropped is nobody to wait for.
            needs: task.needs.iter().filter(|need| is_chosen(need)).cloned().collect(),
            timeout_seconds: task.timeout_seconds,
        });
        Ok(Self { tasks: tasks.collect(), parameters })
    }

    /// What is to run of a playground whose machines have changed: what these had, but of machines that are not there any more, and of
    /// `chosen` the tasks of those that come. Parameters are as they were.
    pub fn with(self, chosen: Self, stays: impl Fn(&str) -> bool, comes: impl Fn(&str) -> bool) -> Self {
        let new: Vec<Task> = chosen.tasks.into_iter().filter(|task| comes(&task.machine)).collect();
        let mut tasks: Vec<Task> = self
            .tasks
            .into_iter()
            .filter(|task| stays(&task.machine) && new.iter().all(|new| new.name != task.name))
            .collect();
        tasks.extend(new);
        tasks.sort_by(|a, b| a.name.cmp(&b.name));
        Self { parameters: chosen.parameters, tasks }.waiting_for_each_other()
    }

    /// Those of machines that are there.
    pub fn of(mut self, is_there: impl Fn(&str) -> bool) -> Self {
        self.tasks.retain(|task| is_there(&task.machine));
        self.waiting_for_each_other()
    }

    /// Who is not there is nobody to wait for.
    fn waiting_for_each_other(mut self) -> Self {
        let names: Vec<String> = self.tasks.iter().map(|task| task.name.clone()).collect();
        for task in &mut self.tasks {
            task.needs.retain(|need| names.contains(need));
        }
        self
    }

    /// Those of a playground; none where it has no `tasks.json`.
    ///
    /// # Errors
    /// What the file system says; text that is none of ours.
    pub fn read(folder: &Folder) -> Result<Self, HomeError> {
        let Some(bytes) = folder.read(names::TASKS)? else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).map_err(|error| HomeError::File {
            path: folder.file(names::TASKS),
            doing: "understanding it",
            source: error.into(),
        })
    }

    /// Writes them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Folder) -> Result<(), HomeError> {
        folder.write(names::TASKS, &serde_json::to_vec_pretty(self).expect("plain data has a JSON form"))
    }

    /// All of them before anything ran.
    pub fn states(&self) -> Vec<TaskState> {
        let state = |task: &Task| TaskState {
            name: task.name.clone(),
            machine: task.machine.clone(),
            status: if task.needs.is_empty() { TaskStatus::Created } else { TaskStatus::Blocked },
            attempts: 0,
            started_ms: None,
            ended_ms: None,
            why: None,
            env: Vec::new(),
        };
        self.tasks.iter().map(state).collect()
    }

    /// The names of what a task needs, and of what that needs, first things first.
    pub fn before(&self, name: &str) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        let mut left: Vec<&str> = vec![name];
        while let Some(next) = left.pop() {
            let needs = self.tasks.iter().find(|task| task.name == next).map(|task| task.needs.as_slice());
            for need in needs.into_iter().flatten() {
                if !found.contains(&need.as_str()) {
                    found.insert(0, need);
                    left.push(need);
                }
            }
        }
        found
    }

    /// What a task finds in its environment of the parameters: `LABYARD_` and the key in capitals.
    pub fn environment(&self) -> impl Iterator<Item = String> {
        self.parameters.iter().map(|(key, value)| {
            let name: String =
                key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
            format!("LABYARD_{name}={value}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use labyard_spec::manifest::Manifest;

    fn lab() -> Lab {
        let text = "\
kind: playground
name: lab
playground:
  machines: [{name: web, drives: [{source: x, mount: /}], network: {interfaces: [{network: local}]}}]
  initConditions: {values: [{key: cni, default: flannel, options: [flannel, cilium]}, {key: note, nullable: true}]}
  initTasks:
    base: {init: true, machine: web, run: 'true'}
    flannel: {init: true, machine: web, needs: [base], conditions: [{key: cni, value: flannel}], run: 'true'}
    cilium: {init: true, machine: web, needs: [base], conditions: [{key: cni, value: cilium}], run: 'true'}
    last: {init: true, machine: web, needs: [flannel, cilium], run: 'true'}
";
        Manifest::read(text, "lab.yaml").expect("it keeps every rule").lab
    }

    #[test]
    fn tasks_are_those_whose_conditions_hold_and_nobody_waits_for_the_others() {
        let names = |given: &[(String, String)]| {
            let tasks = Tasks::choose(&lab(), given).expect("a choice");
            tasks.tasks.iter().map(|task| (task.name.clone(), task.needs.join(" "))).collect::<Vec<_>>()
        };
        let pairs = |list: [(&str, &str); 3]| list.map(|(name, needs)| (name.to_owned(), needs.to_owned())).to_vec();
        assert_eq!(names(&[]), pairs([("base", ""), ("flannel", "base"), ("last", "flannel")]));
        let cilium = [("cni".to_owned(), "cilium".to_owned())];
        assert_eq!(names(&cilium), pairs([("base", ""), ("cilium", "base"), ("last", "cilium")]));
        let tasks = Tasks::choose(&lab(), &cilium).expect("a choice");
        assert_eq!(tasks.before("last"), ["base", "cilium"]);
        assert_eq!(tasks.environment().collect::<Vec<_>>(), ["LABYARD_CNI=cilium"]);
    }

    #[test]
    fn a_parameter_that_cannot_be_is_refused_with_what_can() {
        let refuse =
            |key: &str, value: &str| Tasks::choose(&lab(), &[(key.to_owned(), value.to_owned())]).expect_err(key);
        assert_eq!(refuse("cni", "calico"), "-i cni=calico: none of the options flannel, cilium");
        assert_eq!(refuse("os", "x"), "-i os: no such parameter in lab `lab`: there is cni, note");
        let mut lab = lab();
        lab.conditions[0].default = None;
        let error = Tasks::choose(&lab, &[]).expect_err("no default");
        assert_eq!(error, "parameter `cni` has no default: give one with -i cni=VALUE (one of flannel, cilium)");
    }
}
