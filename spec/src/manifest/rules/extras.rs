//! What refers to machines, and what only a hosted service or a later part of Labyard acts on: checked and kept.

use std::collections::{BTreeMap, BTreeSet};

use super::super::MAX_TASKS;
use super::super::document::{At, Maybe, Playground, Task as WrittenTask};
use super::super::lab::{AccessControl, InitCondition, PortForward, Tab, Task};
use super::super::place::{Broken, broken};
use super::super::snippet::meant;
use super::{machine_name, one_of};

const DEFAULT_TIMEOUT_SECONDS: u32 = 60;
const MAX_TABS: usize = 10;

type Checked<T> = Result<T, Box<Broken>>;

pub(super) fn conditions(playground: &Playground) -> Checked<Vec<InitCondition>> {
    let values = playground.init_conditions.as_ref().and_then(|conditions| conditions.values.as_ref());
    let mut checked: Vec<InitCondition> = Vec::new();
    let mut keys = BTreeSet::new();
    for (at, position) in values.into_iter().flatten().zip(0..) {
        let condition = &at.value;
        let path = format!("initConditions.values[{position}]");
        if !keys.insert(&condition.key.value) {
            return Err(broken(
                &condition.key,
                &format!("{path}.key"),
                format!("`{}` is listed twice", condition.key.value),
            ));
        }
        let options: Vec<String> = condition.options.iter().flatten().map(|option| option.value.clone()).collect();
        if let Some(default) = &condition.default
            && !options.is_empty()
            && !options.contains(&default.value)
        {
            let message = format!("`{}` is none of the options {}", default.value, options.join(", "));
            return Err(broken(default, &format!("{path}.default"), message));
        }
        checked.push(InitCondition {
            key: condition.key.value.clone(),
            default: condition.default.as_ref().map(|default| default.value.clone()),
            options,
            nullable: condition.nullable.unwrap_or(false),
            placeholder: condition.placeholder.clone(),
            validation_regex: condition.validation_regex.clone(),
        });
    }
    Ok(checked)
}

pub(super) fn tasks(playground: &Playground, machines: &[&str], notes: &mut Vec<String>) -> Checked<Vec<Task>> {
    let Some(tasks) = &playground.init_tasks else { return Ok(Vec::new()) };
    let keys = playground.init_conditions.iter().flat_map(|conditions| conditions.values.iter().flatten());
    if let Some(task) = tasks.values().next().filter(|_| tasks.len() > MAX_TASKS) {
        return Err(broken(task, "initTasks", format!("{} tasks, more than {MAX_TASKS}", tasks.len())));
    }
    let keys: BTreeSet<&str> = keys.map(|value| value.value.key.value.as_str()).collect();
    let mut checked = Vec::new();
    for (name, at) in tasks {
        checked.push(task(name, at, tasks, machines, &keys, notes)?);
    }
    acyclic(tasks)?;
    Ok(checked)
}

