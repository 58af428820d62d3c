//! *Extension*: `/v1/tokens`, the tokens that clients of the API over TCP need.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// *Extension*: what a token allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenScope {
    /// Read requests only.
    Read,
    /// All requests.
    #[default]
    Write,
}

impl TokenScope {
    /// The name of the scope on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// The scope with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Read, Self::Write]
            .into_iter()
            .find(|scope| scope.name() == name)
    }
}

/// *Extension*: body of `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateToken {
    /// Name of the token, for people.
    pub name: String,
    /// What the token allows.
    #[serde(default)]
    pub scope: TokenScope,
}

/// *Extension*: a token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Id of the token, with which it is revoked.
    pub id: String,
    /// Name of the token, for people.
    pub name: String,
    /// What the token allows.
    pub scope: TokenScope,
    /// When the token was created: RFC 3339 in UTC.
    pub created_at: String,
}

/// *Extension*: answer to `POST /v1/tokens`, the only answer that shows the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// Secret of the token; clients send it as `Authorization: Bearer …`.
    pub secret: String,
}
