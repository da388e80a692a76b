//! Runs init tasks: each once what it needs has completed and its machine's agent can be reached, each on a stream of its own.
//!
//! ```text
//!   blocked ──(needs completed)──> created ──(agent there)──> running ──> completed
//!                                     ▲                          └──────> failed ──(retry)──┐
//!                                     └─────────────────────────────────────────────────────┘
//! ```
//!
//! Where one stands is in the state, so a supervisor that takes over goes on. What ran meanwhile has lost its stream, and with it
//! its life: it has failed, because nobody knows whether its script may run twice.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use labyard_spec::agent::{Exec, Exit, Kind, Request as AgentRequest};
use labyard_spec::control::Request;
use labyard_spec::guest::AGENT_PORT;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::shared::{Phase, Shared};
use crate::call;
use crate::control::Control;
use crate::home::{append_to, make_folder};
use crate::journal::What;
use crate::record::{ConditionName, State, TaskState, TaskStatus, now_ms};
use crate::tasks::{Task, Tasks};
use crate::words::{chain, printable};

/// Bytes of output that are kept of a task.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;
/// Bytes that it may leave to those that need it.
const MAX_ENV_BYTES: usize = 16 << 10;
/// How long it may take to fetch that.
const ENV_WITHIN: Duration = Duration::from_secs(30);
/// How long a machine's own init may take until tasks run all the same.
const BOOTED_WITHIN: Duration = Duration::from_secs(120);
/// Ends once a machine's systemd can be asked to start services, so that tasks may do so (bootup(7), basic.target); at once where something else is PID 1. Until
/// PID 1 is the image's init it is ours, whose file is gone from the initramfs.
const BOOTED: &str = "left=20; while :; do case $(readlink /proc/1/exe) in
    */systemd) systemctl is-active --quiet basic.target 2> /dev/null && exit 0 ;;
    *'(deleted)') [ -x /sbin/init ] && [ $left -gt 0 ] || exit 0; left=$((left - 1)) ;;
    *) exit 0 ;;
esac; sleep 1; done";
/// Where anybody in a machine may make a file, our init makes it, and a systemd that is still starting removes nothing, as it does in
/// /tmp (tmpfiles.d(5), `D`).
const SHARED: &str = "/dev/shm";
/// A script in bash, else in what there is; `$1` is the file whose lines `KEY=VALUE` later tasks get, `$2` the script.
const RUN: &str = "set -C; umask 077; : > \"$1\" || exit 1; set +C; export LABYARD_ENV=\"$1\"; \
                   if command -v bash > /dev/null 2>&1; then exec bash -c \"$2\"; fi; exec sh -c \"$2\"";
/// Hands out that file and removes it.
const COLLECT: &str = "cat \"$1\"; rm -f \"$1\"";

/// Minds the tasks until the playground has ended.
pub(super) async fn mind(shared: Arc<Shared>) {
    for task in shared.state().tasks.iter().filter(|task| task.status == TaskStatus::Running) {
        end(&shared, &task.name, Err("its supervisor ended while it ran".to_owned()), Vec::new());
    }
    let mut bell = shared.bell();
    loop {
        let phase = *bell.borrow_and_update();
        if phase == Phase::Over || shared.is_stopping() {
            return;
        }
        if phase == Phase::Up {
            // They change with the machines of the lab, so what was read before may be old.
            let waits = shared.state().tasks.iter().any(is_to_run);
            let read = if waits { Tasks::read(&shared.folder) } else { Ok(Tasks::default()) };
            let tasks = match read {
                Ok(tasks) => Arc::new(tasks),
                Err(error) => return shared.note(None, &format!("init tasks: {}", chain(&error))),
            };
            for task in startable(&tasks, &shared.state()) {
                begin(&shared, task);
                tokio::spawn(carry_out(Arc::clone(&shared), Arc::clone(&tasks), task.clone()));
            }
        }
        if bell.changed().await.is_err() {
            return;
        }
    }
}

fn is_to_run(task: &TaskState) -> bool {
    matches!(task.status, TaskStatus::Created | TaskStatus::Blocked)
}

/// Tasks that nothing holds up.
fn startable<'a>(tasks: &'a Tasks, state: &State) -> Vec<&'a Task> {
    let status = |name: &str| state.tasks.iter().find(|task| task.name == name).map(|task| task.status);
    let waits = |task: &&Task| matches!(status(&task.name), Some(TaskStatus::Created | TaskStatus::Blocked));
    let met = |task: &&Task| task.needs.iter().all(|need| status(need) == Some(TaskStatus::Completed));
    let there = |task: &&Task| {
        let machine = state.machines.iter().find(|machine| machine.name == task.machine);
        machine.is_some_and(|machine| machine.ended.is_none() && machine.has(ConditionName::AgentReachable))
    };
    tasks.tasks.iter().filter(|task| waits(task) && met(task) && there(task)).collect()
}