fn task(
    name: &str,
    at: &At<WrittenTask>,
    tasks: &BTreeMap<String, At<WrittenTask>>,
    machines: &[&str],
    keys: &BTreeSet<&str>,
    notes: &mut Vec<String>,
) -> Checked<Task> {
    let task = &at.value;
    let path = format!("initTasks.{name}");
    if !task.init.as_ref().is_some_and(|init| init.value) {
        let place = task.init.as_ref().map_or_else(|| at_place(at), at_place);
        return Err(broken(&place, &format!("{path}.init"), "must be true in a playground"));
    }
    let Some(machine) = &task.machine else {
        return Err(broken(at, &format!("{path}.machine"), format!("missing: one of {}", machines.join(", "))));
    };
    machine_name(machine, &format!("{path}.machine"), machines)?;
    let needs = task.needs.iter().flatten().count();
    if needs > MAX_TASKS {
        return Err(broken(at, &format!("{path}.needs"), format!("{needs} tasks, more than {MAX_TASKS}")));
    }
    for (need, position) in task.needs.iter().flatten().zip(0..) {
        if !tasks.contains_key(&need.value) {
            let there: Vec<_> = tasks.keys().map(String::as_str).collect();
            let meant = meant(&need.value, there.iter().copied());
            let message = format!("no task `{}`: there is {}{meant}", need.value, there.join(", "));
            return Err(broken(need, &format!("{path}.needs[{position}]"), message));
        }
    }
    if let Some(timeout) = task.timeout_seconds.as_ref().filter(|timeout| timeout.value == 0) {
        return Err(broken(timeout, &format!("{path}.timeout_seconds"), "0 seconds: at least 1 is needed"));
    }
    for (condition, position) in task.conditions.iter().flatten().zip(0..) {
        let key = &condition.value.key;
        if !keys.contains(key.value.as_str()) {
            let meant = meant(&key.value, keys.iter().copied());
            let there: Vec<_> = keys.iter().copied().collect();
            let message = format!("no init condition `{}`: there is {}{meant}", key.value, there.join(", "));
            return Err(broken(key, &format!("{path}.conditions[{position}].key"), message));
        }
    }
    for (field, name) in
        [(&task.env, "env"), (&task.hintcheck, "hintcheck"), (&task.failcheck, "failcheck"), (&task.helper, "helper")]
    {
        if field.is_some() {
            notes.push(format!("{path}.{name}: has no effect: it is for tasks of challenges and tutorials"));
        }
    }
    Ok(Task {
        name: name.to_owned(),
        machine: machine.value.clone(),
        user: task.user.as_ref().map_or_else(|| "root".to_owned(), |user| user.value.clone()),
        run: task.run.value.clone(),
        needs: task.needs.iter().flatten().map(|need| need.value.clone()).collect(),
        timeout_seconds: task.timeout_seconds.as_ref().map_or(DEFAULT_TIMEOUT_SECONDS, |timeout| timeout.value),
        conditions: task
            .conditions
            .iter()
            .flatten()
            .map(|condition| (condition.value.key.value.clone(), condition.value.value.value.clone()))
            .collect(),
    })
}

/// The place of a value, whatever the value is.
fn at_place<T>(at: &At<T>) -> At<()> {
    At::new((), at.referenced, at.defined)
}

/// Takes away tasks whose needs are met until none is left; what stays is a circle. Each need is looked at once.
fn acyclic(tasks: &BTreeMap<String, At<WrittenTask>>) -> Checked<()> {
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    let mut waiting_for: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, task) in tasks {
        let needs = task.value.needs.iter().flatten();
        open.insert(name, needs.clone().count());
        needs.for_each(|need| waiting_for.entry(&need.value).or_default().push(name));
    }
    let mut free: Vec<&str> = open.iter().filter(|(_, needs)| **needs == 0).map(|(name, _)| *name).collect();
    while let Some(done) = free.pop() {
        open.remove(done);
        for name in waiting_for.remove(done).into_iter().flatten() {
            if let Some(needs) = open.get_mut(name) {
                *needs -= 1;
                if *needs == 0 {
                    free.push(name);
                }
            }
        }
    }
    let Some((name, task)) = tasks.iter().find(|(name, _)| open.contains_key(name.as_str())) else { return Ok(()) };
    let waiting: Vec<_> = open.into_keys().collect();
    let message = format!("a circle: {} wait for each other", waiting.join(", "));
    Err(match task.value.needs.iter().flatten().next() {
        Some(need) => broken(need, &format!("initTasks.{name}.needs"), message),
        None => broken(task, &format!("initTasks.{name}.needs"), message),
    })
}

pub(super) fn tabs(playground: &Playground, machines: &[&str]) -> Checked<Vec<Tab>> {
    let Some(list) = &playground.tabs else { return Ok(Vec::new()) };
    if list.value.is_empty() || list.value.len() > MAX_TABS {
        return Err(broken(list, "tabs", format!("{} tabs, not 1 to {MAX_TABS}", list.value.len())));
    }
    let mut tabs = Vec::new();
    for (at, position) in list.value.iter().zip(0..) {
        let tab = &at.value;
        let path = format!("tabs[{position}]");
        let kind = match &tab.kind {
            Some(kind) => {
                one_of(kind, &format!("{path}.kind"), &["terminal", "ide", "http-port", "web-page", "kexp"])?;
                kind.value.clone()
            }
            None => "terminal".to_owned(),
        };
        for (word, name, words) in
            [(&tab.access, "access", ["private", "public"]), (&tab.pane, "pane", ["left", "right"])]
        {
            if let Some(word) = word {
                one_of(word, &format!("{path}.{name}"), &words)?;
            }
        }
        if let Some(machine) = &tab.machine {
            machine_name(machine, &format!("{path}.machine"), machines)?;
        }
        let needs_name = matches!(kind.as_str(), "http-port" | "web-page");
        if needs_name && tab.name.is_none() {
            return Err(broken(at, &format!("{path}.name"), format!("missing: a tab of kind {kind} needs one")));
        }
        let number = port(&tab.number, &format!("{path}.number"))?;
        if kind == "http-port" && number.is_none() {
            return Err(broken(at, &format!("{path}.number"), "missing: the port that the tab shows"));
        }
        let machine = tab
            .machine
            .as_ref()
            .map_or_else(|| machines.first().copied().unwrap_or_default().to_owned(), |machine| machine.value.clone());
        let text = |field: &Maybe<String>| field.as_ref().map(|field| field.value.clone());
        tabs.push(Tab {
            id: tab.id.clone().unwrap_or_else(|| format!("{kind}-{machine}")),
            kind,
            name: text(&tab.name),
            machine,
            number,
            access: text(&tab.access),
            tls: tab.tls.unwrap_or(false),
            host_rewrite: tab.host_rewrite.clone(),
            path_rewrite: tab.path_rewrite.clone(),
            url: text(&tab.url),
            pane: text(&tab.pane),
        });
    }
    Ok(tabs)
}

