//! Each target withstands its corpus and random changes of that.
//!
//! `MCTL_FUZZ_SECONDS` says for how long each is driven, `MCTL_FUZZ_SEED` repeats a run. With
//! `MCTL_FUZZ_INPUT=FILE` a target runs that file alone. `MCTL_FUZZ_WRITE_CORPUS=1` writes the seeds anew.

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use fuzz::Target;
use fuzz::mutation::mutated;
use libtest_mimic::{Arguments, Failed, Trial};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// How long a target is driven, and how many inputs it gets at most.
const LIMIT: Duration = Duration::from_millis(1_500);
const INPUTS: u64 = 20_000;
/// How long one input may take, on a host that is busy.
const INPUT_LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let mut trials: Vec<Trial> = fuzz::TARGETS
        .iter()
        .map(|target| {
            let name = format!("{}_withstands_its_corpus_and_changes_of_it", target.name);
            Trial::test(name, || in_a_thread(target).map_err(Failed::from))
        })
        .collect();
    trials.push(Trial::test("the_corpus_has_what_its_code_makes", || {
        check_corpus().map_err(Failed::from)
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

fn check_corpus() -> Result<(), String> {
    for target in fuzz::TARGETS {
        for (name, input) in (target.seeds)() {
            let path = folder(target).join(name);
            if std::env::var_os("MCTL_FUZZ_WRITE_CORPUS").is_some() {
                fs::create_dir_all(folder(target)).expect("a folder");
                fs::write(&path, &input).expect("a file");
            }
            if fs::read(&path).ok().as_ref() != Some(&input) {
                let path = path.display();
                return Err(format!(
                    "{path} is not what the target's code makes (MCTL_FUZZ_WRITE_CORPUS=1 writes it)"
                ));
            }
        }
    }
    Ok(())
}

/// Drives a target in a thread of its own: what it has left for its thread, such as files, ends with that,
/// while those of the harness may still be there when the process ends.
fn in_a_thread(target: &'static Target) -> Result<(), String> {
    let thread = std::thread::spawn(move || drive(target));
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn drive(target: &'static Target) -> Result<(), String> {
    let setting = |name| std::env::var(name).ok();
    if let Some(path) = setting("MCTL_FUZZ_INPUT") {
        let input = fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
        return Watched::new(target, 0).run(&input);
    }
    let seed: u64 = match setting("MCTL_FUZZ_SEED") {
        Some(text) => text
            .parse()
            .map_err(|_| format!("MCTL_FUZZ_SEED={text} is no number"))?,
        None => rand::random(),
    };
    let (seconds, most_inputs) = match setting("MCTL_FUZZ_SECONDS") {
        Some(text) => match text.parse() {
            Ok(seconds) => (Duration::from_secs(seconds), u64::MAX),
            Err(_) => return Err(format!("MCTL_FUZZ_SECONDS={text} is no number of seconds")),
        },
        None => (LIMIT, INPUTS),
    };
    let end = Instant::now() + seconds;
    let mut paths: Vec<PathBuf> = fs::read_dir(folder(target))
        .map_err(|error| format!("{} has no corpus: {error}", target.name))?
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| fs::read(path).expect("a readable file"))
        .collect();
    let watched = Watched::new(target, seed);
    for input in &inputs {
        watched.run(input)?;
    }
    for number in 0..most_inputs {
        if Instant::now() > end {
            break;
        }
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
        watched.run(&mutated(&inputs, &mut random))?;
    }
    Ok(())
}

/// Runs inputs, and ends the process if one does not end.
struct Watched {
    target: &'static Target,
    seed: u64,
    inputs: Sender<Option<Vec<u8>>>,
}

impl Watched {
    fn new(target: &'static Target, seed: u64) -> Self {
        let (inputs, watched) = channel::<Option<Vec<u8>>>();
        std::thread::spawn(move || {
            let mut input = None;
            loop {
                let next = match &input {
                    Some(_) => watched.recv_timeout(INPUT_LIMIT),
                    None => watched.recv().map_err(|_| RecvTimeoutError::Disconnected),
                };
                match (next, input.take()) {
                    (Ok(next), _) => input = next,
                    (Err(RecvTimeoutError::Timeout), Some(stuck)) => {
                        let why = format!("an input took more than {} s", INPUT_LIMIT.as_secs());
                        let text = failure(target, seed, &stuck, &why);
                        // Not through the test's report, which waits for the test.
                        let _ = writeln!(std::io::stderr(), "{text}");
                        std::process::abort();
                    }
                    (Err(_), _) => return,
                }
            }
        });
        Self {
            target,
            seed,
            inputs,
        }
    }

    fn run(&self, input: &[u8]) -> Result<(), String> {
        // The watcher ends with this.
        let _ = self.inputs.send(Some(input.to_vec()));
        let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let _ = self.inputs.send(None);
        result.map_err(|_| failure(self.target, self.seed, input, "an input failed, see above"))
    }
}

/// Keeps the input, and says how to repeat it.
fn failure(target: &Target, seed: u64, input: &[u8], why: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{seed}", target.name));
    fs::write(&path, input).expect("a file for the input");
    let (name, path) = (target.name, path.display());
    format!(
        "{why} (MCTL_FUZZ_SEED={seed}); to repeat it: \
         MCTL_FUZZ_INPUT={path} cargo test --release --locked -p fuzz --test targets {name}_"
    )
}