fn begin(shared: &Shared, task: &Task) {
    shared.task(&task.name, TaskStatus::Running, "", |state| {
        (state.attempts, state.started_ms) = (state.attempts + 1, Some(now_ms()));
        (state.ended_ms, state.why) = (None, None);
    });
}

fn end(shared: &Shared, name: &str, outcome: Result<(), String>, env: Vec<String>) {
    let (status, why) = match outcome {
        Ok(()) => (TaskStatus::Completed, None),
        Err(why) => (TaskStatus::Failed, Some(why)),
    };
    shared.task(name, status, why.as_deref().unwrap_or_default(), |state| {
        (state.ended_ms, state.why, state.env) = (Some(now_ms()), why.clone(), env);
    });
}

/// Lets a task that failed run again. `false` where it has not.
pub(super) fn retry(shared: &Shared, name: &str) -> bool {
    if !shared.state().tasks.iter().any(|task| task.name == name && task.has_failed()) {
        return false;
    }
    shared.task(name, TaskStatus::Created, "again", |_| {});
    true
}

async fn carry_out(shared: Arc<Shared>, tasks: Arc<Tasks>, task: Task) {
    let mut id = [0; 8];
    let named = labyard_sys::random::fill(&mut id).map_err(|error| error.to_string());
    let left = format!("{SHARED}/.labyard-{}-{:016x}", task.name, u64::from_le_bytes(id));
    let mut env: Vec<String> = tasks.environment().collect();
    let known = shared.state().tasks;
    for before in tasks.before(&task.name) {
        env.extend(known.iter().filter(|state| state.name == before).flat_map(|state| state.env.clone()));
    }
    let limit = Duration::from_secs(task.timeout_seconds.into());
    let opened = Output::open(&shared, &task.name);
    let mut output = match opened {
        Ok(output) => output,
        Err(why) => return end(&shared, &task.name, Err(why), Vec::new()),
    };
    if let Err(why) = booted(&shared, &task, &mut output).await {
        return end(&shared, &task.name, Err(why), Vec::new());
    }
    let run = async {
        named?;
        let argv = ["/bin/sh", "-c", RUN, "labyard-task", &left, &task.run].map(str::to_owned).to_vec();
        match program(&shared, &task, argv, env, |bytes| output.write(bytes)).await? {
            Exit::Code(0) => Ok(()),
            Exit::Code(code) => Err(format!("its script ended with {code}")),
            Exit::Signal(signal) => Err(format!("its script was ended by signal {signal}")),
        }
    };
    let ran = match timeout(limit, run).await {
        Ok(ran) => ran,
        // Its stream is gone, and with that the agent ends it.
        Err(_) => Err(format!("not done within {} s", limit.as_secs())),
    };
    let mut passed_on = Vec::new();
    let mut outcome = ran;
    if outcome.is_ok() {
        match timeout(ENV_WITHIN, collect(&shared, &task, &left)).await {
            Ok(Ok(found)) => passed_on = found,
            Ok(Err(why)) => outcome = Err(format!("what it leaves to other tasks: {why}")),
            Err(_) => {
                outcome = Err(format!("what it leaves to other tasks: not read within {} s", ENV_WITHIN.as_secs()))
            }
        }
    }
    end(&shared, &task.name, outcome, passed_on);
}

/// Waits until the machine's own init can be asked to start services; the task's time has not begun yet.
async fn booted(shared: &Shared, task: &Task, output: &mut Output) -> Result<(), String> {
    let argv = ["/bin/sh", "-c", BOOTED, "labyard-booted"].map(str::to_owned).to_vec();
    let asked = Task { user: "root".to_owned(), ..task.clone() };
    match timeout(BOOTED_WITHIN, program(shared, &asked, argv, Vec::new(), |_| {})).await {
        // A shell that cannot do this is no reason not to try the task.
        Ok(exit) => exit.map(drop),
        Err(_) => {
            let seconds = BOOTED_WITHIN.as_secs();
            output.write(format!("[systemd is still starting after {seconds} s: run all the same]\n").as_bytes());
            Ok(())
        }
    }
}

