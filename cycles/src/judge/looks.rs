//! How sure a rule must be when a run is judged more than once.
//!
//! A run that is judged again and again until it is decided gets more chances to be decided wrongly.
//! Look k may therefore spend only 1/(k·(k+1)) of an error: a half at the first, a sixth at the
//! second, a twelfth at the third. The sum never exceeds the whole, however many looks there are and
//! whatever was seen before: alpha spending (Lan and DeMets 1983, "Discrete sequential boundaries for
//! clinical trials") in its simplest form, by Bonferroni's inequality.

use crate::statistics::as_float;

/// What the lower end of an interval may err, over all looks of a run, for each rule on latency:
/// each of the four raises at most 2 false alarms in 1,000 healthy runs.
const FALSE_ALARM: f64 = 0.002;

/// What the upper end may err, over all looks: at most 5 in 100 runs that rise just as fast as the
/// bound are called flat. A miss may be more frequent than a false alarm, since a faster rise is
/// missed much less often.
const MISS: f64 = 0.05;

/// The errors that one look may make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Chances {
    /// The probability that the true value is below the lower end of an interval.
    pub(crate) below: f64,
    /// The probability that it is above the upper end.
    pub(crate) above: f64,
}

impl Chances {
    /// At the look `number`, from 1.
    pub(crate) fn at_look(number: usize) -> Self {
        let number = as_float(number.max(1));
        let share = 1.0 / (number * (number + 1.0));
        Self {
            below: FALSE_ALARM * share,
            above: MISS * share,
        }
    }

    /// The errors of one of `count` comparisons that are made at once.
    pub(crate) fn of_each(self, count: usize) -> Self {
        let count = as_float(count.max(1));
        Self {
            below: self.below / count,
            above: self.above / count,
        }
    }
}

/// After which numbers of cycles a run is judged that begins with `cycles` and goes on to at most
/// `most`: each time after a third more, in hundreds. What begins with fewer than a hundred is doubled
/// until then.
pub fn looks(cycles: u32, most: u32) -> Vec<u32> {
    let mut looks = vec![cycles];
    let mut next = cycles;
    while next < most {
        let more = match next {
            0..100 => next.max(1),
            100.. => 100 * (next / 300).max(1),
        };
        next = next.saturating_add(more).min(most);
        looks.push(next);
    }
    looks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_looks_together_spend_no_more_than_the_whole() {
        let spent: f64 = (1..5000).map(|number| Chances::at_look(number).below).sum();
        assert!(spent <= FALSE_ALARM, "{spent}");
        assert!(Chances::at_look(1).above > Chances::at_look(2).above);
    }

    #[test]
    fn looks_begin_with_the_cycles_and_end_with_the_most() {
        assert_eq!(looks(300, 600), [300, 400, 500, 600]);
        assert_eq!(looks(300, 650), [300, 400, 500, 600, 650]);
        assert_eq!(looks(300, 3000).len(), 11);
        assert_eq!(looks(30, 600), [30, 60, 120, 220, 320, 420, 520, 600]);
        assert_eq!(looks(50, 50), [50]);
        assert_eq!(looks(50, 10), [50]);
    }
}
