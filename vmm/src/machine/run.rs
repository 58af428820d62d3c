//! The single loop that owns a running machine: guest events, device service, requests (in `requests`).
//!
//! Guest events are handled before requests: a guest that has powered itself off is not suspended.
//! Devices are served only while vCPUs may run. The loop waits for nothing but its next event: not for a
//! vCPU, and not for a disk.

mod requests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use vmm_control::{ExitReason, Message, Reply};
use vmm_sys_util::eventfd::EventFd;

use self::requests::{HaltInProgress, SuspendInProgress};
use super::Machine;
use super::ending::Ending;
use super::events::MachineEvent;
use super::state::{Input, State, apply};
use crate::clock::monotonic_ns;
use crate::control::ControlListener;
use crate::control::clients::{ClientId, Clients};
use crate::devices::power::PowerRequest;
use crate::devices::virtio::mmio::MmioTransport;
use crate::epoll::ready_now;
use crate::image::{BackgroundVerifier, ConsumeError, Consumption, Fault, Verified, VerifyError};
use crate::log;
use crate::sandbox::{self, SandboxError, ThreadKind, confine};
use crate::sys::fd::borrow;
use crate::sys::memory_error::memory_error_event;
use crate::sys::termination::termination_event;
use crate::vcpu::thread::{Report, VcpuError};

/// How long console output may wait for the rest of its line.
const CONSOLE_WAIT: Duration = Duration::from_millis(100);

const EVENTS: u64 = 0;
const DEVICES: u64 = 1;
const CLIENTS: u64 = 2;
const TERMINATION: u64 = 3;
const MEMORY_ERROR: u64 = 4;

