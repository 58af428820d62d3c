//! Calls about tokens, which clients of the API over TCP need.

use hyper::Method;
use machine_api::{CreateToken, CreatedToken, Token};

use crate::call::Call;
use crate::client::Client;
use crate::error::Error;
use crate::paths;

impl Client {
    /// Creates a token. Only this answer has its secret.
    pub async fn create_token(&self, request: &CreateToken) -> Result<CreatedToken, Error> {
        let action = format!("create token {}", request.name);
        self.json(Call::new(Method::POST, "/v1/tokens", action).body(request))
            .await
    }

    /// All tokens, without their secrets.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        self.json(Call::new(Method::GET, "/v1/tokens", "list tokens"))
            .await
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, id: &str) -> Result<(), Error> {
        let action = format!("revoke token {id}");
        self.ok(Call::new(Method::DELETE, paths::token(id), action))
            .await
    }
}
