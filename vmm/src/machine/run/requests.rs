//! Requests of the control socket: pause, unpause, suspend, counters, quit.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmm_control::{
    ExitReason, Hello, Message, Reply, Request, RequestBody, SuspendFigures, VERSION, VsockCounters,
};

use super::{LoopError, Runner};
use crate::clock::monotonic_ns;
use crate::control::clients::ClientId;
use crate::image::SaveError;
use crate::log;
use crate::machine::Machine;
use crate::machine::ending::Ending;
use crate::machine::halt::{HALT_DEADLINE, Halt, Next};
use crate::machine::state::{Action, Input, State, apply};
use crate::machine::suspend::{Saving, failure_kind};
use crate::phases::Phases;

/// A request that is answered later.
#[derive(Debug)]
struct Asked {
    client: ClientId,
    id: u64,
}

/// A halt, and what is done at its end.
#[derive(Debug)]
pub(super) struct HaltInProgress {
    halt: Halt,
    asked: Asked,
    purpose: Purpose,
}

#[derive(Debug)]
enum Purpose {
    Pause,
    Suspend { image: PathBuf, phases: Phases },
}

impl HaltInProgress {
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        self.halt.time_left(now)
    }
}

/// A suspend whose state is being saved.
#[derive(Debug)]
pub(super) struct SuspendInProgress {
    saving: Saving,
    asked: Asked,
}

impl Runner {
    pub(super) fn serve_clients(&mut self) -> Result<Option<Ending>, LoopError> {
        let hello = hello(
            &self.machine,
            self.state,
            self.reset_acknowledged_ns,
            self.consumption.is_none() || !self.machine.announces_consumption,
        );
        let requests = self
            .clients
            .serve(|| hello.clone())
            .map_err(|source| LoopError::Epoll {
                what: "serve the control socket",
                source,
            })?;
        for (client, request) in requests {
            if let Some(ending) = self.serve_request(client, request)? {
                return Ok(Some(ending));
            }
        }
        Ok(None)
    }

    fn serve_request(
        &mut self,
        client: ClientId,
        request: Request,
    ) -> Result<Option<Ending>, LoopError> {
        let asked = Asked {
            client,
            id: request.id,
        };
        match request.body {
            RequestBody::Pause => self.pause(asked)?,
            RequestBody::Unpause => {
                let reply = self.unpause()?;
                self.answer(&asked, reply);
            }
            RequestBody::Suspend { image } => self.suspend(asked, image)?,
            RequestBody::CancelSuspend => {
                self.cancel_suspend()?;
                self.answer(&asked, Reply::Done);
            }
            RequestBody::Counters => {
                let counters = match &self.machine.devices.vsock_counters {
                    Some(counters) => counters.read(),
                    None => VsockCounters::default(),
                };
                self.answer(&asked, Reply::Counters(counters));
            }
            RequestBody::Quit => {
                self.answer(&asked, Reply::Done);
                return Ok(Some(Ending::new(ExitReason::Quit, "ended by request")));
            }
        }
        Ok(None)
    }

    fn pause(&mut self, asked: Asked) -> Result<(), LoopError> {
        let (next, action) = apply(self.state, Input::Pause);
        match action {
            Action::Halt => self.begin_halt(next, asked, Purpose::Pause),
            Action::Refuse => {
                self.answer(&asked, busy());
                Ok(())
            }
            Action::Nothing | Action::Run | Action::Save => {
                self.answer(&asked, Reply::Done);
                Ok(())
            }
        }
    }

    fn unpause(&mut self) -> Result<Reply, LoopError> {
        Ok(match self.run_on_after(Input::Unpause)? {
            Action::Refuse => busy(),
            Action::Nothing | Action::Run | Action::Halt | Action::Save => Reply::Done,
        })
    }

    fn suspend(&mut self, asked: Asked, image: PathBuf) -> Result<(), LoopError> {
        let (next, action) = apply(self.state, Input::Suspend);
        let mut phases = Phases::starting_at(monotonic_ns());
        match action {
            Action::Halt => self.begin_halt(next, asked, Purpose::Suspend { image, phases }),
            Action::Save => {
                phases.end("pause");
                self.save(next, asked, image, phases)
            }
            Action::Nothing | Action::Run | Action::Refuse => {
                self.answer(&asked, busy());
                Ok(())
            }
        }
    }

    fn cancel_suspend(&mut self) -> Result<(), LoopError> {
        if let Some(suspend) = &self.suspend {
            suspend.saving.cancel();
        }
        let halts_to_save = |halt: &HaltInProgress| matches!(halt.purpose, Purpose::Suspend { .. });
        if self.halt.as_ref().is_some_and(halts_to_save) {
            self.fail_halt("cancelled", SaveError::Cancelled.to_string())?;
        }
        Ok(())
    }

    /// Asks all vCPUs to halt, before any of them has, so that none spins for long on a lock whose holder
    /// has halted.
    fn begin_halt(
        &mut self,
        state: State,
        asked: Asked,
        purpose: Purpose,
    ) -> Result<(), LoopError> {
        self.halts += 1;
        let round = self.halts;
        for vcpu in &self.machine.vcpus {
            vcpu.pause(round)?;
        }
        self.halt = Some(HaltInProgress {
            halt: Halt::begin(round, self.machine.vcpus.len(), Instant::now()),
            asked,
            purpose,
        });
        self.set_state(state)
    }

