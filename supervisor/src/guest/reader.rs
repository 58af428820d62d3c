//! The receiving half of a connection to guest-init: frames, one after the other.
//!
//! A guest decides how its bytes are cut into frames and when they come. Whatever it chooses, a frame costs
//! time in proportion to its bytes, a connection holds one frame at most, and other tasks get their turns.

use std::io;

use guest_protocol::{Decoded, Frame, HEADER_BYTES, MAX_PAYLOAD_BYTES};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use crate::guest::{GuestError, SharedPace};

/// Most bytes for which there is room before any of a frame has arrived. Then there is room for as much again
/// as has arrived, up to the frame's end.
const READ_BYTES: usize = 64 << 10;

/// A frame with its payload.
#[derive(Debug)]
pub(crate) enum OwnedFrame {
    /// A message.
    Json(Vec<u8>),
    /// Bytes of an exec's standard output.
    Stdout(Vec<u8>),
    /// Bytes of an exec's standard error.
    Stderr(Vec<u8>),
    /// Bytes of a file.
    Data(Vec<u8>),
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct GuestReader {
    half: OwnedReadHalf,
    /// Bytes that arrived, and how many of them belong to frames that were returned.
    buffer: Vec<u8>,
    taken: usize,
    /// Longest payload that is accepted.
    longest: usize,
    local_port: u32,
    /// Held as long as the connection.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// How fast it is read, and until when it waits for that.
    pub(super) pace: Option<SharedPace>,
    paused_until: Option<Instant>,
}

impl GuestReader {
    /// Reads frames from `half`, after those in `buffer`.
    pub(super) fn new(half: OwnedReadHalf, buffer: Vec<u8>, local_port: u32) -> Self {
        Self {
            half,
            buffer,
            taken: 0,
            longest: MAX_PAYLOAD_BYTES,
            local_port,
            permit: None,
            pace: None,
            paused_until: None,
        }
    }

    /// Accepts no longer payload than `bytes` from now on.
    pub(super) fn bound_payloads(&mut self, bytes: usize) {
        self.longest = bytes;
    }

    /// Host end of the pair.
    pub(super) fn local_port(&self) -> u32 {
        self.local_port
    }

    /// For raw bytes, with those that have arrived already.
    pub(super) fn into_raw(mut self) -> (OwnedReadHalf, Vec<u8>) {
        self.forget_taken();
        (self.half, self.buffer)
    }

