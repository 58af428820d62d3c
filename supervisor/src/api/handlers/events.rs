//! A machine's events: listed, or followed as they happen.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use machine_api::{ErrorBody, Machine, MachineEvent, MachineState};
use tokio::sync::watch;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::ndjson;
use crate::api::request::extract::{Params, ROWS_MOST, Target, is_set, limit};
use crate::machine::MachineError;
use crate::store::{Store, StoreError};

/// Most sent events whose ids are remembered: more than a machine's view holds. If none of the view
/// is among them, more events happened than it holds, and the database is read.
const REMEMBERED: usize = 64;

/// A machine's events, newest first. With `follow=true` oldest first, one JSON object per line, until
/// the machine is destroyed.
#[utoipa::path(get, operation_id = "Machines_events", path = "/v1/apps/{app}/machines/{machine}/events", tag = "inspect",
    params(("app" = String, Path), ("machine" = String, Path), ("limit" = Option<u32>, Query),
        ("follow" = Option<bool>, Query)),
    responses((status = 200, content((Vec<MachineEvent> = "application/json"),
            (MachineEvent = "application/x-ndjson"))),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn events(
    State(api): State<Api>,
    Target(handle): Target,
    Params(query): Params<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let limit = limit(&query)?;
    let store = &api.registry.context().store;
    if !is_set(query.get("follow").map(String::as_str))? {
        let rows = store.events(handle.id(), limit).await;
        return Ok(Json(rows.map_err(MachineError::from)?).into_response());
    }
    // Followed before they are read: what happens in between is in both.
    let view = handle.watch();
    let remembered = u32::try_from(REMEMBERED).unwrap_or(u32::MAX);
    let rows = store.events(handle.id(), limit.max(remembered)).await;
    let rows = rows.map_err(MachineError::from)?;
    let shown = usize::try_from(limit).unwrap_or(usize::MAX).min(rows.len());
    let follower = Follower {
        first: ndjson::lines(rows[..shown].iter().rev()),
        sent: rows
            .into_iter()
            .map(|event| event.id)
            .take(REMEMBERED)
            .collect(),
        machine_id: handle.id().to_owned(),
        store: store.clone(),
        view,
    };
    let parts = stream::unfold(Some(follower), async |follower| {
        let mut follower = follower?;
        match follower.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(follower))),
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    });
    Ok(ndjson::answer(Body::from_stream(parts)))
}

/// Sends each event once, in the order in which they happened.
struct Follower {
    /// The lines to send first.
    first: Bytes,
    /// Ids of the newest events that were sent, newest first.
    sent: VecDeque<String>,
    machine_id: String,
    store: Store,
    view: watch::Receiver<Arc<Machine>>,
}

impl Follower {
    /// The next lines, or none after the last event of a destroyed machine.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if !self.first.is_empty() {
            return Ok(Some(std::mem::take(&mut self.first)));
        }
        loop {
            let machine = self.view.borrow_and_update().clone();
            let mut new = self.unsent(&machine.events);
            if !new.is_empty() && new.len() == machine.events.len() {
                // None of them was sent: there may be more than the view holds.
                let rows = self.store.events(&self.machine_id, ROWS_MOST).await?;
                new = self.unsent(&rows);
            }
            if !new.is_empty() {
                for event in new.iter().rev() {
                    self.sent.push_front(event.id.clone());
                }
                self.sent.truncate(REMEMBERED);
                return Ok(Some(ndjson::lines(new.iter().rev())));
            }
            if machine.state == MachineState::Destroyed || self.view.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// The events that are newer than all that were sent, newest first.
    fn unsent(&self, events: &[MachineEvent]) -> Vec<MachineEvent> {
        let new = events
            .iter()
            .take_while(|event| !self.sent.contains(&event.id));
        new.cloned().collect()
    }
}
