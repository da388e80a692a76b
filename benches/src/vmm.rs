//! How each VMM is started: by one shell line that says "here" and becomes the VMM, so that the clock starts at its exec.

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};

/// What is booted.
pub struct Guest {
    /// An ELF image with a PVH entry.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// MiB of memory.
    pub memory_mib: u64,
    /// It has a drive to write to and a network card, as a machine of a lab has; else neither.
    pub furnished: bool,
}

/// Bytes of the drive.
const DRIVE_BYTES: u64 = 4 << 30;

impl Guest {
    /// The command line, for every VMM the one that labyard's builds.
    pub fn command_line() -> String {
        labyard_vmm::boot::command_line("")
    }
}

/// A VMM that was told to boot.
pub struct Started {
    /// The process; its standard output says one byte when it is about to exec.
    pub process: Process,
    /// Where the guests print, if not there.
    pub consoles: Vec<PipeReader>,
    /// Labyard's control socket.
    pub control: Option<UnixStream>,
}

/// A VMM, and what has started it where that is another process. Both end with this.
pub struct Process {
    /// What was started: a VMM, or the jail.
    pub child: Child,
    /// The VMM that the jail has made, a child of this process, too.
    jailed: Option<Pid>,
    /// When it was about to exec, once that is known.
    here: Option<Instant>,
}

impl Process {
    /// Waits until it is about to exec; when that was.
    pub fn wait_for_exec(&mut self) -> Result<Instant> {
        if let Some(here) = self.here {
            return Ok(here);
        }
        let output = self.child.stdout.as_mut().context("standard output is not a pipe")?;
        output.read_exact(&mut [0]).context("sh did not come to its exec")?;
        Ok(*self.here.insert(Instant::now()))
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.jailed.map_or_else(|| self.child.id(), |pid| pid.as_raw_nonzero().get().cast_unsigned())
    }