    /// Waits for the next frame; none at the end of the stream. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<OwnedFrame>, GuestError> {
        // A buffer may hold thousands of frames, none of which has to be waited for.
        tokio::task::consume_budget().await;
        if let Some(until) = self.paused_until {
            sleep_until(until).await;
            self.paused_until = None;
        }
        loop {
            let (length, found) = match guest_protocol::decode(&self.buffer[self.taken..])? {
                Decoded::Frame(frame, length) => (length, Some(self.owned(frame)?)),
                Decoded::Incomplete(missing) => (self.buffer.len() - self.taken + missing, None),
            };
            if length > HEADER_BYTES + self.longest {
                return Err(self.bad_reply("an answer of that kind: it is too long"));
            }
            if let Some(frame) = found {
                self.taken += length;
                if let Some(pace) = &self.pace {
                    let wait = pace.wait_after(length);
                    // The next call waits: this one may be cancelled only before it has a frame.
                    self.paused_until = (!wait.is_zero()).then(|| Instant::now() + wait);
                }
                return Ok(Some(frame));
            }
            self.make_room(length);
            match self.half.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(self.closed(None)),
                Ok(_) => {}
                Err(source) => return Err(self.closed(Some(source))),
            }
        }
    }

    fn owned(&self, frame: Frame<'_>) -> Result<OwnedFrame, GuestError> {
        Ok(match frame {
            Frame::Json(payload) => OwnedFrame::Json(payload.to_vec()),
            Frame::Stdout(payload) => OwnedFrame::Stdout(payload.to_vec()),
            Frame::Stderr(payload) => OwnedFrame::Stderr(payload.to_vec()),
            Frame::Data(payload) => OwnedFrame::Data(payload.to_vec()),
            Frame::Stdin(_) => return Err(self.bad_reply("output")),
        })
    }

    /// Makes room for the rest of a frame of `length` bytes, of which the beginning has arrived. Only what has
    /// arrived costs memory: a header that promises more gets it in steps.
    fn make_room(&mut self, length: usize) {
        self.forget_taken();
        let missing = length - self.buffer.len();
        if self.buffer.is_empty() && self.buffer.capacity() > READ_BYTES {
            // After a large frame; the next one is probably small.
            self.buffer = Vec::new();
        }
        let most = READ_BYTES.max(self.buffer.len());
        self.buffer.reserve_exact(missing.clamp(4_096, most));
    }

    /// Moves a frame's beginning to the front: once for each read, not for each frame.
    fn forget_taken(&mut self) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
    }

    /// Waits for a message of that type.
    pub(crate) async fn message<T: DeserializeOwned>(
        &mut self,
        expected: &'static str,
    ) -> Result<T, GuestError> {
        match self.next().await? {
            Some(OwnedFrame::Json(payload)) => {
                serde_json::from_slice(&payload).map_err(|_| self.bad_reply(expected))
            }
            Some(_) => Err(self.bad_reply(expected)),
            None => Err(self.closed(None)),
        }
    }

    /// The error for an answer that is not `expected`.
    pub(crate) fn bad_reply(&self, expected: &'static str) -> GuestError {
        GuestError::BadReply {
            expected,
            local_port: self.local_port,
        }
    }

    /// The error for a connection that ended.
    pub(super) fn closed(&self, source: Option<io::Error>) -> GuestError {
        GuestError::Closed {
            local_port: Some(self.local_port),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::guest::CallPermits;
    use crate::model::guest_share::GuestShare;

    /// A reader, and the guest's end of its connection.
    fn connected() -> (GuestReader, UnixStream) {
        let (ours, guest) = UnixStream::pair().unwrap();
        let (half, writer) = ours.into_split();
        // The connection stays whole for as long as the reader.
        writer.forget();
        (GuestReader::new(half, Vec::new(), 7), guest)
    }

    fn frame(frame: Frame<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        guest_protocol::encode(frame, &mut bytes).unwrap();
        bytes
    }

    /// Time to take `count` empty frames that are all in the buffer already.
    async fn time_to_take(count: usize) -> Duration {
        let (mut reader, _guest) = connected();
        reader.buffer = frame(Frame::Stdout(&[])).repeat(count);
        let begun = std::time::Instant::now();
        for _ in 0..count {
            assert!(matches!(
                reader.next().await,
                Ok(Some(OwnedFrame::Stdout(_)))
            ));
        }
        begun.elapsed()
    }

    #[tokio::test]
    async fn tiny_frames_cost_time_in_proportion_to_their_number() {
        time_to_take(1_000).await;
        let few = time_to_take(20_000).await;
        let many = time_to_take(20_000 * 10).await;
        // If each frame moved those behind it, it would be a hundred times.
        assert!(many < few * 40, "{few:?}, then {many:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_connections_of_a_machine_are_read_at_one_pace() {
        let share = GuestShare {
            mib_per_second: NonZeroU32::MIN,
            ..GuestShare::default()
        };
        let permits = CallPermits::new(&share);
        let begun = Instant::now();
        let count = 1_000;
        let read = async || {
            let (mut reader, _guest) = connected();
            reader.pace = Some(permits.pace().clone());
            reader.buffer = frame(Frame::Stdout(&[])).repeat(count);
            for _ in 0..count {
                reader.next().await.unwrap();
            }
        };
        tokio::join!(read(), read());
        // 200 pieces a second, those of the first second at once.
        let seconds = begun.elapsed().as_secs_f64();
        assert!((8.9..9.1).contains(&seconds), "{seconds}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn frames_that_need_no_wait_leave_turns_to_other_tasks() {
        let (mut reader, _guest) = connected();
        let count = 10_000;
        reader.buffer = frame(Frame::Stdout(&[])).repeat(count);
        let other = tokio::spawn(async {});
        let mut taken_before = 0;
        for _ in 0..count {
            reader.next().await.unwrap();
            taken_before += usize::from(!other.is_finished());
        }
        assert!(taken_before < count / 2, "{taken_before}");
    }

    #[tokio::test]
    async fn a_large_frame_leaves_no_large_buffer_behind() {
        let (mut reader, mut guest) = connected();
        let large = vec![0; MAX_PAYLOAD_BYTES];
        let sent = tokio::spawn(async move {
            guest.write_all(&frame(Frame::Data(&large))).await.unwrap();
            guest.write_all(&frame(Frame::Data(b"x"))).await.unwrap();
            guest
        });
        for length in [MAX_PAYLOAD_BYTES, 1] {
            let found = reader.next().await.unwrap();
            assert!(
                matches!(found, Some(OwnedFrame::Data(bytes)) if bytes.len() == length),
                "{length}"
            );
            assert!(reader.buffer.capacity() < MAX_PAYLOAD_BYTES + 2 * READ_BYTES);
        }
        drop(sent.await.unwrap());
        assert!(reader.next().await.unwrap().is_none());
        assert!(reader.buffer.capacity() <= READ_BYTES);
    }

    #[tokio::test]
    async fn a_header_that_promises_much_gets_no_memory_for_it() {
        let (mut reader, mut guest) = connected();
        let whole = frame(Frame::Json(&vec![b' '; MAX_PAYLOAD_BYTES]));
        guest.write_all(&whole[..100]).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(50), reader.next()).await;
        assert!(waited.is_err(), "{waited:?}");
        assert!(reader.buffer.capacity() <= 2 * READ_BYTES);
        reader.bound_payloads(1_000);
        let refused = reader.next().await;
        assert!(
            matches!(refused, Err(GuestError::BadReply { local_port: 7, .. })),
            "{refused:?}"
        );
    }
}
