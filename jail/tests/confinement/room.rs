//! A jail around a program of ours, as the supervisor would start it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use labyard_spec::jail::{GO, JailSpec, SPEC_FD};
use labyard_sys::pidfd::{Identity, Process};
use labyard_sys::spawn;

const PROGRAM: i32 = 10;
const REPORT: i32 = 11;
const SECRET: i32 = 12;
const INPUT: i32 = 13;

/// Examples lie beside the test, in `examples/`.
pub(crate) fn example(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("the path of this test");
    here.ancestors().nth(2).expect("a target folder").join("examples").join(name)
}

pub(crate) fn spec() -> JailSpec {
    JailSpec {
        program: PROGRAM,
        argv: vec!["probe".into(), "one".into()],
        // SECRET is source and target at once on purpose: it must not be lost.
        descriptors: vec![(INPUT, 0), (REPORT, 1), (2, 2), (REPORT, SECRET), (SECRET, 7)],
        max_descriptors: 512,
        max_threads: Some(64),
        confine: true,
    }
}

/// A jail that was started and told nothing yet.
pub(crate) struct Started {
    pub(crate) launcher: Child,
    pub(crate) stderr: ChildStderr,
    pub(crate) report: std::io::PipeReader,
    /// What the program waits for at its end.
    pub(crate) input: std::io::PipeWriter,
    pub(crate) talk: UnixStream,
    /// Where the jail's copy lies.
    _copy: tempfile::TempDir,
}

impl Started {
    /// Starts the jail with this program, as this user where one is named.
    pub(crate) fn new(program: &str, user: Option<u32>) -> Self {
        let (report, report_end) = std::io::pipe().expect("a pipe");
        let (input_end, input) = std::io::pipe().expect("a pipe");
        let (talk, theirs) = UnixStream::pair().expect("sockets");
        let secret = File::open("/dev/null").expect("/dev/null");
        let program = File::open(example(program)).expect("the program is built with the tests");
        // Another user may not get at the build's folder.
        let copy = tempfile::tempdir().expect("a folder");
        let jail = copy.path().join("labyard-jail");
        // By a program: what this process has open for writing, the children of other tests would have for a moment, too, and a program
        // that anybody may write to does not start (ETXTBSY).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_labyard-jail")).arg(&jail).status().expect("cp");
        assert!(copied.success(), "cp: {copied}");
        open_to_all(copy.path());
        let mut command = Command::new(&jail);
        command.stdin(Stdio::null()).stderr(Stdio::piped()).env("LEAK", "me");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let given: Vec<(OwnedFd, i32)> = vec![
            (theirs.into(), SPEC_FD),
            (program.into(), PROGRAM),
            (report_end.into(), REPORT),
            (secret.into(), SECRET),
            (input_end.into(), INPUT),
        ];
        spawn::give(&mut command, given);
        let mut launcher = command.spawn().expect("the jail starts");
        // Its copies of the pipes' ends go with the command.
        drop(command);
        let stderr = launcher.stderr.take().expect("piped");
        Self { launcher, stderr, report, input, talk, _copy: copy }
    }

    /// Tells it what to do; the process that becomes the program.
    pub(crate) fn tell(&mut self, spec: &JailSpec) -> Identity {
        let mut text = serde_json::to_vec(spec).expect("a spec is plain data");
        text.push(b'\n');
        if let Err(error) = self.talk.write_all(&text) {
            panic!("the jail does not hear its spec, {error}: {}", self.stderr());
        }
        let mut line = String::new();
        BufReader::new(&self.talk).read_line(&mut line).expect("an answer");
        let pid = line.trim_end().parse().ok();
        let pid = pid.unwrap_or_else(|| panic!("`{line}` is no pid: {}", self.stderr()));
        Identity::of(pid).expect("it lives")
    }

    /// What it has to say until it ends.
    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.stderr.read_to_string(&mut text).expect("text");
        text
    }

    /// Reaps the launcher; its exit code and what was said.
    pub(crate) fn refused(mut self) -> (Option<i32>, String) {
        self.talk.shutdown(std::net::Shutdown::Write).expect("hanging up");
        let status = self.launcher.wait().expect("waiting");
        (status.code(), self.stderr())
    }

    /// Lets the program begin.
    pub(crate) fn go(mut self, identity: Identity) -> Jailed {
        let process = identity.open().expect("a pidfd");
        self.talk.write_all(GO).expect("go");
        let status = self.launcher.wait().expect("the launcher ends");
        assert!(status.success(), "{status}: {}", self.stderr());
        Jailed {
            process,
            pid: identity.pid,
            stderr: self.stderr,
            report: BufReader::new(self.report),
            input: self.input,
        }
    }
}

fn open_to_all(folder: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder, mode).expect("a mode");
}

/// A program in its jail.
pub(crate) struct Jailed {
    pub(crate) process: Process,
    pub(crate) pid: i32,
    stderr: ChildStderr,
    report: BufReader<std::io::PipeReader>,
    input: std::io::PipeWriter,
}

impl Jailed {
    pub(crate) fn start(program: &str, user: Option<u32>) -> Self {
        let mut started = Started::new(program, user);
        let identity = started.tell(&spec());
        started.go(identity)
    }

    /// What it reports, by name, up to this fact.
    pub(crate) fn facts_until(&mut self, last: &str) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        while !facts.contains_key(last) {
            let mut line = String::new();
            if self.report.read_line(&mut line).expect("a report") == 0 {
                let mut text = String::new();
                self.stderr.read_to_string(&mut text).expect("text");
                panic!("it ended before it reported `{last}`: {facts:?}\n{text}");
            }
            if let Some((name, value)) = line.trim_end_matches('\n').rsplit_once('=') {
                facts.insert(name.to_owned(), value.to_owned());
            }
        }
        facts
    }

    /// Lets it end, and reaps it.
    pub(crate) fn end(self) -> std::process::ExitStatus {
        drop(self.input);
        self.process.reap().expect("it is our child")
    }
}
