//! Bearer tokens of requests that come over TCP.

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
use rand::RngExt;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::{Access, Api};
use crate::clock;
use crate::machine::readiness::hex;
use crate::machine::record;
use crate::store::TokenRecord;

/// Shortest bootstrap token, in characters.
const SHORTEST: usize = 16;

/// Why the bootstrap token can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenFileError {
    /// The file can't be read or made.
    #[error("cannot use the token file {path}")]
    File {
        /// The file.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It holds next to nothing.
    #[error("the token in {path} is shorter than {SHORTEST} characters")]
    Short {
        /// The file.
        path: String,
    },
}

/// The tokens that count, hashed.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    bootstrap: Option<[u8; 32]>,
    known: RwLock<Vec<TokenRecord>>,
}

impl Tokens {
    /// `known` and the bootstrap token, which is made where its file is missing.
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
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
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

    /// A new token and its secret; it counts once it is added.
    pub(super) fn create(&self, name: String, scope: TokenScope) -> (TokenRecord, String) {
        let secret: [u8; 32] = rand::rng().random();
        let secret = format!("mctl_{}", hex(&secret));
        let record = TokenRecord {
            id: record::new_ulid(),
            name,
            scope,
            sha256: hash(&secret),
            created_at_ms: clock::realtime_ms(),
        };
        (record, secret)
    }

    /// Makes a token count.
    pub(super) fn add(&self, token: TokenRecord) {
        self.known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(token);
    }

    /// Makes a token count no more.
    pub(super) fn remove(&self, id: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|token| token.id != id);
    }

    /// All but the bootstrap token.
    pub(super) fn all(&self) -> Vec<TokenRecord> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What `token` allows. Takes the same time wherever it differs from those that count.
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

fn make(path: &Path) -> io::Result<String> {
    let secret: [u8; 32] = rand::rng().random();
    let token = hex(&secret);
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

/// Lets a request through if its connection or its token allows it.
pub(super) async fn check(
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
        if scope == TokenScope::Read && !only_looks(&request) {
            return Err(ApiError::forbidden());
        }
        allowed = scope;
    }
    request.extensions_mut().insert(allowed);
    Ok(next.run(request).await)
}

/// Whether a request changes nothing. Running a command does, whatever its method.
fn only_looks(request: &Request) -> bool {
    let path = request.uri().path();
    let tokens = path.starts_with("/v1/tokens");
    let guest = path.ends_with("/exec/stream") || path.ends_with("/files");
    matches!(*request.method(), Method::GET | Method::HEAD) && !guest && !tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_of_the_file_counts() {
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
    fn a_revoked_token_counts_no_more() {
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
