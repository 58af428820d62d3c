//! Bodies with one JSON object per line.

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A line for each of `items`.
pub(crate) fn lines<'a, T: Serialize + 'a>(items: impl IntoIterator<Item = &'a T>) -> Bytes {
    let mut bytes = Vec::new();
    for item in items {
        if serde_json::to_writer(&mut bytes, item).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes.into()
}

/// A response with such a body.
pub(crate) fn answer(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