    fn end(&mut self) {
        if let Some(pid) = self.jailed {
            let _ = kill_process(pid, Signal::KILL); // gone already is as good
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        let _ = self.child.kill(); // as above
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self { child, jailed: None, here: None }
    }
}

/// What the shell does first.
pub(crate) const HERE: &str = "printf . && exec";

/// Machines of one vmm that are measured, at most: what is sent of them fits in one message.
pub const MAX_MACHINES: usize = 60;

/// Labyard's vmm in its jail. It runs so many machines, all alike.
pub fn labyard(program: &Path, guest: &Guest, folder: &Path, machines: usize) -> Result<Started> {
    ensure!((1..=MAX_MACHINES).contains(&machines), "{machines} machines, not 1 to {MAX_MACHINES}");
    let (process, control) = begin(program, folder, machines)?;
    let open = |path: &Path| File::open(path).map(OwnedFd::from).with_context(|| path.display().to_string());
    let mut files = vec![open(&guest.kernel)?, open(&guest.initramfs)?];
    let (mut consoles, mut list) = (Vec::new(), Vec::new());
    for number in 0..machines {
        let (console, printed) = io::pipe()?;
        consoles.push(console);
        let console_log = files.len();
        files.push(printed.into());
        let (mut drives, mut interfaces) = (Vec::new(), Vec::new());
        if guest.furnished {
            let (data, map) = (files.len(), files.len() + 1);
            for what in ["data", "map"] {
                files.push(empty(&folder.join(format!("{number}.{what}")), 0)?.into());
            }
            // Not the drive that the guest's init waits for.
            drives.push(json!({
                "serial": "x00", "read_only": false, "base": null,
                "overlay": {"frozen": [], "top": {"data": data, "map": map}, "capacity_bytes": DRIVE_BYTES},
            }));
            interfaces.push(json!({"network": "local", "mac": format!("02:00:00:00:00:{number:02x}"), "mtu": 1500}));
        }
        list.push(json!({
            "name": format!("bench{number}"), "cpu_count": 1, "memory_mib": guest.memory_mib,
            "boot": {"kernel": 0, "initrd": [1], "extra_cmdline": ""}, "drives": drives, "interfaces": interfaces,
            "cid": 3 + number, "console_log": console_log,
        }));
    }
    let network = json!({"name": "local", "subnet": "172.16.0.0/24", "gateway": "172.16.0.1", "private": true});
    create(&control, &files, &[network], &list)?;
    Ok(Started { process, consoles, control: Some(control) })
}

/// Descriptors of the vmm in its jail, at most: what [`MAX_MACHINES`] machines need, and more.
const MAX_DESCRIPTORS: u64 = 8192;

/// The vmm in the jail that lies beside it, as the supervisor starts it (`docs/formats.md`), and its control socket. It makes so many
/// rings. What it has to say is in `vmm.log`.
pub(crate) fn begin(program: &Path, folder: &Path, rings: usize) -> Result<(Process, UnixStream)> {
    let socket = folder.join("control.sock");
    drop(std::fs::remove_file(&socket)); // of the last boot, if there was one
    let listener = UnixListener::bind(&socket).context("control.sock")?;
    let control = UnixStream::connect(&socket).context("control.sock")?;
    let jail = program.with_file_name("labyard-jail");
    let (mut talk, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/bin/sh");
    // Two sockets come as standard input and error, the rest is opened here; numbers of one digit are what a shell has.
    let opened = "exec 3<&0 8<&2 2>>\"$1\" 0</dev/null 4<>/dev/kvm 5<>/dev/null 6<\"$2\"";
    command.args(["-c", &format!("{opened}; {HERE} \"$0\"")]).args([&jail, &folder.join("vmm.log")]).arg(program);
    command.stdin(OwnedFd::from(theirs)).stderr(OwnedFd::from(listener)).stdout(Stdio::piped());
    let mut process = Process::from(command.spawn().context("sh")?);
    drop(command); // and with it our ends of the sockets
    process.wait_for_exec()?;
    let descriptors = [(5, 0), (5, 1), (2, 2), (8, 3), (4, 4), (5, 5)];
    let spec = json!({
        "program": 6, "argv": ["labyard-vmm", "--rings", rings.to_string()], "descriptors": descriptors,
        "max_descriptors": MAX_DESCRIPTORS, "max_threads": null, "confine": true,
    });
    writeln!(talk, "{spec}").context("labyard-jail")?;
    let mut line = String::new();
    BufReader::new(&talk).read_line(&mut line).context("labyard-jail")?;
    let pid = line.trim_end().parse().ok().and_then(Pid::from_raw);
    let pid =
        pid.with_context(|| format!("labyard-jail names no process but says `{}`; see vmm.log", line.trim_end()))?;
    if pid.as_raw_nonzero().get().cast_unsigned() != process.child.id() {
        process.jailed = Some(pid);
    }
    talk.write_all(b"go\n").context("labyard-jail")?;
    Ok((process, control))
}

/// Hands over the files and asks for the machines; the reply to that is still to come.
pub(crate) fn create(control: &UnixStream, files: &[OwnedFd], networks: &[Value], machines: &[Value]) -> Result<()> {
    for (first, batch) in (0..).step_by(MAX_SENT).zip(files.chunks(MAX_SENT)) {
        send(control, &json!({"descriptors": {"first": first, "count": batch.len()}}), batch)?;
        let reply = receive(control)?;
        ensure!(reply == "done", "descriptors: {reply}");
    }
    send(control, &json!({"create": {"name": "bench", "networks": networks, "machines": machines}}), &[])
}

/// An empty file of this length, also where there is one already.
pub(crate) fn empty(path: &Path, len_bytes: u64) -> Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    file.set_len(len_bytes)?;
    Ok(file)
}

/// What a machine of QEMU's has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// What each machine of labyard's has, too: a console, an entropy source, a balloon that free memory is reported to, and vsock where
    /// the host's kernel has its side of it.
    Alike,
    /// No device but the serial port that the marker comes through.
    Bare,
}

