//! Whether this host's KVM can run a Linux guest, measured by running a few instructions.
//!
//! That `/dev/kvm` exists is not enough: some hosts offer a KVM that interprets guest kernel code
//! (about a million instructions a second), on which a stock kernel does not boot. What to do about
//! it is the caller's decision.

use std::fmt;
use std::fs;
use std::io;
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit};
use thiserror::Error;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use crate::emulator::Emulator;
use crate::sys;

/// Guests that run their kernel mode slower than this are interpreted. Interpreters reach about
/// one million, emulated hardware (QEMU) tens of millions, hardware more than a billion.
const INTERPRETED_BELOW_PER_SECOND: u64 = 20_000_000;

const LOOPS: u16 = 20_000;
const DEADLINE: Duration = Duration::from_secs(5);

/// The kind of KVM that this host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmKind {
    /// Runs Linux guests by the CPU's own virtualisation.
    Hardware { instructions_per_second: u64 },
    /// Runs Linux guests on an emulated processor: this host is a virtual one.
    Virtual {
        emulator: Emulator,
        instructions_per_second: u64,
    },
    /// Works, but interprets guest kernel code.
    Software { instructions_per_second: u64 },
    /// Cannot be used at all.
    Missing { reason: String },
}

impl KvmKind {
    /// Whether Linux guests run on this host directly.
    pub fn runs_linux(&self) -> bool {
        matches!(self, Self::Hardware { .. } | Self::Virtual { .. })
    }
}

impl fmt::Display for KvmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One decimal, since interpreters may stay below one million.
        let millions = |rate: &u64| format!("{}.{}", rate / 1_000_000, rate / 100_000 % 10);
        match self {
            Self::Hardware {
                instructions_per_second: rate,
            } => {
                write!(
                    f,
                    "hardware KVM ({} million guest kernel instructions/s)",
                    millions(rate)
                )
            }
            // By the clock of such a host, the speed says nothing about it.
            Self::Virtual { emulator, .. } => write!(f, "{emulator}"),
            Self::Software {
                instructions_per_second: rate,
            } => write!(
                f,
                "software KVM, which interprets guest kernels ({} million instructions/s)",
                millions(rate)
            ),
            Self::Missing { reason } => write!(f, "no KVM: {reason}"),
        }
    }
}

/// Why the measurement failed.
#[derive(Debug, Error)]
enum ProbeError {
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    #[error("KVM_GET_API_VERSION returned {found} instead of 12")]
    ApiVersion { found: i32 },
    #[error("cannot set up a machine of one page: {step}")]
    SetUp {
        step: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("cannot map memory for a guest")]
    Memory(#[source] io::Error),
    #[error("cannot run the guest")]
    Run(#[source] kvm_ioctls::Error),
    #[error("the guest ended with {exit} instead of halting")]
    UnexpectedExit { exit: String },
    #[error("a guest's loop of {LOOPS} rounds did not end within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// Checks `/dev/kvm` and the CPU, and runs a short guest loop in kernel mode. The first call takes
/// some milliseconds, and five seconds at most; the answer does not change, so further ones take no
/// time.
pub fn detect() -> &'static KvmKind {
    static FOUND: OnceLock<KvmKind> = OnceLock::new();
    FOUND.get_or_init(|| match measure_with_deadline() {
        Ok(rate) => classify(Emulator::of_this_host(), cpu_has_virtualisation(), rate),
        Err(error) => KvmKind::Missing {
            reason: error_text::with_causes(&error),
        },
    })
}

/// The CPU flag decides first: on an emulated CPU, entering the guest takes longer than the loop, so
/// the speed says nothing. Without the flag the speed decides.
fn classify(
    emulator: Option<Emulator>,
    cpu_has_virtualisation: bool,
    instructions_per_second: u64,
) -> KvmKind {
    if let Some(emulator) = emulator {
        KvmKind::Virtual {
            emulator,
            instructions_per_second,
        }
    } else if cpu_has_virtualisation || instructions_per_second >= INTERPRETED_BELOW_PER_SECOND {
        KvmKind::Hardware {
            instructions_per_second,
        }
    } else {
        KvmKind::Software {
            instructions_per_second,
        }
    }
}

fn cpu_has_virtualisation() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualisation_flag(&text))
}

