//! A stream of JSON objects, one per line.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::connect::within;
use crate::error::Error;

/// The most bytes of one line. The supervisor cuts longer log lines.
const MAX_LINE_BYTES: usize = 1 << 20;

/// The objects of an answer as they arrive. The request ends when this is dropped.
pub struct Lines<T> {
    action: String,
    body: Incoming,
    buffer: Vec<u8>,
    /// The first bytes of `buffer` that are known to hold no line end.
    searched_bytes: usize,
    ended: bool,
    idle_limit: Option<Duration>,
    object: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("action", &self.action)
            .finish_non_exhaustive()
    }
}

impl<T> Lines<T> {
    /// Reads `body`. It is an error if nothing arrives for `idle_limit`; without a limit the
    /// stream may be silent for ever.
    pub(crate) const fn new(action: String, body: Incoming, idle_limit: Option<Duration>) -> Self {
        Self {
            action,
            body,
            buffer: Vec::new(),
            searched_bytes: 0,
            ended: false,
            idle_limit,
            object: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next object; none at the end. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|source| {
                    Error::UnexpectedAnswer {
                        action: self.action.clone(),
                        source,
                    }
                });
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                let action = self.action.clone();
                return Err(Error::TooLong {
                    action,
                    limit_bytes: MAX_LINE_BYTES,
                });
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> Result<(), Error> {
        let frame = match self.idle_limit {
            Some(idle_limit) => {
                within(&self.action, "the next line", idle_limit, self.body.frame()).await?
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
                    action: self.action.clone(),
                    source,
                });
            }
        }
        Ok(())
    }

    /// Takes a whole line out of the buffer; at the end of the stream, the rest of it.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer[self.searched_bytes..]
            .iter()
            .position(|byte| *byte == b'\n');
        if let Some(offset) = end {
            let rest = self.buffer.split_off(self.searched_bytes + offset + 1);
            self.searched_bytes = 0;
            return Some(std::mem::replace(&mut self.buffer, rest));
        }
        self.searched_bytes = self.buffer.len();
        (self.ended && !self.buffer.is_empty()).then(|| {
            self.searched_bytes = 0;
            std::mem::take(&mut self.buffer)
        })
    }
}
