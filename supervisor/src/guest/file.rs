//! The pieces of a file that comes out of the guest.

use guest_protocol::StreamEnd;

use crate::guest::{GuestError, GuestReader, OwnedFrame};

impl GuestReader {
    /// Waits for the next piece of a file; none at its end. Not cancel safe.
    pub(crate) async fn next_piece(&mut self) -> Result<Option<Vec<u8>>, GuestError> {
        match self.next().await? {
            Some(OwnedFrame::Data(bytes)) if bytes.is_empty() => {
                match self.message("the file's end").await? {
                    StreamEnd::Complete { .. } => Ok(None),
                    StreamEnd::Refused(refusal) => Err(GuestError::refused(refusal)),
                    StreamEnd::Exited(_) => Err(self.bad_reply("the file's end")),
                }
            }
            Some(OwnedFrame::Data(bytes)) => Ok(Some(bytes)),
            Some(OwnedFrame::Json(payload)) => match serde_json::from_slice(&payload) {
                Ok(StreamEnd::Refused(refusal)) => Err(GuestError::refused(refusal)),
                Ok(_) | Err(_) => Err(self.bad_reply("the file's bytes")),
            },
            Some(_) | None => Err(self.bad_reply("the file's bytes")),
        }
    }
}
