//! Runs a command in the guest to its end and collects its output.

use std::time::Duration;

use guest_protocol::{ExecSpec, Exit, Frame, Request, StreamEnd};

use crate::guest::{GuestAddress, GuestError, OwnedFrame};

/// Most bytes collected from each output stream; the rest is read and dropped.
const OUTPUT_BYTES: usize = 4 << 20;
/// Bytes of standard input in a frame.
const STDIN_BYTES: usize = 64 << 10;

/// A command that has ended.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
    /// How it ended.
    pub(crate) exit: Exit,
    /// One of the output streams was longer than that and is cut.
    pub(crate) truncated: bool,
}

impl GuestAddress {
    /// Runs `exec` with `stdin` and waits for its end; the guest kills it at `limit`.
    pub(crate) async fn run_to_end(
        &self,
        exec: ExecSpec,
        stdin: &[u8],
        limit: Duration,
    ) -> Result<Collected, GuestError> {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let stream = self.open(Request::Exec { exec, timeout_ms }).await?;
        let (mut reader, mut writer) = (stream.reader, stream.writer);
        let feed = async {
            for chunk in stdin.chunks(STDIN_BYTES) {
                writer.send(Frame::Stdin(chunk)).await?;
            }
            writer.send(Frame::Stdin(&[])).await
        };
        let collect = async {
            let mut collected = Collected::default();
            loop {
                match reader.next().await? {
                    Some(OwnedFrame::Stdout(bytes)) => {
                        collected.truncated |= !append_bounded(&mut collected.stdout, &bytes);
                    }
                    Some(OwnedFrame::Stderr(bytes)) => {
                        collected.truncated |= !append_bounded(&mut collected.stderr, &bytes);
                    }
                    Some(OwnedFrame::Json(payload)) => match serde_json::from_slice(&payload) {
                        Ok(StreamEnd::Exited(exit)) => {
                            collected.exit = exit;
                            return Ok(collected);
                        }
                        Ok(StreamEnd::Refused(refusal)) => {
                            return Err(GuestError::refused(refusal));
                        }
                        Ok(StreamEnd::Complete { .. }) | Err(_) => {
                            return Err(reader.bad_reply("the command's end"));
                        }
                    },
                    Some(OwnedFrame::Data(_)) | None => {
                        return Err(reader.bad_reply("the command's end"));
                    }
                }
            }
        };
        tokio::pin!(collect);
        // A command need not read its input, so only its end counts.
        tokio::select! {
            biased;
            collected = &mut collect => return collected,
            _fed = feed => {}
        }
        collect.await
    }
}

/// Appends `bytes` up to the bound; false if some were dropped.
fn append_bounded(output: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let room = OUTPUT_BYTES.saturating_sub(output.len());
    output.extend_from_slice(&bytes[..bytes.len().min(room)]);
    bytes.len() <= room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_bytes_are_reported() {
        let mut output = vec![0; OUTPUT_BYTES - 2];
        assert!(append_bounded(&mut output, b"ab"));
        assert!(!append_bounded(&mut output, b"c"));
        assert_eq!(output.len(), OUTPUT_BYTES);
    }
}
