//! The Machines API over HTTP: routes, sockets, and nothing about machines.
//!
//! Handlers verify, convert and forward. Requests over the Unix socket are trusted, as its mode
//! says who may open it; those over TCP carry a bearer token, with TLS or without.

mod apps;
mod auth;
mod body;
mod bounds;
mod description;
mod error;
mod events;
mod exec_stream;
mod extract;
mod files;
mod guest;
mod host;
mod inspect;
mod lease;
mod lifecycle;
mod logs;
mod machines;
mod metadata;
mod metrics;
mod ndjson;
mod normal;
mod openapi;
mod serve;
mod tcp;
mod tls;
mod tokens;
mod unsupported;
mod usage;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{delete, get, post};

pub(crate) use auth::Tokens;
pub(crate) use serve::serve;
pub(crate) use tls::Tls;

use crate::machine::Registry;

/// Largest body of a request, file transfers apart.
const BODY_BYTES: usize = 1 << 20;
/// Longest wait of `…/wait`.
const WAIT_MOST: Duration = Duration::from_secs(300);

/// What handlers need.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// The machines.
    pub(crate) registry: Registry,
    /// Who may use TCP.
    pub(crate) tokens: Arc<Tokens>,
    /// Where it is served over TCP, if it is.
    pub(crate) address: Option<Arc<str>>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Somebody whom the socket's mode lets in.
    Local,
    /// Anybody; needs a token.
    Network,
}

/// All routes, for connections of that kind.
pub(crate) fn router(api: Api, access: Access) -> Router {
    let machine = Router::new()
        .route(
            "/",
            get(machines::show)
                .post(machines::update)
                .delete(machines::destroy),
        )
        .route("/start", post(lifecycle::start))
        .route("/stop", post(lifecycle::stop))
        .route("/suspend", post(lifecycle::suspend))
        .route("/restart", post(lifecycle::restart))
        .route("/signal", post(guest::signal))
        .route("/wait", get(wait::wait))
        .route("/cordon", post(lifecycle::cordon))
        .route("/uncordon", post(lifecycle::uncordon))
        .route("/exec", post(guest::exec))
        .route("/exec/stream", get(exec_stream::open))
        .route("/usage", get(usage::show))
        .route("/ps", get(guest::processes))
        .route(
            "/lease",
            get(lease::show).post(lease::take).delete(lease::release),
        )
        .route("/metadata", get(metadata::list))
        .route(
            "/metadata/{key}",
            get(metadata::show)
                .post(metadata::set)
                .delete(metadata::remove),
        )
        .route("/versions", get(inspect::versions))
        .route("/events", get(events::events))
        .route("/timings", get(inspect::timings))
        .route("/vsock", get(inspect::vsock))
        .route("/logs", get(logs::read));
    // Files have no bound: they are carried, not kept.
    let files = Router::new()
        .route("/files", get(files::read).put(files::write))
        .layer(DefaultBodyLimit::disable());
    let machine = machine.merge(files);
    let app = Router::new()
        .route("/", get(apps::show))
        .route("/machines", get(machines::list).post(machines::create))
        .nest("/machines/{machine}", machine);
    let guarded = Router::new()
        .route("/v1/apps", get(apps::list))
        .nest("/v1/apps/{app}", app)
        .route("/v1/host", get(host::info))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .route("/metrics", get(metrics::render))
        .layer(middleware::from_fn_with_state(
            (api.clone(), access),
            auth::check,
        ));
    Router::new()
        .merge(guarded)
        .route("/health", get(host::health))
        .route("/openapi.json", get(openapi::serve))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(api)
}
