//! Reading a report file, which may be anything: truncated, foreign, newer, hostile.
//!
//! Whatever this returns as a [`Report`] is safe to compute with and to render: sizes are
//! bounded and every number is finite. Whether its verdict follows from its cycles is not
//! checked here; the renderers judge again and say so if it does not.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::phases::Phases;
use crate::record::{Cycle, Flatness, Report, SCHEMA};
use crate::run::MAX_DURATION_MS;

/// No report is larger; a thousand cycles take about one MiB.
pub const MAX_REPORT_BYTES: u64 = 64 << 20;

/// No series is longer: the slope takes the square of it in time and memory. Programs that make
/// reports take no more either, or they could not show what they had measured.
pub const MAX_CYCLES: u32 = 10_000;

const MAX_SERIES: usize = 256;

/// Why a file is not a report that can be shown.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It could not be read at all.
    #[error("cannot read the report {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is larger than any report.
    #[error("{path} is larger than {MAX_REPORT_BYTES} bytes, which no report is")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// It is not JSON.
    #[error("{path} is not JSON")]
    NotJson {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It is JSON, but of something else.
    #[error("{path} is not a report: it has no number called schema")]
    NotAReport {
        /// Which file.
        path: PathBuf,
    },
    /// It was written by a newer build.
    #[error("{path} has schema {found}, and this build reads {SCHEMA}")]
    OtherSchema {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// It calls itself a report but has other contents.
    #[error("{path} calls itself a report but does not have the shape of one")]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Its values cannot be.
    #[error("{path} holds values that no run produces")]
    Values {
        /// Which file.
        path: PathBuf,
        /// The first that was found.
        source: Problem,
    },
}

impl LoadError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "give the path of a report.json, such as target/e2e/report.json",
            Self::TooLarge { .. } | Self::NotAReport { .. } => {
                "give a report.json that `just e2e` or `mctl bench resume` has written"
            }
            Self::NotJson { .. } => {
                "the file may be cut off or of another kind; run the cycles again, or copy the \
                 file again from where it was written"
            }
            Self::OtherSchema { .. } => "render it with the version that wrote it, or newer",
            Self::Shape { .. } | Self::Values { .. } => {
                "the file was edited, or written by another program; run the cycles again"
            }
        }
    }
}

/// What is wrong with the values of a report.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// A series is longer than the statistics take.
    #[error("{place} has {count} cycles, more than {MAX_CYCLES}")]
    TooManyCycles {
        /// Which series.
        place: String,
        /// Its length.
        count: usize,
    },
    /// A list beside the cycles is longer than sense.
    #[error("there are {count} entries in {place}, more than {MAX_SERIES}")]
    TooManySeries {
        /// Which list.
        place: &'static str,
        /// Its length.
        count: usize,
    },
    /// Cycle numbers must rise from 1.
    #[error("cycle {number} follows cycle {before} in {place}")]
    Order {
        /// Which series.
        place: String,
        /// The number found.
        number: u32,
        /// The number before it, 0 at the start.
        before: u32,
    },
    /// A duration is negative or beyond eleven days.
    #[error("{value} is not a duration in milliseconds ({field} of {place})")]
    Duration {
        /// Which series and cycle.
        place: String,
        /// Which figure.
        field: String,
        /// What was found.
        value: f64,
    },
    /// A statistic is too large to be one of durations.
    #[error("{value} cannot be the {field} of {place}")]
    Statistic {
        /// Which verdict.
        place: String,
        /// Which figure.
        field: &'static str,
        /// What was found.
        value: f64,
    },
}

/// Only the version, so that a newer report is called that and not misshapen.
#[derive(Deserialize)]
struct Header {
    schema: Option<serde_json::Value>,
}

/// Reads and checks the report at `path`.
pub fn load(path: &Path) -> Result<Report, LoadError> {
    let read = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    // One byte more than allowed is read, so that a file growing meanwhile is noticed too.
    file.take(MAX_REPORT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_REPORT_BYTES {
        return Err(LoadError::TooLarge {
            path: path.to_owned(),
        });
    }
    parse(&bytes, path)
}

/// Checks `bytes` as a report; `path` is for the errors only.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Report, LoadError> {
    let path = || path.to_owned();
    // Valid JSON that is no report is another file and not a broken one, so the two are told apart.
    serde_json::from_slice::<IgnoredAny>(bytes).map_err(|source| LoadError::NotJson {
        path: path(),
        source,
    })?;
    // A list would be taken for the fields of a struct in order, so the brace is asked for.
    let is_object = bytes.trim_ascii_start().starts_with(b"{");
    let header = serde_json::from_slice::<Header>(bytes)
        .ok()
        .filter(|_| is_object);
    let Some(header) = header else {
        return Err(LoadError::NotAReport { path: path() });
    };
    let found = header.schema.and_then(|schema| schema.as_u64());
    let Some(found) = found else {
        return Err(LoadError::NotAReport { path: path() });
    };
    if found != u64::from(SCHEMA) {
        return Err(LoadError::OtherSchema {
            path: path(),
            found,
        });
    }
    let report: Report = serde_json::from_slice(bytes).map_err(|source| LoadError::Shape {
        path: path(),
        source,
    })?;
    check(&report).map_err(|source| LoadError::Values {
        path: path(),
        source,
    })?;
    Ok(report)
}

