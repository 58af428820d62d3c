//! The OpenAPI description, generated from the handlers and completed by `additions`.

mod additions;
mod bounds;

use std::sync::LazyLock;

use axum::Json;
use serde_json::Value;
use utoipa::OpenApi;

use crate::api::handlers::{
    apps, events, exec_stream, files, guest, host, inspect, lease, lifecycle, logs, machines,
    metadata, metrics, resources, set_aside, tokens, unlisted, usage, wait,
};

/// All operations.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Machines API of one host",
        description = "In the shape of the Fly Machines API"
    ),
    paths(
        apps::list,
        apps::show,
        machines::create,
        machines::list,
        machines::show,
        machines::update,
        machines::destroy,
        lifecycle::start,
        lifecycle::stop,
        lifecycle::suspend,
        lifecycle::restart,
        wait::wait,
        lifecycle::cordon,
        lifecycle::uncordon,
        guest::exec,
        exec_stream::open,
        files::read,
        files::write,
        usage::show,
        guest::signal,
        guest::processes,
        logs::read,
        events::events,
        inspect::timings,
        inspect::versions,
        inspect::vsock,
        resources::show,
        lease::acquire,
        lease::show,
        lease::release,
        metadata::list,
        metadata::show,
        metadata::set,
        metadata::remove,
        tokens::create,
        tokens::list,
        tokens::revoke,
        set_aside::list,
        set_aside::remove,
        unlisted::list,
        unlisted::adopt,
        unlisted::remove,
        metrics::render,
        host::info,
        host::health
    )
)]
struct Description;

static COMPLETE: LazyLock<Value> = LazyLock::new(|| {
    let known = serde_json::to_value(Description::openapi());
    additions::complete(known.expect("a description is always expressible in JSON"))
});

/// The description. Needs no token.
pub(crate) async fn serve() -> Json<&'static Value> {
    Json(&COMPLETE)
}
