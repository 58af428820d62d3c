//! The thread that runs one vCPU.
//!
//! ```text
//! (created) ─ configure ─▶ Paused ◀──▶ Running ─ fault ─▶ Paused (and a report)
//!                             └──────── finish ──▶ Finished
//! ```
//!
//! The thread creates the vCPU itself, since all vCPU calls should come from one thread (api.rst,
//! section 2). It pauses only where KVM_RUN has returned EINTR, when each access of the guest is
//! complete. Commands go through a channel, followed by a kick.
//!
//! Nobody waits for a vCPU to halt: it may be in the middle of a page fault on a slow disk. It reports
//! that it has halted, with the number of the round in which it was asked. A halted vCPU answers at
//! once, and each answer has the number of its command, so that a late one is not taken for another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use seccompiler::BpfProgram;
use vmm_sys_util::signal::Killable;

use super::diagnosis::Diagnosis;
use super::exits::{Buses, Fault, Next, serve_exit};
use super::registers::{self, EntryState, RegistersError, TscMove, VcpuState};
use crate::clock::monotonic_ns;
use crate::log;
use crate::sandbox::{SandboxError, confine};
use crate::sys::kick::{KickTarget, kick_signal};
use crate::vm::{Capabilities, Vm, VmError};

/// Longest wait for the answer of a halted vCPU. It takes microseconds, and less than a second even on a
/// host that swaps.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Enough for the deepest call of a device, and too small for a huge page.
const STACK_BYTES: usize = 256 << 10;

/// How a vCPU begins.
#[derive(Debug)]
pub enum Start {
    /// At the kernel's entry.
    Boot {
        /// The processor that the guest sees.
        cpuid: CpuId,
        /// Registers of the boot processor; the others wait for INIT and SIPI as real ones do.
        entry: Option<Box<EntryState>>,
    },
    /// Where it was saved.
    Restore {
        /// Its saved state.
        state: Box<VcpuState>,
        /// The same for all vCPUs.
        tsc: TscMove,
    },
}

/// Why a vCPU could not be started, stopped or saved.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM_CREATE_VCPU.
    #[error("cannot create vCPU {index}")]
    Create {
        /// Which.
        index: u8,
        /// Why.
        source: VmError,
    },
    /// Its state.
    #[error("cannot move the registers of vCPU {index}")]
    Registers {
        /// Which.
        index: u8,
        /// Why.
        source: RegistersError,
    },
    /// The host gives no thread.
    #[error("cannot start a thread for vCPU {index}")]
    Thread {
        /// Which.
        index: u8,
        /// Why.
        source: std::io::Error,
    },
    /// Its thread can't be confined.
    #[error("cannot confine the thread of vCPU {index}")]
    Sandbox {
        /// Which.
        index: u8,
        /// Why.
        source: SandboxError,
    },
    /// No answer to a command.
    #[error("vCPU {index} did not {command} within {} s", ANSWER_DEADLINE.as_secs())]
    Silent {
        /// Which.
        index: u8,
        /// The command.
        command: &'static str,
    },
    /// The thread has ended.
    #[error("the thread of vCPU {index} has ended")]
    Ended {
        /// Which.
        index: u8,
    },
}

/// A report of a vCPU thread to the event loop.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// About to be entered for the first time.
    Entering {
        /// When, on CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// It has halted as asked.
    Halted {
        /// As in [`VcpuThread::pause`].
        round: u64,
    },
    /// It can't continue.
    Fault {
        /// Which vCPU.
        index: u8,
        /// Why.
        fault: Fault,
    },
}

/// Receives the reports of vCPU threads; called on those threads.
pub trait VcpuObserver: Send + Sync + std::fmt::Debug {
    /// Receives a report.
    fn report(&self, report: Report);
}

#[derive(Debug)]
enum Command {
    Run,
    Pause { round: u64 },
    Save { number: u64 },
    Finish,
}

/// The number of the answer to the start.
const START: u64 = 0;

#[derive(Debug)]
enum Answer {
    Started,
    Saved(SavedVcpu),
    Failed(RegistersError),
    NotCreated(VmError),
    NotConfined(SandboxError),
}

/// A vCPU's state, and what a restore needs to know about its host.
#[derive(Debug)]
pub struct SavedVcpu {
    /// Its state.
    pub state: Box<VcpuState>,
    /// Frequency of this host's time stamp counter, where it is not the guest's.
    pub host_tsc_khz: Option<u32>,
}

