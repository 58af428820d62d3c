//! A machine's log as one JSON object per line.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream;
use machine_api::{ErrorBody, LogLine, Machine, MachineState};
use tokio::sync::watch;

use crate::api::error::ApiError;
use crate::api::ndjson;
use crate::api::request::extract::{Params, Target, is_set, moment};
use crate::logs::{LogFilter, LogReader};
use crate::machine::MachineError;
use crate::model::admission::RefusalReason;

/// Lines of the log, oldest first. With `follow=true` new ones follow until the machine is destroyed.
#[utoipa::path(get, operation_id = "Machines_logs_read", path = "/v1/apps/{app}/machines/{machine}/logs", tag = "guest",
    params(("app" = String, Path), ("machine" = String, Path), ("follow" = Option<bool>, Query),
        ("since" = Option<String>, Query), ("tail" = Option<u64>, Query)),
    responses((status = 200, body = LogLine, content_type = "application/x-ndjson"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn read(
    Target(handle): Target,
    Params(query): Params<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let follow = is_set(query.get("follow").map(String::as_str))?;
    let tail = query
        .get("tail")
        .map(|text| text.parse::<usize>())
        .transpose();
    let tail = tail.map_err(|_| ApiError::invalid("tail: a number of lines is needed"))?;
    let since = query.get("since").map(|text| moment(text)).transpose()?;
    let filter = LogFilter { since, tail };
    let log = handle.log().clone();
    let read = tokio::task::spawn_blocking(move || log.read(&filter)).await;
    let (lines, reader) = read
        .map_err(|_| MachineError::ShuttingDown)?
        .map_err(|source| match source.kind() {
            // It was removed with the machine.
            std::io::ErrorKind::NotFound => handle.refused(RefusalReason::Gone),
            _ => MachineError::Files {
                what: "read the log",
                source,
            },
        })?;
    let first = ndjson::lines(&lines);
    let body = if follow {
        followed(first, reader, handle.watch())
    } else {
        Body::from(first)
    };
    Ok(ndjson::answer(body))
}

/// New lines until the client leaves or the machine is destroyed.
fn followed(first: Bytes, reader: LogReader, view: watch::Receiver<Arc<Machine>>) -> Body {
    let parts = stream::unfold(
        (Some(first), reader, view),
        async |(first, mut reader, mut view)| {
            if let Some(first) = first.filter(|bytes| !bytes.is_empty()) {
                return Some((Ok(first), (None, reader, view)));
            }
            let more = tokio::select! {
                biased;
                more = reader.more() => more,
                _ = view.wait_for(|machine| machine.state == MachineState::Destroyed) => return None,
            };
            match more {
                Ok(Some(lines)) => Some((Ok(ndjson::lines(&lines)), (None, reader, view))),
                Ok(None) => None,
                Err(error) => Some((Err(error), (None, reader, view))),
            }
        },
    );
    Body::from_stream(parts)
}
