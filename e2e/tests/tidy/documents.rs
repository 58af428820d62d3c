//! What documents say of the tree is so.

use std::collections::BTreeSet;
use std::fs;

/// Documents that name tests, as `file::name` or `file::tests::name`.
const NAMING_TESTS: &[&str] = &["docs/durability.md", "docs/versions.md"];

#[test]
fn tests_that_documents_name_exist() {
    let mut functions = BTreeSet::new();
    for path in crate::files(".rs") {
        let text = fs::read_to_string(&path).expect("UTF-8 source");
        let names = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once("fn ")?;
            Some(rest.split(['(', '<']).next()?.to_owned())
        });
        functions.extend(names);
    }
    let mut named = 0;
    for document in NAMING_TESTS {
        let text = fs::read_to_string(crate::root().join(document)).expect("a document");
        // Every other piece is between two backticks.
        for name in text.split('`').skip(1).step_by(2) {
            let is_path = name.contains("::") && !name.contains([' ', '/', '{']);
            let Some((_, function)) = name.rsplit_once("::").filter(|_| is_path) else {
                continue;
            };
            named += 1;
            assert!(
                functions.contains(function),
                "{document} names `{name}`, which is not there"
            );
        }
    }
    assert!(named > 50, "{named} tests were found in the documents");
}
