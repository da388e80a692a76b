//! The supervisor's API: HTTP/1.1 on `supervisor.sock`. Streams into guests are upgrades of a request (RFC 9110, 7.8).
//! `GET /v1/openapi.json` describes all of it ([`crate::openapi`]); [`super::links`] and [`publish`] have some of the routes.
//!
//! Only the same user gets an answer (peer credentials). Errors are plain text: 404 for what is not there, 409 for what has
//! ended or cannot be changed so, 502 for what the vmm or the guest refuses.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use hyper_util::rt::TokioIo;
use labyard_spec::control;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::change::ChangeError;
use super::expiry::Usage;
use super::hold::{self, HoldError};
use super::members;
use super::publish;
use super::shared::Shared;
use super::stop;
use crate::client::{Members, STREAM_PROTOCOL, Wish};
use crate::control::{Control, ControlError};
use crate::home::names;
use crate::listener::SameUser;
use crate::openapi;
use crate::record;
use crate::words::{chain, printable};

/// Bytes of what a lab is to have; 64 machines with 24 drives need about a tenth.
const MAX_MEMBERS_BYTES: usize = 16 << 20;

type Answer = Result<Response, (StatusCode, String)>;

/// Serves the API until the sender speaks or is dropped.
pub(super) fn serve(shared: &Arc<Shared>) -> io::Result<(JoinHandle<io::Result<()>>, oneshot::Sender<()>)> {
    let listener = shared.folder.bind(names::SUPERVISOR_SOCKET).map_err(io::Error::other)?;
    let listener = SameUser::new(listener)?;
    let routes = Router::new()
        .route("/v1/openapi.json", get(describe))
        .route("/v1/status", get(status))
        .route("/v1/machines/{machine}/connect/{port}", post(connect))
        .route("/v1/machines/{machine}/console", post(console))
        .route("/v1/machines/{machine}/console/size", post(console_size))
        .route("/v1/machines/{machine}", delete(remove_machine))
        .route("/v1/members", post(members).layer(DefaultBodyLimit::max(MAX_MEMBERS_BYTES)))
        .route("/v1/machines/{machine}/stop", post(stop_machine))
        .route("/v1/machines/{machine}/start", post(start_machine))
        .route("/v1/change", post(change))
        .route("/v1/machines/{machine}/pause", post(pause_machine))
        .route("/v1/machines/{machine}/resume", post(resume_machine))
        .route("/v1/pause", post(pause))
        .route("/v1/resume", post(resume))
        .route("/v1/vmm", get(vmm))
        .route("/v1/expiry", post(expire))
        .route("/v1/tasks/{task}/retry", post(retry))
        .route("/v1/save", post(save))
        .route("/v1/down", post(down))
        .merge(super::links::routes())
        .with_state(Arc::clone(shared))
        .merge(publish::routes(shared));
    let (farewell, goodbye) = oneshot::channel::<()>();
    let server = async move {
        let until = async {
            let _ = goodbye.await;
        };
        axum::serve(listener, routes).with_graceful_shutdown(until).await
    };
    Ok((tokio::spawn(server), farewell))
}

async fn describe() -> Response {
    axum::Json(openapi::lab()).into_response()
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(shared.state()).into_response()
}

async fn vmm(State(shared): State<Arc<Shared>>) -> Answer {
    let folder = shared.folder.clone();
    let asked = tokio::task::spawn_blocking(move || Control::connect(&folder)?.status()).await;
    let told = asked.map_err(|panicked| bad_gateway(&panicked))?;
    Ok(axum::Json(told.map_err(|error: ControlError| bad_gateway(&error))?).into_response())
}

async fn retry(
    State(shared): State<Arc<Shared>>,
    Path(task): Path<String>,
) -> Result<StatusCode, (StatusCode, String)> {
    let state = shared.state();
    let Some(known) = state.tasks.iter().find(|known| known.name == task) else {
        return Err((StatusCode::NOT_FOUND, format!("no init task `{task}` in lab `{}`", state.name)));
    };
    match super::tasks::retry(&shared, &task) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err((
            StatusCode::CONFLICT,
            format!("task `{task}` is {}: only one that failed runs again", known.status.word()),
        )),
    }
}

