//! The layers inside of the crates, and the test that imports run downwards and in no circle.
//!
//! A folder's table lists the modules directly in it from top to bottom. A module may import those of
//! the rows below its own, and none beside it. Folders without a table are checked for circles.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::imports::{self, Crate, Import, ModulePath};
use crate::{relative, root};

/// Layers of one folder, from top to bottom.
struct Layers {
    /// The crate's root file.
    root: &'static str,
    /// The module whose children these are; the crate itself if empty.
    module: &'static str,
    rows: &'static [&'static [&'static str]],
}

/// An import that breaks a rule, and why it may.
struct Exception {
    /// The file that imports.
    from: &'static str,
    /// The module that it imports, from the crate's root.
    to: &'static str,
    #[expect(dead_code, reason = "for the reader")]
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[];

const LAYERS: &[Layers] = &[
    Layers {
        root: "supervisor/src/lib.rs",
        module: "",
        rows: &[
            &["fuzzing"],
            &["api", "services"],
            &["machine"],
            &["machine_folder"],
            &["store", "images", "logs", "guest", "vmm_process"],
            &["configuration"],
            &["model"],
            &["error_chain"],
            // The ground, used by all.
            &["ids", "disk_usage", "exhaustion", "fail_point", "paths"],
            &["clock", "deadline", "duration"],
        ],
    },
    Layers {
        root: "supervisor/src/lib.rs",
        module: "api",
        rows: &[
            &["sockets"],
            &["routes"],
            &["description"],
            &["bodies"],
            &["handlers"],
            &["request"],
            &["error", "ndjson"],
        ],
    },
    Layers {
        root: "supervisor/src/lib.rs",
        module: "machine",
        rows: &[
            &["unlisted"],
            &["registry"],
            &["event_loop", "transitions"],
            &["publish"],
            &["driver"],
            &["handle", "bring_up", "launch", "leaks", "main_process"],
            &["request"],
            &["session", "readiness"],
            &["error", "context", "activity", "found_vmm", "unsaved"],
            &["disk_claims", "connection_permits"],
        ],
    },
    Layers {
        root: "vmm/src/lib.rs",
        module: "",
        rows: &[
            &["command_line"],
            &["machine"],
            &["boot", "control", "process"],
            &["vcpu"],
            &["image", "vm", "sandbox"],
            &["devices", "memory"],
            &["bus"],
            &["leaks", "log", "phases", "epoll", "sys"],
            &["bytes", "clock", "page"],
        ],
    },
    Layers {
        root: "vmm/src/lib.rs",
        module: "devices::virtio",
        rows: &[
            &["mmio"],
            &["saved_device"],
            &["block", "rng", "vsock"],
            &["request_queue"],
            &["device"],
            &["interrupt"],
        ],
    },
    Layers {
        root: "cli/src/main.rs",
        module: "",
        rows: &[
            &["command_line"],
            &["commands"],
            &["cycle_report", "readiness", "each_machine", "arguments"],
            &["transition", "confirm"],
            &["error", "session"],
            &["settings", "wording"],
            &["output", "parse", "terminal"],
            &["units"],
        ],
    },
    Layers {
        root: "guest-init/src/lib.rs",
        module: "",
        rows: &[
            &["fuzzing"],
            &["server"],
            &["services"],
            &["boot", "connection", "processes"],
            &["os"],
        ],
    },
    Layers {
        root: "fuzz/src/lib.rs",
        module: "",
        rows: &[
            &["targets"],
            &["guest"],
            &["changed", "mutation", "scratch", "steps"],
        ],
    },
    Layers {
        root: "cycles/src/lib.rs",
        module: "",
        rows: &[
            &["render"],
            &["drive"],
            &["judge"],
            &["record"],
            &["statistics", "numbers"],
        ],
    },
    Layers {
        root: "e2e/src/lib.rs",
        module: "",
        rows: &[
            &["matrix"],
            &["bench", "leaks", "main_job", "proof", "scale", "upgrade"],
            &["measure"],
            &["run_here", "bench_here", "upgrade_here"],
            &["run_event", "work", "ledger"],
            &["kvm_process", "machine", "peer", "figures", "report_files"],
            &["host", "host_socket"],
            &["kvm_place"],
            &["artifacts", "child", "counter", "disk", "ending", "output"],
        ],
    },
];

/// The root files of all crates: libraries and programs.
fn crate_roots() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    for manifest in crate::files("Cargo.toml") {
        let source = manifest.parent().expect("a folder").join("src");
        roots.extend([source.join("lib.rs"), source.join("main.rs")]);
        let programs = std::fs::read_dir(source.join("bin"));
        roots.extend(
            programs
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path().join("main.rs")),
        );
    }
    roots.retain(|path| path.is_file());
    roots
}

