//! A stream of JSON objects, one per line.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::connect::within;

/// Most bytes of one line; the supervisor cuts longer log lines itself.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Objects as they come in. Dropping it ends the request.
pub struct Lines<T> {
    what: String,
    body: Incoming,
    buffer: Vec<u8>,
    /// Up to here, `buffer` is known to hold no line end.
    searched: usize,
    ended: bool,
    patience: Option<Duration>,
    of: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}

impl<T> Lines<T> {
    /// Reads `body`; silence longer than `patience` is an error, unless it may go on for ever.
    pub(crate) const fn new(what: String, body: Incoming, patience: Option<Duration>) -> Self {
        Self {
            what,
            body,
            buffer: Vec::new(),
            searched: 0,
            ended: false,
            patience,
            of: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next object, or none at the end. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|source| Error::Answer {
                        what: self.what.clone(),
                        source,
                    });
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                let what = self.what.clone();
                return Err(Error::TooLong {
                    what,
                    limit_bytes: MAX_LINE_BYTES,
                });
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), Error> {
        let frame = match self.patience {
            Some(patience) => {
                within(&self.what, "the next line", patience, self.body.frame()).await?
            }
            None => self.body.frame().await,
        };
        match frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.buffer.extend_from_slice(data);
                }
            }
            Some(Err(source)) => {
                self.ended = true;
                return Err(Error::Broken {
                    what: self.what.clone(),
                    source,
                });
            }
        }
        Ok(())
    }

    /// A whole line out of the buffer, or what is left of it at the end of the stream.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n');
        if let Some(offset) = end {
            let rest = self.buffer.split_off(self.searched + offset + 1);
            self.searched = 0;
            return Some(std::mem::replace(&mut self.buffer, rest));
        }
        self.searched = self.buffer.len();
        (self.ended && !self.buffer.is_empty()).then(|| {
            self.searched = 0;
            std::mem::take(&mut self.buffer)
        })
    }
}