async fn expire(State(shared): State<Arc<Shared>>, axum::Json(expiry): axum::Json<record::Expiry>) -> StatusCode {
    shared.change(|inner| inner.state.expiry = expiry);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Grace {
    grace_ms: u64,
}

async fn down(State(shared): State<Arc<Shared>>, Query(grace): Query<Grace>) -> StatusCode {
    stop::stop(&shared, Duration::from_millis(grace.grace_ms)).await;
    StatusCode::NO_CONTENT
}

async fn stop_machine(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
    Query(grace): Query<Grace>,
) -> Answer {
    known(&shared.state(), &machine)?;
    match stop::stop_machine(&shared, &machine, Duration::from_millis(grace.grace_ms)).await {
        Ok(ended) => Ok(record::ended_text(&ended).into_response()),
        Err(error) => Err(bad_gateway(&error)),
    }
}

async fn remove_machine(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
    Query(grace): Query<Grace>,
) -> Answer {
    known(&shared.state(), &machine)?;
    match members::remove(&shared, &machine, Duration::from_millis(grace.grace_ms)).await {
        Ok(ended) => Ok(record::ended_text(&ended).into_response()),
        Err(error) => Err(bad_gateway(&error)),
    }
}

async fn members(
    State(shared): State<Arc<Shared>>,
    axum::Json(asked): axum::Json<Members>,
) -> Result<StatusCode, (StatusCode, String)> {
    members::come(&shared, asked).await.map_err(|error| bad_gateway(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn start_machine(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
) -> Result<StatusCode, (StatusCode, String)> {
    if known(&shared.state(), &machine)?.ended.is_none() {
        return Err((StatusCode::CONFLICT, format!("machine `{machine}` runs already")));
    }
    let starting = tokio::task::spawn_blocking(move || super::again::start(&shared, &machine));
    match starting.await.map_err(|panicked| bad_gateway(&panicked))? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(bad_gateway(&error)),
    }
}

async fn pause(State(shared): State<Arc<Shared>>) -> Result<StatusCode, (StatusCode, String)> {
    stand_still(&shared, control::Request::Pause { machine: None }).await
}

async fn resume(State(shared): State<Arc<Shared>>) -> Result<StatusCode, (StatusCode, String)> {
    stand_still(&shared, control::Request::Resume { machine: None }).await
}

async fn pause_machine(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
) -> Result<StatusCode, (StatusCode, String)> {
    runs(&shared.state(), &machine)?;
    stand_still(&shared, control::Request::Pause { machine: Some(machine) }).await
}

async fn resume_machine(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
) -> Result<StatusCode, (StatusCode, String)> {
    runs(&shared.state(), &machine)?;
    stand_still(&shared, control::Request::Resume { machine: Some(machine) }).await
}

async fn stand_still(shared: &Shared, wish: control::Request) -> Result<StatusCode, (StatusCode, String)> {
    let resumed = match &wish {
        control::Request::Resume { machine } => Some(machine.clone()),
        _ => None,
    };
    match (hold::tell(shared, wish).await, resumed) {
        (Ok(()), _) => Ok(StatusCode::NO_CONTENT),
        (Err(error @ ControlError::Failed(_)), Some(machine)) => {
            Err(without_room(&shared.state(), machine.as_deref()).unwrap_or_else(|| bad_gateway(&error)))
        }
        (Err(error), _) => Err(bad_gateway(&error)),
    }
}

/// Which machines did not go on because the host's disk has no room, and the way out.
fn without_room(state: &record::State, machine: Option<&str>) -> Option<(StatusCode, String)> {
    let meant = state.machines.iter().filter(|other| machine.is_none_or(|machine| machine == other.name));
    let said = meant.filter_map(|other| Some(format!("machine `{}` stays paused: {}", other.name, other.waits_for()?)));
    let said: Vec<_> = said.collect();
    (!said.is_empty()).then(|| (StatusCode::CONFLICT, said.join("; ")))
}

async fn save(State(shared): State<Arc<Shared>>) -> Answer {
    match hold::save(&shared).await {
        Ok(written) => Ok(axum::Json(written).into_response()),
        Err(error @ HoldError::State { .. }) => Err((StatusCode::CONFLICT, chain(&error))),
        Err(error) => Err(bad_gateway(&error)),
    }
}

/// The machine of this name, which has not ended.
fn runs(state: &record::State, machine: &str) -> Result<(), (StatusCode, String)> {
    match &known(state, machine)?.ended {
        None => Ok(()),
        Some(ended) => {
            // The console's last lines are for `logs`.
            let how = record::ended_text(ended);
            let how = how.lines().next().unwrap_or_default();
            Err((StatusCode::CONFLICT, format!("machine `{machine}` does not run: {how}")))
        }
    }
}

/// The machine of this name.
fn known<'a>(state: &'a record::State, machine: &str) -> Result<&'a record::Machine, (StatusCode, String)> {
    let found = state.machines.iter().find(|other| other.name == machine);
    found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("no machine `{machine}` in lab `{}`", state.name)))
}

