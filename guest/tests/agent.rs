//! The agent over a socket pair, from the caller's side, with real programs of the machine that runs the tests.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use labyard_guest::agent::{Agent, State};
use labyard_spec::agent::{Exec, Exit, HEADER_BYTES, Kind, MAX_FRAME_BYTES, Request, header, parse_header};

/// Long enough for a machine under load; reached only where something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[path = "agent/access.rs"]
mod access;

struct Caller {
    stream: UnixStream,
    agent: JoinHandle<()>,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Exit(Exit),
    Error(String),
    /// The stream closed without a last frame.
    Closed,
}

struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: End,
}

impl Caller {
    fn new() -> Self {
        Self::of(agent(None))
    }

    fn of(agent: Agent) -> Self {
        Self::to(&Arc::new(agent))
    }

    /// Another call to an agent that others call, too.
    fn to(agent: &Arc<Agent>) -> Self {
        let agent = Arc::clone(agent);
        let (stream, theirs) = UnixStream::pair().expect("a socket pair");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        stream.set_write_timeout(Some(PATIENCE)).expect("a deadline");
        Self { stream, agent: std::thread::spawn(move || agent.serve(&theirs)) }
    }

    fn exec(exec: Exec) -> Self {
        let caller = Self::new();
        caller.send(Kind::Request, &serde_json::to_vec(&Request::Exec(exec)).expect("JSON"));
        caller
    }

    fn ask(agent: &Arc<Agent>, request: &Request) -> Self {
        let caller = Self::to(agent);
        caller.send(Kind::Request, &serde_json::to_vec(request).expect("JSON"));
        caller
    }

    fn send(&self, kind: Kind, payload: &[u8]) {
        self.raw(&header(kind, u32::try_from(payload.len()).expect("a length")));
        self.raw(payload);
    }

    fn raw(&self, bytes: &[u8]) {
        (&self.stream).write_all(bytes).expect("sending");
    }

    fn frame(&self) -> Option<(Kind, Vec<u8>)> {
        let mut head = [0; HEADER_BYTES];
        (&self.stream).read_exact(&mut head).ok()?;
        let (kind, len) = parse_header(head).expect("the agent's header");
        let mut payload = vec![0; len as usize];
        (&self.stream).read_exact(&mut payload).expect("the agent's payload");
        Some((kind, payload))
    }

    /// Reads standard output until it has `text`, so that the program is known to have come that far.
    fn wait_for(&self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let (kind, payload) = self.frame().unwrap_or_else(|| panic!("closed before `{text}`: {seen}"));
            assert_eq!(kind, Kind::Stdout, "{}", String::from_utf8_lossy(&payload));
            seen.push_str(&String::from_utf8_lossy(&payload));
        }
        seen
    }

    fn finish(self) -> Outcome {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let end = loop {
            match self.frame() {
                Some((Kind::Stdout, bytes)) => stdout.extend(bytes),
                Some((Kind::Stderr, bytes)) => stderr.extend(bytes),
                Some((Kind::Exit, json)) => break End::Exit(serde_json::from_slice(&json).expect("an exit")),
                Some((Kind::Error, text)) => break End::Error(String::from_utf8(text).expect("text")),
                Some((kind, _)) => panic!("the agent sent {kind:?}"),
                None => break End::Closed,
            }
        };
        drop(self.stream);
        self.agent.join().expect("the agent's thread");
        Outcome { stdout, stderr, end }
    }
}

fn agent(power: Option<OwnedFd>) -> Agent {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/root");
    let env = vec!["OF_IMAGE=yes".to_owned(), "OVERRIDDEN=image".to_owned()];
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_labyard-init"));
    Agent { binary, root, env, power, groups: None, state: State::default() }
}

/// The user who runs the tests, so that no privilege is needed.
fn me() -> Option<String> {
    Some(rustix::process::getuid().as_raw().to_string())
}

