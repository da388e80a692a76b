//! The sections `labyard` of a machine and of a drive: what Labyard adds to the documented fields (`docs/adr/0005`).

use super::super::Place;
use super::super::document::{Drive, Machine as Written, Own};
use super::super::place::{Broken, broken, of};
use super::super::size;
use super::one_of;
use crate::playground::{CPU_TEMPLATES, Engine, Entry};

/// Bytes of a huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// What the section says, with its defaults.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) entry: Entry,
    pub(super) cpu_template: Option<String>,
    pub(super) nested: bool,
    pub(super) huge_pages: Option<Place>,
}

/// Checks the section of `machine`, whose memory is known already.
pub(super) fn check(machine: &Written, memory_mib: u64, path: &str) -> Result<Checked, Box<Broken>> {
    let Some(Own { entry, cpu_template, nested_virtualization, huge_pages }) = &machine.labyard else {
        return Ok(Checked::default());
    };
    let mut checked = Checked { nested: nested_virtualization.unwrap_or(false), ..Checked::default() };
    if let Some(written) = entry {
        one_of(written, &format!("{path}.labyard.entry"), &Entry::ALL.map(Entry::name))?;
        checked.entry = Entry::ALL.into_iter().find(|entry| entry.name() == written.value).unwrap_or_default();
    }
    if let Some(written) = cpu_template {
        one_of(written, &format!("{path}.labyard.cpuTemplate"), &CPU_TEMPLATES)?;
        checked.cpu_template = Some(written.value.clone());
    }
    if let Some(written) = huge_pages.as_ref().filter(|wanted| wanted.value) {
        let bytes = memory_mib << 20;
        if !bytes.is_multiple_of(HUGE_PAGE) {
            let (size, next) = (size::show(bytes), size::show(bytes.next_multiple_of(HUGE_PAGE)));
            let message = format!("{size} of memory are not whole huge pages of 2MiB: make ramSize {next}");
            return Err(broken(written, &format!("{path}.labyard.hugePages"), message));
        }
        checked.huge_pages = Some(of(written.referenced));
    }
    Ok(checked)
}

/// How the bytes of `drive` reach the host's files.
pub(super) fn engine(drive: &Drive, path: &str) -> Result<Engine, Box<Broken>> {
    let Some(written) = drive.labyard.as_ref().and_then(|own| own.engine.as_ref()) else {
        return Ok(Engine::Auto);
    };
    let known = [("auto", Engine::Auto), ("sync", Engine::Sync), ("uring", Engine::Uring)];
    one_of(written, &format!("{path}.labyard.engine"), &known.map(|(name, _)| name))?;
    Ok(known.into_iter().find(|(name, _)| *name == written.value).map_or(Engine::Auto, |(_, engine)| engine))
}