fn has_virtualisation_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .any(|(_, flags)| {
            flags
                .split_whitespace()
                .any(|flag| matches!(flag, "svm" | "vmx"))
        })
}

fn measure_with_deadline() -> Result<u64, ProbeError> {
    let (sender, receiver) = mpsc::channel();
    // A broken KVM may never return from KVM_RUN. The thread is then left behind, since only the
    // end of the process is sure to end it.
    std::thread::spawn(move || sender.send(measure()));
    receiver
        .recv_timeout(DEADLINE)
        .unwrap_or(Err(ProbeError::Deadline))
}

fn measure() -> Result<u64, ProbeError> {
    const CODE_ADDRESS: u64 = 0x100;
    let set_up = |step| move |source| ProbeError::SetUp { step, source };
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    match kvm.get_api_version() {
        12 => (),
        found => return Err(ProbeError::ApiVersion { found }),
    }
    let memory =
        MmapRegion::<()>::new(4096).map_err(|error| ProbeError::Memory(io::Error::other(error)))?;
    let vm = kvm.create_vm().map_err(set_up("KVM_CREATE_VM"))?;
    // Intel CPUs that cannot run real mode need this before the first vCPU.
    vm.set_tss_address(0xfffb_d000)
        .map_err(set_up("KVM_SET_TSS_ADDR"))?;
    sys::map_guest_memory(&vm, &memory).map_err(set_up("KVM_SET_USER_MEMORY_REGION"))?;
    memory
        .as_volatile_slice()
        .write_slice(&loop_code(LOOPS), 0x100)
        .map_err(|error| ProbeError::Memory(io::Error::other(error)))?;
    let mut vcpu = vm.create_vcpu(0).map_err(set_up("KVM_CREATE_VCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(set_up("KVM_GET_SREGS"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(set_up("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(set_up("KVM_GET_REGS"))?;
    regs.rip = CODE_ADDRESS;
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(set_up("KVM_SET_REGS"))?;

    let start = Instant::now();
    match vcpu.run().map_err(ProbeError::Run)? {
        VcpuExit::Hlt => (),
        exit => {
            return Err(ProbeError::UnexpectedExit {
                exit: format!("{exit:?}"),
            });
        }
    }
    let instructions = f64::from(LOOPS) * 2.0;
    let rate = instructions / start.elapsed().as_secs_f64().max(f64::EPSILON);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a positive rate; `as` saturates"
    )]
    Ok(rate as u64)
}

/// `mov cx, loops; again: dec cx; jnz again; hlt` in real mode.
fn loop_code(loops: u16) -> [u8; 7] {
    let [low, high] = loops.to_le_bytes();
    [0xb9, low, high, 0x49, 0x75, 0xfd, 0xf4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_with_virtualisation_is_hardware_however_slow_the_loop() {
        assert!(classify(None, true, 3_000_000).runs_linux());
    }

    #[test]
    fn without_the_flag_the_speed_decides() {
        assert!(classify(None, false, 1_000_000_000).runs_linux());
        assert!(!classify(None, false, 1_000_000).runs_linux());
    }

    #[test]
    fn a_virtual_host_runs_linux_and_claims_no_hardware() {
        let kind = classify(Some(Emulator::BochsIntel), true, 3_000_000_000);
        assert!(kind.runs_linux());
        assert_eq!(
            kind.to_string(),
            "kvm_intel on a Haswell that Bochs emulates"
        );
    }

    #[test]
    fn only_whole_flags_count() {
        assert!(has_virtualisation_flag("flags\t\t: fpu svm npt\n"));
        assert!(has_virtualisation_flag(
            "flags\t\t: fpu vmx\nvmx flags\t: ept\n"
        ));
        assert!(!has_virtualisation_flag(
            "flags\t\t: fpu svm_lock\nvmx flags\t: vnmi vmx\n"
        ));
    }

    #[test]
    fn a_host_with_dev_kvm_is_measured_and_one_without_says_why() {
        let kind = detect();
        let there = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        assert_eq!(matches!(kind, KvmKind::Missing { .. }), !there, "{kind}");
    }
}
