//! Synthetic reports: seeded, in the shape of real ones.

use std::collections::BTreeMap;

use cycles::{
    Attempt, AttemptOutcome, Cell, CellKey, Clock, Cycle, GuestKind, Host, KvmKind, Matrix, Peer,
    Phases, PortPolicy, PromiseOutcome, PromiseResult, Proof, ProofPart, Report, Resources, Run,
    RunEnd, ScaleRun, Setting, SubjectDescription,
};

/// A multiplicative congruential generator: random enough for pictures.
struct Noise(u64);

impl Noise {
    /// Between -1 and 1, mostly in the middle.
    fn next(&mut self) -> f64 {
        (0..3).map(|_| self.uniform()).sum::<f64>() / 1.5 - 1.0
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963);
        f64::from(u32::try_from(self.0 >> 33).unwrap_or(0)) / f64::from(1u32 << 31)
    }
}

const RESUME_PHASES: [(&str, f64); 9] = [
    ("vmm_spawn", 38.0),
    ("image_open_and_check", 21.0),
    ("memory_map", 4.0),
    ("kvm_restore", 64.0),
    ("first_vcpu_entry", 9.0),
    ("reset_acknowledged", 71.0),
    ("connect", 48.0),
    ("first_status", 103.0),
    ("monitor_reopened", 52.0),
];

const SUSPEND_PHASES: [(&str, f64); 6] = [
    ("pause", 6.0),
    ("quiesce", 3.0),
    ("find_changed_pages", 18.0),
    ("write_memory", 61.0),
    ("sync", 34.0),
    ("vmm_exit", 12.0),
];

fn phases(named: &[(&str, f64)], noise: &mut Noise, spread: f64) -> (Phases, f64) {
    let named: Vec<(String, f64)> = named
        .iter()
        .map(|(name, ms)| {
            (
                (*name).to_owned(),
                (ms * (1.0 + spread * noise.next())).max(0.1),
            )
        })
        .collect();
    let total = named.iter().map(|(_, ms)| ms).sum::<f64>() + 3.0 + noise.uniform() * 4.0;
    (Phases::with_remainder(named, total), total)
}

/// A run whose cycle n needs `failed(n)` attempts before the one that succeeds.
pub(crate) fn run(seed: u64, cycles: u32, leak: u32, failed: impl Fn(u32) -> u32) -> Run {
    let mut noise = Noise(seed);
    let cycle = |number: u32| {
        let (suspend_phases_ms, suspend_ms) = phases(&SUSPEND_PHASES, &mut noise, 0.4);
        let retries = failed(number);
        let mut named = RESUME_PHASES;
        named[6].1 += 28.0 * f64::from(retries);
        if noise.uniform() < 0.02 {
            named[7].1 *= 2.6;
        }
        let (resume_phases_ms, resume_ms) = phases(&named, &mut noise, 0.3);
        let attempt = |n: u32| Attempt {
            local_port: Some((1 << 30) + n),
            outcome: if n < retries {
                AttemptOutcome::Reset
            } else {
                AttemptOutcome::Ok
            },
            ms: 12.0,
        };
        Cycle {
            cycle: number,
            suspend_ms,
            resume_ms,
            suspend_phases_ms,
            resume_phases_ms,
            readiness: (0..=retries).map(attempt).collect(),
            guest_open_vsocks: Some(2 + leak * (number - 1)),
            image_bytes_written: Some(6 << 20),
            resources: resources(number, leak),
        }
    };
    Run {
        subject: subject("mctl-vmm 0.1.0"),
        cycles_wanted: cycles,
        looks: Vec::new(),
        cycles: (1..=cycles).map(cycle).collect(),
        end: RunEnd::Complete,
        vsocks_before: Some(2),
    }
}

/// Counts and sizes that stand still, oscillate, and grow by design; with `leak`, sockets that are
/// never closed.
fn resources(number: u32, leak: u32) -> Resources {
    let n = u64::from(number);
    let page = 4096;
    let values: [(&str, u64); 14] = [
        ("guest_init_descriptors", 11 + n % 2),
        ("guest_init_resident_bytes", 900 << 10),
        ("guest_tasks", 41 + (n * n) % 5),
        ("guest_vsocks_established", 2 + u64::from(leak) * n),
        ("supervisor_descriptors", 38),
        ("supervisor_threads", 5),
        (
            "supervisor_resident_bytes",
            (14 << 20) + (n * n) % 17 * page,
        ),
        ("supervisor_tasks", 23 + (n * 7) % 4),
        ("vmm_descriptors", 27),
        ("vmm_threads", 4),
        ("vmm_resident_bytes", (62 << 20) + (n * n) % 31 * page),
        ("image_bytes", (58 << 20) + n.min(40) * 16 * page),
        ("database_bytes", (8 << 20) + n * 3000),
        ("log_bytes", n * 700),
    ];
    values.into_iter().collect()
}

fn subject(name: &str) -> SubjectDescription {
    SubjectDescription {
        name: name.to_owned(),
        memory_mib: Some(256),
        vcpus: Some(1),
        port_policy: Some(PortPolicy::Random),
        eviction: Some(true),
        details: BTreeMap::from([("kernel".to_owned(), "6.1.0-42-cloud-amd64".to_owned())]),
    }
}

