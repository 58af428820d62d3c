//! Rows of API tokens.

use machine_api::TokenScope;
use rusqlite::params;
use rusqlite::types::Type;

use crate::model::record::TokenRecord;
use crate::store::{Store, StoreError};

impl Store {
    /// All tokens, oldest first.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.call("read tokens", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, name, scope, sha256, created_at_ms FROM tokens
                 ORDER BY created_at_ms, id",
            )?;
            let rows = statement.query_map([], |row| {
                let scope: String = row.get("scope")?;
                Ok(TokenRecord {
                    id: row.get("id")?,
                    name: row.get("name")?,
                    scope: TokenScope::from_name(&scope).ok_or_else(|| {
                        let unknown = format!("unknown scope {scope:?}");
                        rusqlite::Error::FromSqlConversionFailure(2, Type::Text, unknown.into())
                    })?,
                    sha256: row.get("sha256")?,
                    created_at_ms: row.get("created_at_ms")?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Adds a token.
    pub(crate) async fn add_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.call("store a token", move |connection| {
            connection.execute(
                "INSERT INTO tokens (id, name, scope, sha256, created_at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    token.id,
                    token.name,
                    token.scope.name(),
                    token.sha256,
                    token.created_at_ms
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Removes a token; tells whether there was one.
    pub(crate) async fn remove_token(&self, id: &str) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.call("remove a token", move |connection| {
            Ok(connection.execute("DELETE FROM tokens WHERE id = ?1", params![id])? > 0)
        })
        .await
    }
}
