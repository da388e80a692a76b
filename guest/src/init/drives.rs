//! Finds block devices by their serials, which the host sets: `dNN` for drives of the manifest, `modules` for the kernel's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use labyard_spec::guest::{Drive, MODULES_SERIAL};

use super::wait;

const SYS_BLOCK: &str = "/sys/block";

#[derive(Debug, thiserror::Error)]
pub(super) enum DriveError {
    #[error("no drive is mounted at /: give one drive of the machine `mount: /`")]
    NoRoot,
    #[error("drive `{serial}` did not appear; there are {seen}: the kernel may lack the module of its transport")]
    Missing { serial: String, seen: String },
}

/// A drive and its device node.
pub(super) struct Found<'a> {
    pub(super) drive: &'a Drive,
    pub(super) device: PathBuf,
}

/// All drives that will be mounted.
pub(super) struct Drives<'a> {
    pub(super) root: Found<'a>,
    /// Parents before what is mounted inside them.
    pub(super) others: Vec<Found<'a>>,
    /// Device with the kernel's modules.
    pub(super) modules: Option<PathBuf>,
}

/// Waits for all drives with a mount point, and for the modules where they are needed.
pub(super) fn find(drives: &[Drive], needs_modules: bool) -> Result<Drives<'_>, DriveError> {
    let root = drives.iter().find(|drive| drive.mount.as_deref() == Some("/")).ok_or(DriveError::NoRoot)?;
    let mut others: Vec<_> =
        drives.iter().filter(|drive| drive.mount.is_some() && drive.serial != root.serial).collect();
    others.sort_by_key(|drive| depth(drive));
    let mut wanted: Vec<_> = std::iter::once(root).chain(others.iter().copied()).map(|d| d.serial.as_str()).collect();
    if needs_modules {
        wanted.push(MODULES_SERIAL);
    }
    let mut seen = BTreeMap::new();
    let all = wait::until(|| {
        seen = serials(Path::new(SYS_BLOCK));
        wanted.iter().all(|serial| seen.contains_key(*serial)).then_some(())
    });
    if all.is_none() {
        let serial = wanted.into_iter().find(|serial| !seen.contains_key(*serial)).unwrap_or_default().to_owned();
        let seen: Vec<_> = seen.keys().map(|serial| format!("`{serial}`")).collect();
        return Err(DriveError::Missing {
            serial,
            seen: if seen.is_empty() { "none".into() } else { seen.join(", ") },
        });
    }
    let device = |serial: &str| seen.get(serial).map(|name| Path::new("/dev").join(name));
    let found = |drive| Found { drive, device: device(&drive.serial).unwrap_or_default() };
    Ok(Drives { root: found(root), others: others.into_iter().map(found).collect(), modules: device(MODULES_SERIAL) })
}

fn depth(drive: &Drive) -> usize {
    drive.mount.iter().flat_map(|path| path.split('/')).filter(|part| !part.is_empty()).count()
}

/// Serial to device name, of all devices that have one.
fn serials(sys_block: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = std::fs::read_dir(sys_block) else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let serial = std::fs::read_to_string(entry.path().join("serial")).ok()?;
            let serial = serial.trim_matches(['\0', ' ', '\n']).to_owned();
            (!serial.is_empty()).then(|| (serial, entry.file_name().to_string_lossy().into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(serial: &str, mount: Option<&str>) -> Drive {
        let mount = mount.map(str::to_owned);
        Drive { serial: serial.to_owned(), mount, filesystem: "ext4".to_owned(), read_only: false }
    }

    #[test]
    fn devices_are_named_by_their_serials_and_others_are_passed_over() {
        let sys = tempfile::tempdir().expect("a folder");
        for (name, serial) in [("vda", Some("modules")), ("vdb", Some("d00\n")), ("vdc", Some("")), ("loop0", None)] {
            std::fs::create_dir(sys.path().join(name)).expect("device");
            if let Some(serial) = serial {
                std::fs::write(sys.path().join(name).join("serial"), serial).expect("serial");
            }
        }
        let expected = [("d00", "vdb"), ("modules", "vda")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(serials(sys.path()), BTreeMap::from(expected));
    }

    #[test]
    fn a_machine_without_a_root_is_refused_at_once() {
        let drives = [drive("d00", None), drive("d01", Some("/data"))];
        assert!(matches!(find(&drives, true), Err(DriveError::NoRoot)));
    }

    #[test]
    fn outer_mount_points_come_first() {
        let mut drives = [drive("d01", Some("/a/b/c")), drive("d02", Some("/a/")), drive("d03", Some("//a//b"))];
        drives.sort_by_key(depth);
        assert_eq!(drives.map(|drive| drive.serial), ["d02", "d03", "d01"]);
    }
}
