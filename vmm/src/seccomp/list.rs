//! What roles may call as a list that machines read: docs/seccomp.json.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{CALLS, Call, Role, UNSEEN};

/// One line of the list.
#[derive(Debug, Serialize)]
pub struct Line {
    /// The system call, and behind a colon its condition.
    pub call: &'static str,
    /// Its number on x86-64.
    pub number: i64,
    /// What its arguments have to be, all of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<Condition>,
    /// Who may make it. The spawner's filter lets through what all but main may.
    pub roles: Vec<&'static str>,
    /// Roles that were never seen to make it, and why they may all the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unseen: BTreeMap<&'static str, &'static str>,
}

/// `argument & mask == value`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the line above says it")]
pub struct Condition {
    pub argument: u8,
    pub mask: String,
    pub value: String,
}

/// All lines.
pub fn lines() -> Vec<Line> {
    CALLS.iter().map(line).collect()
}

fn line(call: &Call) -> Line {
    let made_by = Role::ALL.into_iter().filter(|role| call.is_made_by(*role));
    let only = call.only.iter().map(|only| Condition {
        argument: only.argument,
        mask: format!("{:#x}", only.mask),
        value: format!("{:#x}", only.value),
    });
    Line {
        call: call.name,
        number: call.number,
        only: only.collect(),
        roles: made_by.clone().map(Role::name).collect(),
        unseen: made_by.filter_map(|role| Some((role.name(), why_unseen(call, role)?))).collect(),
    }
}

/// Why a role may make a call that it was never seen to make in a run that traces; `None` where it was seen.
pub fn why_unseen(call: &Call, role: Role) -> Option<&'static str> {
    let known = UNSEEN.iter().find(|(name, roles, _)| *name == call.name && roles.contains(&role));
    known.map(|(.., why)| *why)
}

/// The list as it is in the documents: one line each.
pub fn text() -> String {
    let lines =
        lines().iter().map(|line| serde_json::to_string(line).expect("plain data has a JSON form")).collect::<Vec<_>>();
    format!("[\n{}\n]\n", lines.join(",\n"))
}
