//! Numbers as text, in the precision that people read.

/// About three significant digits, at most two of them behind the point.
pub(crate) fn three_digits(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_become_fewer_as_numbers_grow() {
        assert_eq!(three_digits(1.234), "1.23");
        assert_eq!(three_digits(12.34), "12.3");
        assert_eq!(three_digits(1234.5), "1234");
    }
}
