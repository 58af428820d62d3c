//! Figures of a verdict in words.

/// `+0.3 % (-1.1 to +2.0 %)`.
pub(super) fn percent_range(value: f64, lower: f64, upper: f64) -> String {
    let [value, lower, upper] = [value, lower, upper].map(signed);
    format!("{value} % ({lower} to {upper} %)")
}

/// With a sign and one digit behind the point, or none from 100.
pub(super) fn signed(value: f64) -> String {
    let digits = usize::from(value.abs() < 100.0);
    let text = format!("{value:+.digits$}");
    // A rounded zero would have a sign.
    if text.trim_start_matches(['+', '-', '0', '.']).is_empty() {
        "0".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounded_zero_has_no_sign() {
        assert_eq!(percent_range(-0.01, -1.14, 200.4), "0 % (-1.1 to +200 %)");
    }
}
