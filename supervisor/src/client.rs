//! Finds the supervisor of a playground, starts one where there is none, and asks it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use labyard_spec::control::{self, Change};
use labyard_spec::link::LinkStatus;
use labyard_sys::{spawn, wait};
use serde::{Deserialize, Serialize};

use crate::home::{Folder, HomeError, Lock, append_to, names};
use crate::plan::Plan;
use crate::ports::Port;
use crate::record::{Expiry, Machine, Standing, State, Who};
use crate::saved::{self, Written};
use crate::scope;
use crate::tasks::Tasks;
use crate::words;

/// What a raw stream is called in an upgrade.
pub const STREAM_PROTOCOL: &str = "labyard-stream";
/// Hidden subcommand that is the supervisor.
pub const SUPERVISE: &str = "supervise";
/// What a supervisor says on its standard output once it answers.
pub const SERVING: &str = "serving";
/// What it must hear on its standard input before it does anything: by then it has been written down.
pub const GO: &[u8] = b"go\n";

/// How long a supervisor may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a command waits for another that changes the playground.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How often, and how long between, a supervisor that hung up is looked at until it is gone.
const DYING_LOOKS: u32 = 40;
const DYING_PAUSE: Duration = Duration::from_millis(25);
/// Bytes of an answer.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// A stream into a guest.
pub type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// What is to be another way, of a machine or, where none is named, of the playground.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Which machine.
    pub machine: Option<String>,
    /// What.
    pub change: Change,
}

/// A published port, and whether somebody listens there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShownPort {
    /// The port.
    #[serde(flatten)]
    pub port: Port,
    /// The supervisor has it; another program may.
    pub listening: bool,
}

