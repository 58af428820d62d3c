//! Calls that copy files out of and into the guest. Files may have any size: they are streamed.

use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use machine_api::FileWritten;

use crate::call::{Call, DEFAULT_DEADLINE};
use crate::client::{Client, decode};
use crate::connect::within;
use crate::error::Error;
use crate::paths;

/// A slower transfer fails. Even an emulated guest is much faster.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;

/// A file that is being read from a guest.
#[derive(Debug)]
pub struct FileContent {
    action: String,
    body: Incoming,
    /// Size of the file when it was opened; it may have grown since.
    pub size_bytes: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
}

impl FileContent {
    /// The next bytes; none at the end of the file.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = within(
                &self.action,
                "the next part",
                DEFAULT_DEADLINE,
                self.body.frame(),
            )
            .await?;
            match frame {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(Error::Broken {
                        action: self.action.clone(),
                        source,
                    });
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

impl Client {
    /// Opens a file of the guest.
    pub async fn read_file(&self, id: &str, path: &str) -> Result<FileContent, Error> {
        let action = format!("read {path} of machine {id}");
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/files"),
            action.clone(),
        )
        .query("path", path);
        let answer = self.open(call.deadline(DEFAULT_DEADLINE * 2)).await?;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let size_bytes = header("x-file-size").and_then(|text| text.parse().ok());
        let mode = header("x-file-mode").and_then(|text| u32::from_str_radix(&text, 8).ok());
        Ok(FileContent {
            action,
            body: answer.into_body(),
            size_bytes,
            mode,
        })
    }

    /// Writes a file into the guest. The file appears complete or not at all. Returns its size in
    /// bytes.
    pub async fn write_file(
        &self,
        id: &str,
        path: &str,
        mode: u32,
        size_bytes: u64,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, Error> {
        let action = format!("write {path} of machine {id}");
        let uri = Call::new(Method::PUT, paths::machine(&self.app, id, "/files"), "")
            .query("path", path)
            .query("mode", format_args!("{mode:o}"))
            .into_uri();
        let body = StreamBody::new(content.map(|chunk| chunk.map(Frame::data)));
        let request = self
            .request_head(Method::PUT, &uri)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size_bytes)
            .body(body.boxed_unsync());
        let deadline =
            DEFAULT_DEADLINE * 2 + Duration::from_secs(size_bytes / SLOWEST_BYTES_PER_SECOND);
        let answer = self.dispatch(&action, deadline, request).await?;
        decode::<FileWritten>(action, deadline, answer)
            .await
            .map(|written| written.bytes)
    }
}