fn read(root: &Path) -> Crate {
    let mut read = imports::read(root, relative);
    read.imports.retain(|import| {
        let file = import.place.split(':').next().unwrap_or_default();
        let excepted =
            |exception: &&Exception| exception.from == file && exception.to == import.to.join("::");
        EXCEPTIONS.iter().find(excepted).is_none()
    });
    read
}

fn say(import: &Import) -> String {
    format!("{}: {}", import.place, import.written)
}

#[test]
fn imports_run_downwards() {
    let mut broken = Vec::new();
    for layers in LAYERS {
        let read = read(&root().join(layers.root));
        let parent: ModulePath = layers
            .module
            .split("::")
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        let place = format!("{} {}", layers.root, layers.module);
        let child = |module: &ModulePath| {
            let rest = module.strip_prefix(parent.as_slice())?;
            rest.first().cloned()
        };
        let children: BTreeSet<String> = read.modules.keys().filter_map(child).collect();
        let row = |name: &str| layers.rows.iter().position(|row| row.contains(&name));
        for name in &children {
            if row(name).is_none() {
                broken.push(format!("{place}: {name} has no layer"));
            }
        }
        for name in layers.rows.iter().copied().flatten() {
            if !children.contains(*name) {
                broken.push(format!("{place}: there is no {name}"));
            }
        }
        for import in &read.imports {
            let (Some(from), Some(to)) = (child(&import.from), child(&import.to)) else {
                continue;
            };
            if from != to && row(&from) >= row(&to) {
                broken.push(say(import));
            }
        }
    }
    assert!(broken.is_empty(), "not downwards: {broken:#?}");
}

#[test]
fn no_circles_between_files_or_folders() {
    let mut circles = Vec::new();
    for root in crate_roots() {
        let read = read(&root);
        circles.extend(circles_of(&read.imports, |module| Some(module.clone())));
        // At each level the modules with all that they contain.
        let parents: BTreeSet<&[String]> = read
            .modules
            .keys()
            .filter_map(|module| module.split_last().map(|(_, parent)| parent))
            .collect();
        for parent in parents {
            let child = |module: &ModulePath| {
                let rest = module.strip_prefix(parent)?;
                rest.first().map(|first| vec![first.clone()])
            };
            circles.extend(circles_of(&read.imports, child));
        }
    }
    circles.sort();
    circles.dedup();
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The imports that are part of a circle, with modules grouped by `group`.
fn circles_of(
    imports: &[Import],
    group: impl Fn(&ModulePath) -> Option<ModulePath>,
) -> Vec<String> {
    let mut edges: BTreeMap<ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
    let grouped: Vec<(ModulePath, ModulePath, &Import)> = imports
        .iter()
        .filter_map(|import| Some((group(&import.from)?, group(&import.to)?, import)))
        .filter(|(from, to, _)| from != to)
        .collect();
    for (from, to, _) in &grouped {
        edges.entry(from.clone()).or_default().insert(to.clone());
    }
    let leads_back = |from: &ModulePath, to: &ModulePath| {
        let mut seen = BTreeSet::new();
        let mut next = vec![to.clone()];
        while let Some(module) = next.pop() {
            if module == *from {
                return true;
            }
            if seen.insert(module.clone()) {
                next.extend(edges.get(&module).into_iter().flatten().cloned());
            }
        }
        false
    };
    grouped
        .iter()
        .filter(|(from, to, _)| leads_back(from, to))
        .map(|(_, _, import)| format!("in a circle: {}", say(import)))
        .collect()
}

#[test]
fn a_circle_is_found_and_a_diamond_is_none() {
    let import = |from: &str, to: &str| Import {
        from: vec![from.to_owned()],
        to: vec![to.to_owned()],
        place: String::new(),
        written: format!("{from} {to}"),
    };
    let own = |module: &ModulePath| Some(module.clone());
    let diamond = [
        import("a", "b"),
        import("a", "c"),
        import("b", "d"),
        import("c", "d"),
    ];
    assert!(circles_of(&diamond, own).is_empty());
    let circle = [
        import("a", "b"),
        import("b", "c"),
        import("c", "b"),
        import("c", "d"),
    ];
    assert_eq!(circles_of(&circle, own).len(), 2);
}
