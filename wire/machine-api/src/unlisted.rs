//! *Extension*: `/v1/unlisted`, machines that the database does not know.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::machine::MachineState;

/// *Extension*: a machine whose folder or VMM is there, and which the database does not know, as after
/// the database was lost or restored from a backup. It is left alone until it is taken back or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnlistedMachine {
    /// Name of its folder, which is the id of the machine.
    pub folder: String,
    /// App of the machine; absent if its folder does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Name of the machine; absent if its folder does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// State in which it is taken back: `started` if its VMM runs, `suspended` if it has an image,
    /// else `stopped`.
    pub state: MachineState,
    /// Process id of its VMM, if that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<i32>,
    /// Bytes that its files hold.
    pub bytes: u64,
    /// When its folder changed last, in RFC 3339; absent if there is no folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<String>,
    /// Why it cannot be taken back; absent if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// *Extension*: how an unlisted machine is taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct AdoptMachine {
    /// Name that it gets; by default the one that it had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
