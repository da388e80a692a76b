//! The agent: answers calls on vsock port 1024, one stream and one thread for each, as `labyard_spec::agent` has it.
//!
//! It is a child of PID 1 that init starts before it hands over, in a session of its own, and so survives a new PID 1. Who
//! connects is the host, which may do anything here; still its frames are bounded, so that its mistakes stay small.

pub(crate) mod bake;
mod call;
mod copy;
mod forward;
mod frames;
mod hosts;
mod power;
mod process;
mod resolve;
mod session;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use labyard_spec::guest::{AGENT_PORT, Hello};
use rustix::net::SocketFlags;
use rustix::net::sockopt::socket_domain;
use vsock::VsockListener;

use crate::console::{chain, say};
use crate::ready::Ready;

/// First argument of the binary in this role.
pub const ROLE: &str = "agent";
/// Calls at one time; one more is refused. Most are connections, of which a page in a browser opens many.
const MAX_CALLS: usize = 1024;
/// Programs at one time, so that calls for something else are left.
const MAX_PROGRAMS: usize = 128;
/// Stack of a call's thread.
const STACK_BYTES: usize = 512 << 10;
const WHO: &str = "labyard-agent";

/// What every call needs to know.
pub struct Agent {
    /// This program, which starts others as other users.
    pub binary: PathBuf,
    /// Where `etc/passwd` is found.
    pub root: PathBuf,
    /// Added to the environment of every program, `KEY=value`: the image's own variables.
    pub env: Vec<String>,
    /// A byte written here asks our own PID 1 to power off; nobody reads where the image's init runs.
    pub power: Option<OwnedFd>,
    /// Where each program gets a control group of its own; none where missing.
    pub groups: Option<PathBuf>,
    /// What calls share.
    pub state: State,
}

/// What calls share: empty when the agent starts.
#[derive(Default)]
pub struct State {
    /// Programs that run.
    programs: AtomicUsize,
    /// Programs that were started, which names their control groups.
    started: AtomicUsize,
    arrivals: forward::Arrivals,
    /// Held by who changes `/etc/hosts`.
    hosts: std::sync::Mutex<()>,
}

impl Agent {
    /// Carries out one call. Whatever goes wrong is told to the caller, if it still listens.
    pub fn serve(&self, stream: impl AsFd) {
        if let Err(error) = call::serve(self, stream.as_fd()) {
            say(WHO, format_args!("a call ended early: {}", chain(&error)));
        }
    }
}

/// The role itself, as init starts it: standard input is the stream to the host's readiness port or nothing, standard
/// output the pipe to PID 1, the environment that of the image.
///
/// # Errors
/// Where the guest has no vsock, so that nobody could call.
pub fn run() -> anyhow::Result<()> {
    let agent = Arc::new(take_over().context("setting up the agent's process")?);
    let told = take_stdin();
    let listener = VsockListener::bind_with_cid_port(vsock::VMADDR_CID_ANY, AGENT_PORT)
        .with_context(|| format!("listening on vsock port {AGENT_PORT}: the guest has no vsock, so nobody can call"))?;
    let ready = match told {
        Some(stream) => Ok(Ready::from_stream(stream)),
        None => Ready::connect(),
    };
    if let Err(error) = ready.and_then(|mut ready| ready.say(&Hello::AgentReady)) {
        say(WHO, format_args!("the host was not told that the agent is ready: {error}"));
    }
    let calls = Arc::new(AtomicUsize::new(0));
    loop {
        // Close-on-exec from the first moment: another call may be starting a program right now.
        match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(stream) => begin(&agent, &calls, stream),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(error) => return Err(error).context("waiting for the next call"),
        }
    }
}

fn begin(agent: &Arc<Agent>, calls: &Arc<AtomicUsize>, stream: OwnedFd) {
    if calls.fetch_add(1, Ordering::AcqRel) >= MAX_CALLS {
        calls.fetch_sub(1, Ordering::AcqRel);
        frames::refuse(stream.as_fd(), &format!("{MAX_CALLS} calls are running: try again when one has ended"));
        return;
    }
    let (agent, counted) = (Arc::clone(agent), Arc::clone(calls));
    let thread = std::thread::Builder::new().name("call".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        agent.serve(&stream);
        counted.fetch_sub(1, Ordering::AcqRel);
    });
    if let Err(error) = thread {
        calls.fetch_sub(1, Ordering::AcqRel);
        say(WHO, format_args!("a call was dropped: {error}"));
    }
}

/// Leaves init's session and takes its standard output.
fn take_over() -> io::Result<Agent> {
    rustix::thread::set_name(c"labyard-agent")?;
    rustix::process::setsid()?;
    let power = io::stdout().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    // Kept alive when memory runs out, or nobody could find out why.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let env = std::env::vars_os().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
    Ok(Agent {
        binary: crate::launch::OWN_BINARY.into(),
        root: "/".into(),
        env,
        power: Some(power),
        groups: Some(session::GROUPS.into()),
        state: State::default(),
    })
}

/// The socket at standard input, if it is one, leaving nothing there.
fn take_stdin() -> Option<OwnedFd> {
    let given = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let null = std::fs::File::open("/dev/null").ok()?;
    rustix::stdio::dup2_stdin(&null).ok()?;
    socket_domain(&given).is_ok().then_some(given)
}
