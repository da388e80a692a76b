//! Another program that does part of the work: what it says is progress, and it ends when we do.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::watch::{Interrupted, Watch};

/// Between two looks whether it was interrupted.
const PATIENCE: Duration = Duration::from_millis(100);
/// Longest line that is passed on, and longest answer.
const MAX_LINE_BYTES: u64 = 4096;

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The last line of its standard error.
    pub(crate) last_words: String,
    /// Its standard output.
    pub(crate) answer: String,
}

/// Why it was not heard to its end.
#[derive(Debug)]
pub(crate) enum ProgramError {
    Start(io::Error),
    Listen(io::Error),
    Interrupted(Interrupted),
}

/// Runs it to its end. Should this program be killed outright, that one is asked to end.
pub(crate) fn run(program: &str, arguments: &Command, watch: &Watch) -> Result<Ended, ProgramError> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", program]).args(arguments.get_args());
    for (name, value) in arguments.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(ProgramError::Start)?;
    let heard = listen(&mut child, watch);
    if heard.is_err() {
        end(&mut child);
    }
    let (last_words, answer) = heard?;
    let status = child.wait().map_err(ProgramError::Listen)?;
    watch.check().map_err(ProgramError::Interrupted)?;
    Ok(Ended { status, last_words, answer })
}

/// Passes its progress on until it closes its outputs; its last line, and its answer.
fn listen(child: &mut Child, watch: &Watch) -> Result<(String, String), ProgramError> {
    let broken = || ProgramError::Listen(io::ErrorKind::BrokenPipe.into());
    let stderr = child.stderr.take().ok_or_else(broken)?;
    let mut stdout = child.stdout.take().ok_or_else(broken)?;
    let (sender, lines) = channel();
    // Ends when the program and all its children have closed their end, or nobody listens any more.
    std::thread::spawn(move || {
        let mut stderr = BufReader::new(stderr);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut stderr).take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut last = String::new();
    loop {
        watch.check().map_err(ProgramError::Interrupted)?;
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                watch.at(&line, 0, 0).map_err(ProgramError::Interrupted)?;
                last = line;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let mut answer = String::new();
    (&mut stdout).take(MAX_LINE_BYTES).read_to_string(&mut answer).map_err(ProgramError::Listen)?;
    Ok((last, answer))
}

/// Asks it to end and waits for it: it removes what it has made so far.
fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Not reaped yet, so the number is its own. One that has ended needs no signal.
        let _ = kill_process(pid, Signal::TERM);
    }
    let _ = child.wait();
}
