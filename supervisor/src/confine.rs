//! What a supervisor gives up once it has the one thread that starts programs ([`crate::starter`]): it talks to the vmm, to agents of
//! guests and to the owner's commands, and needs files of one lab, sockets and its children for that.
//!
//! Threads share memory: against somebody who runs code in here this is no wall, it keeps a thread that was talked into something from doing
//! it. The walls are around what guests are parsed by: the vmm, the uplink, the builder.

use std::io;
use std::path::Path;

use labyard_sys::confine::{self, Kept};
use labyard_sys::filter::{self, Leave};
use labyard_sys::landlock::{self, Access, Beside};

use crate::cgroup;
use crate::home::{Folder, make_folder};

/// What of the store a vmm is given.
const GIVEN: [&str; 3] = ["images", "kernels", "blanks"];
/// What the kernel tells of processes, memory, mounts and devices; a random number's file is below it, too.
const TOLD: [&str; 2] = ["/proc", "/sys"];

/// Gives up the rest, for the calling thread and those that it makes.
///
/// # Errors
/// The step that failed.
pub fn enter(folder: &Folder) -> io::Result<()> {
    let step = |name: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    confine::not_dumpable().map_err(step("not dumpable"))?;
    confine::no_new_privileges().map_err(step("no_new_privs"))?;
    let labs = folder.path.parent().unwrap_or(&folder.path);
    let store = labs.parent().unwrap_or(labs);
    let given = GIVEN.map(|name| store.join(name));
    for path in &given {
        // What is not there yet could not be named, and may come with a machine that joins.
        make_folder(path).map_err(io::Error::other)?;
    }
    let groups = cgroup::mounts();
    let mut paths: Vec<(&Path, Access)> = vec![(&folder.path, Access::Write), (labs, Access::Folders)];
    paths.extend(given.iter().map(|path| (path.as_path(), Access::Read)));
    paths.extend(groups.iter().map(|path| (path.as_path(), Access::Change)));
    paths.extend(TOLD.iter().chain(landlock::LOOKUP).map(|path| (Path::new(path), Access::Read)));
    paths.push((Path::new("/dev/null"), Access::Change));
    // The jailed vmm is another user's process; ports below 1024 are published; the folder may be of whoever root works for.
    let mut kept = vec![Kept::Kill, Kept::LowPorts];
    if confine::is_root() && !is_owned_by_root(&folder.path) {
        kept.push(Kept::Override);
    }
    confine::drop_capabilities_but(&kept).map_err(step("capabilities"))?;
    if landlock::can_name(&folder.path) {
        let beside = Beside { connects: true, binds: true, signals: true };
        landlock::allow_only(&paths, beside).map_err(step("Landlock"))?;
    }
    filter::forbid(Leave::Supervising).map_err(step("filter"))
}

fn is_owned_by_root(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}
