//! Frames: one kind byte, the payload's length (u32, little endian), the payload.
//!
//! Decoding works on any number of received bytes. Bytes from the other end are not trusted: a
//! length is checked before it is used.

/// Bytes before the payload of each frame.
pub const HEADER_BYTES: usize = 5;

/// Largest payload of one frame. Larger data is sent in several frames.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

const JSON: u8 = 1;
const STDIN: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const DATA: u8 = 5;

/// One frame, borrowing its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message of this crate as JSON.
    Json(&'a [u8]),
    /// Bytes for an exec's standard input; an empty payload closes it.
    Stdin(&'a [u8]),
    /// Bytes of an exec's standard output.
    Stdout(&'a [u8]),
    /// Bytes of an exec's standard error.
    Stderr(&'a [u8]),
    /// Bytes of a file; an empty payload is its end.
    Data(&'a [u8]),
}

/// Result of [`decode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A whole frame, and its length in bytes.
    Frame(Frame<'a>, usize),
    /// A part of a frame; at least this many more bytes are needed.
    Incomplete(usize),
}

/// Why bytes are not a frame. The stream cannot be used any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind byte is unknown.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// The length exceeds [`MAX_PAYLOAD_BYTES`].
    #[error("frame of {0} bytes exceeds the limit of {MAX_PAYLOAD_BYTES}")]
    TooLong(usize),
}

/// Appends `frame` to `out`.
///
/// # Errors
/// [`FrameError::TooLong`] if the payload exceeds [`MAX_PAYLOAD_BYTES`]; `out` is unchanged.
pub fn encode(frame: Frame<'_>, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let (kind, payload) = match frame {
        Frame::Json(payload) => (JSON, payload),
        Frame::Stdin(payload) => (STDIN, payload),
        Frame::Stdout(payload) => (STDOUT, payload),
        Frame::Stderr(payload) => (STDERR, payload),
        Frame::Data(payload) => (DATA, payload),
    };
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= MAX_PAYLOAD_BYTES)
        .ok_or(FrameError::TooLong(payload.len()))?;
    out.reserve(HEADER_BYTES + payload.len());
    out.push(kind);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Reads the frame at the start of `bytes`.
///
/// # Errors
/// [`FrameError`] if the header is not that of a frame, as soon as enough of it has arrived.
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, FrameError> {
    let Some((&kind, rest)) = bytes.split_first() else {
        return Ok(Decoded::Incomplete(HEADER_BYTES));
    };
    if !(JSON..=DATA).contains(&kind) {
        return Err(FrameError::UnknownKind(kind));
    }
    let Some(length) = rest.first_chunk::<4>() else {
        return Ok(Decoded::Incomplete(HEADER_BYTES - bytes.len()));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let total = HEADER_BYTES + length;
    let Some(payload) = bytes.get(HEADER_BYTES..total) else {
        return Ok(Decoded::Incomplete(total - bytes.len()));
    };
    let frame = match kind {
        JSON => Frame::Json(payload),
        STDIN => Frame::Stdin(payload),
        STDOUT => Frame::Stdout(payload),
        STDERR => Frame::Stderr(payload),
        _ => Frame::Data(payload),
    };
    Ok(Decoded::Frame(frame, total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_have_these_exact_bytes() {
        let mut out = Vec::new();
        encode(Frame::Json(b"{}"), &mut out).unwrap();
        encode(Frame::Stdin(b""), &mut out).unwrap();
        assert_eq!(out, b"\x01\x02\0\0\0{}\x02\0\0\0\0");
    }

    #[test]
    fn a_frame_is_found_only_when_all_of_it_arrived() {
        let bytes = b"\x05\x03\0\0\0abcrest";
        for cut in 0..8 {
            assert!(
                matches!(decode(&bytes[..cut]), Ok(Decoded::Incomplete(n)) if n > 0),
                "{cut}"
            );
        }
        assert_eq!(decode(bytes), Ok(Decoded::Frame(Frame::Data(b"abc"), 8)));
    }

    #[test]
    fn unknown_kinds_and_huge_lengths_are_refused_from_the_header_alone() {
        assert_eq!(decode(b"\x00"), Err(FrameError::UnknownKind(0)));
        assert_eq!(
            decode(b"GET / HTTP/1.1"),
            Err(FrameError::UnknownKind(b'G'))
        );
        assert_eq!(
            decode(b"\x01\xff\xff\xff\x7f"),
            Err(FrameError::TooLong(0x7fff_ffff))
        );
        let long = vec![0; MAX_PAYLOAD_BYTES + 1];
        let mut out = Vec::new();
        assert_eq!(
            encode(Frame::Data(&long), &mut out),
            Err(FrameError::TooLong(MAX_PAYLOAD_BYTES + 1))
        );
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            kind in 0..8u8,
            length in prop_oneof![0..40u32, any::<u32>()],
            rest in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(length.to_le_bytes());
            bytes.extend(rest);
            match decode(&bytes) {
                Ok(Decoded::Frame(frame, taken)) => {
                    let mut again = Vec::new();
                    encode(frame, &mut again).unwrap();
                    prop_assert_eq!(&again, &bytes[..taken]);
                }
                Ok(Decoded::Incomplete(missing)) => {
                    let total = HEADER_BYTES + length as usize;
                    prop_assert_eq!(bytes.len() + missing, total);
                }
                Err(FrameError::UnknownKind(unknown)) => prop_assert!(!(JSON..=DATA).contains(&unknown)),
                Err(FrameError::TooLong(long)) => prop_assert!(long > MAX_PAYLOAD_BYTES),
            }
        }
    }
}
