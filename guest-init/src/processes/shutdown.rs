//! The end of the guest: ends the main process, then every other process, then powers off
//! (`os/power.rs`).
//!
//! Process 1 never returns from [`end_guest`]. Nothing here but the requests is for an ordinary
//! process: it would signal every process of its machine.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::os::console::say;
use crate::os::{power, sys};
use crate::processes::main_process::MainProcess;
use crate::processes::reaper::{Children, Reaper};
use crate::processes::spawn::signal_group;

/// Time that the main process has to end, unless a request says otherwise.
const MAIN_PROCESS_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that all other processes have between SIGTERM and SIGKILL, and after SIGKILL.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(1);
const OTHERS_POLL: Duration = Duration::from_millis(10);

/// Signals that ask process 1 to end the guest: SIGTERM and SIGPWR by custom, SIGINT for
/// ctrl-alt-del, SIGUSR1 and SIGUSR2 from busybox's halt and poweroff.
const POWER_OFF_SIGNALS: [SignalKind; 5] = [
    SignalKind::terminate(),
    SignalKind::interrupt(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
    SignalKind::from_raw(libc::SIGPWR),
];

/// A request to power the guest off: how to end the main process first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PowerOffRequest {
    pub(crate) signal: i32,
    /// SIGKILL follows after this time.
    pub(crate) timeout: Duration,
}

impl Default for PowerOffRequest {
    fn default() -> Self {
        Self {
            signal: Signal::SIGTERM as i32,
            timeout: MAIN_PROCESS_TIMEOUT,
        }
    }
}

/// The requests of calls. A newer one replaces an older one that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct PowerOffRequests {
    newest: RefCell<Option<PowerOffRequest>>,
    changed: Notify,
}

impl PowerOffRequests {
    pub(crate) fn put(&self, request: PowerOffRequest) {
        self.newest.replace(Some(request));
        self.changed.notify_waiters();
    }

    /// Waits for the next request.
    pub(crate) async fn next(&self) -> PowerOffRequest {
        loop {
            let changed = self.changed.notified();
            if let Some(request) = self.newest.borrow_mut().take() {
                return request;
            }
            changed.await;
        }
    }
}

/// Waits for whatever ends the guest first: a call, a signal, the end of the main process.
pub(crate) async fn wait_for_request(
    main: &MainProcess,
    requests: &PowerOffRequests,
) -> io::Result<PowerOffRequest> {
    let mut signals = POWER_OFF_SIGNALS
        .into_iter()
        .map(signal)
        .collect::<io::Result<Vec<_>>>()?;
    let signaled = std::future::poll_fn(|cx| {
        let any = signals
            .iter_mut()
            .any(|signal| signal.poll_recv(cx).is_ready());
        if any {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    let request = tokio::select! {
        request = requests.next() => request,
        () = signaled => PowerOffRequest::default(),
        () = main.ended() => PowerOffRequest::default(),
    };
    Ok(request)
}

/// Ends the main process as requested, then all other processes, then the guest.
pub(crate) async fn end_guest(
    main: &MainProcess,
    requests: &PowerOffRequests,
    reaper: &Reaper,
    request: PowerOffRequest,
) -> Infallible {
    end_main_process(main, requests, request).await;
    main.end_reported().await;
    end_others(reaper).await;
    power::power_off()
}

/// Ends the main process as requested, with SIGKILL after the timeout.
pub(crate) async fn end_main_process(
    main: &MainProcess,
    requests: &PowerOffRequests,
    mut request: PowerOffRequest,
) {
    while let Some(pid) = main.running() {
        if let Err(error) = sys::send_signal(pid, request.signal) {
            say(format_args!(
                "cannot send signal {} to the main process: {error}",
                request.signal
            ));
        }
        tokio::select! {
            () = main.ended() => return,
            // A caller may ask again, with another signal or a shorter timeout.
            newer = requests.next() => request = newer,
            () = tokio::time::sleep(request.timeout) => {
                kill_main_process(main, pid).await;
                return;
            }
        }
    }
}

async fn kill_main_process(main: &MainProcess, pid: Pid) {
    signal_group(pid, Signal::SIGKILL);
    if !is_done_within(OTHERS_TIMEOUT, main.ended()).await {
        say(format_args!(
            "the main process, pid {pid}, has not ended {OTHERS_TIMEOUT:?} after SIGKILL"
        ));
    }
}

async fn end_others(reaper: &Reaper) {
    let all = Pid::from_raw(-1); // all but process 1 itself
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if kill(all, signal).is_err() {
            return; // there are no others
        }
        let childless = async {
            while reaper.reap_ended() == Children::Remain {
                tokio::time::sleep(OTHERS_POLL).await;
            }
        };
        if is_done_within(OTHERS_TIMEOUT, childless).await {
            return;
        }
    }
    say(format_args!(
        "processes have not ended {OTHERS_TIMEOUT:?} after SIGKILL"
    ));
}

async fn is_done_within(limit: Duration, wait: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(limit, wait).await.is_ok()
}
