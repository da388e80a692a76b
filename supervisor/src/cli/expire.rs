//! When a lab ends by itself.

use std::time::Duration;

use anyhow::Context;
use labyard_supervisor::client;
use labyard_supervisor::home::Home;
use labyard_supervisor::record::{Expiry, Standing, State, now_ms};

use super::args::{Expire, Lifetime};
use super::{Failure, Outcome, event_loop, naming, output};

/// How long another command that changes the lab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn expire(home: &Home, wanted: &Expire) -> Outcome {
    let folder = naming::lab(home, &wanted.name)?;
    let Expire { after, never, .. } = wanted;
    if !never && after.is_none() && wanted.idle.is_none() {
        return Err(Failure::input("say when: a time such as 1h, --idle 30m, or --never"));
    }
    let expiry = match never {
        true => Expiry::default(),
        false => of(&Lifetime { lifetime: *after, idle: wanted.idle, on_expiry: wanted.on_expiry }),
    };
    let lock = folder.lock(false, LOCK_PATIENCE)?.context("the folder vanished")?;
    let mut state = State::read(&folder)?.context("the state is missing")?;
    match state.standing() {
        Standing::Ended | Standing::Interrupted => {
            state.expiry = Expiry { at_ms: None, ..expiry };
            state.write(&folder)?;
        }
        _ => {
            let client = client::attach_locked(&folder, &lock)?;
            event_loop()?.block_on(client.expire(&expiry))?;
        }
    }
    output::line(&format!("{}: {}", folder.name, said(&expiry)));
    Ok(0)
}

/// What is asked for, counted from now.
pub(super) fn of(lifetime: &Lifetime) -> Expiry {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Expiry {
        lifetime_ms: lifetime.lifetime.map(ms),
        at_ms: lifetime.lifetime.map(|time| now_ms().saturating_add(ms(time))),
        idle_ms: lifetime.idle.map(ms),
        then: lifetime.on_expiry,
    }
}

/// In words.
pub(super) fn said(expiry: &Expiry) -> String {
    let verb = expiry.then.word();
    let at = expiry.at_ms.map(|at| format!("{verb} at {}", output::moment(at)));
    let span = |ms: u64| output::span(Duration::from_millis(ms));
    let at = at.or_else(|| expiry.lifetime_ms.map(|ms| format!("{verb} {} after its start", span(ms))));
    let idle = expiry.idle_ms.map(|ms| format!("{verb} when nobody has used it for {}", span(ms)));
    let said: Vec<_> = at.into_iter().chain(idle).collect();
    if said.is_empty() { "does not end by itself".to_owned() } else { said.join(", ") }
}
