//! Streams CPU usage as a programmer would write it who does not know of transport resets.
//!
//! Only with the `leaky` feature, for the test image of the matrix; it replaces `cpu_usage.rs`. A
//! plain tokio-vsock read waits for the peer to close; a reset makes the socket neither readable nor
//! closed for reading, so the read is never woken and the socket never closed: one leak per resume.

use std::os::fd::OwnedFd;
use std::time::Duration;

use guest_protocol::{Frame, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_vsock::VsockStream;

use crate::connection::{Connection, ConnectionError};
use crate::os::procfs;

/// Sends samples until the peer closes the connection.
pub(crate) async fn serve(
    connection: Connection,
    interval: Duration,
) -> Result<(), ConnectionError> {
    let (stream, ticket) = connection.into_parts();
    ticket.exempt_from_closing();
    let stream = VsockStream::from(OwnedFd::from(stream));
    let (reader, writer) = tokio::io::split(stream);
    let samples = tokio::task::spawn_local(write_samples(writer, interval));
    wait_for_close(reader).await;
    samples.abort();
    drop(ticket);
    Ok(())
}

async fn wait_for_close(mut reader: ReadHalf<VsockStream>) {
    let mut buffer = [0; 256];
    while let Ok(length) = reader.read(&mut buffer).await {
        if length == 0 {
            break;
        }
    }
}

async fn write_samples(mut writer: WriteHalf<VsockStream>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        let Ok(sample) = procfs::sample() else { break };
        let Ok(json) = serde_json::to_vec(&sample) else {
            break;
        };
        let mut bytes = Vec::new();
        if encode(Frame::Json(&json), &mut bytes).is_err()
            || writer.write_all(&bytes).await.is_err()
        {
            break;
        }
    }
}