/// A handle of a vCPU's thread.
#[derive(Debug)]
pub struct VcpuThread {
    index: u8,
    commands: Sender<Command>,
    answers: Receiver<(u64, Answer)>,
    /// The number of the last command that is answered.
    last_number: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

/// Data that all vCPUs of a machine share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The VM that they belong to.
    pub vm: Arc<Vm>,
    /// The way to devices.
    pub buses: Buses,
    /// Registers to save.
    pub msr_indices: Arc<[u32]>,
    /// Where reports go.
    pub observer: Arc<dyn VcpuObserver>,
    /// Confines their threads.
    pub filter: Option<Arc<BpfProgram>>,
}

impl VcpuThread {
    /// Starts a thread for each vCPU, which creates and configures it and stays paused, and waits until all
    /// have their state. They are set up at the same time.
    ///
    /// # Errors
    /// [`VcpuError`].
    pub fn start_all(starts: Vec<Start>, shared: &Shared) -> Result<Vec<Self>, VcpuError> {
        let vcpus = (0..)
            .zip(starts)
            .map(|(index, start)| Self::start(index, start, shared.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        vcpus.iter().try_for_each(Self::wait_started)?;
        Ok(vcpus)
    }

    fn start(index: u8, start: Start, shared: Shared) -> Result<Self, VcpuError> {
        let (commands, command_receiver) = mpsc::channel();
        let (answer_sender, answers) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let vcpu = VcpuLoop {
                    index,
                    shared,
                    commands: command_receiver,
                    answers: answer_sender,
                };
                vcpu.serve(start);
            })
            .map_err(|source| VcpuError::Thread { index, source })?;
        Ok(Self {
            index,
            commands,
            answers,
            last_number: AtomicU64::new(START),
            thread: Some(thread),
        })
    }

    fn wait_started(&self) -> Result<(), VcpuError> {
        self.answer(START, "take its state").map(drop)
    }

    /// Lets it run, once it has carried out the commands before.
    ///
    /// # Errors
    /// [`VcpuError::Ended`].
    pub fn run(&self) -> Result<(), VcpuError> {
        self.send(Command::Run)
    }

    /// Asks it to halt, which it reports as [`Report::Halted`]; at once if it is halted already.
    ///
    /// # Errors
    /// [`VcpuError::Ended`].
    pub fn pause(&self, round: u64) -> Result<(), VcpuError> {
        self.send(Command::Pause { round })?;
        self.kick();
        Ok(())
    }

    /// Collects its state while it is halted.
    ///
    /// # Errors
    /// [`VcpuError`].
    pub fn save(&self) -> Result<SavedVcpu, VcpuError> {
        const COMMAND: &str = "give its state";
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        self.send(Command::Save { number })?;
        match self.answer(number, COMMAND)? {
            Answer::Saved(saved) => Ok(saved),
            _ => Err(VcpuError::Silent {
                index: self.index,
                command: COMMAND,
            }),
        }
    }

    fn send(&self, command: Command) -> Result<(), VcpuError> {
        self.commands
            .send(command)
            .map_err(|_| VcpuError::Ended { index: self.index })
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // Fails only if the thread has ended, which the missing answer shows.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Waits for the answer with this number. Earlier ones came too late for whoever waited for them.
    fn answer(&self, number: u64, command: &'static str) -> Result<Answer, VcpuError> {
        let index = self.index;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (answered, answer) = match self.answers.recv_timeout(left) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => return Err(VcpuError::Silent { index, command }),
                Err(RecvTimeoutError::Disconnected) => return Err(VcpuError::Ended { index }),
            };
            if answered != number {
                continue;
            }
            return match answer {
                Answer::Failed(source) => Err(VcpuError::Registers { index, source }),
                Answer::NotConfined(source) => Err(VcpuError::Sandbox { index, source }),
                Answer::NotCreated(source) => Err(VcpuError::Create { index, source }),
                answer => Ok(answer),
            };
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Finish);
        self.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The data of the thread itself.
struct VcpuLoop {
    index: u8,
    shared: Shared,
    commands: Receiver<Command>,
    answers: Sender<(u64, Answer)>,
}

/// The state of the thread.
enum Mode {
    Running,
    Paused,
    Finished,
}

impl VcpuLoop {
    fn serve(self, start: Start) {
        let fd = match self.shared.vm.create_vcpu(self.index) {
            Ok(fd) => fd,
            Err(error) => return self.reply(START, Answer::NotCreated(error)),
        };
        // A new vCPU runs at the host's frequency.
        let host_tsc_khz = fd.get_tsc_khz().ok();
        let cpuid = match configure(&fd, start, self.shared.vm.capabilities()) {
            Ok(cpuid) => cpuid,
            Err(error) => return self.reply(START, Answer::Failed(error)),
        };
        if let Some(filter) = &self.shared.filter
            && let Err(error) = confine(filter)
        {
            return self.reply(START, Answer::NotConfined(error));
        }
        let mut target = KickTarget::new(fd);
        self.reply(START, Answer::Started);
        let mut entered = false;
        let mut mode = Mode::Paused;
        loop {
            mode = match mode {
                Mode::Running => {
                    if !entered {
                        entered = true;
                        self.shared.observer.report(Report::Entering {
                            at_ns: monotonic_ns(),
                        });
                    }
                    self.run(&mut target)
                }
                Mode::Paused => self.wait(&mut target, &cpuid, host_tsc_khz),
                Mode::Finished => return,
            };
        }
    }

