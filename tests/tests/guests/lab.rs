//! A lab that runs, and checks on it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use labyard_spec::control::{Reply, Request};
use serde_json::Value;

use crate::host::{self, Said};

/// How long a change of state may take in the emulated host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lab; taken down when dropped, whatever became of the test.
pub(crate) struct Lab {
    name: &'static str,
    failures: Vec<String>,
}

/// Writes a manifest below `folder`; `machines` is YAML with one entry a line, already indented for a list.
pub(crate) fn manifest(folder: &Path, name: &str, machines: &str) -> Result<PathBuf> {
    let layout = host::given("LABYARD_TEST_LAYOUT")?;
    let image = format!("oci-layout:{}:debian", layout.display());
    let text = format!(
        "kind: playground\nname: {name}\nplayground:\n  networks: [{{name: local, subnet: 172.16.0.0/24, private: true}}]\n  machines:\n{machines}"
    );
    let path = folder.join(format!("{name}.yaml"));
    fs::write(&path, text.replace("IMAGE", &image))?;
    Ok(path)
}

/// Bytes that the host holds for the guest whose memory is this file.
pub(crate) fn held_bytes(memory: &fs::File) -> Result<u64> {
    Ok(memory.metadata()?.blocks() * 512)
}

/// Runs something; the most bytes that the host held for a guest meanwhile.
pub(crate) fn most_held_bytes(memory: &fs::File, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| -> Result<u64> {
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                most = held_bytes(memory)?.max(most);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(most)
        });
        let outcome = work();
        over.store(true, Ordering::SeqCst);
        let most = looking.join().map_err(|_| anyhow::anyhow!("the look at the memory panicked"))?;
        outcome.and(most)
    })
}

impl Lab {
    /// A lab that is about to come up under this name.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, failures: Vec::new() }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Brings it up.
    pub(crate) fn up(&self, manifest: &Path) -> Result<Said> {
        let manifest = manifest.to_str().context("a path in UTF-8")?;
        let said = host::run(&["up", manifest])?;
        if said.code != 0 {
            eprintln!("{}", self.words());
        }
        said.expect(0)
    }

    /// Runs a named check; its failure is kept for [`Lab::verdict`].
    pub(crate) fn check(&mut self, name: &str, check: impl FnOnce(&Self) -> Result<()>) {
        let start = Instant::now();
        let outcome = check(self);
        let took = start.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => eprintln!("  ok      {took:>6.1} s  {name}"),
            Err(error) => {
                eprintln!("  FAILED  {took:>6.1} s  {name}: {error:#}\n{}", self.words());
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Fails where a check has failed.
    pub(crate) fn verdict(&self) -> Result<()> {
        if !self.failures.is_empty() {
            bail!("failed: {}", self.failures.join("; "));
        }
        Ok(())
    }

    /// Runs a program in a machine.
    pub(crate) fn exec(&self, machine: &str, argv: &[&str]) -> Result<Said> {
        let name = format!("{}/{machine}", self.name);
        host::run(&[&["exec", &name, "--"], argv].concat())
    }

    /// Runs a program in a machine with `input` on its standard input.
    pub(crate) fn exec_with(&self, machine: &str, argv: &[&str], input: &[u8]) -> Result<Said> {
        let name = format!("{}/{machine}", self.name);
        host::run_with(host::labyard(&[&["exec", "-i", &name, "--"], argv].concat())?, input)
    }

    /// Asks its vmm over the control socket (docs/formats.md).
    pub(crate) fn control(&self, request: &Request) -> Result<Reply> {
        let socket = host::given("LABYARD_HOME")?.join("playgrounds").join(self.name).join("control.sock");
        let mut stream = UnixStream::connect(&socket).with_context(|| socket.display().to_string())?;
        let body = serde_json::to_vec(request)?;
        stream.write_all(&u32::try_from(body.len())?.to_le_bytes())?;
        stream.write_all(&body)?;
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut reply = vec![0; u32::from_le_bytes(len) as usize];
        stream.read_exact(&mut reply)?;
        Ok(serde_json::from_slice(&reply)?)
    }

    /// What `ps` says of this lab; `None` where it knows none.
    pub(crate) fn ps(&self) -> Result<Option<Value>> {
        let said = host::run(&["ps", "--json"])?.expect(0)?;
        let document: Value = serde_json::from_slice(&said.stdout)?;
        let labs = document["labs"].as_array().context("labs")?;
        Ok(labs.iter().find(|lab| lab["name"] == self.name).cloned())
    }

    /// Waits until `ps` says of a machine that its state contains `word`.
    pub(crate) fn wait_for_state(&self, machine: &str, word: &str) -> Result<String> {
        let mut last = String::new();
        let look = || {
            let Some(lab) = self.ps()? else { return Ok(None) };
            let machines = lab["machines"].as_array().cloned().unwrap_or_default();
            let state = machines.iter().find(|shown| shown["name"] == machine).map(|shown| shown["state"].clone());
            let state = state.and_then(|state| state.as_str().map(str::to_owned)).unwrap_or_default();
            last.clone_from(&state);
            Ok(state.contains(word).then_some(state))
        };
        let outcome = host::wait_for(&format!("{machine}: {word}"), PATIENCE, look, String::new);
        outcome.with_context(|| format!("state at the end: {last}\n{}", self.words()))
    }

    /// Process ids of its supervisor and its vmm.
    pub(crate) fn processes(&self) -> Result<(u32, u32)> {
        let lab = self.ps()?.context("ps does not know the lab")?;
        let id = |name: &str| {
            lab[name].as_u64().and_then(|id| u32::try_from(id).ok()).with_context(|| format!("{name} in {lab}"))
        };
        Ok((id("supervisor_pid")?, id("vmm_pid")?))
    }

    /// The file that a machine's memory is, which tells what the host holds for it: its blocks. What a process has in its own page
    /// tables (`RssShmem`) is another thing.
    pub(crate) fn guest_memory(&self, machine: &str) -> Result<fs::File> {
        let (_, vmm) = self.processes()?;
        let name = format!("/memfd:{machine} ");
        let mut files = host::descriptors(vmm)?.into_iter();
        let file = files.find(|(link, _)| link.to_string_lossy().starts_with(&name));
        let (_, file) = file.with_context(|| format!("machine {machine}: no file `{name}` in process {vmm}"))?;
        Ok(file.into())
    }

    /// The ends of all its logs.
    pub(crate) fn words(&self) -> String {
        let Ok(home) = host::given("LABYARD_HOME") else { return String::new() };
        let folder = home.join("playgrounds").join(self.name);
        let mut files = vec![folder.join("supervisor.log"), folder.join("vmm.log"), folder.join("events.jsonl")];
        for machine in fs::read_dir(folder.join("machines")).into_iter().flatten().flatten() {
            files.push(machine.path().join("console.log"));
        }
        let tail = |path: &PathBuf| {
            let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().collect();
            format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        files.iter().map(tail).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        match host::run(&["down", self.name, "--grace", "5s"]) {
            Ok(said) if said.code == 0 => {}
            other => eprintln!("labyard down {}: {other:?}", self.name),
        }
    }
}
