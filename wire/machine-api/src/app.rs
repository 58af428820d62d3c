//! Apps, by which that API sorts machines. A host has one: [`crate::DEFAULT_APP`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/apps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppList {
    /// How many there are.
    pub total_apps: u64,
    /// All of them.
    pub apps: Vec<ListedApp>,
}

/// One of [`AppList`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedApp {
    /// The same as its name.
    pub id: String,
    /// What paths call it.
    pub name: String,
    /// Machines that are not destroyed.
    pub machine_count: u64,
    /// Name of its network.
    pub network: String,
}

/// `GET /v1/apps/{app}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct App {
    /// The same as its name.
    pub id: String,
    /// What paths call it.
    pub name: String,
    /// `deployed` once it has machines; `pending` before.
    pub status: String,
    /// Machines that are not destroyed.
    pub machine_count: u64,
    /// Name of its network.
    pub network: String,
    /// Whom it belongs to.
    pub organization: AppOrganization,
}

/// Whom an [`App`] belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppOrganization {
    /// For people.
    pub name: String,
    /// For programs.
    pub slug: String,
}
