//! Files of the guest, both ways, of any size, piece by piece.

use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use machine_api::FileWritten;

use crate::call::{Call, QUICK};
use crate::connect::within;
use crate::machines::of;
use crate::{Client, Error};

/// The slowest transfer that is still waited for; an emulated guest is faster by far.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;

/// A file on its way out of a guest.
#[derive(Debug)]
pub struct FileContent {
    what: String,
    body: Incoming,
    /// Its size when it was opened; it may have grown since.
    pub size_bytes: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
}

impl FileContent {
    /// The next bytes, or none at the end of the file.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = within(&self.what, "the next piece", QUICK, self.body.frame()).await?;
            match frame {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(Error::Broken {
                        what: self.what.clone(),
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
        let what = format!("read {path} of {id}");
        let call = Call::new(Method::GET, of(id, "/files"), what.clone()).query("path", path);
        let answer = self.open(call.deadline(QUICK * 2)).await?;
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
            what,
            body: answer.into_body(),
            size_bytes,
            mode,
        })
    }

    /// Writes a file into the guest: whole, or not at all. Returns the bytes written.
    pub async fn write_file(
        &self,
        id: &str,
        path: &str,
        mode: u32,
        size_bytes: u64,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, Error> {
        let what = format!("write {path} of {id}");
        let uri = Call::new(Method::PUT, of(id, "/files"), "")
            .query("path", path)
            .query("mode", format_args!("{mode:o}"))
            .into_uri();
        let body = StreamBody::new(content.map(|piece| piece.map(Frame::data)));
        let request = self
            .head(Method::PUT, &uri)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size_bytes)
            .body(body.boxed_unsync());
        let deadline = QUICK * 2 + Duration::from_secs(size_bytes / SLOWEST_BYTES_PER_SECOND);
        let answer = self.dispatch(&what, deadline, request).await?;
        self.decode::<FileWritten>(what, deadline, answer)
            .await
            .map(|written| written.bytes)
    }
}
