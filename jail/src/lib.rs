//! The jail: leaves the host behind and becomes another program.
//!
//! Whoever starts it is trusted; the program that it becomes is not, once a guest has broken it. So every step is checked, none is
//! optional, and a failure ends the process before the program runs. One thread, no code of the monitor.
//!
//! In order:
//! 1. The spec (`labyard_spec::jail` says who says what).
//! 2. A copy of the process in new user, mount, network, pid, IPC, UTS and cgroup namespaces, whose first process it is. Root's copy is
//!    a user of its own outside, anybody else's is the caller. The one that was there says who its copy is, and ends.
//! 3. The descriptor table: each descriptor moves to its fixed number, all others are closed.
//! 4. A session of its own, limits, cores that it shares with nobody, a keyring, a name.
//! 5. An empty, read-only root.
//! 6. No capabilities, no_new_privs, Landlock.
//! 7. A look at whether all of it holds.
//! 8. execveat of the program's descriptor with an empty environment. (Undumpable is what the program makes itself: exec resets it, prctl(2).)

#![forbid(unsafe_code)]

mod talk;

use std::convert::Infallible;
use std::io;

use labyard_spec::jail::JailSpec;
use labyard_sys::landlock::{self, Landlock};
use labyard_sys::split::{self, INNER_USER, Owner, Side};
use labyard_sys::{confine, exec};

pub use talk::{MAX_SPEC_BYTES, Talk};

