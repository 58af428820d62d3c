//! The process that shows that a guest survived: it counts up a number in a file.
//!
//! A guest that was booted again starts at zero; one whose memory was not restored does not go on.

/// The file with the number.
pub const FILE: &str = "/run/counter";

/// The counter as a command for the guest's busybox. It writes another file and renames it, so that
/// a reader never sees half a number.
///
/// It counts seldom: each count starts processes, which costs a fifth of a resume if it falls into one.
/// At 50 ms that was every second resume, and the median was the middle between two kinds of them.
#[must_use]
pub fn command() -> Vec<String> {
    let script = "i=0; while :; do i=$((i+1)); echo $i >/run/counter.new; \
                  mv /run/counter.new /run/counter; sleep 0.2; done";
    vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]
}

/// The number in the file's contents, if it is one.
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
    fn an_empty_file_or_one_without_a_number_is_no_count() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"\xff\xfe"), None);
        assert_eq!(parse(b"cat: no such file"), None);
    }
}
