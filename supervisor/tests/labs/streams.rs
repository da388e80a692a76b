//! Programs and consoles in machines, seen from the caller's side. The monitor is a fake that runs programs on this host.

use std::io::Write;
use std::process::Stdio;

use super::host::{Host, Running, text, until};
use rustix::process::Signal;

fn host() -> Host {
    let host = Host::new();
    host.up("lab", &["web"]);
    host
}

#[test]
fn streams_stay_apart_and_the_exit_code_is_the_program_s() {
    let host = host();
    let (stdout, stderr) = host.expect(7, &["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
    host.expect(0, &["exec", "web", "--", "true"]);
    host.expect(137, &["exec", "web", "--", "sh", "-c", "kill -9 $$"]);
    host.expect(0, &["down"]);
}

#[test]
fn what_the_program_is_given_reaches_it() {
    let host = host();
    let show = "echo $AS_USER $PWD $A $TTY";
    let (stdout, _) =
        host.expect(0, &["exec", "web", "-u", "postgres", "-w", "/tmp", "-e", "A=b", "-t", "--", "sh", "-c", show]);
    assert_eq!(stdout, "postgres /tmp b 80x24\n");
    host.expect(0, &["down"]);
}

#[test]
fn standard_input_is_passed_on_when_asked_for_and_ends_when_it_ends() {
    let host = host();
    let megabytes = vec![b'x'; 3 << 20];
    let mut child = host
        .command(&["exec", "-i", "web", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("labyard starts");
    let mut stdin = child.stdin.take().expect("piped");
    let sent = megabytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).expect("writing"));
    let output = child.wait_with_output().expect("waiting");
    writer.join().expect("writing");
    assert!(output.status.success() && output.stdout == megabytes, "{} bytes", output.stdout.len());
    let (stdout, _) = host.expect(0, &["exec", "web", "--", "cat"]);
    assert_eq!(stdout, "", "without -i there is no input");
    host.expect(0, &["down"]);
}

#[test]
fn signals_are_passed_on() {
    let host = host();
    let trap = "trap 'exit 9' TERM; echo up; while :; do read x; done";
    let mut command = host.command(&["exec", "-i", "web", "--", "sh", "-c", trap]);
    let mut exec = Running::start(command.stdin(Stdio::piped()));
    exec.wait_for("up");
    exec.signal(Signal::TERM);
    assert_eq!(exec.end().0, Some(9));
    host.expect(0, &["down"]);
}

#[test]
fn a_caller_that_is_killed_takes_its_program_with_it() {
    let host = host();
    let mut command = host.command(&["exec", "-i", "web", "--", "sh", "-c", "echo pid=$$; exec cat"]);
    let mut exec = Running::start(command.stdin(Stdio::piped()));
    let line = exec.wait_for("pid=");
    let program = std::path::Path::new("/proc").join(line.trim().trim_start_matches("pid="));
    assert!(program.join("exe").exists());
    exec.signal(Signal::KILL);
    exec.end();
    until("the program is gone", || !program.join("exe").exists());
    assert_eq!(host.ps()["standing"], "running");
    host.expect(0, &["down"]);
}

#[test]
fn what_labyard_itself_cannot_do_is_125() {
    let host = host();
    let (_, stderr) = host.expect(125, &["exec", "web", "--", "/no/such/program"]);
    assert!(stderr.contains("/no/such/program"), "{stderr}");
    host.expect(3, &["up", &host.manifest("other", &["mute"]), "--timeout", "1s"]);
    let (_, stderr) = host.expect(125, &["exec", "other/mute", "--", "true"]);
    assert!(stderr.contains("nobody listens"), "{stderr}");
    host.expect(0, &["down", "--all"]);
}

#[test]
fn a_console_is_typed_at_and_left_with_its_key() {
    let host = host();
    let mut console = host
        .command(&["console", "lab/web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("labyard starts");
    let mut stdin = console.stdin.take().expect("piped");
    let mut stdout = console.stdout.take().expect("piped");
    let mut seen = vec![0; "login: ROOT".len()];
    stdin.write_all(b"root").expect("typing");
    std::io::Read::read_exact(&mut stdout, &mut seen).expect("reading");
    assert_eq!(text(&seen), "login: ROOT");
    stdin.write_all(b"\x1dmore").expect("typing");
    let output = console.wait_with_output().expect("waiting");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("detached"));
    host.expect(0, &["down"]);
}

#[test]
fn logs_and_events_that_follow_end_with_the_lab() {
    let host = host();
    let mut logs = Running::start(&mut host.command(&["logs", "-f", "web"]));
    let mut events = Running::start(&mut host.command(&["events", "-f", "lab"]));
    logs.wait_for("booting");
    events.wait_for("every machine can be used");
    host.expect(0, &["down"]);
    assert_eq!((logs.end().0, events.end().0), (Some(0), Some(0)));
}
