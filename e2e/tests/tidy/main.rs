//! Rules about the tree itself, as ordinary tests: who may import whom, how long a file may be, and
//! where `unsafe`, SQL and HTTP statuses may be used.
//!
//! ARCHITECTURE.md gives the reasons. An exception to a rule is listed here, with its reason, and
//! nowhere else.

mod documents;
mod imports;
mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which workspace crates a crate may depend on, tests included.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // Only in tests.
    ("guest-protocol", &["release-before"]),
    ("machine-api", &["release-before"]),
    ("vmm-control", &["release-before"]),
    ("release-before", &[]),
    ("error-text", &[]),
    ("process-usage", &[]),
    ("trials", &[]),
    ("client", &["machine-api"]),
    ("cycles", &["client", "error-text", "machine-api", "trials"]),
    (
        "cli",
        &["client", "cycles", "error-text", "kvm-host", "machine-api"],
    ),
    (
        "guest-init",
        &["error-text", "guest-protocol", "process-usage"],
    ),
    // kvm-host only in tests, which run inside a virtual host where there is no KVM.
    (
        "vmm",
        &[
            "error-text",
            "vmm-control",
            "kvm-host",
            "release-before",
            "trials",
        ],
    ),
    (
        "supervisor",
        &[
            "error-text",
            "guest-protocol",
            "machine-api",
            "process-usage",
            "vmm-control",
            "kvm-host",
            "release-before",
            "trials",
        ],
    ),
    (
        "fuzz",
        &[
            "guest-init",
            "guest-protocol",
            "supervisor",
            "vmm",
            "vmm-control",
        ],
    ),
    ("rootfs", &[]),
    ("kvm-host", &["error-text", "rootfs", "trials"]),
    // Peers get the same readiness check, through their own vsock sockets.
    (
        "e2e",
        &[
            "client",
            "cycles",
            "guest-protocol",
            "kvm-host",
            "machine-api",
            "process-usage",
            "trials",
        ],
    ),
];

/// Third-party crates that a crate must do without.
const MUST_NOT_USE: &[(&str, &[&str])] = &[
    ("vmm", &["tokio", "axum", "hyper"]),
    ("guest-init", &["axum", "hyper", "clap"]),
    ("guest-protocol", &["tokio"]),
    ("machine-api", &["tokio", "axum", "hyper"]),
    ("vmm-control", &["tokio"]),
];

/// Most lines before a file's inline tests.
const MOST_LINES: usize = 500;

/// Files that may be longer, each with its reason.
const LONGER_FILES: &[(&str, usize, &str)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("e2e lies in the workspace")
        .to_owned()
}

fn workspace() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &serde_json::Value| value.as_str().expect("a name").to_owned();
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
    list(&workspace()["packages"])
        .iter()
        .map(|package| {
            let names = list(&package["dependencies"])
                .iter()
                .map(|d| text(&d["name"]))
                .collect();
            (text(&package["name"]), names)
        })
        .collect()
}

/// All files of the repository whose names end with `ending`, without build results.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a readable folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                walk(&path, ending, found);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root())
        .expect("below the root")
        .display()
        .to_string()
}

