//! The machine's main process: started once, its output kept, its end remembered.
//!
//! ```text
//! absent ── launch ──▶ running ── it ends, its output is read ──▶ exited
//! ```
//!
//! After that the guest is powered off; not before the supervisor has heard of the end, or has
//! had time to.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use guest_protocol::{ExecSpec, Exit, MainProcessState, OutputSource, RefusalKind};
use nix::unistd::Pid;
use tokio::sync::Notify;

use crate::exec::{read_output, read_rest};
use crate::oom::OomCounter;
use crate::output::{LineSplitter, OutputBuffer};
use crate::reaper::{ExitReceiver, Reaper};
use crate::spawn::{self, Input, SpawnError, Streams};

/// Time that the supervisor has to ask for the end and the last output.
const HEARING: Duration = Duration::from_secs(2);

/// Why the main process was not launched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("another main process runs already, as pid {0}")]
    Runs(Pid),
    #[error("the main process has ended already")]
    Ended,
    #[error("the main process did not start")]
    Spawn(#[from] SpawnError),
}

impl LaunchError {
    /// The kind that the supervisor is told.
    pub(crate) fn kind(&self) -> RefusalKind {
        match self {
            Self::Runs(_) | Self::Ended => RefusalKind::Conflict,
            Self::Spawn(error) => error.kind(),
        }
    }
}

/// Owner of the main process's state. Always there, also before a launch.
#[derive(Debug)]
pub(crate) struct MainProcess {
    phase: RefCell<Phase>,
    output: Rc<OutputBuffer>,
    /// Notified when it ends and each time that more of its end has been told.
    changed: Notify,
    end_told: Cell<bool>,
    output_readers: Cell<u32>,
}

#[derive(Debug)]
enum Phase {
    Absent,
    Running { spec: ExecSpec, pid: Pid },
    Exited(Exit),
}

impl MainProcess {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            phase: RefCell::new(Phase::Absent),
            output: OutputBuffer::new(),
            changed: Notify::new(),
            end_told: Cell::new(false),
            output_readers: Cell::new(0),
        })
    }

    pub(crate) fn output(&self) -> &Rc<OutputBuffer> {
        &self.output
    }

    /// Starts it; a success where this very process runs already.
    pub(crate) fn launch(
        self: &Rc<Self>,
        spec: &ExecSpec,
        cgroup: Option<&Path>,
        reaper: &Reaper,
    ) -> Result<(), LaunchError> {
        match &*self.phase.borrow() {
            Phase::Absent => {}
            Phase::Running { spec: running, .. } if running == spec => return Ok(()),
            Phase::Running { pid, .. } => return Err(LaunchError::Runs(*pid)),
            Phase::Exited(_) => return Err(LaunchError::Ended),
        }
        let oom = OomCounter::start(cgroup);
        let spawned = spawn::spawn(spec, Input::Nothing, cgroup, reaper)?;
        self.phase.replace(Phase::Running {
            spec: spec.clone(),
            pid: spawned.pid,
        });
        let watch = Rc::clone(self).watch(spawned.streams, spawned.exit, oom);
        tokio::task::spawn_local(watch);
        Ok(())
    }

    /// What the state says about it, for a status.
    pub(crate) fn describe(&self) -> guest_protocol::MainProcess {
        let (state, pid, exit) = match &*self.phase.borrow() {
            Phase::Absent => (MainProcessState::Absent, None, None),
            Phase::Running { pid, .. } => (MainProcessState::Running, Some(pid.as_raw()), None),
            Phase::Exited(exit) => (MainProcessState::Exited, None, Some(*exit)),
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
        matches!(&*self.phase.borrow(), Phase::Absent)
    }

    /// Its pid while it runs.
    pub(crate) fn running(&self) -> Option<Pid> {
        match &*self.phase.borrow() {
            Phase::Running { pid, .. } => Some(*pid),
            Phase::Absent | Phase::Exited(_) => None,
        }
    }

    /// How it ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match &*self.phase.borrow() {
            Phase::Exited(exit) => Some(*exit),
            Phase::Absent | Phase::Running { .. } => None,
        }
    }

    /// Waits until it has ended; for ever if it is never launched.
    pub(crate) async fn ended(&self) {
        self.wait_until(|| self.exit().is_some()).await;
    }

    /// Waits until the supervisor has heard of the end and every reader of the output has had
    /// all of it, but not for long. Returns at once if there is nothing to tell.
    pub(crate) async fn end_told(&self) {
        if self.exit().is_some() {
            let told = self.wait_until(|| self.end_told.get() && self.output_readers.get() == 0);
            let _unheard = tokio::time::timeout(HEARING, told).await;
        }
    }

    /// Notes that the supervisor has been told how it ended.
    pub(crate) fn note_end_told(&self) {
        self.end_told.set(true);
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

    /// Reads its output to the end, and learns of its exit in between.
    async fn watch(self: Rc<Self>, streams: Streams, mut exit: ExitReceiver, oom: OomCounter) {
        let mut stdout = Some(streams.stdout);
        let mut stderr = streams.stderr;
        let mut stdout_lines = LineSplitter::new(OutputSource::Stdout);
        let mut stderr_lines = LineSplitter::new(OutputSource::Stderr);
        let mut runs = true;
        while runs || stdout.is_some() || stderr.is_some() {
            tokio::select! {
                chunk = read_output(stdout.as_ref()) => match chunk {
                    Some(chunk) => stdout_lines.push(&chunk, &self.output),
                    None => stdout = None,
                },
                chunk = read_output(stderr.as_ref()) => match chunk {
                    Some(chunk) => stderr_lines.push(&chunk, &self.output),
                    None => stderr = None,
                },
                exit = &mut exit, if runs => {
                    runs = false;
                    for chunk in read_rest(stdout.as_ref()) {
                        stdout_lines.push(&chunk, &self.output);
                    }
                    for chunk in read_rest(stderr.as_ref()) {
                        stderr_lines.push(&chunk, &self.output);
                    }
                    stdout_lines.finish(&self.output);
                    stderr_lines.finish(&self.output);
                    self.set_exited(exit.unwrap_or_default(), &oom);
                }
            }
        }
        // Processes that it left behind may have gone on printing.
        stdout_lines.finish(&self.output);
        stderr_lines.finish(&self.output);
    }

    fn set_exited(&self, exit: Exit, oom: &OomCounter) {
        let exit = Exit {
            oom_killed: oom.explains(exit),
            ..exit
        };
        self.phase.replace(Phase::Exited(exit));
        self.changed.notify_waiters();
        self.output.wake_readers();
    }
}

/// A reader of the output that has not had all of it yet.
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
