//! What is in use after a cycle: whatever could grow with each cycle without showing in latency.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts and sizes by name, such as `vmm_descriptors` and `database_bytes`. A name that ends in
/// `_bytes` is a size, any other a count. What cannot be had on a host is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Resources(BTreeMap<String, u64>);

impl Resources {
    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<Name: Into<String>> FromIterator<(Name, u64)> for Resources {
    fn from_iter<I: IntoIterator<Item = (Name, u64)>>(values: I) -> Self {
        Self(
            values
                .into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
        )
    }
}
