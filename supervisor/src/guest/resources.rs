//! Asks guest-init what is in use in the guest, and checks the answer: a hostile guest must not fill
//! reports with names of its own or with figures that no guest can have.

use guest_protocol::{GuestResources, Reply, Request};

use crate::guest::{GuestAddress, GuestError, GuestStream};

/// States of sockets that are told apart; Linux has fewer.
const MOST_STATES: usize = 16;
/// Longest name of a state.
const NAME_BYTES: usize = 24;
/// Largest figure: more descriptors, sockets or bytes than any guest has, and exact as a number in
/// any client.
const MOST: u64 = 1 << 50;

impl GuestAddress {
    /// What is in use in the guest, with the connection that has brought it. A guest-init of an
    /// earlier build refuses.
    pub(crate) async fn resources(&self) -> Result<(GuestResources, GuestStream), GuestError> {
        match self.call(Request::Resources, None).await? {
            (Reply::Resources(resources), stream) if is_plausible(&resources) => {
                Ok((resources, stream))
            }
            (_, stream) => Err(stream.reader.bad_reply("what is in use")),
        }
    }
}

fn is_plausible(resources: &GuestResources) -> bool {
    let init = &resources.init;
    let figures = [
        init.descriptors,
        init.threads,
        init.resident_bytes,
        init.anonymous_bytes,
        init.epoll_entries,
        init.timers,
        resources.tasks,
    ];
    let vsocks = resources.vsocks.iter().flatten();
    let is_name = |name: &str| {
        let is_letter = |letter: u8| letter.is_ascii_lowercase() || letter == b'_';
        (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(is_letter)
    };
    figures.iter().flatten().all(|figure| *figure <= MOST)
        && vsocks.clone().count() <= MOST_STATES
        && vsocks
            .clone()
            .all(|(name, count)| is_name(name) && *count <= MOST)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use guest_protocol::InitUsage;

    use super::*;

    fn with_vsocks<const N: usize>(vsocks: [(&str, u64); N]) -> GuestResources {
        let vsocks = vsocks.map(|(name, count)| (name.to_owned(), count));
        GuestResources {
            vsocks: Some(BTreeMap::from(vsocks)),
            ..GuestResources::default()
        }
    }

    #[test]
    fn what_a_guest_can_have_is_accepted() {
        assert!(is_plausible(&GuestResources::default()));
        assert!(is_plausible(&with_vsocks([
            ("established", 2),
            ("other", 0)
        ])));
    }

    #[test]
    fn names_and_figures_that_no_guest_has_are_refused() {
        let long = "x".repeat(NAME_BYTES + 1);
        for name in ["", "Ä", "a b", "<script>", "new\nline", &long] {
            assert!(!is_plausible(&with_vsocks([(name, 1)])), "{name:?}");
        }
        assert!(!is_plausible(&with_vsocks([("established", MOST + 1)])));
        let many = (0..26_u8).map(|letter| (char::from(b'a' + letter).to_string(), 1));
        let many = GuestResources {
            vsocks: Some(many.collect()),
            ..GuestResources::default()
        };
        assert!(!is_plausible(&many));
        let huge = GuestResources {
            init: InitUsage {
                descriptors: Some(u64::MAX),
                ..InitUsage::default()
            },
            ..GuestResources::default()
        };
        assert!(!is_plausible(&huge));
    }
}
