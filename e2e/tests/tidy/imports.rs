//! Which file of a crate imports which, read from the tokens of its sources.
//!
//! Every path that begins with `crate`, `self` or `super` counts, wherever it stands: in a `use`, an
//! expression, a type, a macro. Names that a module re-exports lead to the file that defines them.
//! Items under `#[cfg(test)]`, comments and strings do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A module as the path from its crate's root; the root is empty.
pub(crate) type ModulePath = Vec<String>;

/// One file imports another one of the same crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    /// The module that imports.
    pub(crate) from: ModulePath,
    /// The module that defines what is imported.
    pub(crate) to: ModulePath,
    /// The file that imports, and the line.
    pub(crate) place: String,
    /// The path as it is written.
    pub(crate) written: String,
}

/// All modules of a crate and their imports.
#[derive(Debug)]
pub(crate) struct Crate {
    /// Each module with its file.
    pub(crate) modules: BTreeMap<ModulePath, PathBuf>,
    /// Imports between two of them, none of which contains the other.
    pub(crate) imports: Vec<Import>,
}

/// A path in a source, such as `super::a::B`.
#[derive(Debug, Clone)]
struct WrittenPath {
    segments: Vec<String>,
    /// The name under which a `use` makes it known.
    alias: String,
    line: usize,
    /// It is part of a `pub use`.
    exported: bool,
}

#[derive(Debug)]
struct Source {
    file: PathBuf,
    paths: Vec<WrittenPath>,
}

/// Reads the crate whose root is the file `root`; `shown` makes a file's name for messages.
pub(crate) fn read(root: &Path, shown: impl Fn(&Path) -> String) -> Crate {
    let mut sources = BTreeMap::new();
    read_module(root, Vec::new(), &mut sources);
    let mut imports = BTreeSet::new();
    for (from, source) in &sources {
        for path in &source.paths {
            let Some(target) = absolute(from, &path.segments, &sources) else {
                continue;
            };
            let to = definer(&target, &sources, 0);
            let related = to.starts_with(from) || from.starts_with(&to);
            if !related {
                imports.insert(Import {
                    from: from.clone(),
                    to,
                    place: format!("{}:{}", shown(&source.file), path.line),
                    written: path.segments.join("::"),
                });
            }
        }
    }
    Crate {
        modules: sources
            .into_iter()
            .map(|(module, source)| (module, source.file))
            .collect(),
        imports: imports.into_iter().collect(),
    }
}

/// Reads a module's file, and the files of the modules that it declares.
fn read_module(file: &Path, module: ModulePath, sources: &mut BTreeMap<ModulePath, Source>) {
    let text = fs::read_to_string(file).expect("a source file");
    let tokens: TokenStream = text
        .parse()
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut found = Found::default();
    collect(&without_tests(tokens), false, &mut found);
    let folder = match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => file.parent().expect("a folder").to_owned(),
        Some(stem) => file.parent().expect("a folder").join(stem),
    };
    for name in &found.declared {
        let mut child = module.clone();
        child.push(name.clone());
        let candidates = [
            folder.join(format!("{name}.rs")),
            folder.join(name).join("mod.rs"),
        ];
        let path = candidates.iter().find(|path| path.is_file());
        let path = path.unwrap_or_else(|| panic!("{}: no file of {name}", file.display()));
        read_module(path, child, sources);
    }
    let source = Source {
        file: file.to_owned(),
        paths: found.paths,
    };
    sources.insert(module, source);
}

/// What a file declares and names.
#[derive(Debug, Default)]
struct Found {
    declared: Vec<String>,
    paths: Vec<WrittenPath>,
}

/// The tokens without the items under `#[cfg(test)]`.
fn without_tests(tokens: TokenStream) -> Vec<TokenTree> {
    let mut kept = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let is_test = is_punct(&token, '#')
            && tokens.peek().is_some_and(|next| {
                let attribute = next.to_string().replace(' ', "");
                attribute == "[cfg(test)]"
            });
        if !is_test {
            kept.push(token);
            continue;
        }
        // The attribute's brackets, then the item up to its end.
        tokens.next();
        for token in tokens.by_ref() {
            let block =
                matches!(&token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace);
            if block || is_punct(&token, ';') {
                break;
            }
        }
    }
    kept
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

/// Whether `::` stands at `index`.
fn is_path_separator(tokens: &[TokenTree], index: usize) -> bool {
    let colon = |index: usize| tokens.get(index).is_some_and(|token| is_punct(token, ':'));
    colon(index) && colon(index + 1)
}

/// Collects declared modules and paths from `tokens` and the groups inside of them.
fn collect(tokens: &[TokenTree], nested: bool, found: &mut Found) {
    let mut index = 0;
    let mut public = false;
    while let Some(token) = tokens.get(index) {
        let word = ident(Some(token)).unwrap_or_default();
        match word.as_str() {
            "pub" => {
                public = true;
                // A visibility such as `(in crate::machine)` imports nothing.
                let restricted = matches!(tokens.get(index + 1), Some(TokenTree::Group(group))
                    if group.delimiter() == Delimiter::Parenthesis);
                index += if restricted { 2 } else { 1 };
                continue;
            }
            "mod" if !nested => {
                let declares = tokens
                    .get(index + 2)
                    .is_some_and(|token| is_punct(token, ';'));
                if let Some(name) = ident(tokens.get(index + 1)).filter(|_| declares) {
                    found.declared.push(name);
                }
            }
            "use" => {
                let mut end = index + 1;
                while tokens.get(end).is_some_and(|token| !is_punct(token, ';')) {
                    end += 1;
                }
                collect_use(&tokens[index + 1..end], &[], public, found);
                index = end;
            }
            "crate" | "self" | "super" if is_path_separator(tokens, index + 1) => {
                let (path, next) = path_at(tokens, index);
                found.paths.push(path);
                index = next;
                continue;
            }
            _ => {}
        }
        if let TokenTree::Group(group) = token {
            let inner = without_tests(group.stream());
            collect(&inner, true, found);
        }
        public = false;
        index += 1;
    }
}

