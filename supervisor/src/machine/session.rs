//! The long-lived connections to a running guest: the CPU monitor and the main process's output.
//!
//! Both are opened again when they break. Only the end of the VMM ends the session, never an error
//! on a connection.

use std::sync::Arc;
use std::time::Duration;

use guest_protocol::{CpuSample, Exit, OutputRecord, Request, StreamEnd};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::guest::{GuestAddress, GuestError, GuestStream, OwnedFrame};
use crate::logs::MachineLog;
use crate::model::guest_share::ReadPace;

/// Time between two samples of the CPU monitor.
const SAMPLE_INTERVAL_MS: u32 = 2_000;
/// Least time between two samples that are read: a guest that sends more waits.
const SAMPLE_PAUSE: Duration = Duration::from_millis(SAMPLE_INTERVAL_MS as u64 / 4);
/// Deadline for opening a stream.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Wait before a broken stream is opened again; doubles up to the second one.
const REOPEN_FIRST: Duration = Duration::from_millis(100);
const REOPEN_MOST: Duration = Duration::from_secs(5);

/// What the session has observed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observations {
    /// The latest CPU figures and the ones before.
    pub(crate) samples: Option<(CpuSample, Option<CpuSample>)>,
    /// How the main process ended.
    pub(crate) main_exit: Option<Exit>,
}

/// The connections; closed when dropped.
#[derive(Debug)]
pub(crate) struct GuestSession {
    tasks: Vec<AbortHandle>,
    observations: watch::Receiver<Observations>,
}

impl Drop for GuestSession {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl GuestSession {
    /// Goes on with `monitor` if it is open already, and opens the rest.
    pub(crate) fn begin(
        address: &GuestAddress,
        monitor: Option<GuestStream>,
        log: &MachineLog,
        with_output: bool,
    ) -> Self {
        let (sender, observations) = watch::channel(Observations::default());
        let sender = Arc::new(sender);
        let mut tasks = vec![
            tokio::spawn(keep_monitor(address.clone(), monitor, sender.clone())).abort_handle(),
        ];
        if with_output {
            let output = keep_output(address.clone(), log.clone(), sender);
            tasks.push(tokio::spawn(output).abort_handle());
        }
        Self {
            tasks,
            observations,
        }
    }

    /// What has been observed, as it changes.
    pub(crate) fn observations(&self) -> watch::Receiver<Observations> {
        self.observations.clone()
    }

    /// How the main process ended, if that is reported within `limit`.
    pub(crate) async fn main_exit(&self, limit: Duration) -> Option<Exit> {
        let mut observations = self.observations.clone();
        let reported = timeout(
            limit,
            observations.wait_for(|observations| observations.main_exit.is_some()),
        )
        .await;
        reported.ok()?.ok()?.main_exit
    }
}

/// Opens the CPU monitor.
pub(crate) async fn open_monitor(address: &GuestAddress) -> Result<GuestStream, GuestError> {
    address
        .open(Request::CpuUsage {
            interval_ms: SAMPLE_INTERVAL_MS,
        })
        .await
}

async fn keep_monitor(
    address: GuestAddress,
    first: Option<GuestStream>,
    observations: Arc<watch::Sender<Observations>>,
) {
    let mut open = first;
    let mut wait = REOPEN_FIRST;
    loop {
        let opened = match open.take() {
            Some(stream) => Some(stream),
            None => timeout(OPEN_LIMIT, open_monitor(&address))
                .await
                .ok()
                .and_then(Result::ok),
        };
        if let Some(mut stream) = opened {
            while let Ok(sample) = stream.message::<CpuSample>("a CPU sample").await {
                wait = REOPEN_FIRST;
                observations.send_modify(|observations| {
                    let before = observations.samples.take().map(|(latest, _)| latest);
                    observations.samples = Some((sample, before));
                });
                sleep(SAMPLE_PAUSE).await;
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(REOPEN_MOST);
    }
}

async fn keep_output(
    address: GuestAddress,
    log: MachineLog,
    observations: Arc<watch::Sender<Observations>>,
) {
    let mut wait = REOPEN_FIRST;
    loop {
        let request = Request::Output {
            from_sequence: log.position().next_output,
        };
        if let Ok(Ok(mut stream)) = timeout(OPEN_LIMIT, address.open(request)).await {
            let before = log.position().next_output;
            if let Ok(Some(exit)) = log_output(&mut stream, &log).await {
                observations.send_modify(|observations| observations.main_exit = Some(exit));
                return;
            }
            if log.position().next_output > before {
                wait = REOPEN_FIRST;
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(REOPEN_MOST);
    }
}

/// A message of the output stream: a record, or the end.
#[derive(Deserialize)]
#[serde(untagged)]
enum OutputMessage {
    Record(OutputRecord),
    End(StreamEnd),
}

/// Adds records to the log until the stream ends; returns the main process's exit if that comes.
pub(crate) async fn log_output(
    stream: &mut GuestStream,
    log: &MachineLog,
) -> Result<Option<Exit>, GuestError> {
    let mut pace = ReadPace::of_output(Instant::now());
    while let Some(frame) = log.await_guest(stream.reader.next()).await? {
        let OwnedFrame::Json(payload) = frame else {
            return Ok(None);
        };
        let wait = pace.wait_after(1, payload.len(), Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        match serde_json::from_slice(&payload) {
            // A record that cannot be written stays in the guest; the caller asks for it again.
            Ok(OutputMessage::Record(record)) if log.add_output(&record).is_err() => {
                return Ok(None);
            }
            Ok(OutputMessage::Record(_)) => {}
            Ok(OutputMessage::End(StreamEnd::Exited(exit))) => {
                log.tell_at_end();
                return Ok(Some(exit));
            }
            Ok(OutputMessage::End(_)) | Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::testing::connected_to;

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_sends_samples_without_a_pause_is_read_at_the_supervisors_pace() {
        let sample = br#"{"uptime_ms":1,"busy_ms":1,"idle_ms":0,"load":[0,0,0],"memory_total_kib":1,"memory_available_kib":1}"#;
        let mut bytes = Vec::new();
        for _ in 0..1_000 {
            let frame = guest_protocol::Frame::Json(sample);
            guest_protocol::encode(frame, &mut bytes).unwrap();
        }
        let (monitor, _kept_open) = connected_to(&bytes).await;
        // It is not connected to again.
        let address = GuestAddress::new("/none".into(), 1);
        let (sender, mut seen) = watch::channel(Observations::default());
        let keeping = keep_monitor(address, Some(monitor), Arc::new(sender));
        let keeping = tokio::spawn(keeping);
        let begun = Instant::now();
        for _ in 0..100 {
            seen.changed().await.unwrap();
        }
        assert!(
            begun.elapsed() >= SAMPLE_PAUSE * 99,
            "{:?}",
            begun.elapsed()
        );
        keeping.abort();
    }
}
