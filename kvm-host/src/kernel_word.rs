//! Words of the kernel's command line, by which the outside tells programs inside where they are: each
//! of them finds them, however it was started.

use std::fs;

/// What follows `prefix` in the first word that begins with it, on the host of this process.
pub fn of_this_host(prefix: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    find(&line, prefix).map(str::to_owned)
}

/// The same for a given command line.
pub(crate) fn find<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(prefix))
}