pub(super) fn port_forwards(playground: &Playground, machines: &[&str]) -> Checked<Vec<PortForward>> {
    let mut forwards = Vec::new();
    for (at, position) in playground.port_forwards.iter().flatten().zip(0..) {
        let forward = &at.value;
        let path = format!("portForwards[{position}]");
        one_of(&forward.kind, &format!("{path}.kind"), &["local", "remote"])?;
        machine_name(&forward.machine, &format!("{path}.machine"), machines)?;
        forwards.push(PortForward {
            kind: forward.kind.value.clone(),
            machine: forward.machine.value.clone(),
            local_host: forward.local_host.clone(),
            local_port: port(&forward.local_port, &format!("{path}.localPort"))?,
            remote_host: forward.remote_host.clone(),
            remote_port: port(&forward.remote_port, &format!("{path}.remotePort"))?,
        });
    }
    Ok(forwards)
}

fn port(number: &Maybe<u32>, path: &str) -> Checked<Option<u16>> {
    let Some(number) = number else { return Ok(None) };
    match u16::try_from(number.value) {
        Ok(port @ 1..) => Ok(Some(port)),
        _ => Err(broken(number, path, format!("{} is not a port: 1 to 65535", number.value))),
    }
}

pub(super) fn registry_auth(playground: &Playground) -> Checked<Option<String>> {
    match &playground.registry_auth {
        None => Ok(None),
        Some(auth) if auth.value.is_empty() => Ok(None),
        Some(auth) if auth.value.matches(':').count() == 1 => Ok(Some(auth.value.clone())),
        // The value is a secret and stays out of the message.
        Some(auth) => Err(broken(auth, "registryAuth", "not of the form user:password with exactly one colon")),
    }
}

pub(super) fn access(playground: &Playground, notes: &mut Vec<String>) -> Checked<AccessControl> {
    if let Some(access) = &playground.access {
        if let Some(mode) = &access.value.mode {
            one_of(mode, "access.mode", &["private", "public"])?;
        }
        notes.push("access: has no effect: accessControl has taken its place".to_owned());
    }
    let control = playground.access_control.as_ref();
    let principals = |list: Option<&Vec<At<String>>>, name: &str| -> Checked<Vec<String>> {
        let Some(list) = list else { return Ok(vec!["owner".to_owned()]) };
        for (at, position) in list.iter().zip(0..) {
            let word = at.value.as_str();
            let named = |prefix| word.strip_prefix(prefix).is_some_and(|rest: &str| !rest.is_empty());
            let known = ["owner", "anyone", "authenticated", "instructor", "nobody"].contains(&word)
                || ["user:", "github:", "student:", "has-pack:"].into_iter().any(named);
            if !known {
                let forms = "owner, anyone, authenticated, user:ID, github:HANDLE, student:TRAINING, instructor, has-pack:PACK, nobody";
                return Err(broken(
                    at,
                    &format!("accessControl.{name}[{position}]"),
                    format!("`{word}` is none of {forms}"),
                ));
            }
        }
        Ok(list.iter().map(|at| at.value.clone()).collect())
    };
    Ok(AccessControl {
        can_list: principals(control.and_then(|control| control.can_list.as_ref()), "canList")?,
        can_read: principals(control.and_then(|control| control.can_read.as_ref()), "canRead")?,
        can_start: principals(control.and_then(|control| control.can_start.as_ref()), "canStart")?,
    })
}
