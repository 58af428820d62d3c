//! Paths of the API.

use machine_api::DEFAULT_APP;

use crate::call::percent_encoded;

/// Path of all machines.
pub(crate) fn machines() -> String {
    format!("/v1/apps/{DEFAULT_APP}/machines")
}

/// Path of one machine, or of what `below` (such as `/lease`) names below it.
pub(crate) fn machine(id: &str, below: &str) -> String {
    format!("{}/{}{below}", machines(), percent_encoded(id))
}

/// Path of one metadata value of a machine.
pub(crate) fn metadata(id: &str, key: &str) -> String {
    machine(id, &format!("/metadata/{}", percent_encoded(key)))
}

/// Path of one token.
pub(crate) fn token(id: &str) -> String {
    format!("/v1/tokens/{}", percent_encoded(id))
}