fn program(argv: &[&str]) -> Exec {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    Exec { argv, env: Vec::new(), working_dir: Some("/".to_owned()), user: me(), tty: None }
}

fn shell(script: &str) -> Exec {
    program(&["sh", "-c", script])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits for a condition of another process that announces itself to nobody.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::yield_now();
    }
}

/// A zombie is no longer running: its parent may be the machine's init, which takes its time.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    assert_eq!(Caller::exec(program(&["true"])).finish().end, End::Exit(Exit::Code(0)));
    assert_eq!(Caller::exec(shell("exit 42")).finish().end, End::Exit(Exit::Code(42)));
    assert_eq!(Caller::exec(shell("exit 255")).finish().end, End::Exit(Exit::Code(255)));
    assert_eq!(Caller::exec(shell("kill -TERM $$")).finish().end, End::Exit(Exit::Signal(15)));
}

#[test]
fn output_and_error_output_come_separately_and_whole() {
    let outcome = Caller::exec(shell("echo out; echo err >&2; head -c 300000 /dev/zero; echo last >&2")).finish();
    assert_eq!(outcome.stdout.len(), 300_004);
    assert_eq!((text(&outcome.stdout[..4]), text(&outcome.stderr)), ("out\n".to_owned(), "err\nlast\n".to_owned()));
    assert_eq!(outcome.end, End::Exit(Exit::Code(0)));
}