    pub(super) fn note_halted_vcpu(&mut self, round: u64) -> Result<(), LoopError> {
        let Some(in_progress) = &mut self.halt else {
            return Ok(());
        };
        if in_progress.halt.vcpu_halted(round) != Next::HoldDisks {
            return Ok(());
        }
        if let Purpose::Suspend { phases, .. } = &mut in_progress.purpose {
            phases.end("pause");
        }
        let round = in_progress.halt.round();
        let transports = self.machine.devices.transports.iter();
        let disks = transports.filter(|transport| transport.hold(round)).count();
        let next = in_progress.halt.disks_asked(disks);
        self.end_halt_if(next)
    }

    pub(super) fn note_held_disk(&mut self, round: u64) -> Result<(), LoopError> {
        let Some(in_progress) = &mut self.halt else {
            return Ok(());
        };
        let next = in_progress.halt.disk_held(round);
        self.end_halt_if(next)
    }

    fn end_halt_if(&mut self, next: Next) -> Result<(), LoopError> {
        if next != Next::Halted {
            return Ok(());
        }
        let Some(HaltInProgress { asked, purpose, .. }) = self.halt.take() else {
            return Ok(());
        };
        // What the guest has printed is seen, as it prints no more.
        self.machine.devices.flush_console();
        let (state, _) = apply(self.state, Input::Halted);
        match purpose {
            Purpose::Pause => {
                self.set_state(state)?;
                self.answer(&asked, Reply::Done);
                Ok(())
            }
            Purpose::Suspend { image, phases } => self.save(state, asked, image, phases),
        }
    }

    /// The halt has missed its deadline: the machine runs on.
    pub(super) fn give_halt_up(&mut self) -> Result<(), LoopError> {
        let Some(in_progress) = &self.halt else {
            return Ok(());
        };
        let seconds = HALT_DEADLINE.as_secs();
        let message = format!(
            "waited {seconds} s for {}; the machine runs on",
            in_progress.halt.waits_for()
        );
        log::line(format_args!("not halted: {message}"));
        self.fail_halt("deadline", message)
    }

    fn fail_halt(&mut self, kind: &str, message: String) -> Result<(), LoopError> {
        self.run_on_after(Input::HaltFailed)?;
        if let Some(in_progress) = self.halt.take() {
            self.answer(&in_progress.asked, failure(kind, message));
        }
        Ok(())
    }

    /// Tells whoever asked for a halt that the machine has ended before.
    pub(super) fn refuse_halt(&mut self, message: &str) {
        if let Some(in_progress) = self.halt.take() {
            let reply = failure("invalid", message.to_owned());
            self.answer(&in_progress.asked, reply);
        }
    }

    /// Lets disks and vCPUs go on if that is what `input` leads to; returns what it leads to.
    fn run_on_after(&mut self, input: Input) -> Result<Action, LoopError> {
        let (state, action) = apply(self.state, input);
        if action == Action::Run {
            for transport in &self.machine.devices.transports {
                transport.release();
            }
            self.machine.run_vcpus()?;
        }
        self.set_state(state)?;
        Ok(action)
    }

    /// Saves the halted machine.
    fn save(
        &mut self,
        state: State,
        asked: Asked,
        image: PathBuf,
        phases: Phases,
    ) -> Result<(), LoopError> {
        self.set_state(state)?;
        match self.machine.start_save(image, phases) {
            Ok(saving) => self.suspend = Some(SuspendInProgress { saving, asked }),
            Err(error) => {
                self.run_on_after(Input::SuspendFailed)?;
                self.answer(&asked, failure("io", error_text::with_causes(&error)));
            }
        }
        Ok(())
    }

    pub(super) fn finish_suspend(
        &mut self,
        outcome: Result<SuspendFigures, SaveError>,
    ) -> Result<Option<Ending>, LoopError> {
        let Some(SuspendInProgress { asked, .. }) = self.suspend.take() else {
            return Ok(None);
        };
        match outcome {
            Ok(figures) => {
                self.answer(&asked, Reply::Suspended(figures));
                Ok(Some(Ending::new(ExitReason::Suspended, "suspended")))
            }
            Err(error) => {
                let message = error_text::with_causes(&error);
                log::line(format_args!(
                    "suspend failed, the machine continues: {message}"
                ));
                self.run_on_after(Input::SuspendFailed)?;
                self.answer(&asked, failure(failure_kind(&error), message));
                Ok(None)
            }
        }
    }

    fn answer(&mut self, asked: &Asked, reply: Reply) {
        self.reply(asked.client, asked.id, reply);
    }
}

fn busy() -> Reply {
    failure("busy", "a suspend or a pause is in progress".to_owned())
}

fn failure(kind: &str, message: String) -> Reply {
    Reply::Failed {
        kind: kind.to_owned(),
        message,
    }
}

fn hello(
    machine: &Machine,
    state: State,
    reset_acknowledged_ns: Option<u64>,
    consumption_durable: bool,
) -> Message {
    Message::Hello(Hello {
        version: VERSION,
        machine_id: machine.identity.machine_id.clone(),
        generation: machine.identity.generation,
        pid: std::process::id(),
        state: state.run_state(),
        phases: machine.phases.list().to_vec(),
        reset_acknowledged_ns,
        consumption_durable,
    })
}
