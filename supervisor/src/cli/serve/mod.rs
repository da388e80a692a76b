//! All labs of a user at one socket: the list, each lab's own API below its name, and metrics.

mod metrics;
mod proxy;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use labyard_supervisor::home::{Home, names};
use labyard_supervisor::listener::SameUser;
use labyard_supervisor::openapi;
use labyard_supervisor::words::{chain, printable};
use serde_json::json;
use tokio::sync::watch;

use super::args::Serve;
use super::{Failure, Outcome, event_loop, output, ps};

/// How long answers under way may take once this is told to end.
const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) fn serve(home: &Home, options: &Serve) -> Outcome {
    let Some(_lock) = home.try_lock(names::SERVE_LOCK)? else {
        let path = home.path.join(names::SERVE_SOCKET);
        return Err(Failure::input(format!("another `labyard serve` listens at {}", path.display())));
    };
    let listener = home.bind(names::SERVE_SOCKET)?;
    let metrics = options.metrics.map(std::net::TcpListener::bind).transpose();
    let metrics =
        metrics.with_context(|| format!("--metrics {}", options.metrics.map_or(String::new(), |a| a.to_string())));
    let outcome = metrics.map_err(Failure::from).and_then(|metrics| {
        event_loop()?.block_on(async {
            // From here on a signal is heard, so who is told where we listen may send one.
            let told = told_to_end()?;
            let listener = SameUser::new(listener)?;
            let address = metrics.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
            say(home, address, options.json)?;
            run(home, listener, metrics, told).await
        })
    });
    // Nobody else has it: the lock is ours.
    let _ = std::fs::remove_file(home.path.join(names::SERVE_SOCKET));
    outcome.map(|()| 0)
}

fn say(home: &Home, metrics: Option<SocketAddr>, json: bool) -> Result<(), Failure> {
    let socket = home.path.join(names::SERVE_SOCKET);
    if json {
        return Ok(output::document(
            &json!({"socket": socket, "metrics": metrics.map(|at| format!("http://{at}/metrics"))}),
        )?);
    }
    output::line(&format!("all labs are at {}", socket.display()));
    if let Some(at) = metrics {
        output::line(&format!("metrics are at http://{at}/metrics"));
    }
    Ok(())
}

/// Changes to true when SIGINT or SIGTERM comes.
fn told_to_end() -> Result<watch::Receiver<bool>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        let _ = tell.send(true);
    });
    Ok(told)
}

async fn until(mut told: watch::Receiver<bool>) {
    // A sender that is gone is as good as a word.
    let _ = told.wait_for(|told| *told).await;
}

async fn run(
    home: &Home,
    listener: SameUser,
    metrics: Option<std::net::TcpListener>,
    told: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let scraped = Router::new().route("/metrics", get(scrape));
    let routes = scraped
        .clone()
        .route("/v1/openapi.json", get(describe))
        .route("/v1/labs", get(labs))
        .route("/v1/labs/{lab}/{*rest}", any(proxy::pass))
        .with_state(home.clone());
    let mut servers = tokio::task::JoinSet::new();
    let end = until(told.clone());
    servers.spawn(async move { axum::serve(listener, routes).with_graceful_shutdown(end).await });
    if let Some(metrics) = metrics {
        metrics.set_nonblocking(true)?;
        let metrics = tokio::net::TcpListener::from_std(metrics)?;
        let routes = scraped.with_state(home.clone()).layer(middleware::from_fn(by_our_own_name));
        let end = until(told.clone());
        servers.spawn(async move { axum::serve(metrics, routes).with_graceful_shutdown(end).await });
    }
    let all = async {
        while let Some(ended) = servers.join_next().await {
            ended.context("a server")??;
        }
        Ok(())
    };
    tokio::select! {
        ended = all => ended,
        () = async { until(told).await; tokio::time::sleep(FAREWELL).await } => Ok(()),
    }
}

/// Lets through who asks for this host by a name of its loopback: a page of another name that leads here is a stranger's, and its reader's
/// browser would hand it what it gets (DNS rebinding).
async fn by_our_own_name(request: Request, next: Next) -> Response {
    let hosts: Vec<_> = request.headers().get_all(HOST).iter().collect();
    let is_ours = match *hosts {
        [host] => host.to_str().is_ok_and(is_loopback) && request.uri().host().is_none_or(is_loopback),
        _ => false,
    };
    if is_ours {
        return next.run(request).await;
    }
    let why = "this is a loopback address of its host: ask for localhost, 127.0.0.1 or [::1]\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// A name or an address of the loopback, with a port or without.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => return address.parse().is_ok_and(|address: std::net::Ipv6Addr| address.is_loopback()),
        Some((address, port)) => {
            return port.starts_with(':')
                && address.parse().is_ok_and(|address: std::net::Ipv6Addr| address.is_loopback());
        }
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_loopback())
}

async fn describe() -> Response {
    axum::Json(openapi::all()).into_response()
}

/// Asks something that blocks, with one line of an error.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, (StatusCode, String)> {
    let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, printable(&text));
    let asked = tokio::task::spawn_blocking(ask).await.map_err(|panicked| failed(panicked.to_string()))?;
    asked.map_err(|failure| failed(chain(failure.error.as_ref())))
}

async fn labs(State(home): State<Home>) -> Result<Response, (StatusCode, String)> {
    let labs = blocking(move || ps::labs(&home)).await?;
    Ok(axum::Json(json!({ "labs": labs })).into_response())
}

async fn scrape(State(home): State<Home>) -> Result<Response, (StatusCode, String)> {
    let of = home.clone();
    let labs = blocking(move || ps::labs(&of)).await?;
    let text = metrics::text(&labs, &metrics::ask(&home, &labs).await);
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
