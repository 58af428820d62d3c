//! Paths of the API.

use crate::call::percent_encoded;

/// Path of all machines of an app.
pub(crate) fn machines(app: &str) -> String {
    format!("/v1/apps/{}/machines", percent_encoded(app))
}

/// Path of one machine, or of what `below` (such as `/lease`) names below it.
pub(crate) fn machine(app: &str, id: &str, below: &str) -> String {
    format!("{}/{}{below}", machines(app), percent_encoded(id))
}

/// Path of one metadata value of a machine.
pub(crate) fn metadata(app: &str, id: &str, key: &str) -> String {
    machine(app, id, &format!("/metadata/{}", percent_encoded(key)))
}

/// Path of one token.
pub(crate) fn token(id: &str) -> String {
    format!("/v1/tokens/{}", percent_encoded(id))
}

/// Path of one machine that the database does not know.
pub(crate) fn unlisted(folder: &str) -> String {
    format!("/v1/unlisted/{}", percent_encoded(folder))
}
