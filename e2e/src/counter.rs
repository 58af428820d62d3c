//! The process that shows that a guest survived: it counts up a number in a file.
//!
//! A guest that was booted again starts at zero; one whose memory was not restored does not go on.

/// The file with the number.
pub const FILE: &str = "/run/counter";

/// The counter as a command for the guest's busybox. Nothing in its loop starts a process: that would
/// cost a fifth of a resume whenever it falls into one. So it waits in `read` for a byte that never
/// comes, and writes over the number without cutting the file short, which a reader could see empty. A
/// later number is never shorter.
#[must_use]
pub fn command() -> Vec<String> {
    let script = "mkfifo /run/never && exec 3<>/run/never && i=0 && \
                  while :; do i=$((i+1)); printf '%d\\n' $i 1<>/run/counter; read -t 0.05 -u 3 x; done";
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
