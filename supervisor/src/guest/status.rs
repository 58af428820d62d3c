//! Checks the status that guest-init reports: it is stored with each start, so a hostile guest must not
//! fill it with names of its own.

use guest_protocol::GuestStatus;

/// Longest id, version or source. A boot id has 36 characters.
const WORD_BYTES: usize = 64;
/// Longest name of a socket's state.
const STATE_BYTES: usize = 24;
/// Most counts of sockets: one for each generation that has left some open.
const MOST_COUNTS: usize = 2_048;

/// Whether a guest can have that status.
pub(super) fn is_plausible(status: &GuestStatus) -> bool {
    let sockets = &status.open_vsocks;
    let is_word = |text: &str, most: usize| {
        text.len() <= most && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let words = [&status.boot_id, &status.init_version, &sockets.source];
    words.iter().all(|word| is_word(word, WORD_BYTES))
        && sockets.counts.len() <= MOST_COUNTS
        && sockets
            .counts
            .iter()
            .all(|count| is_word(&count.state, STATE_BYTES))
}

#[cfg(test)]
mod tests {
    use guest_protocol::VsockCount;

    use super::*;
    use crate::guest::testing::status;

    fn with_counts(number: usize, state: &str) -> GuestStatus {
        let mut status = status();
        let count = |generation| VsockCount {
            state: state.to_owned(),
            generation: Some(generation),
            count: 1,
        };
        status.open_vsocks.counts = (0..number as u64).map(count).collect();
        status
    }

    #[test]
    fn the_status_of_a_guest_is_accepted() {
        assert!(is_plausible(&status()));
        assert!(is_plausible(&with_counts(1_000, "established")));
    }

    #[test]
    fn a_status_that_no_guest_has_is_refused() {
        for text in ["x".repeat(100_000), "a b".to_owned(), "\x1b[2J".to_owned()] {
            let mut odd = status();
            odd.boot_id = text.clone();
            assert!(!is_plausible(&odd));
            let mut odd = status();
            odd.init_version = text.clone();
            assert!(!is_plausible(&odd));
            let mut odd = status();
            odd.open_vsocks.source = text.clone();
            assert!(!is_plausible(&odd));
            assert!(!is_plausible(&with_counts(1, &text)));
        }
        assert!(!is_plausible(&with_counts(MOST_COUNTS + 1, "x")));
    }
}
