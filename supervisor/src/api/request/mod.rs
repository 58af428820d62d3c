//! What comes in: who may send a request, and what its path, query and body say.

pub(super) mod auth;
mod body;
pub(super) mod extract;
pub(super) mod normalise;
mod unsupported;