    /// Runs the guest until a command or a fault.
    fn run(&self, target: &mut KickTarget) -> Mode {
        loop {
            // Commands are received only here, where pending accesses are complete. All of them, as one kick
            // may stand for several.
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Pause { round } => {
                        self.acknowledge_pause(target, round);
                        return Mode::Paused;
                    }
                    Command::Finish => return Mode::Finished,
                    // It runs already; and only a halted one is asked for its state.
                    Command::Run | Command::Save { .. } => {}
                }
            }
            if let Err(fault) = self.run_to_kick(target) {
                let diagnosis = Diagnosis::of(target.vcpu(), self.shared.vm.memory());
                log::line(format_args!("vCPU {}: {fault}: {diagnosis}", self.index));
                self.shared.observer.report(Report::Fault {
                    index: self.index,
                    fault,
                });
                return Mode::Paused;
            }
        }
    }

    /// Runs the guest until a kick.
    fn run_to_kick(&self, target: &mut KickTarget) -> Result<(), Fault> {
        loop {
            match target.vcpu().run() {
                Ok(exit) => match serve_exit(exit, &self.shared.buses) {
                    Next::Enter => {}
                    Next::Stop(fault) => return Err(fault),
                },
                Err(error) if error.errno() == libc::EINTR => {
                    target.clear();
                    return Ok(());
                }
                // A vCPU that still waits for its SIPI (api.rst, KVM_RUN).
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => {
                    return Err(Fault::Run {
                        errno: error.errno(),
                    });
                }
            }
        }
    }

    fn acknowledge_pause(&self, target: &mut KickTarget, round: u64) {
        if self.shared.vm.capabilities().kvmclock_ctrl {
            // Tells the guest's soft-lockup watchdog that it was stopped (api.rst, KVM_KVMCLOCK_CTRL). Fails
            // where the guest has no kvm-clock, and then no such watchdog needs it.
            let _ = target.vcpu().kvmclock_ctrl();
        }
        self.shared.observer.report(Report::Halted { round });
    }

    /// Waits for a command while halted.
    fn wait(&self, target: &mut KickTarget, cpuid: &CpuId, host_tsc_khz: Option<u32>) -> Mode {
        loop {
            match self.commands.recv() {
                Ok(Command::Run) => return Mode::Running,
                // Halted already, by a fault or an earlier command.
                Ok(Command::Pause { round }) => {
                    self.shared.observer.report(Report::Halted { round });
                }
                Ok(Command::Save { number }) => {
                    let Shared {
                        vm, msr_indices, ..
                    } = &self.shared;
                    let saved =
                        registers::save(target.vcpu(), cpuid, msr_indices, vm.capabilities());
                    let answer = match saved {
                        Ok(state) => Answer::Saved(SavedVcpu {
                            host_tsc_khz: host_tsc_khz.filter(|khz| Some(*khz) != state.tsc_khz()),
                            state: Box::new(state),
                        }),
                        Err(error) => Answer::Failed(error),
                    };
                    self.reply(number, answer);
                }
                Ok(Command::Finish) | Err(_) => return Mode::Finished,
            }
        }
    }

    fn reply(&self, number: u64, answer: Answer) {
        // Fails only if the machine has been dropped.
        let _ = self.answers.send((number, answer));
    }
}

fn configure(
    fd: &VcpuFd,
    start: Start,
    capabilities: Capabilities,
) -> Result<CpuId, RegistersError> {
    match start {
        Start::Boot { cpuid, entry } => {
            registers::boot(fd, &cpuid, entry.as_deref())?;
            Ok(cpuid)
        }
        Start::Restore { state, tsc } => {
            registers::restore(fd, &state, tsc, capabilities)?;
            state.cpuid()
        }
    }
}
