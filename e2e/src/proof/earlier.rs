//! What an earlier run of the same work has shown already: a proof takes a night, and a night may end early.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use cycles::{Outcome, Proof, ProofPart, Report};
use sha2::{Digest, Sha256};

/// The digest of all programs that take part, in this order.
///
/// # Errors
/// If one cannot be read.
pub(super) fn digest_of(programs: &[PathBuf]) -> anyhow::Result<String> {
    let mut digest = Sha256::new();
    for path in programs {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        digest.update(bytes);
    }
    let digest = digest.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The proof in that file, if there is one. A night can end before its first part has.
///
/// # Errors
/// If it is of other programs or of other work, or cannot be read.
pub(super) fn read(path: &Path, work: &str) -> anyhow::Result<Option<Proof>> {
    let json = match fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot continue with {}", path.display()));
        }
    };
    let proof: Proof =
        serde_json::from_slice(&json).with_context(|| format!("{} is no proof", path.display()))?;
    ensure!(
        proof.work == work,
        "{} is of other programs, or of other cycles or tests, so that cannot be continued",
        path.display()
    );
    Ok(Some(proof))
}

/// What becomes of a part: it is kept if it holds. Else it is run once more, which it says, without what has held:
/// flat cycles, and promises that were kept.
pub(super) fn carry_over(earlier: Option<&Proof>, part: &mut ProofPart) {
    let parts = earlier.map_or(&[][..], |proof| proof.parts.as_slice());
    let Some(before) = parts.iter().find(|before| before.name == part.name) else {
        return;
    };
    if before.holds() {
        *part = before.clone();
    } else if before.left_out.is_none() {
        part.runs = before.runs + 1;
        part.seconds = before.seconds;
        let is_flat = |report: &&Report| {
            report.failed_check.is_none() && report.flatness.outcome == Outcome::Flat
        };
        part.report = before.report.as_ref().filter(is_flat).cloned();
        part.promises.clone_from(&before.promises);
    }
}

#[cfg(test)]
mod tests {
    use cycles::{PromiseOutcome, PromiseResult};

    use super::*;

    #[test]
    fn a_proof_is_continued_with_the_same_programs_and_work_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proof.json");
        assert_eq!(read(&path, "w").unwrap(), None);
        let proof = Proof {
            version: "1".to_owned(),
            work: "w".to_owned(),
            started_at: String::new(),
            machine: std::collections::BTreeMap::new(),
            parts: Vec::new(),
        };
        let json = serde_json::to_vec(&proof).unwrap();
        fs::write(&path, json).unwrap();
        assert_eq!(read(&path, "w").unwrap(), Some(proof));
        let error = read(&path, "other").unwrap_err().to_string();
        assert!(error.contains("of other programs"), "{error}");
    }

    fn part(name: &str, left_out: Option<&str>) -> ProofPart {
        ProofPart {
            name: name.to_owned(),
            kvm: String::new(),
            left_out: left_out.map(str::to_owned),
            report: None,
            promises: Vec::new(),
            errors: Vec::new(),
            seconds: 7,
            runs: 1,
        }
    }

    fn proof(parts: Vec<ProofPart>) -> Proof {
        Proof {
            version: String::new(),
            work: String::new(),
            started_at: String::new(),
            machine: std::collections::BTreeMap::new(),
            parts,
        }
    }

    #[test]
    fn a_part_that_did_not_hold_is_run_again_and_counted_and_one_left_out_is_new() {
        let earlier = proof(vec![part("amd", None), part("intel", Some("no Bochs"))]);
        for (name, runs) in [("amd", 2), ("intel", 1), ("other", 1)] {
            let mut next = part(name, None);
            carry_over(Some(&earlier), &mut next);
            assert_eq!(next.runs, runs, "{name}");
            carry_over(None, &mut next);
            assert_eq!(next.runs, runs, "{name}");
        }
    }

    #[test]
    fn what_held_of_a_part_that_did_not_is_not_run_again() {
        let promise = |name: &str, outcome| PromiseResult {
            name: name.to_owned(),
            outcome,
            message: None,
            run: 1,
        };
        let mut before = part("intel-2", None);
        before.promises = vec![
            promise("kept", PromiseOutcome::Kept),
            promise("broken", PromiseOutcome::Broken),
        ];
        let mut next = part("intel-2", None);
        carry_over(Some(&proof(vec![before.clone()])), &mut next);
        assert_eq!((next.runs, next.seconds), (2, before.seconds));
        assert_eq!(next.promises, before.promises);
        assert!(next.report.is_none());
    }

    #[test]
    fn another_program_has_another_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, "one").unwrap();
        let one = digest_of(std::slice::from_ref(&path)).unwrap();
        fs::write(&path, "two").unwrap();
        assert_ne!(digest_of(&[path]).unwrap(), one);
        assert!(digest_of(&[folder.path().join("none")]).is_err());
    }
}
