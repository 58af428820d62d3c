//! The machine's main process: starts it once, buffers its output, records its end.
//!
//! ```text
//! absent ── launch ──▶ running ── it ends, its output is read ──▶ exited
//! ```
//!
//! Then the guest is powered off, once the supervisor has got the end or
//! [`REPORT_TIMEOUT`] has passed.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use guest_protocol::{ExecSpec, Exit, MainProcessState, RefusalKind};
use nix::unistd::Pid;
use tokio::sync::Notify;

use crate::processes::oom::OomCounter;
use crate::processes::output_buffer::{OutputBuffer, OutputLines};
use crate::processes::output_streams::OutputStreams;
use crate::processes::reaper::{ExitReceiver, Reaper};
use crate::processes::spawn::{self, Input, SpawnError};

/// Time that the supervisor has to ask for the end and the last output.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the main process was not launched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("another main process is running, as pid {0}")]
    Running(Pid),
    #[error("the main process has already ended")]
    Ended,
    #[error("cannot start the main process")]
    Spawn(#[from] SpawnError),
}

impl LaunchError {
    /// The kind of the refusal.
    pub(crate) fn kind(&self) -> RefusalKind {
        match self {
            Self::Running(_) | Self::Ended => RefusalKind::Conflict,
            Self::Spawn(error) => error.kind(),
        }
    }
}

/// The main process, also before its launch and after its end.
#[derive(Debug)]
pub(crate) struct MainProcess {
    state: RefCell<State>,
    output: Rc<OutputBuffer>,
    /// Notified when it ends, when its end was reported, and when a reader of its output leaves.
    changed: Notify,
    end_reported: Cell<bool>,
    output_readers: Cell<u32>,
    cgroup: Option<PathBuf>,
}

#[derive(Debug)]
enum State {
    Absent,
    Running { spec: ExecSpec, pid: Pid },
    Exited(Exit),
}

impl MainProcess {
    /// `cgroup` is the control group in which it will run, if the kernel has one.
    pub(crate) fn new(cgroup: Option<PathBuf>) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(State::Absent),
            output: OutputBuffer::new(),
            changed: Notify::new(),
            end_reported: Cell::new(false),
            output_readers: Cell::new(0),
            cgroup,
        })
    }

    pub(crate) fn output(&self) -> &Rc<OutputBuffer> {
        &self.output
    }

    /// Starts it; succeeds if this very process is running already.
    pub(crate) fn launch(
        self: &Rc<Self>,
        spec: &ExecSpec,
        reaper: &Reaper,
    ) -> Result<(), LaunchError> {
        match &*self.state.borrow() {
            State::Absent => {}
            State::Running { spec: running, .. } if running == spec => return Ok(()),
            State::Running { pid, .. } => return Err(LaunchError::Running(*pid)),
            State::Exited(_) => return Err(LaunchError::Ended),
        }
        let cgroup = self.cgroup.as_deref();
        let oom = OomCounter::start(cgroup);
        let spawned = spawn::spawn(spec, Input::Null, cgroup, reaper)?;
        self.state.replace(State::Running {
            spec: spec.clone(),
            pid: spawned.pid,
        });
        let watch = Rc::clone(self).watch(spawned.streams.output, spawned.exit, oom);
        tokio::task::spawn_local(watch);
        Ok(())
    }

    /// Describes it for a status.
    pub(crate) fn describe(&self) -> guest_protocol::MainProcess {
        let (state, pid, exit) = match &*self.state.borrow() {
            State::Absent => (MainProcessState::Absent, None, None),
            State::Running { pid, .. } => (MainProcessState::Running, Some(pid.as_raw()), None),
            State::Exited(exit) => (MainProcessState::Exited, None, Some(*exit)),
        };
        guest_protocol::MainProcess {
            state,
            pid,
            exit,
            next_output_sequence: self.output.next_sequence(),
        }
    }

    /// Whether it has yet to be launched.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(&*self.state.borrow(), State::Absent)
    }

    /// Its pid while it runs.
    pub(crate) fn running(&self) -> Option<Pid> {
        match &*self.state.borrow() {
            State::Running { pid, .. } => Some(*pid),
            State::Absent | State::Exited(_) => None,
        }
    }

    /// How it ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match &*self.state.borrow() {
            State::Exited(exit) => Some(*exit),
            State::Absent | State::Running { .. } => None,
        }
    }

    /// Waits until it has ended; for ever if it is never launched.
    pub(crate) async fn ended(&self) {
        self.wait_until(|| self.exit().is_some()).await;
    }

    /// Waits until the supervisor has got the end and every reader has got all of the output, at
    /// most for [`REPORT_TIMEOUT`]. Returns at once if it has not ended.
    pub(crate) async fn end_reported(&self) {
        if self.exit().is_some() {
            let reported =
                self.wait_until(|| self.end_reported.get() && self.output_readers.get() == 0);
            let _unreported = tokio::time::timeout(REPORT_TIMEOUT, reported).await;
        }
    }

    /// Records that the supervisor has got its end.
    pub(crate) fn set_end_reported(&self) {
        self.end_reported.set(true);
        self.changed.notify_waiters();
    }

    /// Counts a reader of the output until the result is dropped.
    pub(crate) fn register_output_reader(&self) -> OutputReader<'_> {
        self.output_readers.set(self.output_readers.get() + 1);
        OutputReader { main: self }
    }

    async fn wait_until(&self, condition: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    /// Reads its output to the end and records its exit, which comes before the output's end if it
    /// left processes running.
    async fn watch(
        self: Rc<Self>,
        mut output: OutputStreams,
        mut exit: ExitReceiver,
        oom: OomCounter,
    ) {
        let mut lines = OutputLines::new();
        let mut is_running = true;
        while is_running || output.are_open() {
            tokio::select! {
                chunk = output.read(), if output.are_open() => {
                    if let Some((source, chunk)) = chunk {
                        lines.push(source, &chunk, &self.output);
                    }
                }
                exit = &mut exit, if is_running => {
                    is_running = false;
                    for (source, chunk) in output.read_rest() {
                        lines.push(source, &chunk, &self.output);
                    }
                    lines.finish(&self.output);
                    self.set_exited(exit.unwrap_or_default(), &oom);
                }
            }
        }
        lines.finish(&self.output);
    }

    fn set_exited(&self, exit: Exit, oom: &OomCounter) {
        let exit = Exit {
            oom_killed: oom.explains(exit),
            ..exit
        };
        self.state.replace(State::Exited(exit));
        self.changed.notify_waiters();
        self.output.wake_readers();
    }
}

/// A reader of the output that has not got all of it yet.
#[derive(Debug)]
pub(crate) struct OutputReader<'a> {
    main: &'a MainProcess,
}

impl Drop for OutputReader<'_> {
    fn drop(&mut self) {
        let readers = &self.main.output_readers;
        readers.set(readers.get().saturating_sub(1));
        self.main.changed.notify_waiters();
    }
}
