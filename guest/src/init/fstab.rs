//! `/etc/fstab` (fstab(5)): drives of the manifest by the device that they are, so that whoever unmounts one can mount it again, and
//! the image's init knows them.
//!
//! Our lines stand between two marks, and what is between them is made anew at every boot.

use crate::below::Below;

use super::drives::Found;
use super::files::FileError;

const PATH: &str = "/etc/fstab";
const BEGIN: &str = "# labyard: drives of the manifest, written at every boot";
const END: &str = "# labyard: end";

/// Writes the lines.
pub(super) fn write(root: &Below, drives: &[Found<'_>]) -> Result<(), FileError> {
    let fail = |source| FileError { path: PATH.to_owned(), source };
    let before = root.read(PATH).map_err(fail)?.unwrap_or_default();
    let before = String::from_utf8_lossy(&before).into_owned();
    let lines: Vec<String> = drives.iter().map(line).collect();
    let after = with_lines(&before, &lines);
    if after == before { Ok(()) } else { root.put_file(PATH, &after).map_err(fail) }
}

fn line(found: &Found<'_>) -> String {
    let options = if found.drive.read_only { "ro,nofail" } else { "defaults,nofail" };
    let at: String = found.drive.mount.as_deref().unwrap_or_default().chars().map(escaped).collect();
    format!("{} {at} {} {options} 0 0", found.device.display(), found.drive.filesystem)
}

/// Blanks are written as octal numbers (fstab(5)).
fn escaped(one: char) -> String {
    match one {
        ' ' => "\\040".to_owned(),
        '\t' => "\\011".to_owned(),
        '\\' => "\\134".to_owned(),
        other => other.to_string(),
    }
}

fn with_lines(before: &str, lines: &[String]) -> String {
    let mut text = String::new();
    let mut ours = false;
    for line in before.lines() {
        ours |= line == BEGIN;
        if !ours {
            text.push_str(line);
            text.push('\n');
        }
        ours &= line != END;
    }
    if !lines.is_empty() {
        text.push_str(&format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_lines_are_replaced_and_the_images_own_stay() {
        let lines = |text: &str| vec![text.to_owned()];
        let own = "# UNCONFIGURED FSTAB\n/dev/cdrom /cd iso9660 ro 0 0";
        let once = with_lines(own, &lines("/dev/vdb /data ext4 defaults,nofail 0 0"));
        assert_eq!(once, format!("{own}\n{BEGIN}\n/dev/vdb /data ext4 defaults,nofail 0 0\n{END}\n"));
        assert_eq!(
            with_lines(&once, &lines("/dev/vdb /data ext4 defaults,nofail 0 0")),
            once,
            "the same at every boot"
        );
        assert_eq!(with_lines(&once, &[]), format!("{own}\n"));
        assert_eq!(with_lines("", &[]), "");
    }

    #[test]
    fn a_place_with_blanks_is_one_field() {
        assert_eq!("/a b\\c".chars().map(escaped).collect::<String>(), "/a\\040b\\134c");
    }
}