/// The path that begins at `index` of an expression or type, and the index behind it.
fn path_at(tokens: &[TokenTree], index: usize) -> (WrittenPath, usize) {
    let line = tokens[index].span().start().line;
    let mut segments = vec![ident(tokens.get(index)).expect("a path begins with a word")];
    let mut next = index + 1;
    while is_path_separator(tokens, next)
        && let Some(word) = ident(tokens.get(next + 2))
    {
        segments.push(word);
        next += 3;
    }
    let alias = segments.last().cloned().unwrap_or_default();
    let path = WrittenPath {
        segments,
        alias,
        line,
        exported: false,
    };
    (path, next)
}

/// Collects the paths of a `use` whose words before `tokens` are `prefix`.
fn collect_use(tokens: &[TokenTree], prefix: &[String], exported: bool, found: &mut Found) {
    for tree in tokens.split(|token| is_punct(token, ',')) {
        let Some(first) = tree.first() else { continue };
        let line = first.span().start().line;
        let mut segments = prefix.to_vec();
        let mut alias = None;
        let mut renamed = false;
        for token in tree {
            match token {
                TokenTree::Ident(word) if renamed => alias = Some(word.to_string()),
                TokenTree::Ident(word) if word == "as" => renamed = true,
                TokenTree::Ident(word) => segments.push(word.to_string()),
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    collect_use(&inner, &segments, exported, found);
                    segments.clear();
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
        // `use a::{self}` means a.
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        if let Some(last) = segments.last().cloned() {
            found.paths.push(WrittenPath {
                alias: alias.unwrap_or(last),
                segments,
                line,
                exported,
            });
        }
    }
}

/// A written path from the crate's root; none if it leads into another crate.
fn absolute(
    from: &ModulePath,
    segments: &[String],
    sources: &BTreeMap<ModulePath, Source>,
) -> Option<ModulePath> {
    let mut at = from.clone();
    let mut rest = segments;
    match rest.first()?.as_str() {
        "crate" => {
            at.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|word| word == "super") {
                at.pop()?;
                rest = &rest[1..];
            }
        }
        // Without a prefix it is a child of this module, or another crate.
        child => {
            let mut path = from.clone();
            path.push(child.to_owned());
            sources.get(&path)?;
        }
    }
    at.extend(rest.iter().cloned());
    Some(at)
}

/// The module that defines what `target` names.
fn definer(
    target: &ModulePath,
    sources: &BTreeMap<ModulePath, Source>,
    followed: usize,
) -> ModulePath {
    let mut module = ModulePath::new();
    for (index, word) in target.iter().enumerate() {
        let mut child = module.clone();
        child.push(word.clone());
        if sources.contains_key(&child) {
            module = child;
            continue;
        }
        let Some(source) = sources.get(&module) else {
            return module;
        };
        let mut exports = source.paths.iter().filter(|path| path.exported);
        let export = exports.find(|path| path.alias == *word && path.segments.len() > 1);
        let resolved = export.and_then(|path| absolute(&module, &path.segments, sources));
        return match resolved {
            // A chain of re-exports is short; a longer one is a mistake of this reading.
            Some(mut path) if followed < 8 => {
                path.extend(target[index + 1..].iter().cloned());
                definer(&path, sources, followed + 1)
            }
            _ => module,
        };
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports_of(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        read(&folder.path().join("lib.rs"), |_| String::new())
            .imports
            .into_iter()
            .map(|import| (import.from.join("::"), import.to.join("::")))
            .collect()
    }

    fn pair(from: &str, to: &str) -> (String, String) {
        (from.to_owned(), to.to_owned())
    }

    #[test]
    fn uses_groups_expressions_and_macros_count() {
        let found = imports_of(&[
            ("lib.rs", "mod a; mod b; mod c; mod d; mod e;"),
            ("a.rs", "use crate::{b::{self, X}, c as other};"),
            ("b.rs", "fn f() { crate::c::g(); }"),
            ("c.rs", "fn g() { vec![super::d::H]; }"),
            ("d.rs", "type T = Option<crate::e::I>; // crate::a"),
            (
                "e.rs",
                "#[cfg(test)] mod tests { use crate::a::Z; } pub(in crate::a) const S: &str = \"crate::a\";",
            ),
        ]);
        let expected = [
            pair("a", "b"),
            pair("a", "c"),
            pair("b", "c"),
            pair("c", "d"),
            pair("d", "e"),
        ];
        let found: BTreeSet<_> = found.into_iter().collect();
        assert_eq!(found, BTreeSet::from(expected));
    }

    #[test]
    fn a_name_that_is_re_exported_leads_to_its_definer() {
        let found = imports_of(&[
            ("lib.rs", "mod a; mod m;"),
            ("a.rs", "use crate::m::Thing;"),
            ("m/mod.rs", "mod inner; pub use inner::Thing;"),
            ("m/inner.rs", "pub struct Thing;"),
        ]);
        assert_eq!(found, [pair("a", "m::inner")]);
    }

    #[test]
    fn a_module_and_what_it_contains_are_one_house() {
        let found = imports_of(&[
            ("lib.rs", "mod m; pub struct Root;"),
            ("m/mod.rs", "mod inner; use inner::f; pub struct S;"),
            ("m/inner.rs", "use super::S; use crate::Root; pub fn f() {}"),
        ]);
        assert_eq!(found, []);
    }
}