async fn connect(
    State(shared): State<Arc<Shared>>,
    Path((machine, port)): Path<(String, u32)>,
    request: Request,
) -> Answer {
    stream(&shared, &machine, control::Request::Connect { machine: machine.clone(), port }, request).await
}

async fn console(State(shared): State<Arc<Shared>>, Path(machine): Path<String>, request: Request) -> Answer {
    stream(&shared, &machine, control::Request::Console { machine: machine.clone() }, request).await
}

#[derive(Deserialize)]
struct Size {
    cols: u16,
    rows: u16,
}

async fn console_size(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
    Query(Size { cols, rows }): Query<Size>,
) -> Result<StatusCode, (StatusCode, String)> {
    let folder = shared.folder.clone();
    let wish = control::Request::Change { machine: Some(machine), change: control::Change::ConsoleSize { cols, rows } };
    let tell = move || Control::connect(&folder)?.tell(&wish, &[]);
    let told = tokio::task::spawn_blocking(tell).await.map_err(|panicked| bad_gateway(&panicked))?;
    told.map_err(|error: ControlError| bad_gateway(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change(
    State(shared): State<Arc<Shared>>,
    axum::Json(wish): axum::Json<Wish>,
) -> Result<StatusCode, (StatusCode, String)> {
    if let Some(machine) = &wish.machine {
        known(&shared.state(), machine)?;
    }
    let making = tokio::task::spawn_blocking(move || super::change::change(&shared, wish));
    match making.await.map_err(|panicked| bad_gateway(&panicked))? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        // The vmm's words: what was asked for cannot be.
        Err(ChangeError::Control(ControlError::Failed(text))) => Err((StatusCode::CONFLICT, printable(&text))),
        Err(error) => Err(bad_gateway(&error)),
    }
}

/// Opens a stream into a guest and gives it to the caller.
async fn stream(shared: &Arc<Shared>, machine: &str, wish: control::Request, request: Request) -> Answer {
    runs(&shared.state(), machine)?;
    open(shared, wish, request).await
}

/// Has the vmm open a stream and gives it to the caller.
pub(super) async fn open(shared: &Arc<Shared>, wish: control::Request, request: Request) -> Answer {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value == STREAM_PROTOCOL);
    if !wanted {
        return Err((StatusCode::UPGRADE_REQUIRED, format!("ask for an upgrade to {STREAM_PROTOCOL}")));
    }
    let folder = shared.folder.clone();
    let dial = move || Control::connect(&folder)?.stream(&wish);
    let guest = tokio::task::spawn_blocking(dial).await.map_err(|panicked| bad_gateway(&panicked))?;
    let guest = guest.map_err(|error: ControlError| bad_gateway(&error))?;
    guest.set_nonblocking(true).map_err(|error| bad_gateway(&error))?;
    let guest = UnixStream::from_std(guest).map_err(|error| bad_gateway(&error))?;
    let upgrade = hyper::upgrade::on(request);
    let used = Usage::begin(shared);
    tokio::spawn(async move {
        let _used = used;
        if let Ok(caller) = upgrade.await {
            carry(TokioIo::new(caller), guest).await;
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(STREAM_PROTOCOL));
    Ok(response)
}

pub(super) fn bad_gateway(error: &(dyn std::error::Error + 'static)) -> (StatusCode, String) {
    (StatusCode::BAD_GATEWAY, printable(&chain(error)))
}

/// Carries bytes both ways until either side has ended: callers close a direction by frames, never by half a stream.
async fn carry(caller: TokioIo<hyper::upgrade::Upgraded>, guest: UnixStream) {
    let (mut from_caller, mut to_caller) = tokio::io::split(caller);
    let (mut from_guest, mut to_guest) = guest.into_split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_caller, &mut to_guest) => {}
        _ = tokio::io::copy(&mut from_guest, &mut to_caller) => {
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut to_caller).await;
        }
    }
}
