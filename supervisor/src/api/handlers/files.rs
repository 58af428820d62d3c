//! Files of the guest, both ways and of any size.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use guest_protocol::{FileKind, Frame, Request as GuestRequest, StreamEnd};
use machine_api::{ErrorBody, FileWritten};
use tokio::time::timeout;

use crate::api::error::ApiError;
use crate::api::handlers::guest::ask;
use crate::api::request::extract::{Params, Target};
use crate::guest::{GuestError, GuestReader};
use crate::machine::MachineError;

/// Deadline for the guest to open a file, and for each piece of it.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// Bytes in a frame.
const PIECE_BYTES: usize = 256 << 10;
/// Header with a file's permission bits in octal.
const MODE_HEADER: &str = "x-file-mode";

fn path_of(query: &HashMap<String, String>) -> Result<String, ApiError> {
    let path = query
        .get("path")
        .filter(|path| path.starts_with('/') && !path.contains('\0'));
    path.cloned()
        .ok_or_else(|| ApiError::invalid("path: an absolute path is needed"))
}

/// Reads a file; its size and mode are in the headers.
#[utoipa::path(get, operation_id = "Files_read", path = "/v1/apps/{app}/machines/{machine}/files", tag = "guest",
    params(("app" = String, Path), ("machine" = String, Path), ("path" = String, Query)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn read(
    Target(handle): Target,
    Params(query): Params<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let path = path_of(&query)?;
    let live = handle.live_soon().await?;
    let open = async {
        let mut stream = live.address.open(GuestRequest::ReadFile { path }).await?;
        let kind: FileKind = stream.message("a file").await?;
        Ok((kind, stream))
    };
    let (kind, guest) = ask(&handle, "open the file", STEP_LIMIT, open).await?;
    // Held until the end: without the other half the guest would see its client gone, and without a
    // user the machine would count as idle.
    let held = (guest.writer, handle.activity().add_user());
    let pieces = stream::unfold(Some((guest.reader, held)), async |state| {
        let (mut reader, held) = state?;
        match next_piece(&mut reader).await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some((reader, held)))),
            Ok(None) => None,
            Err(error) => Some((Err(std::io::Error::other(error)), None)),
        }
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        "application/octet-stream".parse().expect("plain ASCII"),
    );
    headers.insert(
        MODE_HEADER,
        format!("{:o}", kind.mode).parse().expect("octal digits"),
    );
    // The guest's size is a hint: the file may grow while it is read.
    headers.insert("x-file-size", kind.size_bytes.into());
    Ok(response)
}

/// The next piece of the guest's file, within a deadline.
async fn next_piece(reader: &mut GuestReader) -> Result<Option<Bytes>, GuestError> {
    match timeout(STEP_LIMIT, reader.next_piece()).await {
        Ok(piece) => Ok(piece?.map(Bytes::from)),
        Err(_) => Err(reader.bad_reply("the file's bytes")),
    }
}

/// The next piece of a body of any length, within a deadline.
async fn next_upload(body: &mut BodyDataStream) -> Result<Option<Bytes>, ApiError> {
    let piece = timeout(STEP_LIMIT, body.next()).await;
    let piece = piece.map_err(|_| ApiError::too_slow())?.transpose();
    piece.map_err(|_| ApiError::invalid("the body ended early"))
}

/// Writes a file, as a whole or not at all.
#[utoipa::path(put, operation_id = "Files_write", path = "/v1/apps/{app}/machines/{machine}/files", tag = "guest",
    params(("app" = String, Path), ("machine" = String, Path), ("path" = String, Query),
        ("mode" = Option<String>, Query)),
    request_body(content = Option<Vec<u8>>, content_type = "application/octet-stream"),
    responses((status = 200, body = FileWritten), (status = "default", body = ErrorBody)))]
pub(crate) async fn write(
    Target(handle): Target,
    Params(query): Params<HashMap<String, String>>,
    request: Request,
) -> Result<Json<FileWritten>, ApiError> {
    let path = path_of(&query)?;
    let mode = query.get("mode").map_or("644", String::as_str);
    let digits = (1..=4).contains(&mode.len()) && mode.bytes().all(|digit| digit.is_ascii_digit());
    let mode = digits.then(|| u32::from_str_radix(mode, 8).ok()).flatten();
    let mode = mode.ok_or_else(|| ApiError::invalid("mode: octal permission bits are needed"))?;
    let content_length = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let content_length = content_length.and_then(|text| text.parse::<u64>().ok());
    let live = handle.live_soon().await?;
    let _user = handle.activity().add_user();
    let open = live.address.open(GuestRequest::WriteFile { path, mode });
    let stream = ask(&handle, "open the file", STEP_LIMIT, open).await?;
    let (mut reader, mut writer) = (stream.reader, stream.writer);
    let mut body = request.into_body().into_data_stream();
    let mut sent = 0_u64;
    // If the connection ends without an end of the file, the guest drops the file.
    while let Some(piece) = next_upload(&mut body).await? {
        for chunk in piece.chunks(PIECE_BYTES) {
            sent += chunk.len() as u64;
            ask(
                &handle,
                "write the file",
                STEP_LIMIT,
                writer.send(Frame::Data(chunk)),
            )
            .await?;
        }
    }
    if content_length.is_some_and(|length| length != sent) {
        return Err(ApiError::invalid(
            "the body is not as long as its content-length",
        ));
    }
    let end = async {
        writer.send(Frame::Data(&[])).await?;
        match reader.message("the file's end").await? {
            StreamEnd::Complete { bytes } => Ok(bytes),
            StreamEnd::Refused(refusal) => Err(GuestError::refused(refusal)),
            StreamEnd::Exited(_) => Err(reader.bad_reply("the file's end")),
        }
    };
    let bytes = ask(&handle, "write the file", STEP_LIMIT, end).await?;
    if bytes == sent {
        return Ok(Json(FileWritten { bytes }));
    }
    let source = GuestError::Closed {
        local_port: None,
        source: None,
    };
    let id = handle.id().to_owned();
    Err(MachineError::Guest {
        id,
        what: "write the whole file",
        source,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::testing::connected_to;

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_stalls_is_given_up() {
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"x"))]);
        let mut body = Body::from_stream(first.chain(stream::pending())).into_data_stream();
        assert_eq!(next_upload(&mut body).await.unwrap().unwrap(), "x");
        let begun = tokio::time::Instant::now();
        assert!(next_upload(&mut body).await.is_err());
        assert_eq!(begun.elapsed(), STEP_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_say_how_its_file_ends_is_given_up() {
        let mut bytes = Vec::new();
        guest_protocol::encode(Frame::Data(b"all of it"), &mut bytes).unwrap();
        guest_protocol::encode(Frame::Data(b""), &mut bytes).unwrap();
        let (stream, _kept_open) = connected_to(&bytes).await;
        let mut reader = stream.reader;
        let first = next_piece(&mut reader).await.unwrap();
        assert_eq!(first.as_deref(), Some(&b"all of it"[..]));
        let begun = tokio::time::Instant::now();
        let end = tokio::time::timeout(2 * STEP_LIMIT, next_piece(&mut reader)).await;
        assert!(end.expect("it has a deadline").is_err());
        assert_eq!(begun.elapsed(), STEP_LIMIT);
    }
}
