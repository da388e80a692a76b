//! A state directory of its own for each test, with fake programs around the real `labyard`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use labyard_rootfs_builder::store::KERNEL_FORMAT;
use serde_json::{Value, json};

/// How long anything may take before the test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A state directory, and the programs that `labyard` finds.
pub(crate) struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::within(tempfile::tempdir().expect("a folder"))
    }

    /// One that lies where the test wants it.
    pub(crate) fn within(folder: tempfile::TempDir) -> Self {
        let libexec = folder.path().join("libexec");
        fs::create_dir(&libexec).expect("a folder");
        let here = std::env::current_exe().expect("the path of this test");
        let examples = here.ancestors().nth(2).expect("a target folder").join("examples");
        for (name, example) in [
            ("labyard-jail", "fake-jail"),
            ("labyard-vmm", "fake-vmm"),
            ("labyard-uplink", "fake-uplink"),
            ("rootfs-builder", "fake-builder"),
        ] {
            symlink(examples.join(example), libexec.join(name)).expect("a link");
        }
        fs::write(libexec.join("labyard-init"), b"init").expect("writing");
        let kernel = folder.path().join("home/kernels/6.12.1-0123456789ab");
        fs::create_dir_all(&kernel).expect("a folder");
        fs::write(kernel.join("vmlinux"), b"kernel").expect("writing");
        let record = json!({
            "id": "6.12.1-0123456789ab", "version": "6.12.1", "series": "6.12", "digest": "sha256:0",
            "early_modules": [], "late_modules": [], "stock": false, "format": KERNEL_FORMAT,
        });
        fs::write(kernel.join("kernel.json"), record.to_string()).expect("writing");
        Self { folder }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// The folder of a lab.
    pub(crate) fn lab(&self, name: &str) -> PathBuf {
        self.home().join("playgrounds").join(name)
    }

    /// `labyard` with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_labyard"));
        command
            .args(arguments)
            .env("LABYARD_HOME", self.home())
            .env("LABYARD_LIBEXEC", self.folder.path().join("libexec"));
        command.env("LABYARD_KVM", "force").env("LABYARD_KVM_DEVICE", "/dev/null").stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("labyard starts")
    }

    /// Runs it, and expects this exit code.
    pub(crate) fn expect(&self, code: i32, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stdout}\n{stderr}\n{}", self.logs());
        (stdout, stderr)
    }

    /// What the processes of all labs have said, for whoever has to find out why a test failed.
    fn logs(&self) -> String {
        let labs = fs::read_dir(self.home().join("playgrounds")).into_iter().flatten().flatten();
        let logs = labs.flat_map(|lab| ["supervisor.log", "vmm.log"].map(|name| lab.path().join(name)));
        logs.filter_map(|log| Some(format!("{}:\n{}\n", log.display(), fs::read_to_string(&log).ok()?))).collect()
    }

    /// Writes a manifest with machines of these names, each on one private network.
    pub(crate) fn manifest(&self, name: &str, machines: &[&str]) -> String {
        let machine = |name: &&str| {
            json!({
                "name": name,
                "drives": [{ "source": "debian", "mount": "/", "size": "1MiB" }],
                "network": { "interfaces": [{ "network": "local" }] },
                "resources": { "ramSize": "32MiB" },
            })
        };
        let machines: Vec<_> = machines.iter().map(machine).collect();
        self.write_manifest(
            name,
            &json!({
                "kind": "playground", "name": name,
                "playground": {
                    "networks": [{ "name": "local", "subnet": "172.16.0.0/24", "private": true }],
                    "machines": machines,
                },
            }),
        )
    }

    /// Writes a manifest; JSON is YAML.
    pub(crate) fn write_manifest(&self, name: &str, manifest: &Value) -> String {
        let path = self.folder.path().join(format!("{name}.yaml"));
        fs::write(&path, manifest.to_string()).expect("writing");
        path.display().to_string()
    }

    /// Brings up a lab with machines of these names.
    pub(crate) fn up(&self, name: &str, machines: &[&str]) {
        self.expect(0, &["up", &self.manifest(name, machines)]);
    }

    /// The only lab, as `ps --json` shows it.
    pub(crate) fn ps(&self) -> Value {
        let (stdout, _) = self.expect(0, &["ps", "--json"]);
        let mut shown: Value = serde_json::from_str(&stdout).expect("one document");
        shown["labs"][0].take()
    }

    /// Processes that hold a file below the state directory open, or have it in their environment.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let home = self.folder.path().to_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            let named = environ.windows(home.as_os_str().len()).any(|part| part == home.as_os_str().as_encoded_bytes());
            let descriptors = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            let holds = |path: &Path| fs::read_link(path).is_ok_and(|target| target.starts_with(&home));
            if pid != std::process::id().cast_signed() && (named || descriptors.into_iter().any(|fd| holds(&fd.path())))
            {
                found.push(pid);
            }
        }
        found
    }

    /// Nothing of any lab is left.
    pub(crate) fn assert_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.home().join("playgrounds")).expect("listing").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        until("every process is gone", || self.processes().is_empty());
    }
}

impl Drop for Host {
    /// A test that failed half way leaves no process behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in fs::read_dir(self.home().join("playgrounds")).into_iter().flatten().flatten() {
                for name in ["supervisor.log", "vmm.log", "events.jsonl"] {
                    eprintln!("--- {name}\n{}", fs::read_to_string(entry.path().join(name)).unwrap_or_default());
                }
            }
            for pid in self.processes() {
                kill(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A command that runs, and what it prints on standard output.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::on_terminal(command.stderr(Stdio::piped()))
    }

    /// The same with standard error where the command has it.
    pub(crate) fn on_terminal(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    /// Reads until a line has this text; the line.
    pub(crate) fn wait_for(&mut self, part: &str) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).expect("text") > 0 {
            if line.contains(part) {
                return line;
            }
            line.clear();
        }
        panic!("it ended before it said `{part}`");
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        kill(self.child.id().cast_signed(), signal);
    }

    /// Its exit code and standard error.
    pub(crate) fn end(self) -> (Option<i32>, String) {
        // Kept open until now: a command that prints must not find a closed pipe.
        let Self { child, lines } = self;
        let output = child.wait_with_output().expect("waiting");
        drop(lines);
        (output.status.code(), text(&output.stderr))
    }
}

pub(crate) fn kill(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether all threads of a process have ended, and so its descriptors are closed. Its memory, and with that `exe`, goes before.
pub(crate) fn has_ended(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    // proc_pid_stat(5): the state follows the name in brackets.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'));
    threads <= 1 && is_zombie
}

/// Looks until it holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
