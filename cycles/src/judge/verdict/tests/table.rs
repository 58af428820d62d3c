//! The table of simulated rates: how often the rules on latency say what, over noise, growth and
//! length. It is the one place where they are stated; docs/measuring-verdict.md shows it.

use super::recorded::{TYPICAL_MS, WITH_TICKS, WITHOUT_TICKS};
use super::simulated::{Growth, Noise, series};
use crate::judge::looks::looks;
use crate::judge::verdict::judge_latencies;
use crate::record::{Clock, Outcome};

/// Series of one kind, and how many of 1,000 come out as rising and as undecided.
#[derive(Debug, Clone, Copy)]
struct Row {
    what: &'static str,
    noise: Noise,
    growth: Growth,
    /// Cycles, and the most to which an undecided run goes on.
    cycles: (u32, u32),
    rising: u32,
    undecided: u32,
}

const fn row(
    what: &'static str,
    noise: Noise,
    growth: Growth,
    cycles: (u32, u32),
    (rising, undecided): (u32, u32),
) -> Row {
    Row {
        what,
        noise,
        growth,
        cycles,
        rising,
        undecided,
    }
}

/// As the main job runs them.
const MAIN: (u32, u32) = (300, 600);

/// As the main job runs them with `cycles=30`.
const SHORT: (u32, u32) = (30, 600);

use Growth::{Settles, Step, Tail, Third, Trend, WarmUp};
use Noise::{Correlated, Load, LogNormal, Normal, Outliers, Switched, Walk};

const TICKS: Noise = Noise::Recorded(WITH_TICKS);
const NO_TICKS: Noise = Noise::Recorded(WITHOUT_TICKS);
/// Of the cycles after which a guest has settled, for series that settle by a known share.
const SETTLED: Noise = Noise::Recorded(WITHOUT_TICKS.after(60));