fn check(report: &Report) -> Result<(), Problem> {
    check_cycles("the run", &report.cycles)?;
    check_flatness("the run", &report.flatness)?;
    check_count("peers", report.peers.len())?;
    for peer in &report.peers {
        check_cycles(&peer.subject.name, &peer.cycles)?;
        check_flatness(&peer.subject.name, &peer.flatness)?;
    }
    check_count("scale", report.scale.len())?;
    for (index, scale) in report.scale.iter().enumerate() {
        let place = format!("scale run {}", index + 1);
        check_length(&place, scale.resume_ms.len())?;
        scale
            .resume_ms
            .iter()
            .try_for_each(|ms| check_duration(&place, "resume_ms", *ms))?;
        check_length(&place, scale.resumes.len())?;
        scale
            .resumes
            .iter()
            .try_for_each(|resume| check_phases(&place, &resume.phases_ms))?;
    }
    let Some(matrix) = &report.matrix else {
        return Ok(());
    };
    check_count("matrix", matrix.cells.len())?;
    for cell in &matrix.cells {
        let place = format!("the cell {}", cell.key);
        check_length(&place, cell.cycles.len())?;
        check_order(&place, cell.cycles.iter().map(|cycle| cycle.cycle))?;
        for cycle in &cell.cycles {
            check_duration(&place, "suspend_ms", cycle.suspend_ms)?;
            check_duration(&place, "resume_ms", cycle.resume_ms)?;
        }
        let deciles = [
            cell.resume_p50_first_decile_ms,
            cell.resume_p50_last_decile_ms,
        ];
        for ms in deciles.into_iter().flatten() {
            check_duration(&place, "decile", ms)?;
        }
        check_statistic(&place, "attempts per cycle", cell.attempts_per_cycle)?;
        check_flatness(&place, &cell.flatness)?;
    }
    Ok(())
}

fn check_cycles(place: &str, cycles: &[Cycle]) -> Result<(), Problem> {
    check_length(place, cycles.len())?;
    check_order(place, cycles.iter().map(|cycle| cycle.cycle))?;
    for cycle in cycles {
        let place = format!("cycle {} of {place}", cycle.cycle);
        check_duration(&place, "suspend_ms", cycle.suspend_ms)?;
        check_duration(&place, "resume_ms", cycle.resume_ms)?;
        check_phases(&place, &cycle.suspend_phases_ms)?;
        check_phases(&place, &cycle.resume_phases_ms)?;
        for attempt in &cycle.readiness {
            check_duration(&place, "readiness attempt", attempt.ms)?;
        }
    }
    Ok(())
}

fn check_phases(place: &str, phases: &Phases) -> Result<(), Problem> {
    phases
        .iter()
        .try_for_each(|(name, ms)| check_duration(place, name, ms))
}

fn check_length(place: &str, count: usize) -> Result<(), Problem> {
    if u32::try_from(count).map_or(true, |count| count > MAX_CYCLES) {
        return Err(Problem::TooManyCycles {
            place: place.to_owned(),
            count,
        });
    }
    Ok(())
}

fn check_count(place: &'static str, count: usize) -> Result<(), Problem> {
    if count > MAX_SERIES {
        Err(Problem::TooManySeries { place, count })
    } else {
        Ok(())
    }
}

fn check_order(place: &str, numbers: impl Iterator<Item = u32>) -> Result<(), Problem> {
    let mut before = 0u32;
    for number in numbers {
        // Records are written without gaps, and everything here takes the index for the number.
        if before.checked_add(1) != Some(number) {
            return Err(Problem::Order {
                place: place.to_owned(),
                number,
                before,
            });
        }
        before = number;
    }
    Ok(())
}

fn check_duration(place: &str, field: &str, value: f64) -> Result<(), Problem> {
    if (0.0..=MAX_DURATION_MS).contains(&value) {
        return Ok(());
    }
    Err(Problem::Duration {
        place: place.to_owned(),
        field: field.to_owned(),
        value,
    })
}

fn check_flatness(place: &str, flatness: &Flatness) -> Result<(), Problem> {
    check_statistic(place, "slope", flatness.slope_ms_per_cycle)?;
    let ends = flatness.ci95.map_or([None; 2], |ends| ends.map(Some));
    ends.into_iter()
        .try_for_each(|end| check_statistic(place, "interval", end))?;
    // A ratio can be large where the first decile is next to zero.
    let ratio = flatness
        .last_to_first_decile_ratio
        .map(|ratio| ratio / MAX_DURATION_MS);
    check_statistic(place, "decile ratio", ratio)
}

fn check_statistic(place: &str, field: &'static str, value: Option<f64>) -> Result<(), Problem> {
    match value {
        Some(value) if !(-MAX_DURATION_MS..=MAX_DURATION_MS).contains(&value) => {
            Err(Problem::Statistic {
                place: place.to_owned(),
                field,
                value,
            })
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
