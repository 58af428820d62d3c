//! The OpenAPI description, from the handlers themselves.

use std::sync::LazyLock;

use axum::Json;
use serde_json::Value;
use utoipa::OpenApi;

use super::{
    apps, description, events, exec_stream, files, guest, host, inspect, lease, lifecycle, logs,
    machines, metadata, metrics, tokens, usage, wait,
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
        lease::take,
        lease::show,
        lease::release,
        metadata::list,
        metadata::show,
        metadata::set,
        metadata::remove,
        tokens::create,
        tokens::list,
        tokens::revoke,
        metrics::render,
        host::info,
        host::health
    )
)]
struct Description;

static COMPLETE: LazyLock<Value> = LazyLock::new(|| {
    let known = serde_json::to_value(Description::openapi());
    description::complete(known.expect("a description is always expressible in JSON"))
});

/// The description. Needs no token.
pub(super) async fn serve() -> Json<&'static Value> {
    Json(&COMPLETE)
}