impl Peer {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alike => "QEMU microvm, same devices",
            Self::Bare => "QEMU microvm, no devices",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        const DEVICES: [&str; 10] = [
            "-device",
            "virtio-serial-device",
            "-chardev",
            "null,id=console",
            "-device",
            "virtconsole,chardev=console",
            "-device",
            "virtio-rng-device",
            "-device",
            "virtio-balloon-device,free-page-reporting=on",
        ];
        match self {
            Self::Alike => &DEVICES,
            Self::Bare => &[],
        }
    }

    /// vsock is made by the host's kernel; each machine needs a number of its own.
    fn vsock(self, number: usize) -> Option<[String; 2]> {
        let there = self == Self::Alike && Path::new("/dev/vhost-vsock").exists();
        there.then(|| ["-device".to_owned(), format!("vhost-vsock-device,guest-cid={}", 3 + number)])
    }
}

/// The arguments of QEMU's microvm, without what it does not need to boot. Leaner still would be
/// `kernel-irqchip=split,pit=off,pic=off`; in the emulated test host one boot of 14 stood still that way, and why is not known.
pub fn qemu_arguments(guest: &Guest, peer: Peer, drive: &Path, number: usize) -> Vec<String> {
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
    let mut words: Vec<_> = words.iter().chain(peer.arguments()).map(|word| (*word).to_owned()).collect();
    words.extend(peer.vsock(number).into_iter().flatten());
    if guest.furnished {
        let drive = format!("file={},if=none,id=drive,format=raw", drive.display());
        let network = ["-netdev", "hubport,id=network,hubid=0", "-device", "virtio-net-device,netdev=network"];
        let more = ["-drive", &drive, "-device", "virtio-blk-device,drive=drive"];
        words.extend(more.into_iter().chain(network).map(str::to_owned));
    }
    words
}

/// QEMU's microvm; `number` tells the drives of several apart.
pub fn qemu(program: &Path, guest: &Guest, peer: Peer, folder: &Path, number: usize) -> Result<Started> {
    let drive = folder.join(format!("{number}.raw"));
    if guest.furnished {
        empty(&drive, DRIVE_BYTES)?;
    }
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{HERE} \"$0\" \"$@\" </dev/null")]).arg(program);
    command.args(qemu_arguments(guest, peer, &drive, number));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("sh")?;
    Ok(Started { process: child.into(), consoles: Vec::new(), control: None })
}

/// Descriptors beside one message.
const MAX_SENT: usize = 64;

/// One message to labyard's control socket: a length, JSON, and descriptors beside the first byte.
pub(crate) fn send(socket: &UnixStream, message: &Value, files: &[OwnedFd]) -> Result<()> {
    let body = serde_json::to_vec(message)?;
    let bytes = [&u32::try_from(body.len())?.to_le_bytes(), body.as_slice()].concat();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    ensure!(files.is_empty() || beside.push(SendAncillaryMessage::ScmRights(&borrowed)), "too many descriptors");
    let sent = sendmsg(socket, &[io::IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    ensure!(sent == bytes.len(), "the control socket took {sent} of {} bytes", bytes.len());
    Ok(())
}

/// One reply of labyard's control socket.
pub(crate) fn receive(mut socket: &UnixStream) -> Result<Value> {
    let mut length = [0; 4];
    Read::read_exact(&mut socket, &mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    Read::read_exact(&mut socket, &mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Takes the reply to what was asked for at the start.
pub(crate) fn created(control: &UnixStream) -> Result<()> {
    let reply = receive(control)?;
    ensure!(reply == "done", "create: {reply}");
    Ok(())
}

/// Asks labyard for the milestones of the boot, in microseconds since its start.
pub fn milestones(control: &UnixStream) -> Result<Vec<(String, f64)>> {
    created(control)?;
    send(control, &json!("status"), &[])?;
    let status = receive(control)?;
    let list =
        status["status"]["machines"][0]["boot_us"].as_array().with_context(|| format!("no milestones in {status}"))?;
    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_f64()?));
    list.iter().map(|entry| pair(entry).with_context(|| format!("a milestone like {entry}"))).collect()
}