/// Why the loop could not begin or continue.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// epoll.
    #[error("cannot {what}")]
    Epoll {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The loop can't be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The image can't be marked as used, so the guest must not run.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    /// A vCPU does not carry out a command.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

fn failed(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> LoopError {
    move |errno| LoopError::Epoll {
        what,
        source: errno.into(),
    }
}

/// Runs a machine to its end. Every client gets a report of the end, if it reads.
pub fn run(machine: Machine, control: Option<ControlListener>) -> Ending {
    let identity = machine.identity.clone();
    let mut runner = match Runner::new(machine, control) {
        Ok(runner) => runner,
        Err(error) => return Ending::new(ExitReason::HostFailed, error_text::with_causes(&error)),
    };
    let ending = runner.serve().unwrap_or_else(|error| {
        Ending::new(ExitReason::HostFailed, error_text::with_causes(&error))
    });
    runner.machine.devices.flush_console();
    runner.broadcast(&vmm_control::Event::Exiting(ending.report(&identity)));
    if ending == Ending::memory_error() {
        // The thread that was hit never ends, and the process is about to.
        std::mem::forget(runner);
    }
    ending
}

/// A device that may need service: one of its queues, or its backend.
#[derive(Debug)]
enum Source {
    Doorbell {
        transport: Arc<MmioTransport>,
        index: u16,
    },
    Backend {
        transport: Arc<MmioTransport>,
    },
}

struct Runner {
    machine: Machine,
    state: State,
    /// How many vCPUs have been entered.
    entered: usize,
    reset_acknowledged_ns: Option<u64>,
    verifier: Option<BackgroundVerifier>,
    /// That the image was used is not durable yet; none after a boot.
    consumption: Option<Consumption>,
    /// How many halts have begun.
    halts: u64,
    halt: Option<HaltInProgress>,
    suspend: Option<SuspendInProgress>,
    /// When console output is written that waits for the rest of its line.
    console_due: Option<Instant>,
    epoll: OwnedFd,
    _termination: EventFd,
    _memory_error: EventFd,
    /// The sources of devices, in an epoll of their own, so that all can be ignored at once.
    device_epoll: OwnedFd,
    sources: Vec<Source>,
    clients: Clients,
}

impl Runner {
    fn new(machine: Machine, listener: Option<ControlListener>) -> Result<Self, LoopError> {
        let create = || epoll::create(CreateFlags::CLOEXEC).map_err(failed("create an epoll"));
        let (epoll, device_epoll) = (create()?, create()?);
        let mut sources = Vec::new();
        for transport in &machine.devices.transports {
            let doorbells = match transport.serves_itself() {
                true => &[],
                false => transport.doorbells(),
            };
            for (index, doorbell) in (0..).zip(doorbells) {
                watch(&device_epoll, borrow(doorbell), sources.len() as u64)?;
                sources.push(Source::Doorbell {
                    transport: Arc::clone(transport),
                    index,
                });
            }
            if let Some(backend) = transport.backend() {
                watch(&device_epoll, backend.as_fd(), sources.len() as u64)?;
                sources.push(Source::Backend {
                    transport: Arc::clone(transport),
                });
            }
        }
        watch(&epoll, borrow(machine.events.wake()), EVENTS)?;
        watch(&epoll, device_epoll.as_fd(), DEVICES)?;
        let termination = termination_event().map_err(|source| LoopError::Epoll {
            what: "wait for signals",
            source,
        })?;
        watch(&epoll, borrow(&termination), TERMINATION)?;
        let memory_error = memory_error_event().map_err(|source| LoopError::Epoll {
            what: "wait for memory errors",
            source,
        })?;
        watch(&epoll, borrow(&memory_error), MEMORY_ERROR)?;
        let clients = Clients::new(listener).map_err(|source| LoopError::Epoll {
            what: "watch the control socket",
            source,
        })?;
        watch(&epoll, clients.as_fd(), CLIENTS)?;
        Ok(Self {
            machine,
            state: State::Building,
            entered: 0,
            reset_acknowledged_ns: None,
            verifier: None,
            consumption: None,
            halts: 0,
            halt: None,
            suspend: None,
            console_due: None,
            epoll,
            _termination: termination,
            _memory_error: memory_error,
            device_epoll,
            sources,
            clients,
        })
    }

    fn serve(&mut self) -> Result<Ending, LoopError> {
        if let Some(restored) = &self.machine.restored_from {
            self.consumption = Some(restored.image.consume()?);
        }
        self.machine.run_vcpus()?;
        // After the vCPUs have started, which do not wait for this thread.
        if self.machine.sandbox {
            confine(&sandbox::filter(ThreadKind::EventLoop)?)?;
        }
        self.make_consumption_durable();
        let mut ready = Vec::with_capacity(16);
        loop {
            ready.clear();
            let left = self.time_left()?;
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut ready),
                left.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed("wait for events")(errno)),
            }
            if let Some(ending) = self.serve_events()? {
                self.refuse_halt(&format!("not halted: {}", ending.message));
                return Ok(ending);
            }
            for event in &ready {
                match event.data.u64() {
                    EVENTS => {}
                    DEVICES => self.serve_devices()?,
                    MEMORY_ERROR => return Ok(Ending::memory_error()),
                    TERMINATION => {
                        return Ok(Ending::new(ExitReason::Quit, "ended by a signal"));
                    }
                    // CLIENTS; nothing else is watched.
                    _ => {
                        if let Some(ending) = self.serve_clients()? {
                            return Ok(ending);
                        }
                    }
                }
            }
        }
    }

    /// Handles all events that have happened, up to the first that ends the machine.
    fn serve_events(&mut self) -> Result<Option<Ending>, LoopError> {
        // Cleared first, so that an event during the service wakes the loop again.
        let _ = self.machine.events.wake().read();
        while let Some(event) = self.machine.events.next() {
            let ending = match event {
                MachineEvent::Vcpu(Report::Entering { at_ns }) => {
                    self.note_entry(at_ns);
                    None
                }
                MachineEvent::Vcpu(Report::Halted { round }) => {
                    self.note_halted_vcpu(round)?;
                    None
                }
                MachineEvent::DiskHeld { round } => {
                    self.note_held_disk(round)?;
                    None
                }
                MachineEvent::Vcpu(Report::Fault { index, fault }) => {
                    let message = format!("vCPU {index}: {fault}");
                    let reason = match fault.is_of_host() {
                        true => ExitReason::HostFailed,
                        false => ExitReason::GuestCrashed,
                    };
                    Some(Ending::new(reason, message))
                }
                MachineEvent::Power(PowerRequest::Off) => {
                    let message = "the guest powered itself off";
                    Some(Ending::new(ExitReason::GuestPowerOff, message))
                }
                MachineEvent::Power(PowerRequest::Reset) => Some(Ending::new(
                    ExitReason::GuestReset,
                    "the guest asked for a reset",
                )),
                MachineEvent::ResetAcknowledged { at_ns } => {
                    self.reset_acknowledged_ns = Some(at_ns);
                    let event = vmm_control::Event::ResetAcknowledged;
                    self.broadcast_at(at_ns, &event);
                    None
                }
                MachineEvent::ConsoleWaits => {
                    self.console_due = Some(Instant::now() + CONSOLE_WAIT);
                    None
                }
                MachineEvent::Verified(outcome) => self.note_verification(outcome),
                MachineEvent::ConsumptionSynced(outcome) => self.note_consumption(outcome),
                MachineEvent::Saved(outcome) => self.finish_suspend(outcome)?,
            };
            if ending.is_some() {
                return Ok(ending);
            }
        }
        Ok(None)
    }

    fn note_entry(&mut self, at_ns: u64) {
        self.entered += 1;
        if self.entered == 1 {
            self.machine.phases.end_at("first_entry", at_ns);
        }
        if self.entered == self.machine.vcpus.len() {
            self.state = apply(self.state, Input::Entered).0;
            let phases = self.machine.phases.list().to_vec();
            self.broadcast(&vmm_control::Event::Running { phases });
            self.start_verification();
        }
    }

    /// Begins to check memory while the guest runs.
    fn start_verification(&mut self) {
        let Some(restored) = self.machine.restored_from.take() else {
            return;
        };
        if !restored.check_memory {
            return;
        }
        let sender = self.machine.event_sender.clone();
        let on_end = move |outcome| sender.send(MachineEvent::Verified(outcome));
        match restored.image.verify_in_background(on_end) {
            Ok(verifier) => self.verifier = Some(verifier),
            Err(error) => log::line(format_args!("cannot start to check guest memory: {error}")),
        }
    }

    /// Begins to make durable that the image was used, beside the guest. What a second run of the same
    /// memory would repeat waits for it.
    fn make_consumption_durable(&self) {
        let Some(consumption) = self.consumption.clone() else {
            return;
        };
        let sender = self.machine.event_sender.clone();
        let work = move || {
            let outcome = consumption.make_durable();
            sender.send(MachineEvent::ConsumptionSynced(outcome));
        };
        let thread = std::thread::Builder::new().name("consume".to_owned());
        if thread.spawn(work.clone()).is_err() {
            // The host is out of threads: then the loop does wait.
            work();
        }
    }

    fn note_consumption(&mut self, outcome: Result<(), ConsumeError>) -> Option<Ending> {
        let consumption = self.consumption.take()?;
        let Err(error) = outcome else {
            for transport in &self.machine.devices.transports {
                transport.let_writes_pass();
            }
            if self.machine.announces_consumption {
                self.broadcast(&vmm_control::Event::ConsumptionDurable);
            }
            return None;
        };
        // Nothing that the guest did since has left it, so its image is as good as before.
        let mut message = error_text::with_causes(&error);
        if let Err(error) = consumption.undo() {
            message = format!("{message}; {}", error_text::with_causes(&error));
        }
        Some(Ending::new(ExitReason::HostFailed, message))
    }

    fn note_verification(&mut self, outcome: Result<Verified, VerifyError>) -> Option<Ending> {
        match outcome {
            Ok(Verified {
                bytes_read,
                duration,
            }) => {
                let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                self.broadcast(&vmm_control::Event::Verified {
                    bytes: bytes_read,
                    ms,
                });
                None
            }
            Err(VerifyError::Stopped) => None,
            Err(error) if error.fault() == Fault::Host => {
                // What the guest never touches may be unreadable. If it does touch it, that is noticed.
                let text = error_text::with_causes(&error);
                log::line(format_args!("memory is not verified: {text}"));
                None
            }
            Err(error) => Some(Ending::new(
                ExitReason::ImageDamaged,
                error_text::with_causes(&error),
            )),
        }
    }

    fn serve_devices(&mut self) -> Result<(), LoopError> {
        if !self.state.is_running() {
            return Ok(());
        }
        let ready = ready_now(&self.device_epoll, 16).map_err(|source| LoopError::Epoll {
            what: "wait for devices",
            source,
        })?;
        for event in &ready {
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            match self.sources.get(index) {
                Some(Source::Doorbell { transport, index }) => transport.serve_queue(*index),
                Some(Source::Backend { transport }) => transport.serve_backend(),
                None => {}
            }
        }
        Ok(())
    }

    /// Changes the state. Devices are not served while the vCPUs are halted.
    fn set_state(&mut self, state: State) -> Result<(), LoopError> {
        let (was_serving, serves) = (self.state.is_running(), state.is_running());
        self.state = state;
        if was_serving == serves {
            return Ok(());
        }
        let flags = if serves {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        let data = EventData::new_u64(DEVICES);
        epoll::modify(&self.epoll, &self.device_epoll, data, flags)
            .map_err(failed("change which events are waited for"))
    }

    /// The time until the next deadline, which is none if nothing has one. What is due is done.
    fn time_left(&mut self) -> Result<Option<Timespec>, LoopError> {
        let now = Instant::now();
        if self.console_due.is_some_and(|due| due <= now) {
            self.console_due = None;
            // Before it is written, so that what waits after that is told.
            self.machine.event_sender.console_is_served();
            self.machine.devices.flush_console();
        }
        let halt = match self.halt.as_ref().map(|halt| halt.time_left(now)) {
            Some(None) => {
                self.give_halt_up()?;
                None
            }
            left => left.flatten(),
        };
        let console = self.console_due.map(|due| due.duration_since(now));
        let next = [halt, console].into_iter().flatten().min();
        // Rounded up, so that the deadline has passed after the wait.
        let next = next.map(|left| left + Duration::from_millis(1));
        Ok(next.and_then(|left| Timespec::try_from(left).ok()))
    }

    fn reply(&mut self, client: ClientId, id: u64, reply: Reply) {
        self.clients.send(client, &Message::Reply { id, reply });
    }

    fn broadcast(&mut self, event: &vmm_control::Event) {
        self.broadcast_at(monotonic_ns(), event);
    }

    fn broadcast_at(&mut self, at_ns: u64, event: &vmm_control::Event) {
        let message = Message::Event {
            at_ns,
            event: event.clone(),
        };
        self.clients.broadcast(&message);
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> Result<(), LoopError> {
    epoll::add(epoll, fd, EventData::new_u64(token), EventFlags::IN)
        .map_err(failed("watch a descriptor"))
}
