//! A host disk without room, in words: which drives wait, on which file system they lie, and the way out.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use labyard_sys::space::NO_QUOTA;

use crate::home::Folder;
use crate::record::FullDrive;

/// What is said of a machine that stands still because of these drives.
pub fn words(folder: &Folder, machine: &str, drives: &[FullDrive]) -> String {
    let place = folder.machine(machine);
    let said = |full: &FullDrive| format!("drive {}: {}", full.drive, io::Error::from_raw_os_error(full.errno));
    let drives_said: Vec<_> = drives.iter().map(said).collect();
    let by_quota = drives.iter().any(|full| full.errno == NO_QUOTA);
    let free = if by_quota { "free space or raise the quota on" } else { "free space on" };
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let path = place.canonicalize().unwrap_or_else(|_| place.clone());
    let system = system_of(&mounts, &path).unwrap_or_else(|| "the file system".to_owned());
    format!(
        "{}; {free} {system} of {}, then `labyard resume {}/{machine}`",
        drives_said.join(", "),
        place.display(),
        folder.name
    )
}

/// The file system that a path lies on, by proc_pid_mountinfo(5): fields 5, mount point, and behind the hyphen type and source.
fn system_of(mounts: &[u8], path: &Path) -> Option<String> {
    let mut found: Option<(PathBuf, String)> = None;
    for line in mounts.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let (Some(point), true) = (fields.nth(4), fields.any(|field| field == b"-")) else { continue };
        let (Some(kind), Some(source)) = (fields.next(), fields.next()) else { continue };
        let (point, source) = (unescaped(point), unescaped(source));
        // The last one of those at one place covers the others.
        let is_nearer = found.as_ref().is_none_or(|(nearest, _)| point.starts_with(nearest));
        if path.starts_with(&point) && is_nearer {
            let (kind, source) = (String::from_utf8_lossy(kind).into_owned(), source.display().to_string());
            // Of a file system in memory the source says nothing.
            let on = if source.starts_with('/') { format!(" on {source}") } else { String::new() };
            let system = format!("the file system {} ({kind}{on})", point.display());
            found = Some((point, system));
        }
    }
    found.map(|(_, system)| system)
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_name_drive_reason_file_system_folder_and_the_way_out() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = Folder { name: "lab".into(), path: home.path().to_owned() };
        let full = |drive: &str, errno| FullDrive { drive: drive.into(), errno, at_ms: 0 };
        let said = words(&folder, "web", &[full("d00", 28), full("d01", 28)]);
        assert!(said.starts_with("drive d00: No space left on device (os error 28), drive d01: No space"), "{said}");
        assert!(said.contains("; free space on the file system /"), "{said}");
        let end = format!(" of {}/machines/web, then `labyard resume lab/web`", home.path().display());
        assert!(said.ends_with(&end), "{said}");
        let said = words(&folder, "web", &[full("d00", NO_QUOTA)]);
        assert!(said.contains("quota exceeded") || said.contains("Quota exceeded"), "{said}");
        assert!(said.contains("; free space or raise the quota on the file system /"), "{said}");
    }

    #[test]
    fn a_path_lies_on_the_nearest_mount_and_the_last_one_there() {
        let mounts = br"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:20 / /srv rw - ext4 /dev/vdb rw
24 23 0:21 / /srv/a\040lab rw shared:2 master:1 - tmpfs none rw,size=1k
25 22 0:22 / /srv rw - xfs /dev/vdc rw
half a line
";
        let system = |path: &str| system_of(mounts, Path::new(path));
        assert_eq!(system("/home").as_deref(), Some("the file system / (ext4 on /dev/root)"));
        assert_eq!(system("/srv/b").as_deref(), Some("the file system /srv (xfs on /dev/vdc)"));
        assert_eq!(system("/srvb").as_deref(), Some("the file system / (ext4 on /dev/root)"));
        assert_eq!(system("/srv/a lab/x").as_deref(), Some("the file system /srv/a lab (tmpfs)"));
        assert_eq!(system_of(b"", Path::new("/")), None);
    }
}