/// 10 % of the median over 600 cycles, in ms per cycle. That median contains half of the rise.
const fn bound(noise: Noise) -> f64 {
    0.1 * noise.typical_ms() / (600.0 - 0.1 * 300.0)
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("ticks, flat", TICKS, Growth::None, MAIN, (0, 0)),
    row("ticks, flat, 60 cycles", TICKS, Growth::None, (60, 60), (0, 143)),
    row("ticks, flat, from 30 cycles", TICKS, Growth::None, SHORT, (0, 0)),
    row("normal 1 %, flat", Normal(0.01), Growth::None, MAIN, (0, 0)),
    row("normal 5 %, flat", Normal(0.05), Growth::None, MAIN, (0, 3)),
    row("normal 10 %, flat", Normal(0.10), Growth::None, MAIN, (0, 70)),
    row("normal 25 %, flat", Normal(0.25), Growth::None, MAIN, (0, 970)),
    row("normal 25 %, flat, to 3,000", Normal(0.25), Growth::None, (300, 3000), (0, 3)),
    row("log-normal 40 %, flat", LogNormal(0.4), Growth::None, MAIN, (2, 998)),
    row("outliers, flat", Outliers, Growth::None, MAIN, (1, 407)),
    row("correlated 0.5, flat", Correlated(0.5), Growth::None, MAIN, (0, 53)),
    row("correlated 0.9, flat", Correlated(0.9), Growth::None, MAIN, (0, 700)),
    row("correlated 0.95, flat", Correlated(0.95), Growth::None, MAIN, (0, 893)),
    row("correlated 0.99, flat", Correlated(0.99), Growth::None, MAIN, (0, 931)),
    row("random walk 0.3 %", Walk(0.003), Growth::None, MAIN, (3, 630)),
    row("random walk 1 %", Walk(0.01), Growth::None, MAIN, (3, 870)),
    row("load ±10 %, 30 cycles", Load(30.0), Growth::None, MAIN, (0, 13)),
    row("load ±10 %, 100 cycles", Load(100.0), Growth::None, MAIN, (0, 1000)),
    row("load ±10 %, 300 cycles", Load(300.0), Growth::None, MAIN, (0, 998)),
    row("load ±10 %, 600 cycles", Load(600.0), Growth::None, MAIN, (66, 485)),
    row("load ±10 %, switched", Switched, Growth::None, MAIN, (0, 843)),
    row("ticks, rises at the bound", TICKS, Trend(bound(TICKS)), MAIN, (0, 950)),
    row("ticks, +0.002 ms per cycle", TICKS, Trend(0.002), MAIN, (0, 0)),
    row("ticks, +0.01 ms per cycle", TICKS, Trend(0.01), MAIN, (1000, 0)),
    row("ticks, +0.05 ms per cycle", TICKS, Trend(0.05), MAIN, (1000, 0)),
    row("normal 5 %, +0.05 ms per cycle", Normal(0.05), Trend(0.05), MAIN, (1000, 0)),
    row("normal 25 %, +0.05 ms per cycle", Normal(0.25), Trend(0.05), MAIN, (975, 25)),
    row("correlated 0.9, +0.05 ms per cycle", Correlated(0.9), Trend(0.05), MAIN, (924, 76)),
    row("normal 5 %, flat, from 30 cycles", Normal(0.05), Growth::None, SHORT, (0, 15)),
    row("normal 10 %, flat, from 30 cycles", Normal(0.10), Growth::None, SHORT, (1, 409)),
    row("normal 10 %, +15 % in 30 cycles", Normal(0.10), Trend(0.005 * TYPICAL_MS), (30, 30), (5, 995)),
    row("ticks, step ×1.4 in the middle", TICKS, Step(150, 1.4), MAIN, (1000, 0)),
    row("ticks, step ×10 in the last 14", TICKS, Step(286, 10.0), (300, 300), (1000, 0)),
    row("normal 10 %, step ×1.4 in the last 60", Normal(0.1), Step(240, 1.4), (300, 300), (997, 3)),
    row("ticks, warm-up ×1.5, flat", TICKS, WarmUp(30, 1.5, 600, 1.0), MAIN, (0, 0)),
    row("ticks, warm-up ×1.5, later ×1.4", TICKS, WarmUp(30, 1.5, 200, 1.4), MAIN, (1000, 0)),
    row("normal 10 %, warm-up ×1.5, later ×1.4", Normal(0.1), WarmUp(100, 1.5, 200, 1.4), MAIN, (952, 48)),
    row("ticks, every third +0.15 ms per cycle", TICKS, Third(0.15), MAIN, (1000, 0)),
    row("normal 10 %, every third +0.15 ms per cycle", Normal(0.1), Third(0.15), MAIN, (1000, 0)),
    row("ticks, tail ×3 grows to 10 %", TICKS, Tail(0.1), MAIN, (49, 295)),
    row("ticks, tail ×3 grows to 40 %", TICKS, Tail(0.4), MAIN, (968, 31)),
    row("no ticks, flat", NO_TICKS, Growth::None, MAIN, (0, 7)),
    row("no ticks, flat, 30 cycles", NO_TICKS, Growth::None, (30, 30), (0, 472)),
    row("no ticks, flat, 60 cycles", NO_TICKS, Growth::None, (60, 60), (0, 122)),
    row("no ticks, flat, from 30 cycles", NO_TICKS, Growth::None, SHORT, (0, 6)),
    row("no ticks, +5 % in 30 cycles", NO_TICKS, Trend(0.05 * NO_TICKS.typical_ms() / 30.0), (30, 30), (0, 986)),
    row("no ticks, +10 % in 30 cycles", NO_TICKS, Trend(0.1 * NO_TICKS.typical_ms() / 30.0), SHORT, (1000, 0)),
    row("no ticks, +0.05 ms per cycle, from 30 cycles", NO_TICKS, Trend(0.05), SHORT, (1000, 0)),
    row("no ticks, +0.5 ms per cycle, 30 cycles", NO_TICKS, Trend(0.5), (30, 30), (1000, 0)),
    row("no ticks, rises at the bound", NO_TICKS, Trend(bound(NO_TICKS)), MAIN, (1, 936)),
    row("no ticks, +0.002 ms per cycle", NO_TICKS, Trend(0.002), MAIN, (0, 134)),
    row("no ticks, +0.01 ms per cycle", NO_TICKS, Trend(0.01), MAIN, (997, 3)),
    row("no ticks, +0.05 ms per cycle", NO_TICKS, Trend(0.05), MAIN, (1000, 0)),
    row("no ticks, step ×1.4 in the middle", NO_TICKS, Step(150, 1.4), MAIN, (1000, 0)),
    row("no ticks, step ×10 in the last 14", NO_TICKS, Step(286, 10.0), (300, 300), (1000, 0)),
    row("no ticks, warm-up ×1.5, flat", NO_TICKS, WarmUp(30, 1.5, 600, 1.0), MAIN, (0, 7)),
    row("no ticks, warm-up ×1.5, later ×1.4", NO_TICKS, WarmUp(30, 1.5, 200, 1.4), MAIN, (1000, 0)),
    row("no ticks, settles by 2 % in 60 cycles", SETTLED, Settles(0.02, 60.0), MAIN, (0, 0)),
    row("no ticks, settles by 3 % in 100 cycles", SETTLED, Settles(0.03, 100.0), MAIN, (0, 4)),
    row("no ticks, every third +0.15 ms per cycle", NO_TICKS, Third(0.15), MAIN, (1000, 0)),
    row("no ticks, tail ×3 grows to 10 %", NO_TICKS, Tail(0.1), MAIN, (46, 260)),
    row("no ticks, tail ×3 grows to 40 %", NO_TICKS, Tail(0.4), MAIN, (979, 21)),
];

