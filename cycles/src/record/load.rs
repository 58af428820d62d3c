//! Reading a report file, which may be truncated, newer, of another program, or hostile.
//!
//! A [`Report`] from here is safe to compute with and to render: sizes are bounded and every number
//! is finite. Whether its verdict follows from its cycles is not checked here: the page judges the
//! cycles again and says so if the verdicts differ.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::cycle::Cycle;
use super::limits::{MAX_CYCLES, MAX_DURATION_MS, is_usable_duration};
use super::phases::Phases;
use super::report::{OLDEST_SCHEMA, Report, SCHEMA};
use super::verdict::{Flatness, Rule};

/// The largest file that is read. A thousand cycles take about one MiB.
pub const MAX_REPORT_BYTES: u64 = 64 << 20;

/// Most peers, scale runs or cells in one report.
const MAX_SERIES: usize = 256;

/// Why a file could not be loaded as a report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the report {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is larger than any report.
    #[error("{path} is no report: it is larger than {MAX_REPORT_BYTES} bytes")]
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
    /// It is JSON, but not a report.
    #[error("{path} is not a report: it has no number named \"schema\"")]
    NotAReport {
        /// Which file.
        path: PathBuf,
    },
    /// It was written by another version.
    #[error("{path} has schema {found}, but this build reads schema {OLDEST_SCHEMA} to {SCHEMA}")]
    OtherSchema {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// Its schema is right, but its fields are not.
    #[error("the fields of {path} are not those of a report")]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Its values are impossible.
    #[error("{path} holds impossible values")]
    Values {
        /// Which file.
        path: PathBuf,
        /// The first one found.
        source: Problem,
    },
}

impl LoadError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "give the path of a report.json, such as target/e2e/report.json",
            Self::TooLarge { .. } | Self::NotAReport { .. } => {
                "give a report.json that `just e2e` or `mctl bench resume` wrote"
            }
            Self::NotJson { .. } => {
                "the file may be truncated or of another kind; copy it again from where it was \
                 written, or run the cycles again"
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
    /// A list other than the cycles is too long.
    #[error("{place} has {count} entries, more than {MAX_SERIES}")]
    TooManySeries {
        /// Which list.
        place: &'static str,
        /// Its length.
        count: usize,
    },
    /// Cycle numbers do not go 1, 2, 3…
    #[error("cycle {number} follows cycle {before} in {place}")]
    OutOfOrder {
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
    /// A statistic is too large to be derived from durations.
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

/// Only the version, so that a newer report is refused for its schema and not for its fields.
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
    // Reads one byte more than allowed, so that a file that grows meanwhile is noticed, too.
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

/// Parses and checks `bytes` as a report; `path` only appears in errors.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Report, LoadError> {
    let path = || path.to_owned();
    // Valid JSON that is no report is another file and not a damaged one: the errors differ.
    serde_json::from_slice::<IgnoredAny>(bytes).map_err(|source| LoadError::NotJson {
        path: path(),
        source,
    })?;
    // serde would read a list as the fields of a struct in order, so the brace is required.
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
    if !(u64::from(OLDEST_SCHEMA)..=u64::from(SCHEMA)).contains(&found) {
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
        // Records are written without gaps, and renderers use the index as the number.
        if before.checked_add(1) != Some(number) {
            return Err(Problem::OutOfOrder {
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
    if is_usable_duration(value) {
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
    let percentages = [
        flatness.rise_percent,
        flatness.rise_lower_percent,
        flatness.rise_upper_percent,
        flatness.detectable_rise_percent,
        flatness.bound.map(|bound| bound.percent),
        flatness.bound.map(|bound| bound.percent_in_10000_cycles),
    ];
    percentages
        .into_iter()
        .try_for_each(|one| check_statistic(place, "rise", one.map(|one| one / MAX_DURATION_MS)))?;
    let bounds = flatness.bound.map_or([None; 2], |bound| {
        [bound.ms, bound.ms_in_10000_cycles].map(Some)
    });
    bounds
        .into_iter()
        .try_for_each(|one| check_statistic(place, "bound", one.map(|one| one / 1e3)))?;
    check_length(place, flatness.looks.len())?;
    check_count("rules", flatness.rules.len())?;
    flatness
        .rules
        .iter()
        .try_for_each(|rule| check_rule(place, rule))?;
    // A ratio can be large where the first decile is close to zero.
    let ratio = flatness
        .last_to_first_decile_ratio
        .map(|ratio| ratio / MAX_DURATION_MS);
    check_statistic(place, "decile ratio", ratio)
}

/// Sizes in bytes are far larger than durations.
fn check_rule(place: &str, rule: &Rule) -> Result<(), Problem> {
    [rule.value, rule.lower, rule.upper, rule.bound]
        .into_iter()
        .try_for_each(|figure| check_statistic(place, "figure of a rule", Some(figure / 1e12)))
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