/// The part of a source file before its inline tests.
fn production(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// Lines (numbered from 1) of production code that contain `needle`, comments left out.
fn uses_of(needle: &str, allowed: &dyn Fn(&str) -> bool) -> Vec<String> {
    files(".rs")
        .iter()
        .map(|path| {
            (
                relative(path),
                fs::read_to_string(path).expect("UTF-8 source"),
            )
        })
        .filter(|(path, _)| !path.contains("/tests/") && !path.contains("/benches/"))
        .filter(|(path, _)| !path.ends_with("/tests.rs") && !allowed(path))
        .flat_map(|(path, text)| {
            production(&text)
                .lines()
                .enumerate()
                .filter(|(_, line)| line.contains(needle) && !line.trim_start().starts_with("//"))
                .map(|(number, line)| format!("{path}:{}: {}", number + 1, line.trim()))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let dependencies = dependencies();
    let members: BTreeSet<&String> = dependencies.keys().collect();
    let rules: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let unknown: Vec<_> = members
        .iter()
        .filter(|name| !rules.contains_key(name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "crates without a rule: {unknown:?}");
    let broken: Vec<String> = dependencies
        .iter()
        .flat_map(|(name, imports)| {
            let allowed = rules[name.as_str()];
            imports
                .iter()
                .filter(|import| members.contains(import) && !allowed.contains(&import.as_str()))
                .map(move |import| format!("{name} imports {import}"))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn crates_do_without_what_the_architecture_forbids() {
    let dependencies = dependencies();
    let broken: Vec<String> = MUST_NOT_USE
        .iter()
        .flat_map(|(name, forbidden)| {
            forbidden
                .iter()
                .filter(|other| dependencies[*name].contains(**other))
                .map(move |other| format!("{name} uses {other}"))
        })
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let without: Vec<String> = files("Cargo.toml")
        .iter()
        .filter(|path| path.parent() != Some(root().as_path()))
        .filter(|path| {
            !fs::read_to_string(path)
                .expect("a manifest")
                .contains("[lints]\nworkspace = true")
        })
        .map(|path| relative(path))
        .collect();
    assert!(without.is_empty(), "{without:#?}");
}

#[test]
fn files_stay_short_enough_to_have_one_subject() {
    let longer: BTreeMap<&str, usize> = LONGER_FILES
        .iter()
        .map(|(path, lines, _)| (*path, *lines))
        .collect();
    let broken: Vec<String> = files(".rs")
        .iter()
        .filter_map(|path| {
            let text = fs::read_to_string(path).expect("UTF-8 source");
            let lines = production(&text).lines().count();
            let path = relative(path);
            // A file of tests is read test by test, not as a whole.
            if path.contains("/tests/") {
                return None;
            }
            let most = longer.get(path.as_str()).copied().unwrap_or(MOST_LINES);
            (lines > most).then(|| format!("{path}: {lines} lines, at most {most}"))
        })
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_file_says_what_it_is_responsible_for() {
    let silent: Vec<String> = files(".rs")
        .iter()
        .filter(|path| {
            !fs::read_to_string(path)
                .expect("UTF-8 source")
                .starts_with("//!")
        })
        .map(|path| relative(path))
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn unsafe_is_used_only_in_sys_modules() {
    let allowed = |path: &str| path.contains("/sys/") || path.ends_with("/sys.rs");
    let found: Vec<String> = uses_of("unsafe ", &allowed)
        .into_iter()
        .filter(|line| line.contains("unsafe {") || line.contains("unsafe fn"))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn sql_is_used_only_in_the_store() {
    let allowed = |path: &str| !path.starts_with("supervisor/") || path.contains("/store/");
    let found = uses_of("rusqlite", &allowed);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn processes_are_opened_only_in_vmm_process() {
    let allowed = |path: &str| !path.starts_with("supervisor/") || path.contains("/vmm_process/");
    let found = uses_of("pidfd_", &allowed);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn http_statuses_are_used_only_in_the_api() {
    let allowed = |path: &str| !path.starts_with("supervisor/") || path.contains("/api/");
    let found = uses_of("StatusCode", &allowed);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn devices_know_no_kvm_and_no_machine() {
    let allowed = |path: &str| !path.starts_with("vmm/src/devices/");
    let found: Vec<String> = [
        "kvm_ioctls",
        "kvm_bindings",
        "crate::machine",
        "crate::vcpu",
    ]
    .iter()
    .flat_map(|name| uses_of(name, &allowed))
    .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn names_say_what_a_thing_does() {
    let vague: Vec<String> = [
        "fn handle_",
        "fn process_",
        "fn do_",
        "mod util",
        "mod helper",
    ]
    .iter()
    .flat_map(|name| uses_of(name, &|_| false))
    .collect();
    assert!(vague.is_empty(), "{vague:#?}");
}

#[test]
fn the_readme_names_only_recipes_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let recipes = fs::read_to_string(root().join("justfile")).expect("justfile");
    let known: BTreeSet<&str> = recipes
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split([' ', ':']).next())
        .collect();
    let missing: BTreeSet<&str> = readme
        .split("./just ")
        .skip(1)
        .filter_map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .next()
        })
        .filter(|name| !name.is_empty() && !known.contains(name))
        .collect();
    assert!(missing.is_empty(), "not in the justfile: {missing:?}");
}

#[test]
fn documents_name_only_files_that_exist() {
    let mut documents = files(".md");
    documents.retain(|path| !path.ends_with("CHANGELOG.md"));
    let known: Vec<String> = files("")
        .iter()
        .map(|path| format!("/{}", relative(path)))
        .collect();
    let mut missing = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a readable document");
        // Every second piece between backticks is code.
        for name in text.split('`').skip(1).step_by(2) {
            let named = name.strip_suffix('/').unwrap_or(name);
            let is_path = name.ends_with(".rs") || (name.ends_with('/') && !name.contains(' '));
            // A path may be relative to the crate that its section is about.
            let exists = known.iter().any(|path| {
                path.ends_with(&format!("/{named}")) || path.contains(&format!("/{named}/"))
            });
            if is_path && !exists && !name.starts_with("target/") {
                missing.push(format!("{}: {name}", relative(&document)));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
