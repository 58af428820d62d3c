//! The frames between the two ends of the channel, `host` outside and `kvm-host-init` inside.
//!
//! A frame is its kind (one byte), the length of its payload (four bytes, little-endian) and
//! the payload. Both ends are of the same build, so there is no version. What either end does with a
//! frame is decided there.

use std::io::{self, Read, Write};

use thiserror::Error;

/// The longest payload that a reader accepts.
pub const PAYLOAD_LIMIT_BYTES: usize = 1 << 20;

/// Why no frame could be read.
#[derive(Debug, Error)]
pub enum ProtocolError {
    #[error("cannot read from the channel")]
    Read(#[source] io::Error),
    #[error("the channel ended within a frame")]
    CutShort,
    #[error("a frame announces {bytes} bytes, {PAYLOAD_LIMIT_BYTES} are allowed")]
    TooLong { bytes: usize },
    #[error("there is no frame of kind {kind}")]
    UnknownKind { kind: u8 },
    #[error("a frame of kind {kind} has an invalid payload of {bytes} bytes")]
    BadPayload { kind: u8, bytes: usize },
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Outwards: the modules are loaded, the network is up.
    Booted,
    /// Outwards: the service accepts connections.
    Ready,
    /// Outwards: output of the command.
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// Outwards: a file of the exported folder begins.
    File {
        path: String,
        permissions: u32,
    },
    /// Outwards: the next bytes of that file.
    FileData(Vec<u8>),
    /// Outwards: the command has ended with this exit code, or with 128 plus the number of the
    /// signal that killed it. All its output and files came before.
    Exited(i32),
    /// Outwards: the plan cannot be carried out.
    Failed(String),
    /// Inwards: end the program and power off.
    PowerOff,
    /// Inwards: interrupt the command, as Ctrl-C does.
    Interrupt,
    /// Inwards: has no content; its arrival causes an interrupt.
    Beat,
}

const BOOTED: u8 = 1;
const READY: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const FILE: u8 = 5;
const FILE_DATA: u8 = 6;
const EXITED: u8 = 7;
const FAILED: u8 = 8;
const POWER_OFF: u8 = 9;
const BEAT: u8 = 10;
const INTERRUPT: u8 = 11;

impl Frame {
    /// Writes the frame in one piece, since each write costs an emulated exit.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        let (kind, payload) = self.encode();
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= PAYLOAD_LIMIT_BYTES)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut bytes = Vec::with_capacity(5 + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&payload);
        out.write_all(&bytes)?;
        out.flush()
    }

    /// Reads the next frame; `None` if the channel ends before it.
    pub fn read_from(mut input: impl Read) -> Result<Option<Self>, ProtocolError> {
        let mut kind = [0];
        match input.read_exact(&mut kind) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result.map_err(ProtocolError::Read)?,
        }
        let mut length = [0; 4];
        read_exactly(&mut input, &mut length)?;
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > PAYLOAD_LIMIT_BYTES {
            return Err(ProtocolError::TooLong { bytes });
        }
        let mut payload = vec![0; bytes];
        read_exactly(&mut input, &mut payload)?;
        Self::decode(kind[0], payload).map(Some)
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Booted => (BOOTED, Vec::new()),
            Self::Ready => (READY, Vec::new()),
            Self::Stdout(bytes) => (STDOUT, bytes.clone()),
            Self::Stderr(bytes) => (STDERR, bytes.clone()),
            Self::File { path, permissions } => {
                (FILE, [&permissions.to_le_bytes(), path.as_bytes()].concat())
            }
            Self::FileData(bytes) => (FILE_DATA, bytes.clone()),
            Self::Exited(code) => (EXITED, code.to_le_bytes().to_vec()),
            Self::Failed(reason) => (FAILED, reason.clone().into_bytes()),
            Self::PowerOff => (POWER_OFF, Vec::new()),
            Self::Beat => (BEAT, Vec::new()),
            Self::Interrupt => (INTERRUPT, Vec::new()),
        }
    }

    fn decode(kind: u8, payload: Vec<u8>) -> Result<Self, ProtocolError> {
        let bytes = payload.len();
        let bad = || ProtocolError::BadPayload { kind, bytes };
        let text = |bytes: &[u8]| str::from_utf8(bytes).map(str::to_owned).map_err(|_| bad());
        match kind {
            BOOTED | READY | POWER_OFF | BEAT | INTERRUPT if bytes != 0 => Err(bad()),
            BOOTED => Ok(Self::Booted),
            READY => Ok(Self::Ready),
            POWER_OFF => Ok(Self::PowerOff),
            BEAT => Ok(Self::Beat),
            INTERRUPT => Ok(Self::Interrupt),
            STDOUT => Ok(Self::Stdout(payload)),
            STDERR => Ok(Self::Stderr(payload)),
            FILE => {
                let (permissions, path) = payload.split_first_chunk().ok_or_else(bad)?;
                Ok(Self::File {
                    path: text(path)?,
                    permissions: u32::from_le_bytes(*permissions),
                })
            }
            FILE_DATA => Ok(Self::FileData(payload)),
            EXITED => {
                let code = payload.as_slice().try_into().map_err(|_| bad())?;
                Ok(Self::Exited(i32::from_le_bytes(code)))
            }
            FAILED => Ok(Self::Failed(text(&payload)?)),
            kind => Err(ProtocolError::UnknownKind { kind }),
        }
    }
}

