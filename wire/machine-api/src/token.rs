//! *Extension*: `/v1/tokens`, who may use the API over TCP.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a token allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenScope {
    /// Looking, and nothing else.
    Read,
    /// Everything.
    #[default]
    Write,
}

impl TokenScope {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// The scope of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Read, Self::Write]
            .into_iter()
            .find(|scope| scope.name() == name)
    }
}

/// `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateToken {
    /// For people.
    pub name: String,
    /// What it allows.
    #[serde(default)]
    pub scope: TokenScope,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// For revoking it.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it allows.
    pub scope: TokenScope,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// Answer to `POST /v1/tokens`: the only time that the secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// Sent as `Authorization: Bearer …`.
    pub secret: String,
}
