//! Bearer tokens of requests over TCP.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use machine_api::TokenScope;
use sha2::{Digest, Sha256};

use crate::api::error::ApiError;
use crate::api::{Access, Api};
use crate::clock;
use crate::ids;
use crate::model::record::TokenRecord;

/// Shortest bootstrap token, in characters.
const SHORTEST: usize = 16;

/// Why the bootstrap token cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenFileError {
    /// The file cannot be read or created.
    #[error("cannot use the token file {path}")]
    File {
        /// The file.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The token is too short.
    #[error("the token in {path} is shorter than {SHORTEST} characters")]
    Short {
        /// The file.
        path: String,
    },
}

/// The valid tokens, as hashes.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    bootstrap: Option<[u8; 32]>,
    known: RwLock<Vec<TokenRecord>>,
}

impl Tokens {
    /// `known` and the bootstrap token, which is created if its file does not exist.
    pub(crate) fn load(
        file: Option<&Path>,
        known: Vec<TokenRecord>,
    ) -> Result<Self, TokenFileError> {
        let known = RwLock::new(known);
        let Some(path) = file else {
            return Ok(Self {
                bootstrap: None,
                known,
            });
        };
        let shown = path.display().to_string();
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_token_file(path),
            read => read,
        };
        let text = text.map_err(|source| TokenFileError::File {
            path: shown.clone(),
            source,
        })?;
        let token = text.trim();
        if token.len() < SHORTEST {
            return Err(TokenFileError::Short { path: shown });
        }
        Ok(Self {
            bootstrap: Some(hash(token)),
            known,
        })
    }

    /// A new token and its secret. It is valid once it is added.
    pub(crate) fn create(&self, name: String, scope: TokenScope) -> (TokenRecord, String) {
        let secret = format!("mctl_{}", ids::random_hex());
        let record = TokenRecord {
            id: ids::new_ulid(),
            name,
            scope,
            sha256: hash(&secret),
            created_at_ms: clock::realtime_ms(),
        };
        (record, secret)
    }

    /// Makes a token valid.
    pub(crate) fn add(&self, token: TokenRecord) {
        self.known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(token);
    }

    /// Makes a token invalid.
    pub(crate) fn remove(&self, id: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|token| token.id != id);
    }

    /// All but the bootstrap token.
    pub(crate) fn all(&self) -> Vec<TokenRecord> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What `token` allows, if it is valid. Takes the same time wherever it differs from a valid one.
    fn scope_of(&self, token: &str) -> Option<TokenScope> {
        let asked = hash(token);
        let bootstrap = self.bootstrap.is_some_and(|known| equal(&known, &asked));
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .iter()
            .fold(bootstrap.then_some(TokenScope::Write), |found, token| {
                if equal(&token.sha256, &asked) {
                    Some(token.scope)
                } else {
                    found
                }
            })
    }
}

fn create_token_file(path: &Path) -> io::Result<String> {
    let token = ids::random_hex();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    Ok(token)
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// Passes a request on if its connection or its token allows it.
pub(crate) async fn check(
    State((api, access)): State<(Api, Access)>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let mut allowed = TokenScope::Write;
    if access == Access::Network {
        let header = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| {
                scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("flyv1")
            });
        let scope = token.and_then(|(_, token)| api.tokens.scope_of(token.trim()));
        let scope = scope.ok_or_else(ApiError::unauthorized)?;
        if scope == TokenScope::Read && !only_reads(&request) {
            return Err(ApiError::forbidden());
        }
        allowed = scope;
    }
    request.extensions_mut().insert(allowed);
    Ok(next.run(request).await)
}

/// Whether a request changes nothing. One that runs a command may, whatever its method.
fn only_reads(request: &Request) -> bool {
    let path = request.uri().path();
    let tokens = path.starts_with("/v1/tokens");
    let guest = path.ends_with("/exec/stream") || path.ends_with("/files");
    matches!(*request.method(), Method::GET | Method::HEAD) && !guest && !tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_of_the_file_is_valid() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let made = Tokens::load(Some(&path), Vec::new()).unwrap();
        let token = fs::read_to_string(&path).unwrap();
        assert_eq!(made.scope_of(token.trim()), Some(TokenScope::Write));
        assert_eq!(made.scope_of("0123456789abcdef0123456789abcdef"), None);
        let again = Tokens::load(Some(&path), Vec::new()).unwrap();
        assert_eq!(again.scope_of(token.trim()), Some(TokenScope::Write));
        assert_eq!(Tokens::default().scope_of(""), None);
    }

    #[test]
    fn a_revoked_token_is_invalid() {
        let tokens = Tokens::default();
        let (record, secret) = tokens.create("ci".to_owned(), TokenScope::Read);
        assert_eq!(tokens.scope_of(&secret), None);
        let id = record.id.clone();
        tokens.add(record);
        assert_eq!(tokens.scope_of(&secret), Some(TokenScope::Read));
        tokens.remove(&id);
        assert_eq!(tokens.scope_of(&secret), None);
    }
}
