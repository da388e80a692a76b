//! How each VMM is started: by one shell line that says "here" and becomes the VMM, so that the clock starts at its exec.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// What is booted.
pub struct Guest {
    /// An ELF image with a PVH entry.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// MiB of memory.
    pub memory_mib: u64,
}

impl Guest {
    /// The command line, for every VMM the one that labyard's builds.
    pub fn command_line() -> String {
        labyard_vmm::boot::command_line("")
    }
}

/// A VMM that was told to boot.
pub struct Started {
    /// The process; its standard output says one byte when it is about to exec.
    pub child: Child,
    /// Where the guest prints, if not there.
    pub console: Option<PipeReader>,
    /// Labyard's control socket.
    pub control: Option<UnixStream>,
}

/// What the shell does first.
const HERE: &str = "printf . && exec";

/// Labyard's vmm without its jail, as the jail starts it: descriptors at fixed numbers (`docs/formats.md`).
pub fn labyard(program: &Path, guest: &Guest, folder: &Path) -> Result<Started> {
    labyard_with(program, guest, folder, Vec::new(), &json!([]))
}

/// The same with drives, whose files have the slots from 3 on.
pub(crate) fn labyard_with(
    program: &Path,
    guest: &Guest,
    folder: &Path,
    more: Vec<OwnedFd>,
    drives: &Value,
) -> Result<Started> {
    let socket = folder.join("control.sock");
    drop(std::fs::remove_file(&socket)); // of the last boot, if there was one
    let listener = UnixListener::bind(&socket).context("control.sock")?;
    let control = UnixStream::connect(&socket).context("control.sock")?;
    let (console, printed) = io::pipe()?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{HERE} \"$0\" 3<&0 </dev/null 4<>/dev/kvm 5>/dev/null")]).arg(program);
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::piped());
    let child = command.spawn().context("sh")?;
    drop(command); // and with it our end of the listening socket

    let open = |path: &Path| std::fs::File::open(path).map(OwnedFd::from).with_context(|| path.display().to_string());
    let files: Vec<_> =
        [open(&guest.kernel)?, open(&guest.initramfs)?, printed.into()].into_iter().chain(more).collect();
    send(&control, &json!({"descriptors": {"first": 0, "count": files.len()}}), &files)?;
    let boot = json!({"kernel": 0, "initrd": [1], "extra_cmdline": ""});
    let machine = json!({
        "name": "bench", "cpu_count": 1, "memory_mib": guest.memory_mib, "boot": boot, "drives": drives, "interfaces": [], "cid": 3,
        "console_log": 2,
    });
    send(&control, &json!({"create": {"name": "bench", "networks": [], "machines": [machine]}}), &[])?;
    Ok(Started { child, console: Some(console), control: Some(control) })
}

/// The arguments of QEMU's microvm, without what it does not need to boot. Leaner still would be
/// `kernel-irqchip=split,pit=off,pic=off`; in the emulated test host one boot of 14 stood still that way, and why is not known.
pub fn qemu_arguments(guest: &Guest) -> Vec<String> {
    let memory = format!("{}M", guest.memory_mib);
    let (kernel, initramfs) = (guest.kernel.display().to_string(), guest.initramfs.display().to_string());
    let line = Guest::command_line();
    let words = [
        "-M",
        "microvm,acpi=on,rtc=off,isa-serial=on",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        &memory,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
        "-kernel",
        &kernel,
        "-initrd",
        &initramfs,
        "-append",
        &line,
    ];
    words.map(str::to_owned).to_vec()
}

/// QEMU's microvm.
pub fn qemu(program: &Path, guest: &Guest) -> Result<Started> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{HERE} \"$0\" \"$@\" </dev/null")]).arg(program).args(qemu_arguments(guest));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("sh")?;
    Ok(Started { child, console: None, control: None })
}

/// One message to labyard's control socket: a length, JSON, and descriptors beside the first byte.
pub(crate) fn send(socket: &UnixStream, message: &Value, files: &[OwnedFd]) -> Result<()> {
    let body = serde_json::to_vec(message)?;
    let bytes = [&u32::try_from(body.len())?.to_le_bytes(), body.as_slice()].concat();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    ensure!(files.is_empty() || beside.push(SendAncillaryMessage::ScmRights(&borrowed)), "too many descriptors");
    let sent = sendmsg(socket, &[io::IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    ensure!(sent == bytes.len(), "the control socket took {sent} of {} bytes", bytes.len());
    Ok(())
}

/// One reply of labyard's control socket.
fn receive(mut socket: &UnixStream) -> Result<Value> {
    let mut length = [0; 4];
    io::Read::read_exact(&mut socket, &mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    io::Read::read_exact(&mut socket, &mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Takes the replies to what was sent at the start.
pub(crate) fn replies(control: &UnixStream) -> Result<()> {
    for what in ["descriptors", "create"] {
        let reply = receive(control)?;
        ensure!(reply == "done", "{what}: {reply}");
    }
    Ok(())
}

/// Asks labyard for the milestones of the boot, in microseconds since its start.
pub fn milestones(control: &UnixStream) -> Result<Vec<(String, f64)>> {
    replies(control)?;
    send(control, &json!("status"), &[])?;
    let status = receive(control)?;
    let list =
        status["status"]["machines"][0]["boot_us"].as_array().with_context(|| format!("no milestones in {status}"))?;
    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_f64()?));
    list.iter().map(|entry| pair(entry).with_context(|| format!("a milestone like {entry}"))).collect()
}
