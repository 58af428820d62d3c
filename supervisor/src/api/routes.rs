//! Which path and method leads to which handler.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{delete, get, post};

use crate::api::handlers::{
    apps, events, exec_stream, files, guest, host, inspect, lease, lifecycle, logs, machines,
    metadata, metrics, resources, set_aside, tokens, unlisted, usage, wait,
};
use crate::api::request::auth;
use crate::api::{Access, Api, description, error};

/// Largest body of a request, file transfers excepted.
const BODY_BYTES: usize = 1 << 20;

/// All routes, for connections with that access.
pub(super) fn router(api: Api, access: Access) -> Router {
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
            get(lease::show).post(lease::acquire).delete(lease::release),
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
        .route("/resources", get(resources::show))
        .route("/set-aside/{generation}", delete(set_aside::remove))
        .route("/logs", get(logs::read));
    // Files have no size limit: they are passed on, not stored.
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
        .route("/v1/set-aside", get(set_aside::list))
        .route("/v1/unlisted", get(unlisted::list))
        .route("/v1/unlisted/{folder}", delete(unlisted::remove))
        .route("/v1/unlisted/{folder}/adopt", post(unlisted::adopt))
        .route("/metrics", get(metrics::render))
        .layer(middleware::from_fn_with_state(
            (api.clone(), access),
            auth::check,
        ));
    Router::new()
        .merge(guarded)
        .route("/health", get(host::health))
        .route("/openapi.json", get(description::serve))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(api)
}
