//! How long it takes from the start of a VMM process to the first entry of a vCPU, restoring an idle
//! machine whose image is in the page cache, and how much anonymous memory the process has then.
//!
//! `cargo bench -p vmm --bench restore`. Memory sizes in MiB may be given as arguments.
//!
//! The reference is the time that KVM itself takes on this host to make a VM of the same kind: interrupt
//! controllers, timer, one vCPU, memory. Fails if a restore takes more than a multiple of that, or if the
//! VMM's own memory exceeds its bound.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it fails"
)]

#[allow(dead_code, reason = "shared with the tests on KVM")]
#[path = "../tests/kvm/harness.rs"]
mod harness;

use std::process::ExitCode;

use harness::{Host, Vmm as Process};
use vmm::clock::monotonic_ns;
use vmm::memory::MachineMemory;
use vmm::vm::{Vm, open_kvm};
use vmm_control::{Event, Message, Phase, Reply, RequestBody};

const RUNS: usize = 50;
/// Most times as long as KVM takes for a bare VM that a restore may take, as it adds a process, an image and
/// a machine's state. Five was measured for the smaller size; a resume of a Firecracker snapshot takes 25 on
/// the same kind of host.
const RATIO_MOST: f64 = 10.0;
/// Most anonymous memory of a VMM beyond the guest's.
const ANONYMOUS_MOST: u64 = 5 << 20;
/// An endless loop.
const IDLE: &[u8] = &[0xeb, 0xfe];

fn main() -> ExitCode {
    if let Err(error) = open_kvm() {
        println!("not measured: {}", error_text::with_causes(&error));
        return ExitCode::SUCCESS;
    }
    let sizes: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument.parse::<u32>().is_ok())
        .collect();
    let sizes = if sizes.is_empty() {
        vec!["256".to_owned(), "1024".to_owned()]
    } else {
        sizes
    };
    let good = sizes.iter().filter(|size| measure(size)).count();
    if good < sizes.len() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The time that KVM takes for a VM that is not used.
fn bare_vm_ns(memory_mib: u32) -> u64 {
    let start_ns = monotonic_ns();
    let memory = MachineMemory::anonymous(memory_mib).unwrap();
    let vm = Vm::create(open_kvm().unwrap(), &memory.guest).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let end_ns = monotonic_ns();
    drop(vcpu);
    end_ns - start_ns
}

fn measure(memory_mib: &str) -> bool {
    let host = Host::with_guest(IDLE);
    let vmm = host.boot_with("1", memory_mib);
    let reply = vmm.control().suspend(&host.image());
    assert!(matches!(reply, Reply::Suspended(_)), "{reply:?}");
    vmm.wait();

    let flags = ["--verify", "off"];
    let mut totals = Vec::new();
    let mut bare = Vec::new();
    let mut anonymous = Vec::new();
    let mut phases: Vec<(String, Vec<u64>)> = Vec::new();
    for run in 0..RUNS {
        bare.push(bare_vm_ns(memory_mib.parse().unwrap()));
        let start_ns = monotonic_ns();
        let vmm = host.restore(2 + run as u64, &flags);
        let measured = wait_for_phases(&vmm);
        let end_ns = measured.last().unwrap().end_ns;
        totals.push(end_ns - start_ns);
        let process = Phase {
            name: "exec".to_owned(),
            start_ns,
            end_ns: measured[0].start_ns,
        };
        for phase in std::iter::once(&process).chain(&measured) {
            let length = phase.end_ns - phase.start_ns;
            match phases.iter_mut().find(|(name, _)| *name == phase.name) {
                Some((_, lengths)) => lengths.push(length),
                None => phases.push((phase.name.clone(), vec![length])),
            }
        }
        anonymous.push(anonymous_bytes(vmm.pid()));
        assert_eq!(vmm.control().request(RequestBody::Quit), Reply::Done);
        vmm.wait();
        // The same image once more.
        let image = host.image();
        std::fs::rename(image.join("manifest.consumed"), image.join("manifest.json")).unwrap();
    }
    println!("{memory_mib} MiB, {RUNS} restores, image in the page cache");
    print_row("process start to first entry", &mut totals, 1e6, "ms");
    for (name, lengths) in &mut phases {
        print_row(&format!("  {name}"), lengths, 1e6, "ms");
    }
    print_row(
        "anonymous memory of the VMM",
        &mut anonymous,
        f64::from(1 << 20),
        "MiB",
    );
    print_row("a bare VM", &mut bare, 1e6, "ms");
    let median = |sorted: &[u64]| sorted[sorted.len() / 2];
    #[allow(clippy::cast_precision_loss, reason = "these are far below 2^52")]
    let ratio = median(&totals) as f64 / median(&bare) as f64;
    let largest = *anonymous.last().unwrap();
    println!("restore / bare VM              {ratio:8.2}, at most {RATIO_MOST}");
    println!("largest anonymous memory       {largest:8} bytes, at most {ANONYMOUS_MOST}");
    ratio <= RATIO_MOST && largest <= ANONYMOUS_MOST
}

fn wait_for_phases(vmm: &Process<'_>) -> Vec<Phase> {
    let mut control = vmm.control();
    let entered = |phases: &[Phase]| phases.iter().any(|phase| phase.name == "first_entry");
    if entered(&control.hello.phases) {
        return control.hello.phases;
    }
    loop {
        if let Some(Message::Event {
            event: Event::Running { phases },
            ..
        }) = control.message()
        {
            return phases;
        }
    }
}

/// Private memory apart from the guest's, whose mapping names the image's memory file.
fn anonymous_bytes(pid: u32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut guest = false;
    let mut kib = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            guest = line.ends_with("/image/memory");
        } else if first == "Anonymous:" && !guest {
            kib += words.next().unwrap().parse::<u64>().unwrap();
        }
    }
    kib * 1024
}

fn print_row(name: &str, values: &mut [u64], unit: f64, suffix: &str) {
    values.sort_unstable();
    let at = |quantile: usize| {
        #[allow(clippy::cast_precision_loss, reason = "these are far below 2^52")]
        let value = values[(values.len() - 1) * quantile / 100] as f64;
        value / unit
    };
    println!(
        "{name:<30} min {:7.3}  p50 {:7.3}  p90 {:7.3} {suffix}",
        at(0),
        at(50),
        at(90)
    );
}
