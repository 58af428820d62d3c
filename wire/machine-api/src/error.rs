//! The body of every answer that reports an error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of every answer that reports an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What failed, for people.
    pub error: String,
    /// *Extension*: what failed, for programs: `not_found`, `lease_held`, `wrong_state`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// *Extension*: what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// *Extension*: further facts by name, such as the machine's state.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}
