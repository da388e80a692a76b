//! Links of a lab's networks, as the API has them.
//!
//! ```text
//!   GET  /v1/links                                   all links, what they do to frames and what their ports counted, as JSON
//!   POST /v1/networks/NETWORK/capture[?machine=NAME]  101, then what is sent there as a pcap file, until the caller hangs up
//! ```

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use labyard_spec::control;
use serde::Deserialize;

use super::api;
use super::shared::Shared;
use crate::control::{Control, ControlError};

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/links", get(links)).route("/v1/networks/{network}/capture", post(capture))
}

async fn links(State(shared): State<Arc<Shared>>) -> Result<Response, (StatusCode, String)> {
    let folder = shared.folder.clone();
    let ask = move || match Control::connect(&folder)?.ask(&control::Request::Links, &[])? {
        (control::Reply::Links(links), _) => Ok(links),
        (other, _) => Err(ControlError::Unexpected(format!("{other:?}"))),
    };
    let asked = tokio::task::spawn_blocking(ask).await.map_err(|panicked| api::bad_gateway(&panicked))?;
    let links = asked.map_err(|error: ControlError| api::bad_gateway(&error))?;
    Ok(axum::Json(links).into_response())
}

#[derive(Deserialize)]
struct Whose {
    machine: Option<String>,
}

async fn capture(
    State(shared): State<Arc<Shared>>,
    Path(network): Path<String>,
    Query(Whose { machine }): Query<Whose>,
    request: Request,
) -> Result<Response, (StatusCode, String)> {
    api::open(&shared, control::Request::Capture { network, machine }, request).await
}