impl Row {
    /// How many of `count` series, of the seeds from `first_seed` on, come out as rising and as undecided.
    fn simulate(&self, first_seed: u64, count: u32) -> (u32, u32) {
        let (mut rising, mut undecided) = (0, 0);
        for seed in 0..count {
            match self.outcome(first_seed + u64::from(seed)) {
                Outcome::Rising => rising += 1,
                Outcome::Undecided => undecided += 1,
                Outcome::Flat => {}
            }
        }
        (rising, undecided)
    }

    fn outcome(&self, seed: u64) -> Outcome {
        let (cycles, most) = self.cycles;
        let looks = looks(cycles, most);
        let all = series(
            self.noise,
            self.growth,
            usize::try_from(most).unwrap(),
            seed,
        );
        let mut outcome = Outcome::Undecided;
        for (number, look) in (1..).zip(looks) {
            let seen = &all[..usize::try_from(look).unwrap()];
            outcome = judge_latencies(seen, Clock::Virtual, number)
                .flatness
                .outcome;
            if outcome != Outcome::Undecided {
                break;
            }
        }
        outcome
    }
}

/// Whether `found` of `count` is what 1,000 series with `stated` would give, but for chance: four
/// standard errors, and one series.
fn agrees(found: u32, count: u32, stated: u32) -> bool {
    let share = f64::from(stated) / 1000.0;
    let count = f64::from(count);
    let error = (count * share * (1.0 - share)).sqrt();
    (f64::from(found) - count * share).abs() <= 4.0 * error + 1.0
}

#[test]
fn a_part_of_each_row_gives_the_stated_rates() {
    let count = 20;
    for row in TABLE {
        let (rising, undecided) = row.simulate(0, count);
        assert!(
            agrees(rising, count, row.rising),
            "{}: {rising} rising of {count}",
            row.what
        );
        assert!(
            agrees(undecided, count, row.undecided),
            "{}: {undecided} undecided of {count}",
            row.what
        );
    }
}

/// Prints the table for docs/measuring-verdict.md, from 1,000 series in each row. With
/// `CYCLES_FIRST_SEED=1000000` the series are others than those by which the rules were chosen, and
/// must give the same rates. `CYCLES_ROWS=ticks` makes the rows of that name only.
#[test]
#[ignore = "takes minutes: `cargo test --release --package cycles -- --ignored the_whole_table --nocapture`"]
fn the_whole_table() {
    println!("| Series | Cycles | Flat | Rising | Undecided |\n|---|---|---|---|---|");
    let number = |name: &str, usual: u64| {
        std::env::var(name).map_or(usual, |text| text.parse::<u64>().unwrap())
    };
    let count = u32::try_from(number("CYCLES_SIMULATIONS", 1000)).unwrap();
    let first_seed = number("CYCLES_FIRST_SEED", 0);
    let rows = std::env::var("CYCLES_ROWS").unwrap_or_default();
    let mut wrong = Vec::new();
    for row in TABLE.iter().filter(|row| row.what.contains(&rows)) {
        let (rising, undecided) = row.simulate(first_seed, count);
        let percent = |number: u32| 100.0 * f64::from(number) / f64::from(count);
        let cycles = match row.cycles {
            (cycles, most) if cycles == most => cycles.to_string(),
            (cycles, most) => format!("{cycles} to {most}"),
        };
        println!(
            "| {} | {cycles} | {:.1} % | {:.1} % | {:.1} % |",
            row.what,
            percent(count - rising - undecided),
            percent(rising),
            percent(undecided),
        );
        if !agrees(rising, count, row.rising) || !agrees(undecided, count, row.undecided) {
            wrong.push(format!("{}: ({rising}, {undecided})", row.what));
        }
    }
    assert!(wrong.is_empty(), "not as stated: {wrong:#?}");
}
