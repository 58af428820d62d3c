//! The process in the guest that shows that a guest lived on: it counts, in a file.
//!
//! A guest that was booted again would begin at zero, one whose memory was not restored would
//! not count on.

/// Where the number is.
pub const FILE: &str = "/run/counter";

/// The counter as a command for the guest's busybox. It writes beside and renames, so that a
/// reader never sees a half-written number.
#[must_use]
pub fn command() -> Vec<String> {
    let script = "i=0; while :; do i=$((i+1)); echo $i >/run/counter.new; \
                  mv /run/counter.new /run/counter; sleep 0.05; done";
    vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]
}

/// The number in the file's bytes, if they hold one.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_with_or_without_its_line_end() {
        assert_eq!(parse(b"17\n"), Some(17));
        assert_eq!(parse(b"17"), Some(17));
    }

    #[test]
    fn an_empty_or_foreign_file_is_no_count() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"\xff\xfe"), None);
        assert_eq!(parse(b"cat: no such file"), None);
    }
}
