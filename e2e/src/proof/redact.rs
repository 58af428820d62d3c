//! Takes out of a proof what its reader has no business to know: the name of the machine, paths below
//! the user's folders, and whatever looks like a key.

use std::cmp::Reverse;
use std::path::Path;

use anyhow::Context;
use cycles::Proof;
use serde_json::Value;

/// Shorter names would be found in ordinary words.
const SHORTEST: usize = 4;
/// Digits of the shortest key: tokens have 32. Machine ids have 14.
const KEY_DIGITS: usize = 24;

/// The proof without them.
///
/// # Errors
/// If it cannot be taken apart.
pub(super) fn redacted(proof: &Proof) -> anyhow::Result<Proof> {
    let mut value = serde_json::to_value(proof).context("cannot take the proof apart")?;
    Private::of_this_machine().redact_all(&mut value);
    serde_json::from_value(value).context("cannot put the proof together again")
}

/// Texts, and what is written instead.
#[derive(Debug)]
struct Private {
    paths: Vec<(String, &'static str)>,
    /// Looked for as whole words of sentences: a field of one word is one of ours.
    names: Vec<(String, &'static str)>,
}

impl Private {
    fn of_this_machine() -> Self {
        let path = |path: Option<&Path>| path.map(|path| path.display().to_string());
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let user = std::env::var("USER").ok().filter(|user| user != "root");
        Self {
            paths: known([
                (path(std::env::current_dir().ok().as_deref()), "<project>"),
                (path(std::env::home_dir().as_deref()), "~"),
            ]),
            names: known([(host, "<host>"), (user, "<user>")]),
        }
    }

    /// Names of fields are ours, except for those of a host's details, which have no private ones.
    fn redact_all(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.redact(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.redact_all(value)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.redact_all(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (path, instead) in &self.paths {
            text = text.replace(path.as_str(), instead);
        }
        if text.contains(char::is_whitespace) {
            for (name, instead) in &self.names {
                text = without_word(&text, name, instead);
            }
        }
        without_keys(&text)
    }
}

/// Those that are known and long enough, the longest first: a home folder may be a part of the
/// project's.
fn known<const N: usize>(
    texts: [(Option<String>, &'static str); N],
) -> Vec<(String, &'static str)> {
    let mut texts: Vec<_> = texts
        .into_iter()
        .filter_map(|(text, instead)| Some((text?.trim().to_owned(), instead)))
        .filter(|(text, _)| text.len() >= SHORTEST && text != "localhost")
        .collect();
    texts.sort_by_key(|(text, _)| Reverse(text.len()));
    texts
}

fn without_word(text: &str, word: &str, instead: &str) -> String {
    let is_inner = |c: char| c.is_alphanumeric() || c == '_';
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(word) {
        let (before, found) = rest.split_at(begin);
        let after = &found[word.len()..];
        clean.push_str(before);
        let is_word = !before.ends_with(is_inner) && !after.starts_with(is_inner);
        clean.push_str(if is_word { instead } else { word });
        rest = after;
    }
    clean.push_str(rest);
    clean
}

/// Replaces every long run of hexadecimal digits.
fn without_keys(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(digits);
        clean.push_str(if digits >= KEY_DIGITS { "<key>" } else { run });
        let others = after
            .find(|c: char| c.is_ascii_hexdigit())
            .unwrap_or(after.len());
        let (other, after) = after.split_at(others);
        clean.push_str(other);
        rest = after;
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_keys_are_taken_out_wherever_they_are() {
        let some = |text: &str| Some(text.to_owned());
        let private = Private {
            paths: known([
                (some("/home/alice"), "~"),
                (some("/home/alice/mctl"), "<project>"),
            ]),
            names: known([(some("build-7\n"), "<host>"), (None, "<user>")]),
        };
        let mut value = serde_json::json!({
            "errors": ["cannot read /home/alice/mctl/target/x on build-7", "see /home/alice/.cache"],
            "deep": [{"token": "Bearer 0123456789abcdef0123456789abcdef."}],
            "machine": "d4aa81c159312d",
            "count": 7,
        });
        private.redact_all(&mut value);
        let expected = serde_json::json!({
            "errors": ["cannot read <project>/target/x on <host>", "see ~/.cache"],
            "deep": [{"token": "Bearer <key>."}],
            "machine": "d4aa81c159312d",
            "count": 7,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn names_that_are_parts_of_words_or_words_of_ours_stay() {
        let names = ["vm", "localhost", "virtual", "bench"].map(|name| Some(name.to_owned()));
        let private = Private {
            paths: Vec::new(),
            names: known(names.map(|name| (name, "<host>"))),
        };
        for text in ["vmm at localhost", "virtual", "the bench_mark"] {
            assert_eq!(private.redact(text), text);
        }
        assert_eq!(private.redact("a bench here"), "a <host> here");
    }
}
