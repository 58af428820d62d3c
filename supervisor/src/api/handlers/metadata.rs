//! Metadata: free pairs that change without a new version. A lease does not protect them, since clients
//! of the Fly Machines API send no nonce here.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::StatusCode;
use machine_api::{ErrorBody, MetadataValue};

use crate::api::error::ApiError;
use crate::api::request::extract::{JsonBody, Key, Target};
use crate::machine::request::LeaseCheck;
use crate::model::config_check::check_metadata;

/// All metadata.
#[utoipa::path(get, operation_id = "Machines_metadata_list", path = "/v1/apps/{app}/machines/{machine}/metadata", tag = "metadata",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = BTreeMap<String, String>),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn list(Target(handle): Target) -> Json<BTreeMap<String, String>> {
    Json(handle.view().config.metadata.clone())
}

/// One value.
#[utoipa::path(get, operation_id = "Machines_metadata_show", path = "/v1/apps/{app}/machines/{machine}/metadata/{key}", tag = "metadata",
    params(("app" = String, Path), ("machine" = String, Path), ("key" = String, Path)),
    responses((status = 200, body = MetadataValue), (status = "default", body = ErrorBody)))]
pub(crate) async fn show(
    Target(handle): Target,
    Key(key): Key,
) -> Result<Json<MetadataValue>, ApiError> {
    let value = handle.view().config.metadata.get(&key).cloned();
    let value = value.ok_or_else(|| ApiError::not_found(format!("no metadata {key:?}")))?;
    Ok(Json(MetadataValue { value }))
}

/// Sets a value.
#[utoipa::path(post, operation_id = "Machines_metadata_set", path = "/v1/apps/{app}/machines/{machine}/metadata/{key}", tag = "metadata",
    params(("app" = String, Path), ("machine" = String, Path), ("key" = String, Path)),
    request_body = MetadataValue,
    responses((status = 204, description = "done"), (status = "default", body = ErrorBody)))]
pub(crate) async fn set(
    Target(handle): Target,
    Key(key): Key,
    JsonBody(MetadataValue { value }): JsonBody<MetadataValue>,
) -> Result<StatusCode, ApiError> {
    let edited = handle.edit(LeaseCheck::Skip, move |record| {
        record.config.metadata.insert(key, value);
        check_metadata(&record.config.metadata)?;
        Ok(((), None))
    });
    edited.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a value; success if it does not exist.
#[utoipa::path(delete, operation_id = "Machines_metadata_remove", path = "/v1/apps/{app}/machines/{machine}/metadata/{key}",
    tag = "metadata",
    params(("app" = String, Path), ("machine" = String, Path), ("key" = String, Path)),
    responses((status = 204, description = "done"), (status = "default", body = ErrorBody)))]
pub(crate) async fn remove(Target(handle): Target, Key(key): Key) -> Result<StatusCode, ApiError> {
    let edited = handle.edit(LeaseCheck::Skip, move |record| {
        record.config.metadata.remove(&key);
        Ok(((), None))
    });
    edited.await?;
    Ok(StatusCode::NO_CONTENT)
}
