//! The end of the guest: the main process first, then everything else, then the power.
//!
//! Process 1 never returns from here. Nothing in this file is for an ordinary process: it would
//! take the machine down with it.

use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use std::{io, thread};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use tokio::signal::unix::{SignalKind, signal};

use crate::console::say;
use crate::main_process::MainProcess;
use crate::mounts;
use crate::reaper::{Children, Reaper};
use crate::server::Server;
use crate::spawn::signal_group;
use crate::sys;

/// Time that the main process has where nobody says otherwise.
const MAIN_PROCESS: Duration = Duration::from_secs(10);

/// Time that everything else has between SIGTERM and SIGKILL, and to vanish after that.
const OTHERS: Duration = Duration::from_secs(1);
const OTHERS_POLL: Duration = Duration::from_millis(10);

/// How the main process is asked to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) signal: i32,
    pub(crate) timeout: Duration,
}

/// Signals that ask process 1 to end the guest: SIGTERM and SIGPWR by custom, SIGINT for
/// ctrl-alt-del, SIGUSR1 and SIGUSR2 from busybox's halt and poweroff.
const REQUESTS: [SignalKind; 5] = [
    SignalKind::terminate(),
    SignalKind::interrupt(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
    SignalKind::from_raw(libc::SIGPWR),
];

/// Waits for whatever ends the guest first: a call, a signal, the end of the main process.
pub(crate) async fn wait_for_order(server: &Server) -> io::Result<Order> {
    let signals = REQUESTS
        .into_iter()
        .map(signal)
        .collect::<io::Result<Vec<_>>>()?;
    let mut signals = signals;
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
    let by_custom = Order {
        signal: Signal::SIGTERM as i32,
        timeout: MAIN_PROCESS,
    };
    let order = tokio::select! {
        order = server.power_off_ordered() => order,
        () = signaled => by_custom,
        () = server.main().ended() => by_custom,
    };
    Ok(order)
}

/// Ends the main process as ordered, then everything else, then the guest.
pub(crate) async fn end_guest(server: &Server, reaper: &Rc<Reaper>, order: Order) -> Infallible {
    end_main_process(server, order).await;
    server.main().end_told().await;
    end_others(reaper).await;
    power_off()
}

/// Ends the main process as ordered, by SIGKILL if its time runs out.
pub(crate) async fn end_main_process(server: &Server, mut order: Order) {
    let main = server.main();
    while let Some(pid) = main.running() {
        if let Err(error) = sys::send_signal(pid, order.signal) {
            say(format_args!(
                "cannot send signal {} to the main process: {error}",
                order.signal
            ));
        }
        tokio::select! {
            () = main.ended() => return,
            // Whoever loses patience may ask again, with another signal or less time.
            newer = server.power_off_ordered() => order = newer,
            () = tokio::time::sleep(order.timeout) => {
                kill_main_process(main, pid).await;
                return;
            }
        }
    }
}

async fn kill_main_process(main: &MainProcess, pid: Pid) {
    signal_group(pid, Signal::SIGKILL);
    if !within(OTHERS, main.ended()).await {
        say(format_args!(
            "the main process, pid {pid}, outlives SIGKILL by {OTHERS:?}"
        ));
    }
}

async fn end_others(reaper: &Reaper) {
    let all = Pid::from_raw(-1); // all but process 1 itself
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if kill(all, signal).is_err() {
            return; // nobody left
        }
        let childless = async {
            while reaper.reap_ended() == Children::Left {
                tokio::time::sleep(OTHERS_POLL).await;
            }
        };
        if within(OTHERS, childless).await {
            return;
        }
    }
    say(format_args!("processes outlive SIGKILL by {OTHERS:?}"));
}

async fn within(limit: Duration, wait: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(limit, wait).await.is_ok()
}

/// Brings the disks to rest and cuts the power.
pub(crate) fn power_off() -> ! {
    sync();
    release_disks(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
    sync();
    say("powering off");
    loop {
        let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
        say(format_args!("cannot power off: {errno}"));
        // A guest without a power button can only wait for its VMM to be ended.
        thread::sleep(Duration::from_secs(60));
    }
}

/// Unmounts what is on block devices, the newest first; what is busy becomes read-only.
fn release_disks(mounts: &str) {
    for (_device, target) in mounts::disk_mounts(mounts).iter().rev() {
        if umount(target.as_str()).is_ok() {
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let none = None::<&str>;
        if let Err(errno) = mount(none, target.as_str(), none, flags, none) {
            say(format_args!("{target} stays mounted: {errno}"));
        }
    }
}
