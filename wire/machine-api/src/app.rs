//! Apps, by which the Fly Machines API groups machines. A host has one: [`crate::DEFAULT_APP`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `GET /v1/apps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppList {
    /// Number of apps.
    pub total_apps: u64,
    /// All apps.
    pub apps: Vec<ListedApp>,
}

/// An app in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedApp {
    /// Id of the app; the same as its name.
    pub id: String,
    /// Name of the app, as it stands in paths.
    pub name: String,
    /// Number of machines that are not destroyed.
    pub machine_count: u64,
    /// Name of the app's network.
    pub network: String,
}

/// Answer to `GET /v1/apps/{app}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct App {
    /// Id of the app; the same as its name.
    pub id: String,
    /// Name of the app, as it stands in paths.
    pub name: String,
    /// `deployed` if the app has machines, otherwise `pending`.
    pub status: String,
    /// Number of machines that are not destroyed.
    pub machine_count: u64,
    /// Name of the app's network.
    pub network: String,
    /// Owner of the app.
    pub organization: AppOrganization,
}

/// Owner of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppOrganization {
    /// Name for people.
    pub name: String,
    /// Name for programs.
    pub slug: String,
}
