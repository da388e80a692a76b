//! A lab's own API below its name: requests go to its supervisor, and a supervisor that died is replaced for it.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use labyard_spec::manifest::check_name;
use labyard_supervisor::client::{self, Client, ClientError};
use labyard_supervisor::home::{Folder, Home};
use labyard_supervisor::record;
use labyard_supervisor::words::{chain, printable};

type Refusal = (StatusCode, String);

pub(super) async fn pass(
    State(home): State<Home>,
    Path((lab, _)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Refusal> {
    check_name(&lab).map_err(|why| (StatusCode::NOT_FOUND, why))?;
    let folder = home.folder(&lab);
    // As it came, with whatever is quoted in it.
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let rest = path.strip_prefix("/v1/labs/").and_then(|rest| rest.split_once('/')).map_or("", |(_, rest)| rest);
    let path = format!("/v1/{rest}");
    let attached = {
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || client::attach(&folder)).await
    };
    match attached.map_err(|panicked| (StatusCode::BAD_GATEWAY, panicked.to_string()))? {
        Ok(client) => forward(&client, &path, request).await,
        // What has ended is as it was written down last.
        Err(ClientError::NotRunning { .. }) if request.method() == Method::GET && path == "/v1/status" => {
            written_down(&folder)
        }
        Err(error) => Err(refusal(&error)),
    }
}

fn written_down(folder: &Folder) -> Result<Response, Refusal> {
    match record::State::read(folder) {
        Ok(Some(state)) => Ok(axum::Json(state).into_response()),
        Ok(None) => Err(refusal(&ClientError::Missing(folder.name.clone()))),
        Err(error) => Err(refusal(&error.into())),
    }
}

fn refusal(error: &ClientError) -> Refusal {
    let status = match error {
        ClientError::Missing(_) => StatusCode::NOT_FOUND,
        ClientError::NotRunning { .. } => StatusCode::CONFLICT,
        _ => StatusCode::BAD_GATEWAY,
    };
    (status, printable(&chain(error)))
}

async fn forward(client: &Client, path: &str, mut request: Request) -> Result<Response, Refusal> {
    let bad = |error: &(dyn std::error::Error + 'static)| (StatusCode::BAD_GATEWAY, printable(&chain(error)));
    let wanted = request.headers().get(UPGRADE).cloned();
    let content = request.headers().get(CONTENT_TYPE).cloned();
    let caller = wanted.is_some().then(|| hyper::upgrade::on(&mut request));
    let mut passed = hyper::Request::builder().method(request.method().clone()).uri(path);
    for (name, value) in [(CONTENT_TYPE, content), (UPGRADE, wanted)] {
        if let Some(value) = value {
            passed = passed.header(name, value);
        }
    }
    if caller.is_some() {
        passed = passed.header(CONNECTION, "upgrade");
    }
    let passed = passed.body(request.into_body()).map_err(|error| bad(&error))?;
    let answer = client.pass(passed).await.map_err(|error| refusal(&error))?;
    let (parts, body) = answer.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS
        && let Some(caller) = caller
    {
        let guest = hyper::upgrade::on(hyper::Response::from_parts(parts.clone(), body));
        tokio::spawn(async move {
            if let (Ok(caller), Ok(guest)) = (caller.await, guest.await) {
                // Either side ends it by closing; whatever is on its way until then arrives.
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(guest)).await;
            }
        });
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    Ok(Response::from_parts(parts, Body::new(body)))
}