fn read_exactly(input: &mut impl Read, bytes: &mut [u8]) -> Result<(), ProtocolError> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ProtocolError::CutShort,
        _ => ProtocolError::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Booted,
            Frame::Ready,
            Frame::Stdout(b"out\n".to_vec()),
            Frame::Stderr(vec![0xff; PAYLOAD_LIMIT_BYTES]),
            Frame::File {
                path: "a/b.json".to_owned(),
                permissions: 0o644,
            },
            Frame::FileData(Vec::new()),
            Frame::Exited(-3),
            Frame::Failed("no /dev/kvm".to_owned()),
            Frame::PowerOff,
            Frame::Beat,
            Frame::Interrupt,
        ]
    }

    #[test]
    fn every_frame_arrives_as_it_was_sent() {
        let mut bytes = Vec::new();
        for frame in frames() {
            frame.write_to(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        for frame in frames() {
            assert_eq!(Frame::read_from(&mut input).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read_from(&mut input).unwrap(), None);
    }

    #[test]
    fn the_bytes_of_a_frame_stay_what_they_are() {
        let mut bytes = Vec::new();
        Frame::Exited(1).write_to(&mut bytes).unwrap();
        assert_eq!(bytes, [7, 4, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_frame_cut_short_is_an_error_wherever_it_is_cut() {
        let mut bytes = Vec::new();
        Frame::Failed("reason".to_owned())
            .write_to(&mut bytes)
            .unwrap();
        for length in 1..bytes.len() {
            let error = Frame::read_from(&bytes[..length]).unwrap_err();
            assert!(
                matches!(error, ProtocolError::CutShort),
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn a_length_beyond_the_limit_allocates_nothing() {
        let error = Frame::read_from(&[STDOUT, 0xff, 0xff, 0xff, 0xff][..]).unwrap_err();
        assert!(matches!(error, ProtocolError::TooLong { .. }), "{error}");
    }

    #[test]
    fn invalid_payloads_are_refused() {
        for frame in [
            &[BOOTED, 1, 0, 0, 0, 0][..],
            &[EXITED, 2, 0, 0, 0, 0, 0],
            &[FILE, 3, 0, 0, 0, 0, 0, 0],
            &[FAILED, 1, 0, 0, 0, 0xff],
            &[0, 0, 0, 0, 0],
        ] {
            assert!(Frame::read_from(frame).is_err(), "{frame:?}");
        }
    }

    #[test]
    fn a_payload_beyond_the_limit_is_not_sent() {
        let frame = Frame::Stdout(vec![0; PAYLOAD_LIMIT_BYTES + 1]);
        let error = frame.write_to(io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
