//! Makes control characters visible, so that a guest's output cannot control the user's terminal.

use std::fmt::Write as _;

/// `text` with control characters as visible escapes. With `colours`, sequences that only set
/// colours and weights (`ESC [ … m`) stay unchanged.
pub(crate) fn visible(text: &str, colours: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = match colour_sequence(rest) {
            Some(length) if colours => {
                shown.push_str(&rest[..length]);
                length
            }
            _ => {
                push_visible(&mut shown, character);
                character.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    shown
}

fn push_visible(shown: &mut String, character: char) {
    match character {
        '\t' => shown.push('\t'),
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        // Bidirectional overrides change the order in which the text around them is shown.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            shown.extend(character.escape_unicode());
        }
        character if character.is_control() => {
            write!(shown, "\\x{:02x}", u32::from(character))
                .expect("writing to a String cannot fail");
        }
        character => shown.push(character),
    }
}

/// Length of the colour sequence at the start of `text`.
fn colour_sequence(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..]
        .starts_with('m')
        .then_some("\x1b[".len() + end + 1)
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn sequences_that_move_the_cursor_are_made_visible() {
        assert_eq!(visible("\x1b[2J\x07ok\u{9b}", true), "\\x1b[2J\\x07ok\\x9b");
    }

    #[test]
    fn colours_are_kept_where_they_are_wanted() {
        assert_eq!(
            visible("\x1b[1;31mred\x1b[0m", true),
            "\x1b[1;31mred\x1b[0m"
        );
        assert_eq!(visible("\x1b[31mred", false), "\\x1b[31mred");
    }

    #[test]
    fn direction_overrides_do_not_reorder_a_line() {
        assert_eq!(visible("a\u{202e}b", true), "a\\u{202e}b");
    }
}
