//! `boots.jsonl` of a machine: where in its console's log each boot begins. The log itself is the guest's, who may print anything.
//!
//! One line a boot, numbered from 1 since the machine was made. A guest that reboots without end fills no disk: the last ones are kept.

use serde::{Deserialize, Serialize};

use crate::home::{Folder, HomeError, names};

/// Boots that are kept, and those beyond that before the oldest go, all at once.
const KEPT: usize = 100;
const SLACK: usize = 100;

/// One boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// 1 is the first since the machine was made.
    pub number: u64,
    /// When it began, in milliseconds since 1970.
    pub at_ms: u64,
    /// Where what it printed begins in `console.log`.
    pub from: u64,
}

/// The machine's own folder, whose files are written as those of the lab's are.
fn own(folder: &Folder, machine: &str) -> Folder {
    Folder { name: folder.name.clone(), path: folder.machine(machine) }
}

/// Boots of a machine that are known, the oldest first.
///
/// # Errors
/// What the file system says. A line that makes no sense is passed over.
pub fn read(folder: &Folder, machine: &str) -> Result<Vec<Boot>, HomeError> {
    let text = own(folder, machine).read(names::BOOTS)?.unwrap_or_default();
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Writes down that a boot has begun. The same one twice is one.
///
/// # Errors
/// What the file system says.
pub fn begin(folder: &Folder, machine: &str, at_ms: u64, from: u64) -> Result<(), HomeError> {
    let mut boots = read(folder, machine)?;
    // One that printed nothing is no boot that anybody could look at, and the one that follows takes its place.
    let number = match boots.last() {
        Some(last) if last.from == from => boots.pop().map_or(1, |last| last.number),
        Some(last) => last.number.saturating_add(1),
        None => 1,
    };
    boots.push(Boot { number, at_ms, from });
    if boots.len() > KEPT + SLACK {
        boots.drain(..boots.len() - KEPT);
    }
    let lines = boots.iter().map(|boot| serde_json::to_string(boot).expect("plain data has a JSON form") + "\n");
    own(folder, machine).write(names::BOOTS, lines.collect::<String>().as_bytes())
}

/// The boot that somebody means: by its number, or counted from the last, which is -1.
pub fn find(boots: &[Boot], wanted: i64) -> Option<usize> {
    match wanted {
        ..=0 => boots.len().checked_sub(usize::try_from(wanted.unsigned_abs()).ok()?).filter(|_| wanted != 0),
        _ => boots.iter().position(|boot| i64::try_from(boot.number) == Ok(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_are_numbered_found_and_bounded() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = Folder { name: "lab".into(), path: home.path().to_owned() };
        std::fs::create_dir_all(folder.machine("web")).expect("a folder");
        assert_eq!(read(&folder, "web").expect("nothing"), []);
        for from in [0, 10, 10, 30] {
            begin(&folder, "web", from, from).expect("written");
        }
        let boots = read(&folder, "web").expect("boots");
        let boot = |number, from| Boot { number, at_ms: from, from };
        assert_eq!(boots, [boot(1, 0), boot(2, 10), boot(3, 30)]);
        let found = |wanted| find(&boots, wanted).map(|position| boots[position].number);
        assert_eq!([1, 3, -1, -3].map(found), [Some(1), Some(3), Some(3), Some(1)]);
        assert_eq!([0, 4, -4, i64::MIN, i64::MAX].map(found), [None; 5]);
        for from in 31..1000 {
            begin(&folder, "web", from, from).expect("written");
        }
        let boots = read(&folder, "web").expect("boots");
        assert!(boots.len() <= KEPT + SLACK && boots.last() == Some(&boot(972, 999)), "{}", boots.len());
    }
}
