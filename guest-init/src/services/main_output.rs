//! Streams the main process's output: first the buffered records, then new ones.

use guest_protocol::StreamEnd;

use crate::connection::{Connection, ConnectionError};
use crate::processes::main_process::MainProcess;

/// Records that are copied out of the buffer at a time.
const BATCH: usize = 64;

/// Sends records from number `sequence` on, until the connection ends or the main process has
/// ended and all of its output is sent; then sends how it ended.
pub(crate) async fn serve(
    connection: &Connection,
    main: &MainProcess,
    mut sequence: u64,
) -> Result<(), ConnectionError> {
    let _reader = main.register_output_reader();
    loop {
        let change = main.output().change();
        let batch = main.output().read_from(sequence, BATCH);
        for record in &batch {
            connection.send_json(record).await?;
            sequence = record.sequence + 1;
        }
        if !batch.is_empty() {
            continue;
        }
        if let Some(exit) = main.exit() {
            connection.send_json(&StreamEnd::Exited(exit)).await?;
            main.set_end_reported();
            connection.wait_for_close().await;
            return Ok(());
        }
        tokio::select! {
            () = change => {}
            ended = connection.stream().ended() => return Ok(ended?),
        }
    }
}
