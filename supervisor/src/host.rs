//! Can this host run the lab, and where are the programs that it takes?

use std::path::{Path, PathBuf};

use labyard_spec::manifest::{Fault, Lab, Manifest};

/// Overrides the look at the processor: `force` runs guests on any `/dev/kvm`.
pub const KVM_VARIABLE: &str = "LABYARD_KVM";
/// Another file in place of `/dev/kvm`, for tests with a monitor that needs none.
pub const KVM_DEVICE_VARIABLE: &str = "LABYARD_KVM_DEVICE";
/// Folder of the programs that `labyard` starts.
pub const LIBEXEC_VARIABLE: &str = "LABYARD_LIBEXEC";

/// Why the lab cannot run here.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HostError {
    #[error(
        "this host cannot run Linux guests: /proc/cpuinfo has neither vmx nor svm; turn virtualisation on in the firmware (or nested \
         virtualisation, in a virtual machine), use the emulated test host (tests/host/run in the source), or set {KVM_VARIABLE}=force where you know better"
    )]
    NoVirtualisation,
    #[error("{path}: {why}; load the module kvm_intel or kvm_amd and give yourself access (group kvm)")]
    NoKvm { path: PathBuf, why: String },
    #[error(
        "the machines ask for {asked_mib} MiB of memory, this host has {has_mib} MiB; give them less ramSize or take fewer of them"
    )]
    Memory { asked_mib: u64, has_mib: u64 },
    #[error("reading {path}")]
    Read { path: &'static str, source: std::io::Error },
    #[error("the program `{name}` is not in {folder}; install it there or set {LIBEXEC_VARIABLE}")]
    NoProgram { name: &'static str, folder: PathBuf },
    #[error("the path of this program")]
    Own(#[source] std::io::Error),
}

/// The file behind KVM.
pub fn kvm_device() -> PathBuf {
    std::env::var_os(KVM_DEVICE_VARIABLE).map_or_else(|| "/dev/kvm".into(), PathBuf::from)
}

/// Whether guests can run: a processor that has what it takes, and a device that we may open.
///
/// # Errors
/// What is missing, with the way out.
pub fn check_kvm() -> Result<(), HostError> {
    let read = |path| std::fs::read_to_string(path).map_err(|source| HostError::Read { path, source });
    let forced = std::env::var_os(KVM_VARIABLE).is_some_and(|value| value == "force");
    if !forced && !has_virtualisation(&read("/proc/cpuinfo")?) {
        return Err(HostError::NoVirtualisation);
    }
    let path = kvm_device();
    match std::fs::File::options().read(true).write(true).open(&path) {
        Ok(_) => Ok(()),
        Err(error) => Err(HostError::NoKvm { why: error.to_string(), path }),
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.flat_map(str::split_ascii_whitespace).any(|flag| flag == "vmx" || flag == "svm")
}

/// Memory of this host, where its kernel tells.
///
/// # Errors
/// What reading /proc/meminfo says.
pub fn memory_mib() -> Result<Option<u64>, HostError> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).map_err(|source| HostError::Read { path, source })?;
    Ok(total_mib(&text))
}

/// Whether the host has the memory that the machines ask for.
///
/// # Errors
/// The two numbers.
pub fn check_memory(lab: &Lab) -> Result<(), HostError> {
    let asked_mib = lab.machines.iter().fold(0u64, |sum, machine| sum.saturating_add(machine.memory_mib));
    match memory_mib()? {
        Some(has_mib) if asked_mib > has_mib => Err(HostError::Memory { asked_mib, has_mib }),
        _ => Ok(()),
    }
}

/// Where the kernel tells of the huge pages that were set aside (Documentation/admin-guide/mm/hugetlbpage.rst).
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Whether the host has set aside as many huge pages as machines want: the first of them that finds none left.
///
/// # Errors
/// The complaint about it, with the numbers.
pub fn check_huge_pages(manifest: &Manifest) -> Result<(), Fault> {
    let number = |name: &str| {
        let text = std::fs::read_to_string(Path::new(HUGE_PAGES).join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0u64)
    };
    enough_huge_pages(manifest, number("free_hugepages").saturating_sub(number("resv_hugepages")))
}

fn enough_huge_pages(manifest: &Manifest, free: u64) -> Result<(), Fault> {
    let mut left = free;
    for (position, machine) in manifest.lab.machines.iter().enumerate() {
        let Some(place) = machine.huge_pages else { continue };
        let wanted = machine.memory_mib / 2;
        left = left.checked_sub(wanted).ok_or_else(|| {
            let all: u64 = manifest
                .lab
                .machines
                .iter()
                .filter(|other| other.huge_pages.is_some())
                .map(|other| other.memory_mib / 2)
                .sum();
            let path = format!("machines[{position}].labyard.hugePages");
            let message = format!(
                "{wanted} huge pages of 2MiB, {left} of the {free} that are free on this host are left: \
                 set aside {all} or more (sysctl vm.nr_hugepages), or leave the field out"
            );
            manifest.fault(place, path, message)
        })?;
    }
    Ok(())
}

fn total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? >> 10)
}

/// Finds the programs that belong to `labyard`.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Those in `$LABYARD_LIBEXEC`, else beside this program.
    ///
    /// # Errors
    /// Where this program cannot tell where it is.
    pub fn locate() -> Result<Self, HostError> {
        if let Some(folder) = std::env::var_os(LIBEXEC_VARIABLE) {
            return Ok(Self { folder: folder.into() });
        }
        let own = std::env::current_exe().map_err(HostError::Own)?;
        Ok(Self { folder: own.parent().unwrap_or(Path::new("/")).to_owned() })
    }

    /// The path of one of them.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn find(&self, name: &'static str) -> Result<PathBuf, HostError> {
        let path = self.folder.join(name);
        if path.is_file() { Ok(path) } else { Err(HostError::NoProgram { name, folder: self.folder.clone() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_known_by_its_flags() {
        assert!(has_virtualisation("model name\t: x\nflags\t\t: fpu vmx sse"));
        assert!(has_virtualisation("flags\t\t: fpu svm"));
        assert!(!has_virtualisation("model name\t: vmx svm\nflags\t\t: fpu svme"));
    }

    #[test]
    fn machines_without_huge_pages_are_told_the_numbers() {
        let machine = |name: &str, own: &str| {
            format!(
                "    - {{name: {name}, drives: [{{source: x, mount: /}}], network: {{interfaces: [{{network: local}}]}}, resources: {{ramSize: 64MiB}}{own}}}\n"
            )
        };
        let own = ", labyard: {hugePages: true}";
        let machines = [machine("a", own), machine("b", ""), machine("c", own)].concat();
        let text = format!("kind: playground\nname: lab\nplayground:\n  machines:\n{machines}");
        let manifest = Manifest::read(&text, "lab.yaml").expect("it keeps every rule");
        assert_eq!(enough_huge_pages(&manifest, 64), Ok(()));
        let fault = enough_huge_pages(&manifest, 40).expect_err("too few").to_string();
        let rest = "machines[2].labyard.hugePages: 32 huge pages of 2MiB, 8 of the 40 that are free on this host are left: \
                    set aside 64 or more (sysctl vm.nr_hugepages), or leave the field out";
        assert!(fault.starts_with("lab.yaml:7:") && fault.ends_with(rest), "{fault}");
    }

    #[test]
    fn total_memory_is_read_in_mib() {
        assert_eq!(total_mib("MemTotal:       24608888 kB\nMemFree: 1 kB"), Some(24032));
        assert_eq!(total_mib("nothing"), None);
    }
}
