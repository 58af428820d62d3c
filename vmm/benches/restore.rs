//! How long it takes from the start of a VMM process to the first entry of a vCPU, restoring an idle
//! machine whose image is in the page cache, and how much anonymous memory the process has then.
//!
//! `cargo bench -p vmm --bench restore`. Memory sizes in MiB may be given as arguments.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it fails"
)]

#[path = "../tests/harness/mod.rs"]
mod harness;

use harness::{Host, Vmm, kvm_is_there};
use vmm::clock::monotonic_ns;
use vmm_control::{Event, Message, Phase, Reply, RequestBody};

const RUNS: usize = 50;
/// An endless loop.
const IDLE: &[u8] = &[0xeb, 0xfe];

fn main() {
    if !kvm_is_there() {
        return;
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
    for memory_mib in sizes {
        measure(&memory_mib);
    }
}

fn measure(memory_mib: &str) {
    let host = Host::with_guest(IDLE);
    let vmm = host.boot_with("1", memory_mib);
    let reply = vmm.control().suspend(&host.image());
    assert!(matches!(reply, Reply::Suspended(_)), "{reply:?}");
    vmm.wait();

    let flags = ["--verify", "off"];
    let mut totals = Vec::new();
    let mut anonymous = Vec::new();
    let mut phases: Vec<(String, Vec<u64>)> = Vec::new();
    for run in 0..RUNS {
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
}

fn wait_for_phases(vmm: &Vmm<'_>) -> Vec<Phase> {
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
