//! The phases of one suspend or resume: names and durations in the order in which they happened.
//!
//! In JSON they are an object whose keys keep that order. Subjects choose the phases; the only name
//! with a meaning here is [`UNATTRIBUTED`].

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The part of the total that belongs to no phase.
pub const UNATTRIBUTED: &str = "unattributed";

/// Durations by phase, in order. They sum to the total.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Phases(Vec<(String, f64)>);

impl Phases {
    /// Phases of an operation that took `total_ms`. The rest of the total becomes unattributed.
    ///
    /// An entry called `unattributed` among `named` is ignored and computed again. A second entry of
    /// the same name is added to the first.
    pub fn with_remainder(named: impl IntoIterator<Item = (String, f64)>, total_ms: f64) -> Self {
        let mut phases = Self::default();
        for (name, ms) in named {
            if name != UNATTRIBUTED {
                phases.add(name, ms);
            }
        }
        let remainder_ms = (total_ms - phases.sum_ms()).max(0.0);
        phases.add(UNATTRIBUTED.to_owned(), remainder_ms);
        phases
    }

    fn add(&mut self, name: String, ms: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += ms,
            None => self.0.push((name, ms)),
        }
    }

    /// Names and durations in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, ms)| (name.as_str(), *ms))
    }

    /// The duration of the phase called `name`.
    pub fn ms(&self, name: &str) -> Option<f64> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, ms)| ms)
    }

    /// All phases together.
    pub fn sum_ms(&self) -> f64 {
        self.0.iter().map(|(_, ms)| ms).sum()
    }

    /// How many phases there are, the unattributed one included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// All phase names of many cycles, each in the place where it first occurs, unattributed last.
pub(crate) fn names_in_order<'a>(all: impl Iterator<Item = &'a Phases>) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for phases in all {
        let mut previous: Option<usize> = None;
        for (name, _) in phases.iter() {
            let position = names
                .iter()
                .position(|known| *known == name)
                .unwrap_or_else(|| {
                    let position = previous.map_or(0, |before| before + 1);
                    names.insert(position, name);
                    position
                });
            previous = Some(position);
        }
    }
    if let Some(position) = names.iter().position(|name| *name == UNATTRIBUTED) {
        let rest = names.remove(position);
        names.push(rest);
    }
    names
}

/// Serializes milliseconds with three decimals: more would be noise and double the file's size.
pub(super) fn to_the_microsecond<S: Serializer>(
    ms: &f64,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(rounded(*ms))
}

fn rounded(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

impl Serialize for Phases {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, ms) in &self.0 {
            map.serialize_entry(name, &rounded(*ms))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Phases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PhasesVisitor)
    }
}

/// Most phases of one suspend or resume in a file.
const MAX_PHASES: usize = 64;

struct PhasesVisitor;

impl<'de> Visitor<'de> for PhasesVisitor {
    type Value = Phases;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of phase names and milliseconds")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Phases, A::Error> {
        let mut phases = Phases::default();
        while let Some((name, ms)) = map.next_entry::<String, f64>()? {
            // Refused here, so that the quadratic look-ups on `Phases` stay small.
            if phases.0.len() >= MAX_PHASES {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_PHASES} phases"
                )));
            }
            if phases.ms(&name).is_some() {
                return Err(A::Error::custom(format_args!(
                    "phase {name:?} occurs twice"
                )));
            }
            phases.0.push((name, ms));
        }
        Ok(phases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pairs: &[(&str, f64)]) -> Vec<(String, f64)> {
        pairs
            .iter()
            .map(|(name, ms)| ((*name).to_owned(), *ms))
            .collect()
    }

    #[test]
    fn the_rest_of_the_total_is_unattributed() {
        let phases = Phases::with_remainder(named(&[("spawn", 2.0), ("load", 3.0)]), 6.5);
        assert_eq!(phases.ms(UNATTRIBUTED), Some(1.5));
        assert!((phases.sum_ms() - 6.5).abs() < 1e-9);
    }

    #[test]
    fn order_survives_json() {
        let phases = Phases::with_remainder(named(&[("z", 1.0), ("a", 2.0), ("m", 3.0)]), 6.0);
        let json = serde_json::to_string(&phases).unwrap();
        assert_eq!(json, r#"{"z":1.0,"a":2.0,"m":3.0,"unattributed":0.0}"#);
        assert_eq!(serde_json::from_str::<Phases>(&json).unwrap(), phases);
    }

    #[test]
    fn a_phase_given_twice_is_refused() {
        let error = serde_json::from_str::<Phases>(r#"{"a":1,"a":2}"#).unwrap_err();
        assert!(error.to_string().contains("occurs twice"));
    }

    #[test]
    fn a_phase_that_only_some_cycles_have_keeps_its_place() {
        let short = Phases::with_remainder(named(&[("a", 1.0), ("c", 1.0)]), 3.0);
        let long = Phases::with_remainder(named(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]), 3.0);
        assert_eq!(
            names_in_order([&short, &long].into_iter()),
            ["a", "b", "c", UNATTRIBUTED]
        );
    }
}
