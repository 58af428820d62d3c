//! The two distributions that intervals are made of: the normal one and Student's.

use super::as_float;

/// The point above which a standard normal value lies with the probability `tail`, for tails from
/// 1e-15 to 0.5.
pub(crate) fn normal_upper(tail: f64) -> f64 {
    bisect(0.0, 9.0, 15, |z| {
        0.5 * libm::erfc(z / std::f64::consts::SQRT_2) > tail
    })
}

/// The probability that a value of Student's distribution with `freedom` degrees of freedom is at
/// most `t`, by the finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun (1964).
pub(crate) fn student_at_most(t: f64, freedom: usize) -> f64 {
    let angle = (t / as_float(freedom).sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    // Even: 1 + 1/2 c² + 1·3/(2·4) c⁴ …; odd: c + 2/3 c³ + 2·4/(3·5) c⁵ …
    let odd = freedom % 2;
    let (mut term, mut sum, mut power) = (if odd == 1 { cosine } else { 1.0 }, 0.0, odd);
    while power + 2 <= freedom {
        sum += term;
        term *= cosine * cosine * as_float(power + 1) / as_float(power + 2);
        power += 2;
    }
    let within = if odd == 1 {
        std::f64::consts::FRAC_2_PI * (angle + sine * sum)
    } else {
        sine * sum
    };
    f64::midpoint(1.0, within)
}

/// The point between `low` and `high` up to which `is_below` holds, to one part in 10^`digits` of
/// their distance.
pub(crate) fn bisect(
    mut low: f64,
    mut high: f64,
    digits: u32,
    is_below: impl Fn(f64) -> bool,
) -> f64 {
    // A digit is a little more than three bits.
    for _ in 0..digits * 10 / 3 {
        let middle = f64::midpoint(low, high);
        if is_below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-9,
            "found {found}, expected {expected}"
        );
    }

    /// `scipy.stats.norm.isf` of scipy 1.17.1.
    #[test]
    fn points_of_the_normal_distribution_agree_with_scipy() {
        close(normal_upper(0.1), 1.281_551_565_544_600_4);
        close(normal_upper(0.001), 3.090_232_306_167_813);
        close(normal_upper(1e-6), 4.753_424_308_822_899);
    }

    /// `scipy.stats.t.cdf` of scipy 1.17.1, with even and odd degrees of freedom.
    #[test]
    fn students_distribution_agrees_with_scipy() {
        close(student_at_most(-3.0, 28), STUDENT_28);
        close(student_at_most(2.5, 7), STUDENT_7);
        close(student_at_most(1.0, 1), 0.75);
        close(student_at_most(1.0, 2), 0.788_675_134_594_812_9);
        close(student_at_most(0.0, 3), 0.5);
    }

    const STUDENT_28: f64 = 0.002_808_699_539_854_557;
    const STUDENT_7: f64 = 0.979_503_890_707_123_5;
}
