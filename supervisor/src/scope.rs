//! A scope of the user's systemd: where somebody who is not root may make control groups.
//!
//! A login's own group belongs to root. The user's systemd gives a process a group in which it may do as it likes (systemd-run(1),
//! `--scope`; systemd.resource-control(5), `Delegate=`); the process stays who it is, only its group is another. A group with
//! processes in it has no controllers for its children (cgroups(7), "no internal processes"), so the supervisor goes one down, and
//! the vmm's group is made beside it ([`crate::cgroup`]).

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};

use crate::cgroup;

/// Says to a supervisor that its group is its own.
const OWN_GROUP: &str = "LABYARD_SCOPE";
/// The supervisor's place in it.
const BELOW: &str = "supervisor";
/// The program that asks for scopes.
const SYSTEMD_RUN: &str = "systemd-run";
/// Names of users whose systemd outlives their logins (systemd-logind.service(8)).
const LINGER: &str = "/var/lib/systemd/linger";

/// Where the user's systemd listens; `None` where there is none.
fn manager() -> Option<PathBuf> {
    let socket = Path::new(&std::env::var_os("XDG_RUNTIME_DIR")?).join("systemd/private");
    access(&socket, Access::WRITE_OK).ok().map(|()| socket)
}

/// Whether groups can only be made in a scope: the caller is not root, may make none where they would be made, and has a systemd.
pub fn is_needed() -> bool {
    let may_here = |place: PathBuf| access(&place, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    !rustix::process::geteuid().is_root()
        && cgroup::place_of_version_two().is_some_and(|place| !may_here(place))
        && manager().is_some()
}

/// The command that becomes `program` in a scope of its own.
pub fn command(program: &Path, lab: &str) -> Command {
    let mut command = Command::new(SYSTEMD_RUN);
    // With the caller's id the name is not one of a scope that is on its way out.
    let unit = format!("--unit=labyard-{lab}-{}", std::process::id());
    command
        .args(["--user", "--scope", "--collect", "--quiet", "--property=Delegate=yes"])
        .arg(unit)
        .arg("--")
        .arg(program);
    command.env(OWN_GROUP, "1");
    command
}

/// In a supervisor that was started in a scope: makes room for groups beside its own.
///
/// # Errors
/// What the file system of control groups says. The lab is not limited then.
pub fn settle() -> io::Result<()> {
    if std::env::var_os(OWN_GROUP).is_none() {
        return Ok(());
    }
    let own = cgroup::own_of_version_two().ok_or_else(|| io::Error::other("its group is not to be found"))?;
    // One that was started anew may be there already.
    if own.file_name() == Some(OsStr::new(BELOW)) {
        return Ok(());
    }
    let below = own.join(BELOW);
    match std::fs::create_dir(&below) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::write(below.join("cgroup.procs"), std::process::id().to_string())
}

/// What a person should know whose systemd ends with the last login; `None` for everybody else.
pub fn warning() -> Option<String> {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok()?;
    let lingers = Path::new(LINGER).join(&user).exists();
    (is_needed() && !lingers).then(|| {
        format!("the lab ends when the last session of {user} does: its limits are those of {user}'s systemd; `loginctl enable-linger` lets both live on")
    })
}
