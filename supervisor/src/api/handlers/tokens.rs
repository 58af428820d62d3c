//! `/v1/tokens`: who may use the API over TCP.

use axum::Json;
use axum::extract::{Path, State};
use machine_api::{CreateToken, CreatedToken, ErrorBody, Ok as Done, Token};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::request::extract::JsonBody;
use crate::clock;
use crate::machine::MachineError;
use crate::model::record::TokenRecord;

/// Longest name.
const NAME_CHARACTERS: usize = 128;

fn shown(record: &TokenRecord) -> Token {
    Token {
        id: record.id.clone(),
        name: record.name.clone(),
        scope: record.scope,
        created_at: clock::rfc3339_ms(record.created_at_ms),
    }
}

/// Makes a token. It is shown this once.
#[utoipa::path(post, operation_id = "Tokens_create", path = "/v1/tokens", tag = "tokens", request_body = CreateToken,
    responses((status = 200, body = CreatedToken), (status = "default", body = ErrorBody)))]
pub(crate) async fn create(
    State(api): State<Api>,
    JsonBody(request): JsonBody<CreateToken>,
) -> Result<Json<CreatedToken>, ApiError> {
    if request.name.is_empty() || request.name.chars().count() > NAME_CHARACTERS {
        return Err(ApiError::invalid(format!(
            "name: 1 to {NAME_CHARACTERS} characters"
        )));
    }
    let (record, secret) = api.tokens.create(request.name, request.scope);
    let store = &api.registry.context().store;
    store
        .add_token(record.clone())
        .await
        .map_err(MachineError::from)?;
    let token = shown(&record);
    api.tokens.add(record);
    Ok(Json(CreatedToken { token, secret }))
}

/// Lists tokens, without their secrets.
#[utoipa::path(get, operation_id = "Tokens_list", path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = Vec<Token>), (status = "default", body = ErrorBody)))]
pub(crate) async fn list(State(api): State<Api>) -> Json<Vec<Token>> {
    Json(api.tokens.all().iter().map(shown).collect())
}

/// Makes a token useless at once.
#[utoipa::path(delete, operation_id = "Tokens_revoke", path = "/v1/tokens/{id}", tag = "tokens",
    params(("id" = String, Path)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn revoke(
    State(api): State<Api>,
    path: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Json<Done>, ApiError> {
    let Path(id) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    let removed = api
        .registry
        .context()
        .store
        .remove_token(&id)
        .await
        .map_err(MachineError::from)?;
    api.tokens.remove(&id);
    if removed {
        Ok(Json(Done { ok: true }))
    } else {
        Err(ApiError::not_found(format!("no token {id:?}")))
    }
}
