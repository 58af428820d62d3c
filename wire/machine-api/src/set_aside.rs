//! *Extension*: `/v1/set-aside`, images that no resume uses any more.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// *Extension*: an image of a machine that was damaged, or that a cold start has passed over. It is kept
/// so that somebody can look at it; of each machine the newest two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSetAside {
    /// Id of the machine.
    pub machine_id: String,
    /// Generation of the machine that was suspended into it.
    pub generation: u64,
    /// Folder of the image, on the host.
    pub path: String,
    /// Bytes that its files hold.
    pub bytes: u64,
}