/// What a running lab is to have; who is there already goes on as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// The manifest that asks for it.
    pub manifest: String,
    /// For the whole lab.
    pub plan: Plan,
    /// All of its machines; those that are not there have reached nothing so far.
    pub machines: Vec<Machine>,
    /// All of its init tasks: those that are known are as they were, unless their machine comes anew.
    pub tasks: Tasks,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ClientError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("lab `{0}` is not there; `labyard ps` shows those that are")]
    Missing(String),
    #[error("lab `{name}` is {standing}: {way_out}")]
    NotRunning { name: String, standing: &'static str, way_out: String },
    #[error("starting a supervisor for lab `{name}`: {why}")]
    Launch { name: String, why: String },
    #[error("asking the supervisor of lab `{name}`")]
    Http { name: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{text}")]
    Refused { status: u16, text: String },
}

/// A supervisor that answers.
#[derive(Debug, Clone)]
pub struct Client {
    folder: Folder,
    /// Whoever asks has locked the folder.
    is_locked: bool,
}

/// Starts a supervisor for a folder that the caller has locked, and returns when it answers.
///
/// # Errors
/// Where it does not come up; its log says more.
pub fn launch(folder: &Folder, state: &mut State) -> Result<(), ClientError> {
    if scope::is_needed() {
        match launch_in(folder, state, true) {
            Ok(()) => return Ok(()),
            // Without one the lab runs, too; whether it may be without limits is decided where they are set.
            Err(error) => words::log(&format!("in a scope of the user's systemd: {}", words::chain(&error))),
        }
    }
    launch_in(folder, state, false)
}

fn launch_in(folder: &Folder, state: &mut State, scoped: bool) -> Result<(), ClientError> {
    let failed = |why: String| ClientError::Launch { name: folder.name.clone(), why };
    let own = std::env::current_exe().map_err(|error| failed(format!("the path of this program: {error}")))?;
    let home = folder.path.ancestors().nth(2).unwrap_or(&folder.path);
    let log = append_to(&folder.file(names::SUPERVISOR_LOG))?;
    let mut command = if scoped { scope::command(&own, &folder.name) } else { Command::new(&own) };
    command.args([SUPERVISE, &folder.name]).env("LABYARD_HOME", home).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    spawn::in_own_session(&mut command);
    let mut child = command.spawn().map_err(|error| failed(format!("{}: {error}", own.display())))?;
    let mut begin = || -> Result<(), ClientError> {
        state.supervisor = Some(Who::of(child.id()).map_err(|error| failed(error.to_string()))?);
        state.write(folder)?;
        let mut stdin = child.stdin.take().ok_or_else(|| failed("it has no standard input".to_owned()))?;
        stdin.write_all(GO).map_err(|error| failed(format!("telling it to begin: {error}")))?;
        let mut stdout = child.stdout.take().ok_or_else(|| failed("it has no standard output".to_owned()))?;
        let until = Instant::now() + START_PATIENCE;
        let mut said = Vec::new();
        while !said.ends_with(b"\n") {
            let left = until.saturating_duration_since(Instant::now());
            if !wait::readable(stdout.as_fd(), Some(left)).map_err(|error| failed(error.to_string()))? {
                return Err(failed(format!("it did not answer within {} s", START_PATIENCE.as_secs())));
            }
            let mut byte = [0];
            if stdout.read(&mut byte).map_err(|error| failed(error.to_string()))? == 0 {
                let log = folder.file(names::SUPERVISOR_LOG);
                let words = words::last_line(&log).unwrap_or_else(|| "it ended without a word".to_owned());
                return Err(failed(words));
            }
            said.extend(byte);
        }
        match said.strip_suffix(b"\n") {
            Some(word) if word == SERVING.as_bytes() => Ok(()),
            _ => Err(failed(format!("it said `{}`", String::from_utf8_lossy(&said)))),
        }
    };
    let begun = begin();
    if begun.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    begun
}

/// The supervisor of a running playground; one that died is replaced.
///
/// # Errors
/// Where the playground is not there or does not run, with what to do.
pub fn attach(folder: &Folder) -> Result<Client, ClientError> {
    if let Some(client) = Client::of(folder) {
        return Ok(client);
    }
    let missing = || ClientError::Missing(folder.name.clone());
    if !folder.exists() {
        return Err(missing());
    }
    match State::read(folder)? {
        Some(state) if state.standing() == Standing::Preparing => Err(not_running(&state, "wait for `labyard up`")),
        _ => {
            let lock = folder.lock(false, LOCK_PATIENCE)?.ok_or_else(missing)?;
            Ok(Client { is_locked: false, ..attach_locked(folder, &lock)? })
        }
    }
}

/// The same, for who has locked the folder already.
///
/// # Errors
/// As [`attach`].
pub fn attach_locked(folder: &Folder, _lock: &Lock) -> Result<Client, ClientError> {
    running(folder)
}

/// The same; the folder is locked.
fn running(folder: &Folder) -> Result<Client, ClientError> {
    // Whoever held the lock before may have started one.
    if let Some(client) = Client::of(folder) {
        return Ok(Client { is_locked: true, ..client });
    }
    let mut state = State::read(folder)?.ok_or_else(|| ClientError::Missing(folder.name.clone()))?;
    // Nobody answers: one that was killed lets go of its socket a little before its process is gone.
    for _ in 0..DYING_LOOKS {
        if !state.supervisor.as_ref().is_some_and(Who::is_alive) {
            break;
        }
        std::thread::sleep(DYING_PAUSE);
    }
    let remove = format!("`labyard down {}` removes it", folder.name);
    match state.standing() {
        Standing::Unattended => {
            launch(folder, &mut state)?;
            Ok(Client { folder: folder.clone(), is_locked: true })
        }
        Standing::Ended if saved::is_there(folder) => {
            Err(not_running(&state, &format!("it was saved, and `labyard restore {}` lets it go on", folder.name)))
        }
        Standing::Ended => {
            let start = format!("`labyard start {}` starts it again", folder.name);
            Err(not_running(&state, &format!("{}; {start}, {remove}", state.end_reason())))
        }
        Standing::Interrupted => Err(not_running(&state, &remove)),
        _ => Err(not_running(&state, "its supervisor does not answer; see supervisor.log in its folder")),
    }
}

fn not_running(state: &State, way_out: &str) -> ClientError {
    let standing = state.standing().word();
    ClientError::NotRunning { name: state.name.clone(), standing, way_out: way_out.to_owned() }
}

impl Client {
    /// The supervisor of this playground, if one answers.
    pub fn of(folder: &Folder) -> Option<Self> {
        folder.connect(names::SUPERVISOR_SOCKET).ok().map(|_| Self { folder: folder.clone(), is_locked: false })
    }

    /// The state as the supervisor has it.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn status(&self) -> Result<State, ClientError> {
        let response = self.send(Method::GET, "/v1/status", false).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    /// What the vmm says of all machines, with their counters.
    ///
    /// # Errors
    /// Where one of the two does not answer.
    pub async fn vmm(&self) -> Result<control::Status, ClientError> {
        let response = self.send(Method::GET, "/v1/vmm", false).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    /// Lets an init task that failed run again.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn retry(&self, task: &str) -> Result<(), ClientError> {
        let response = self.send(Method::POST, &format!("/v1/tasks/{task}/retry"), false).await?;
        self.body(response).await.map(|_| ())
    }

    /// Sets when the playground ends by itself.
    ///
    /// # Errors
    /// Where the supervisor does not answer.
    pub async fn expire(&self, expiry: &Expiry) -> Result<(), ClientError> {
        let body = serde_json::to_vec(expiry).map_err(|error| self.broken(error))?;
        let response = self.send_body(Method::POST, "/v1/expiry", false, body.into()).await?;
        self.body(response).await.map(|_| ())
    }

    /// Ends the playground and returns when its vmm has.
    ///
    /// # Errors
    /// Where the supervisor does not answer.
    pub async fn down(&self, grace: Duration) -> Result<(), ClientError> {
        let path = format!("/v1/down?grace_ms={}", grace.as_millis());
        let response = self.send(Method::POST, &path, false).await?;
        self.body(response).await.map(|_| ())
    }

    /// Stops one machine and returns, in words, how it has ended.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn stop_machine(&self, machine: &str, grace: Duration) -> Result<String, ClientError> {
        let path = format!("/v1/machines/{machine}/stop?grace_ms={}", grace.as_millis());
        let response = self.send(Method::POST, &path, false).await?;
        let text = self.body(response).await?;
        Ok(words::printable(&String::from_utf8_lossy(&text)))
    }

    /// Ends a machine and has it leave the lab; how it ended, in words. Its folder stays.
    ///
    /// # Errors
    /// Where the supervisor or the vmm does not do so.
    pub async fn remove_machine(&self, machine: &str, grace: Duration) -> Result<String, ClientError> {
        let path = format!("/v1/machines/{machine}?grace_ms={}", grace.as_millis());
        let response = self.send(Method::DELETE, &path, false).await?;
        let text = self.body(response).await?;
        Ok(words::printable(&String::from_utf8_lossy(&text)))
    }

    /// Has machines and networks come that are not there.
    ///
    /// # Errors
    /// Where the supervisor or the vmm does not do so; those that had come before are there.
    pub async fn come(&self, members: &Members) -> Result<(), ClientError> {
        let body = serde_json::to_vec(members).map_err(|error| self.broken(error))?;
        let response = self.send_body(Method::POST, "/v1/members", false, body.into()).await?;
        self.body(response).await.map(|_| ())
    }

    /// Starts a machine that has ended, and returns when the vmm has begun with it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn start_machine(&self, machine: &str) -> Result<(), ClientError> {
        let response = self.send(Method::POST, &format!("/v1/machines/{machine}/start"), false).await?;
        self.body(response).await.map(|_| ())
    }

    /// Lets one machine, or all, stand still (`pause`) or go on (`resume`).
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn stand_still(&self, machine: Option<&str>, verb: &str) -> Result<(), ClientError> {
        let path = machine.map_or_else(|| format!("/v1/{verb}"), |machine| format!("/v1/machines/{machine}/{verb}"));
        let response = self.send(Method::POST, &path, false).await?;
        self.body(response).await.map(|_| ())
    }

    /// Saves the playground, and ends it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason; it runs on then.
    pub async fn save(&self) -> Result<Written, ClientError> {
        let response = self.send(Method::POST, "/v1/save", false).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    /// A stream to a vsock port of a guest.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn connect(&self, machine: &str, port: u32) -> Result<Stream, ClientError> {
        self.stream(&format!("/v1/machines/{machine}/connect/{port}")).await
    }

    /// A machine's console.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn console(&self, machine: &str) -> Result<Stream, ClientError> {
        self.stream(&format!("/v1/machines/{machine}/console")).await
    }

    /// Tells a machine's console how large the terminal is.
    ///
    /// # Errors
    /// Where the supervisor does not answer, or the vmm refuses.
    pub async fn console_size(&self, machine: &str, cols: u16, rows: u16) -> Result<(), ClientError> {
        let path = format!("/v1/machines/{machine}/console/size?cols={cols}&rows={rows}");
        let response = self.send(Method::POST, &path, false).await?;
        self.body(response).await.map(|_| ())
    }

    /// All links of a lab's networks.
    ///
    /// # Errors
    /// Where the supervisor does not answer, or the vmm refuses.
    pub async fn links(&self) -> Result<Vec<LinkStatus>, ClientError> {
        let response = self.send(Method::GET, "/v1/links", false).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    /// What is sent on a network, or to and from one machine there, as a pcap file. Names were checked.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn capture(&self, network: &str, machine: Option<&str>) -> Result<Stream, ClientError> {
        let whose = machine.map(|machine| format!("?machine={machine}")).unwrap_or_default();
        self.stream(&format!("/v1/networks/{network}/capture{whose}")).await
    }

    async fn stream(&self, path: &str) -> Result<Stream, ClientError> {
        let response = match self.send(Method::POST, path, true).await {
            // It died between the look and the question; nothing was opened yet, so the next one may be asked the same.
            Err(ClientError::Http { .. }) => self.replaced().await?.send(Method::POST, path, true).await?,
            other => other?,
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let text = format!("the supervisor answered {} to an upgrade", response.status());
            return Err(ClientError::Refused { status: response.status().as_u16(), text });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.broken(error))?;
        Ok(TokioIo::new(upgraded))
    }

    /// The supervisor that takes the place of one that hung up.
    async fn replaced(&self) -> Result<Self, ClientError> {
        let dying = State::read(&self.folder)?.and_then(|state| state.supervisor);
        // A process that ends lets go of its socket a little later than of its callers.
        for _ in 0..DYING_LOOKS {
            if !dying.as_ref().is_some_and(Who::is_alive) {
                break;
            }
            tokio::time::sleep(DYING_PAUSE).await;
        }
        if self.is_locked { running(&self.folder) } else { attach(&self.folder) }
    }

    /// Changes a machine while it runs, or the playground where none is named.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn change(&self, wish: &Wish) -> Result<(), ClientError> {
        let body = serde_json::to_vec(wish).map_err(|error| self.broken(error))?;
        let response = self.send_body(Method::POST, "/v1/change", false, body.into()).await?;
        self.body(response).await.map(|_| ())
    }

    /// Publishes a port, or takes it back.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason.
    pub async fn publish(&self, port: &Port, on: bool) -> Result<(), ClientError> {
        let body = serde_json::to_vec(port).map_err(|error| self.broken(error))?;
        let method = if on { Method::POST } else { Method::DELETE };
        let response = self.send_body(method, "/v1/ports", false, body.into()).await?;
        self.body(response).await.map(|_| ())
    }

    /// The published ports.
    ///
    /// # Errors
    /// Where the supervisor does not answer.
    pub async fn ports(&self) -> Result<Vec<ShownPort>, ClientError> {
        let response = self.send(Method::GET, "/v1/ports", false).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    /// Passes somebody's request on as it is, and the answer back, whatever it says.
    ///
    /// # Errors
    /// Where the supervisor does not answer.
    pub async fn pass<B>(&self, mut request: Request<B>) -> Result<Response<Incoming>, ClientError>
    where
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("labyard"));
        let mut sender = self.dial().await?;
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn dial<B>(&self) -> Result<hyper::client::conn::http1::SendRequest<B>, ClientError>
    where
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = match self.folder.connect(names::SUPERVISOR_SOCKET) {
            // It was killed while it was looked for: until a process is gone its socket takes calls, which nobody hears.
            Err(error) if error.is_nobody() => {
                self.replaced().await?;
                self.folder.connect(names::SUPERVISOR_SOCKET)
            }
            other => other,
        }?;
        stream.set_nonblocking(true).map_err(|error| self.broken(error))?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(|error| self.broken(error))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    async fn send(&self, method: Method, path: &str, upgrade: bool) -> Result<Response<Incoming>, ClientError> {
        self.send_body(method, path, upgrade, Bytes::new()).await
    }

    async fn send_body(
        &self,
        method: Method,
        path: &str,
        upgrade: bool,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let is_question = method == Method::GET;
        let mut sender = self.dial().await?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, "labyard");
        if upgrade {
            request = request.header(CONNECTION, "upgrade").header(UPGRADE, STREAM_PROTOCOL);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| self.broken(error))?;
        let again = is_question.then(|| request.clone());
        let response = match (sender.send_request(request).await, again) {
            (Ok(response), _) => response,
            // It was killed meanwhile. A question may be asked twice; whether a wish was heard is not known.
            (Err(_), Some(again)) => {
                let mut sender = self.replaced().await?.dial().await?;
                sender.send_request(again).await.map_err(|error| self.broken(error))?
            }
            (Err(error), None) => return Err(self.broken(error)),
        };
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let text = String::from_utf8_lossy(&self.body(response).await?).into_owned();
            return Err(ClientError::Refused { status: status.as_u16(), text });
        }
        Ok(response)
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        Ok(body.map_err(|error| self.broken(error))?.to_bytes())
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Http { name: self.folder.name.clone(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{End, tests::state};

    #[tokio::test]
    async fn who_has_found_a_supervisor_that_was_being_killed_asks_the_next_one() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = Folder { name: "lab".to_owned(), path: home.path().join("lab") };
        std::fs::create_dir(&folder.path).expect("a folder");
        let end = Some(End { at_ms: 1, reason: "all are gone".to_owned() });
        State { end, ..state() }.write(&folder).expect("a state");
        let dying = folder.bind(names::SUPERVISOR_SOCKET).expect("a socket");
        let client = Client::of(&folder).expect("it takes calls");
        drop(dying);
        let error = client.status().await.expect_err("nobody is there, and nobody comes for a lab that has ended");
        assert!(error.to_string().contains("lab `lab` is stopped: all are gone; `labyard start lab`"), "{error}");
    }
}