/// What the task wrote to `$LABYARD_ENV`.
async fn collect(shared: &Shared, task: &Task, path: &str) -> Result<Vec<String>, String> {
    let argv = ["/bin/sh", "-c", COLLECT, "labyard-task", path].map(str::to_owned).to_vec();
    let mut text = Vec::new();
    let exit = program(shared, task, argv, Vec::new(), |bytes| {
        let room = MAX_ENV_BYTES + 1 - text.len().min(MAX_ENV_BYTES + 1);
        text.extend_from_slice(bytes.get(..bytes.len().min(room)).unwrap_or_default());
    });
    if exit.await? != Exit::Code(0) {
        return Err("the file cannot be read".to_owned());
    }
    if text.len() > MAX_ENV_BYTES {
        return Err(format!("more than {MAX_ENV_BYTES} bytes"));
    }
    let text = String::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            is_variable(line).then(|| line.to_owned()).ok_or_else(|| format!("`{}` is not KEY=VALUE", printable(line)))
        })
        .collect()
}

fn is_variable(line: &str) -> bool {
    let Some((key, value)) = line.split_once('=') else { return false };
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    key.starts_with(letter) && key.chars().all(|c| letter(c) || c.is_ascii_digit()) && !value.contains('\0')
}

/// Runs a program in the task's machine, as its user; what it prints goes to `print`.
async fn program(
    shared: &Shared,
    task: &Task,
    argv: Vec<String>,
    env: Vec<String>,
    mut print: impl FnMut(&[u8]),
) -> Result<Exit, String> {
    let folder = shared.folder.clone();
    let wish = Request::Connect { machine: task.machine.clone(), port: AGENT_PORT };
    let dial = tokio::task::spawn_blocking(move || Control::connect(&folder)?.stream(&wish)).await;
    let stream = dial.map_err(|panicked| panicked.to_string())?.map_err(|error| chain(&error))?;
    let said = |error: std::io::Error| format!("the machine's agent: {error}");
    stream.set_nonblocking(true).map_err(said)?;
    let mut stream = UnixStream::from_std(stream).map_err(said)?;
    let exec = Exec { argv, env, working_dir: None, user: Some(task.user.clone()), tty: None };
    let request = serde_json::to_vec(&AgentRequest::Exec(exec)).expect("plain data has a JSON form");
    call::send(&mut stream, Kind::Request, &request).await.map_err(said)?;
    call::send(&mut stream, Kind::Stdin, &[]).await.map_err(said)?;
    loop {
        match call::receive(&mut stream).await.map_err(said)? {
            Some((Kind::Stdout | Kind::Stderr, bytes)) => print(&bytes),
            Some((Kind::Exit, json)) => {
                return serde_json::from_slice(&json)
                    .map_err(|_| "the machine's agent gave an exit that makes no sense".to_owned());
            }
            Some((Kind::Error, text)) => return Err(printable(&String::from_utf8_lossy(&text))),
            Some((kind, _)) => return Err(format!("the machine's agent sent {kind:?}, which is for it to receive")),
            None => return Err("its machine went away before it had ended".to_owned()),
        }
    }
}

/// What a task prints, as far as it is kept.
struct Output {
    file: File,
    room: u64,
}

impl Output {
    fn open(shared: &Shared, name: &str) -> Result<Self, String> {
        let path = shared.folder.task_log(name);
        let made = path.parent().map_or(Ok(()), make_folder).and_then(|()| append_to(&path));
        let file = made.map_err(|error| chain(&error))?;
        let len = file.metadata().map_err(|error| error.to_string())?.len();
        Ok(Self { file, room: MAX_OUTPUT_BYTES.saturating_sub(len) })
    }

    fn write(&mut self, bytes: &[u8]) {
        let now = bytes.get(..usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len())).unwrap_or_default();
        let _ = self.file.write_all(now); // a full disk ends no task
        self.room -= now.len() as u64;
        if now.len() < bytes.len() && !now.is_empty() {
            let _ = self
                .file
                .write_all(format!("\n[more than {MAX_OUTPUT_BYTES} bytes: the rest is not kept]\n").as_bytes());
        }
    }
}

impl Shared {
    /// Moves a task, and says so.
    pub(super) fn task(&self, name: &str, status: TaskStatus, why: &str, change: impl FnOnce(&mut TaskState)) {
        let why = super::shared::bounded(why);
        self.change(|inner| {
            let Some(task) = inner.state.tasks.iter_mut().find(|task| task.name == name) else { return };
            task.status = status;
            change(task);
            let machine = task.machine.clone();
            inner.say(Some(&machine), What::Task { name: name.to_owned(), status, why });
            if status == TaskStatus::Completed {
                inner.tasks_may_be_done();
            }
        });
    }
}