fn report(run: Run) -> Report {
    let details = BTreeMap::from([
        (
            "processor".to_owned(),
            "AMD EPYC (emulated by QEMU 7.2 TCG)".into(),
        ),
        ("processors".to_owned(), 2.into()),
        ("memory_mib".to_owned(), 4096.into()),
        ("kernel".to_owned(), "Linux 6.1.0-42-cloud-amd64".into()),
        ("image_directory".to_owned(), "tmpfs".into()),
    ]);
    let host = Host {
        kvm: KvmKind::Virtual,
        details,
    };
    let setting = Setting {
        host,
        clock: Clock::Virtual,
        started_at: "2026-11-23T09:41:00Z".to_owned(),
    };
    Report::of_run(setting, run)
}

pub(crate) fn flat_report(cycles: u32) -> Report {
    report(run(7, cycles, 0, |_| 0))
}

pub(crate) fn rising_report(cycles: u32) -> Report {
    report(run(8, cycles, 1, |number| number / 3))
}

pub(crate) fn hostile_report(attack: &str) -> Report {
    let mut report = full_report();
    attack.clone_into(&mut report.config.subject.name);
    attack.clone_into(&mut report.config.started_at);
    attack.clone_into(&mut report.config.version);
    attack.clone_into(&mut report.flatness.reason);
    report.host.details.insert(attack.to_owned(), attack.into());
    let detail = format!("kvm_{attack}");
    report
        .host
        .details
        .insert("kvm_detail".to_owned(), detail.into());
    report.peers[0].subject.name = attack.to_owned();
    report.scale[0].error = Some(attack.to_owned());
    let cycle = &mut report.cycles[0];
    cycle.resume_phases_ms =
        Phases::with_remainder([(attack.to_owned(), cycle.resume_ms)], cycle.resume_ms);
    report
}

/// Everything that a report can hold.
pub(crate) fn full_report() -> Report {
    let mut report = flat_report(300);
    report.matrix = Some(matrix());
    let mut peer = run(99, 300, 0, |_| 0);
    peer.subject = subject("Firecracker v1.15");
    report.peers.push(Peer::of_run(peer, Clock::Virtual));
    let mut noise = Noise(7);
    for (port_policy, eviction) in [
        (PortPolicy::Random, true),
        (PortPolicy::Random, false),
        (PortPolicy::Continue, false),
        (PortPolicy::Fixed, false),
    ] {
        let mut scale = ScaleRun::new(port_policy, eviction, 10_000);
        if port_policy == PortPolicy::Fixed {
            scale.attempts_max = 71;
            scale.error = Some("not ready within 60 s".to_owned());
        } else {
            for _ in 0..5 {
                let (phases, total_ms) = phases(&RESUME_PHASES, &mut noise, 0.3);
                let attempt = Attempt {
                    local_port: Some(1 << 30),
                    outcome: AttemptOutcome::Ok,
                    ms: 12.0,
                };
                scale.add_resume(total_ms, phases, &[attempt]);
            }
        }
        report.scale.push(scale);
    }
    report
}

fn matrix() -> Matrix {
    let mut cells = Vec::new();
    for guest in [GuestKind::Leaky, GuestKind::Fixed] {
        for eviction in [false, true] {
            for port_policy in [PortPolicy::Fixed, PortPolicy::Continue, PortPolicy::Random] {
                let key = CellKey {
                    guest,
                    port_policy,
                    eviction,
                    monitor_first: true,
                };
                let leaks = guest == GuestKind::Leaky && !eviction;
                let unfixed = leaks && port_policy == PortPolicy::Fixed;
                let seed = 50 + u64::try_from(cells.len()).unwrap_or(0);
                let run = run(seed, 60, u32::from(leaks), |n| if unfixed { n } else { 0 });
                cells.push(Cell::of_run(key, &run, Clock::Virtual));
            }
        }
    }
    Matrix {
        cycles_per_cell: 60,
        cells,
    }
}

/// A proof that holds: two kinds of KVM, and one that was left out.
pub(crate) fn proof() -> Proof {
    let part = |name: &str, kvm: &str| ProofPart {
        name: name.to_owned(),
        kvm: kvm.to_owned(),
        left_out: None,
        report: Some(flat_report(300)),
        promises: [
            ("boot::a_machine_boots", PromiseOutcome::Kept),
            ("suspend_resume::a_guest_survives", PromiseOutcome::Kept),
            ("peer::firecracker", PromiseOutcome::NotTried),
        ]
        .map(|(name, outcome)| PromiseResult {
            name: name.to_owned(),
            outcome,
            message: None,
            run: 1,
        })
        .to_vec(),
        errors: Vec::new(),
        seconds: 1_000,
        runs: 1,
    };
    Proof {
        version: "0.1.0".to_owned(),
        work: String::new(),
        started_at: "2026-11-26T23:00:00Z".to_owned(),
        machine: [("processor".to_owned(), "Example CPU".to_owned())].into(),
        parts: vec![
            part("amd", "kvm_amd on an EPYC that QEMU emulates"),
            part("intel", "kvm_intel on a Haswell that Bochs emulates"),
            ProofPart {
                left_out: Some("no KVM".to_owned()),
                report: None,
                promises: Vec::new(),
                ..part("hardware", "this machine's own KVM")
            },
        ],
    }
}
