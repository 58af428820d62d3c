//! Reads what a process prints on its standard streams. Where the bytes go is up to the caller.

use guest_protocol::OutputSource;

use crate::os::stream::Stream;

/// Most bytes that are read of each stream once the process has ended. Its own last output fits
/// into a pipe; more comes from processes that it left running.
const REST_LIMIT_BYTES: usize = 1 << 20;

/// Our ends of a process's output. A terminal is one stream.
#[derive(Debug)]
pub(crate) struct OutputStreams {
    /// None once it has ended; the same for `stderr`.
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

impl OutputStreams {
    pub(crate) fn new(stdout: Stream, stderr: Option<Stream>) -> Self {
        Self {
            stdout: Some(stdout),
            stderr,
        }
    }

    /// Whether more may come.
    pub(crate) fn are_open(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    /// Waits for the next output; none once both streams have ended. Cancelling loses no bytes.
    pub(crate) async fn read(&mut self) -> Option<(OutputSource, Vec<u8>)> {
        while self.are_open() {
            tokio::select! {
                chunk = read_chunk(self.stdout.as_ref()) => match chunk {
                    Some(chunk) => return Some((OutputSource::Stdout, chunk)),
                    None => self.stdout = None,
                },
                chunk = read_chunk(self.stderr.as_ref()) => match chunk {
                    Some(chunk) => return Some((OutputSource::Stderr, chunk)),
                    None => self.stderr = None,
                },
            }
        }
        None
    }

    /// The last output of a process that has ended: what is available, without waiting for more.
    pub(crate) fn read_rest(&self) -> Vec<(OutputSource, Vec<u8>)> {
        let mut rest = Vec::new();
        for (source, stream) in [
            (OutputSource::Stdout, &self.stdout),
            (OutputSource::Stderr, &self.stderr),
        ] {
            let mut length = 0;
            while let Some(Ok(chunk)) = stream.as_ref().map(Stream::try_read)
                && !chunk.is_empty()
                && length < REST_LIMIT_BYTES
            {
                length += chunk.len();
                rest.push((source, chunk));
            }
        }
        rest
    }
}

/// The next output; none at the stream's end, which for a terminal is an error (EIO). Waits for
/// ever if the stream has ended before.
async fn read_chunk(stream: Option<&Stream>) -> Option<Vec<u8>> {
    match stream {
        Some(stream) => stream
            .read_chunk()
            .await
            .ok()
            .filter(|chunk| !chunk.is_empty()),
        None => std::future::pending().await,
    }
}
