//! Commands in one string, as older clients and users on a command line write them.

/// Splits a command into words as a shell does, with quotes and backslashes and nothing else.
/// Returns none if a quote is not closed or nothing follows a backslash.
#[must_use]
pub fn split_words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(opening), c) if c == opening => quote = None,
            (Some('"') | None, '\\') => word.get_or_insert_default().push(characters.next()?),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_split_as_in_a_shell() {
        let words = |text| split_words(text).unwrap();
        assert_eq!(words("echo  a b"), ["echo", "a", "b"]);
        assert_eq!(words("sh -c 'echo \"x y\"'"), ["sh", "-c", "echo \"x y\""]);
        assert_eq!(words(r#"a\ b "c\"d" ''"#), ["a b", "c\"d", ""]);
        assert_eq!(split_words("echo 'open"), None);
    }
}