#[test]
fn ten_mebibytes_pass_through_unchanged_while_both_sides_talk() {
    let caller = Caller::exec(program(&["cat"]));
    let sent: Vec<u8> = (0..10_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = caller.stream.try_clone().expect("a second handle");
    let all = sent.clone();
    let sending = std::thread::spawn(move || {
        for part in all.chunks(MAX_FRAME_BYTES as usize) {
            writer.write_all(&header(Kind::Stdin, u32::try_from(part.len()).expect("a length"))).expect("sending");
            writer.write_all(part).expect("sending");
        }
        writer.write_all(&header(Kind::Stdin, 0)).expect("closing the input");
    });
    let outcome = caller.finish();
    sending.join().expect("the sender");
    assert!(outcome.stdout == sent, "{} bytes came back", outcome.stdout.len());
    assert_eq!(outcome.end, End::Exit(Exit::Code(0)));
}

#[test]
fn a_program_that_ignores_its_input_still_ends_the_call() {
    let caller = Caller::exec(shell("exec <&-; echo closed; read -r never < /dev/null; exit 3"));
    caller.wait_for("closed");
    caller.send(Kind::Stdin, &[b'x'; 1000]);
    assert_eq!(caller.finish().end, End::Exit(Exit::Code(3)));
}

#[test]
fn what_stays_in_the_background_is_not_waited_for() {
    let outcome = Caller::exec(shell("sleep 300 & echo $!")).finish();
    assert_eq!(outcome.end, End::Exit(Exit::Code(0)));
    let pid = text(&outcome.stdout).trim().to_owned();
    assert!(runs(&pid), "the program in the background was ended");
    let pid = rustix::process::Pid::from_raw(pid.parse().expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ending it");
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let caller = Caller::exec(shell("trap 'echo got; exit 7' INT; echo up; while :; do sleep 300 & wait; done"));
    caller.wait_for("up");
    caller.send(Kind::Signal, &[2]);
    let outcome = caller.finish();
    assert_eq!((text(&outcome.stdout).as_str(), outcome.end), ("got\n", End::Exit(Exit::Code(7))));
}

#[test]
fn what_is_not_there_is_told_by_name() {
    let mut nowhere = program(&["true"]);
    nowhere.working_dir = Some("/no/such/folder".to_owned());
    let mut nobody = program(&["true"]);
    nobody.user = Some("eve".to_owned());
    for (exec, part) in [
        (program(&["no-such-command"]), "command not found: no-such-command"),
        (program(&["/no/such/command"]), "command not found: /no/such/command"),
        (program(&["/etc/passwd"]), "/etc/passwd"),
        (program(&[]), "argv is empty"),
        (program(&["a\0b"]), "NUL"),
        (nowhere, "/no/such/folder"),
        (nobody, "`eve`"),
    ] {
        match Caller::exec(exec).finish().end {
            End::Error(error) => assert!(error.contains(part), "{error}"),
            other => panic!("{part}: {other:?}"),
        }
    }
}

#[test]
fn the_environment_is_the_users_then_the_images_then_the_callers() {
    let mut exec = shell("echo $HOME $USER $LOGNAME $SHELL $OF_IMAGE $OVERRIDDEN; pwd; env | wc -l");
    exec.env = vec!["OVERRIDDEN=caller".to_owned()];
    exec.working_dir = None;
    let outcome = Caller::exec(exec).finish();
    let uid = rustix::process::getuid();
    let user = if uid.is_root() { "tester".to_owned() } else { uid.as_raw().to_string() };
    let expected = if uid.is_root() {
        format!("/tmp {user} {user} /bin/false yes caller\n/tmp\n")
    } else {
        format!("/ {user} {user} /bin/sh yes caller\n/\n")
    };
    assert!(text(&outcome.stdout).starts_with(&expected), "{}", text(&outcome.stdout));
}

#[test]
fn root_may_run_a_program_as_somebody_else() {
    if !rustix::process::getuid().is_root() {
        // Without the right to switch, the attempt is refused with its reason.
        let mut exec = program(&["id", "-u"]);
        exec.user = Some("other".to_owned());
        assert!(matches!(Caller::exec(exec).finish().end, End::Error(_)));
        return;
    }
    let mut exec = shell("id -u; id -g; id -G; cat /proc/self/oom_score_adj");
    exec.user = Some("other".to_owned());
    assert_eq!(text(&Caller::exec(exec).finish().stdout), "4000\n4001\n4001 4002\n0\n");
}

#[test]
fn a_terminal_has_a_size_a_session_and_one_output() {
    let mut exec =
        shell("stty size; tty; ps -o sid= -p $$ | tr -d ' '; echo $$; echo err >&2; read -r x; stty size; exit 5");
    exec.tty = Some((101, 37));
    let caller = Caller::exec(exec);
    let seen = caller.wait_for("err");
    let lines: Vec<_> = seen.lines().map(str::trim).collect();
    assert_eq!(lines[0], "37 101");
    assert!(lines[1].starts_with("/dev/pts/"), "{seen}");
    assert_eq!(lines[2], lines[3], "the program leads its session");
    caller.send(Kind::Resize, &[80, 0, 24, 0]);
    caller.send(Kind::Stdin, b"go\n");
    let outcome = caller.finish();
    assert!(text(&outcome.stdout).contains("24 80"), "{}", text(&outcome.stdout));
    assert_eq!((outcome.stderr.len(), outcome.end), (0, End::Exit(Exit::Code(5))));
}

#[test]
fn an_interrupt_typed_on_a_terminal_reaches_the_program() {
    let mut exec = shell("echo up; exec sleep 300");
    exec.tty = Some((80, 24));
    let caller = Caller::exec(exec);
    caller.wait_for("up");
    caller.send(Kind::Stdin, &[3]);
    assert_eq!(caller.finish().end, End::Exit(Exit::Signal(2)));
}

#[test]
fn a_caller_that_hangs_up_ends_the_program_and_its_children() {
    // One dies of SIGHUP, one ignores it and needs SIGKILL; both have children.
    for trap in ["", "trap '' HUP;"] {
        let caller = Caller::exec(shell(&format!("{trap} sleep 300 & echo $$ $! up; wait")));
        let seen = caller.wait_for("up");
        let pids: Vec<_> = seen.split_whitespace().take(2).map(str::to_owned).collect();
        assert!(pids.iter().all(|pid| runs(pid)), "{seen}");
        let Caller { stream, agent } = caller;
        drop(stream);
        agent.join().expect("the agent's thread");
        for pid in pids {
            eventually("the program has ended", || !runs(&pid));
        }
    }
}

#[test]
fn a_caller_that_closes_only_its_sending_half_hangs_up_too() {
    let caller = Caller::exec(shell("echo $$ up; exec sleep 300"));
    let seen = caller.wait_for("up");
    caller.stream.shutdown(std::net::Shutdown::Write).expect("half a close");
    assert_eq!(caller.finish().end, End::Closed);
    assert!(!runs(seen.split_whitespace().next().expect("a pid")));
}

#[test]
fn a_caller_that_hangs_up_in_the_middle_of_output_ends_the_program() {
    let caller = Caller::exec(program(&["sh", "-c", "echo $$ up; exec yes"]));
    let seen = caller.wait_for("up");
    let Caller { stream, agent } = caller;
    drop(stream);
    agent.join().expect("the agent's thread");
    let pid = seen.split_whitespace().next().expect("a pid").to_owned();
    eventually("yes has ended", || !runs(&pid));
}

#[test]
fn hostile_first_frames_are_refused() {
    let frame = |kind: Kind, payload: &[u8]| {
        let mut bytes = header(kind, u32::try_from(payload.len()).expect("a length")).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    };
    for (bytes, part) in [
        (vec![0, 0, 0, 0, 0], "unknown kind 0"),
        (vec![1, 255, 255, 255, 255], "frame of 4294967295 bytes"),
        (frame(Kind::Stdin, b"x"), "before the request"),
        (frame(Kind::Stdout, b"x"), "before the request"),
        (frame(Kind::Request, b"not json"), "request: "),
        (frame(Kind::Request, br#"{"exec":{"argv":["true"],"surprise":1}}"#), "surprise"),
    ] {
        let caller = Caller::new();
        caller.raw(&bytes);
        match caller.finish().end {
            End::Error(error) => assert!(error.contains(part), "{error}"),
            other => panic!("{part}: {other:?}"),
        }
    }
}

#[test]
fn hostile_frames_during_a_call_end_it_and_its_program() {
    let request = serde_json::to_vec(&Request::Exec(program(&["true"]))).expect("JSON");
    for (kind, payload, part) in [
        (Kind::Request, request.as_slice(), "Request frame"),
        (Kind::Exit, b"{}".as_slice(), "Exit frame"),
        (Kind::Signal, b"", "Signal frame of 0 bytes"),
        (Kind::Signal, &[0], "0 is not a signal"),
        (Kind::Signal, &[200], "200 is not a signal"),
        (Kind::Resize, b"xyz", "Resize frame of 3 bytes"),
    ] {
        let caller = Caller::exec(shell("echo $$ up; exec sleep 300"));
        let seen = caller.wait_for("up");
        caller.send(kind, payload);
        match caller.finish().end {
            End::Error(error) => assert!(error.contains(part), "{error}"),
            other => panic!("{part}: {other:?}"),
        }
        assert!(!runs(seen.split_whitespace().next().expect("a pid")), "{part}");
    }
}

#[test]
fn a_caller_that_leaves_before_asking_costs_nothing() {
    for bytes in [&b""[..], &[1], &[1, 10, 0, 0, 0, b'{']] {
        let caller = Caller::new();
        caller.raw(bytes);
        let Caller { stream, agent } = caller;
        drop(stream);
        agent.join().expect("the agent's thread");
    }
}

#[test]
fn power_off_is_answered_and_passed_to_our_init() {
    let (mut init, pipe) = std::io::pipe().expect("a pipe");
    let caller = Caller::of(agent(Some(pipe.into())));
    caller.send(Kind::Request, &serde_json::to_vec(&Request::PowerOff).expect("JSON"));
    assert_eq!(caller.finish().end, End::Exit(Exit::Code(0)));
    let mut asked = Vec::new();
    init.read_to_end(&mut asked).expect("the agent has closed its end");
    assert_eq!(asked, [1]);
}