/// What the jailed program's host is called.
const HOST_NAME: &str = "labyard";

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum JailError {
    #[error("the conversation on descriptor {descriptor}")]
    Talk { descriptor: i32, source: io::Error },
    #[error("the jail spec on descriptor {descriptor} is cut off or longer than {MAX_SPEC_BYTES} bytes")]
    Cut { descriptor: i32 },
    #[error("whoever started the jail has gone")]
    Alone,
    #[error("the jail spec is not what this jail understands")]
    Parse(#[from] serde_json::Error),
    #[error("the program's arguments")]
    Arguments(#[source] io::Error),
    #[error("arranging descriptors")]
    Descriptors(#[source] io::Error),
    #[error("limiting {what}")]
    Limit { what: &'static str, source: io::Error },
    #[error("entering new namespaces (user namespaces must be allowed, or the caller root)")]
    Namespaces(#[source] io::Error),
    #[error("mapping users")]
    Users(#[source] io::Error),
    #[error("becoming another user")]
    User(#[source] io::Error),
    #[error("a session of its own")]
    Session(#[source] io::Error),
    #[error("cores of its own")]
    Cores(#[source] io::Error),
    #[error("a keyring of its own")]
    Keyring(#[source] io::Error),
    #[error("forbidding more user namespaces")]
    UserNamespaces(#[source] io::Error),
    #[error("naming the host")]
    Name(#[source] io::Error),
    #[error("emptying the root")]
    Root(#[source] io::Error),
    #[error("dropping capabilities")]
    Capabilities(#[source] io::Error),
    #[error("setting no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    #[error("landlock")]
    Landlock(#[source] io::Error),
    #[error("the jail does not hold: {0}")]
    Open(&'static str),
    #[error("executing {program}")]
    Exec { program: String, source: io::Error },
}

/// How the process that goes on was made.
#[derive(Debug, Clone, Copy)]
struct Made {
    /// In a user namespace.
    user: bool,
    owner: Owner,
}

/// Hears the spec, confines a copy of the process and becomes the program in it. Returns in the launcher, when its copy goes on alone.
///
/// # Errors
/// Every step has its own. The process is then in no state to do anything but end.
pub fn run(mut talk: Talk) -> Result<(), JailError> {
    let spec = talk.spec()?;
    if !spec.confine {
        talk.tell(i32::try_from(std::process::id()).unwrap_or_default())?;
        talk.wait_for_go()?;
        drop(talk);
        return become_program(&spec, None).map(|never| match never {});
    }
    let (user, side) = match split::split(true) {
        Ok(side) => (true, side),
        // A host may forbid user namespaces.
        Err(_) if confine::is_root() => (false, split::split(false).map_err(JailError::Namespaces)?),
        Err(error) => return Err(JailError::Namespaces(error)),
    };
    let made = Made { user, owner: split::owner() };
    match side {
        Side::Launcher(copy) => {
            if made.user {
                // A copy that is told nothing ends by itself, once this process has.
                split::map_users(copy, made.owner).map_err(JailError::Users)?;
            }
            talk.tell(copy)
        }
        Side::Copy => {
            talk.wait_for_go()?;
            drop(talk);
            become_program(&spec, Some(made)).map(|never| match never {})
        }
    }
}

fn become_program(spec: &JailSpec, made: Option<Made>) -> Result<Infallible, JailError> {
    let limit = |what| move |source| JailError::Limit { what, source };
    let arguments = exec::arguments(&spec.argv).map_err(JailError::Arguments)?;
    let program = exec::arrange(&spec.descriptors, spec.program).map_err(JailError::Descriptors)?;
    confine::limit_descriptors(spec.max_descriptors).map_err(limit("open descriptors"))?;
    confine::limit_all().map_err(limit("what no program here needs"))?;
    if let Some(made) = made {
        confine::own_session().map_err(JailError::Session)?;
        confine::own_cores().map_err(JailError::Cores)?;
        close_the_door(made)?;
        if let Some(threads) = spec.max_threads {
            confine::limit_threads(threads).map_err(limit("threads"))?;
        }
    }
    confine::no_new_privileges().map_err(JailError::NoNewPrivileges)?;
    if made.is_some() {
        match landlock::forbid_all_but(program.program).map_err(JailError::Landlock)? {
            Landlock::Abi(_) => {}
            Landlock::Missing => eprintln!("warning: jail: this kernel has no Landlock: one of the walls is missing"),
        }
        check()?;
    }
    let source = exec::execveat(&program, &arguments);
    Err(JailError::Exec { program: spec.argv.first().cloned().unwrap_or_default(), source })
}

fn close_the_door(made: Made) -> Result<(), JailError> {
    let outer = || split::own_pid().and_then(split::own_user);
    let may_set_groups = made.owner == Owner::Own;
    // As long as the old root is there, its `/proc` knows who we are outside.
    let outside = if !made.user && made.owner == Owner::Own { Some(outer().map_err(JailError::User)?) } else { None };
    if made.user {
        confine::become_user(INNER_USER, may_set_groups).map_err(JailError::User)?;
        confine::forbid_user_namespaces().map_err(JailError::UserNamespaces)?;
    }
    confine::own_keyring().map_err(JailError::Keyring)?;
    confine::name_host(HOST_NAME).map_err(JailError::Name)?;
    confine::empty_root().map_err(JailError::Root)?;
    confine::drop_bounding_set().map_err(JailError::Capabilities)?;
    if let Some(outside) = outside {
        // Without a user namespace this is where root's capabilities go.
        confine::become_user(outside, may_set_groups).map_err(JailError::User)?;
    } else if made.owner == Owner::Callers && confine::is_root() {
        eprintln!(
            "warning: jail: root has no users to give away here (/proc/self/uid_map): the vmm runs as root without capabilities"
        );
    }
    confine::drop_capabilities().map_err(JailError::Capabilities)
}

/// What was asked for is looked at once more: a kernel that only said yes would let everybody out.
fn check() -> Result<(), JailError> {
    let walls = [
        (confine::has_no_capabilities(), "capabilities are left"),
        (confine::has_no_new_privileges(), "no_new_privs is not set"),
        (confine::is_first_process(), "it is not the first process of its namespace"),
    ];
    match walls.into_iter().find(|(holds, _)| !holds) {
        Some((_, wall)) => Err(JailError::Open(wall)),
        None => Ok(()),
    }
}
