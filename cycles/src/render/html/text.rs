//! Text and numbers as HTML.

use std::fmt;

use crate::numbers::three_digits;

/// Text for element contents and quoted attributes: escaped, control characters made visible.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Directional overrides could make a value look like another one.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_str("\u{fffd}")?,
                c if c.is_control() && c != '\n' => f.write_str("\u{fffd}")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// JSON for a `script` element: nothing in it can end the element or open a comment.
pub(super) fn json_for_script(value: &serde_json::Value) -> String {
    let mut safe = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                safe.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// Milliseconds with about three significant digits, thousands separated.
pub(super) fn ms(value: f64) -> String {
    grouped(&three_digits(value))
}

/// A whole number with thousands separated.
pub(super) fn count(value: impl fmt::Display) -> String {
    grouped(&value.to_string())
}

/// Separates thousands by a narrow no-break space.
fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text + fraction
}

/// `text` with its first letter in upper case.
pub(super) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(
            Text("<img src=x onerror='a(\"b\")'>&\u{202e}").to_string(),
            "&lt;img src=x onerror=&#39;a(&quot;b&quot;)&#39;&gt;&amp;\u{fffd}"
        );
    }

    #[test]
    fn data_cannot_end_its_script_element() {
        let json = json_for_script(&serde_json::json!(["</script><!--\u{2028}"]));
        assert_eq!(json, r#"["\u003c/script\u003e\u003c!--\u2028"]"#);
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(ms(1_234_567.4), "1\u{202f}234\u{202f}567");
        assert_eq!(ms(999.6), "1\u{202f}000");
        assert_eq!(ms(12.34), "12.3");
        assert_eq!(count(12), "12");
    }
}
