//! Who may use the API over TCP.

use hyper::Method;
use machine_api::{CreateToken, CreatedToken, Ok as Done, Token};

use crate::call::{Call, escaped};
use crate::{Client, Error};

impl Client {
    /// Makes a token; its secret is shown this once.
    pub async fn create_token(&self, request: &CreateToken) -> Result<CreatedToken, Error> {
        let what = format!("create token {}", request.name);
        self.json(Call::new(Method::POST, "/v1/tokens", what).body(request))
            .await
    }

    /// All tokens, without their secrets.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        self.json(Call::new(Method::GET, "/v1/tokens", "list tokens"))
            .await
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, id: &str) -> Result<(), Error> {
        let path = format!("/v1/tokens/{}", escaped(id));
        let call = Call::new(Method::DELETE, path, format!("revoke token {id}"));
        self.json::<Done>(call).await.map(drop)
    }
}
