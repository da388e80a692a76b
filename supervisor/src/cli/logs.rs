//! What a machine printed, and what happened to a lab: both are files that grow.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use labyard_spec::control::Happening;
use labyard_spec::manifest::size;
use labyard_supervisor::boots;
use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::journal::{Entry, Reader, What};
use labyard_supervisor::record::{Standing, State, ended_text};
use labyard_supervisor::words;

use super::args::{Events, Logs};
use super::naming::{self, Among};
use super::{Failure, Outcome, output};

/// How often a file that grows is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn logs(home: &Home, logs: &Logs) -> Outcome {
    let (folder, machine) = naming::machine(home, &logs.machine, Among::All)?;
    let path = folder.machine(&machine).join(names::CONSOLE_LOG);
    if logs.boots {
        return list(&folder, &machine, &path, logs.json);
    }
    // To a terminal goes no sequence that it would obey: a guest wrote them.
    let print = |bytes: &[u8]| {
        if io::stdout().is_terminal() {
            output::bytes(words::printable(&String::from_utf8_lossy(bytes)).as_bytes());
        } else {
            output::bytes(bytes);
        }
    };
    let (mut position, until) = match logs.boot {
        None => (0, None),
        Some(wanted) => boot(&folder, &machine, wanted)?,
    };
    loop {
        let over = !follows(&folder)?;
        match File::open(&path) {
            Ok(mut file) => {
                // Shorter than before: the log was begun anew.
                if file.metadata()?.len() < position {
                    position = 0;
                }
                // The beginning of a long log is a hole: the vmm gave it back.
                position = data_from(&file, position)?;
                file.seek(SeekFrom::Start(position))?;
                let mut rest = (&mut file).take(until.unwrap_or(u64::MAX).saturating_sub(position));
                let mut chunk = vec![0; 64 << 10];
                loop {
                    let n = rest.read(&mut chunk)?;
                    if n == 0 {
                        break;
                    }
                    print(chunk.get(..n).unwrap_or_default());
                    position += n as u64;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        if !logs.follow || over || until.is_some_and(|until| position >= until) {
            return Ok(0);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Where in the log a boot begins, and where the next one does.
fn boot(folder: &Folder, machine: &str, wanted: i64) -> Result<(u64, Option<u64>), Failure> {
    let boots = boots::read(folder, machine)?;
    let Some(position) = boots::find(&boots, wanted) else {
        let known = match boots.as_slice() {
            [] => "none is known".to_owned(),
            [first, .., last] => format!("{} to {} are known", first.number, last.number),
            [only] => format!("{} is the only one", only.number),
        };
        return Err(Failure::input(format!(
            "machine `{machine}` has no boot {wanted}: {known}; `labyard logs {}/{machine} --boots` lists them",
            folder.name
        )));
    };
    let from = boots.get(position).map_or(0, |boot| boot.from);
    Ok((from, boots.get(position + 1).map(|next| next.from)))
}

/// The boots, and what is kept of each.
fn list(folder: &Folder, machine: &str, path: &Path, json: bool) -> Outcome {
    let boots = boots::read(folder, machine)?;
    let (start, end) = match File::open(path) {
        Ok(file) => (data_from(&file, 0)?, file.metadata()?.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0, 0),
        Err(error) => return Err(error.into()),
    };
    let ends = boots.iter().skip(1).map(|next| next.from).chain([end]);
    let rows = boots.iter().zip(ends).map(|(boot, end)| {
        let kept = end.saturating_sub(boot.from.max(start));
        (boot, end.saturating_sub(boot.from), kept)
    });
    if json {
        let rows = rows.map(|(boot, bytes, kept)| {
            serde_json::json!({ "number": boot.number, "at_ms": boot.at_ms, "bytes": bytes, "kept_bytes": kept })
        });
        output::document(&serde_json::json!({ "machine": machine, "boots": rows.collect::<Vec<_>>() }))?;
        return Ok(0);
    }
    for (boot, bytes, kept) in rows {
        let kept = if kept < bytes { format!(", {kept} of them kept") } else { String::new() };
        output::line(&format!("{:>4}  {}  {bytes} bytes{kept}", boot.number, output::moment(boot.at_ms)));
    }
    Ok(0)
}

/// Where bytes are, from `position` on.
fn data_from(file: &File, position: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
        Ok(found) => Ok(found),
        // Nothing there yet; or a file system that does not tell.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL) => Ok(position),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn events(home: &Home, events: &Events) -> Outcome {
    let folder = naming::lab_or_only(home, events.name.as_deref())?;
    let folder = folder.ok_or_else(|| Failure::input("no lab is there"))?;
    let mut reader = None;
    loop {
        let over = !follows(&folder)?;
        if reader.is_none() {
            reader = Reader::open(&folder)?;
        }
        for entry in reader.as_mut().map(Reader::entries).transpose()?.unwrap_or_default() {
            if events.json {
                output::document_line(&entry)?;
            } else {
                output::line(&format!("{} {}", output::moment(entry.at_ms), sentence(&entry)));
            }
        }
        if !events.follow || over {
            return Ok(0);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether more may come.
fn follows(folder: &Folder) -> Result<bool, Failure> {
    Ok(match State::read(folder)? {
        Some(state) => !matches!(state.standing(), Standing::Ended | Standing::Interrupted),
        None => false,
    })
}

/// An entry for people.
pub(crate) fn sentence(entry: &Entry) -> String {
    let what = match &entry.what {
        What::Condition { name, message } => format!("{name:?}: {message}"),
        What::Task { name, status, why } if why.is_empty() => format!("task {name}: {}", status.word()),
        What::Task { name, status, why } => format!("task {name}: {}: {why}", status.word()),
        What::Note(text) => text.clone(),
        What::Ended(reason) => format!("ended: {reason}"),
        What::Vmm { happening, .. } => match happening {
            Happening::Booting { .. } => "boots".to_owned(),
            Happening::Started => "started".to_owned(),
            Happening::Mapped { page_size } => format!("its memory is in pages of {}", size::show(*page_size)),
            Happening::Rebooted => "rebooted".to_owned(),
            Happening::Paused => "paused".to_owned(),
            Happening::Resumed => "resumed".to_owned(),
            Happening::Ended(state) => ended_text(state),
            Happening::HostDisk { drive, full: true, .. } => {
                format!("the host's disk has no room for what drive {drive} writes: it waits")
            }
            Happening::HostDisk { drive, full: false, .. } => {
                format!("the host's disk has room again, drive {drive} goes on")
            }
            Happening::GuestConnected { port } => format!("the guest called port {port} of the host"),
        },
    };
    match &entry.machine {
        Some(machine) => format!("{machine}: {what}"),
        None => what,
    }
}
