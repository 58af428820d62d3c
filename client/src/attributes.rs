//! Calls about what is attached to a machine and does not change its state: lease, metadata,
//! cordon.

use std::collections::BTreeMap;

use hyper::Method;
use machine_api::{Lease, LeaseRequest, LeaseResponse, MetadataValue};

use crate::call::Call;
use crate::client::Client;
use crate::error::Error;
use crate::paths;

impl Client {
    /// Takes a lease. A client that sends the nonce of the current lease refreshes it.
    pub async fn take_lease(&self, id: &str, request: &LeaseRequest) -> Result<Lease, Error> {
        let action = format!("lease machine {id}");
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, "/lease"),
            action,
        )
        .body(request);
        self.json::<LeaseResponse>(call)
            .await
            .map(|answer| answer.data)
    }

    /// The current lease. Its nonce is shown only to clients that may change machines.
    pub async fn lease(&self, id: &str) -> Result<Lease, Error> {
        let action = format!("look up the lease of machine {id}");
        let call = Call::new(Method::GET, paths::machine(&self.app, id, "/lease"), action);
        self.json::<LeaseResponse>(call)
            .await
            .map(|answer| answer.data)
    }

    /// Releases the lease whose nonce this client sends.
    pub async fn release_lease(&self, id: &str) -> Result<(), Error> {
        let action = format!("release the lease of machine {id}");
        let call = Call::new(
            Method::DELETE,
            paths::machine(&self.app, id, "/lease"),
            action,
        );
        self.ignore_body(call).await
    }

    /// All metadata of a machine.
    pub async fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>, Error> {
        let action = format!("read metadata of machine {id}");
        self.json(Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/metadata"),
            action,
        ))
        .await
    }

    /// Sets one metadata value. The machine keeps its version.
    pub async fn set_metadata(&self, id: &str, key: &str, value: &str) -> Result<(), Error> {
        let action = format!("set metadata {key} of machine {id}");
        let body = MetadataValue {
            value: value.to_owned(),
        };
        let call = Call::new(Method::POST, paths::metadata(&self.app, id, key), action).body(&body);
        self.ignore_body(call).await
    }

    /// Deletes one metadata value.
    pub async fn delete_metadata(&self, id: &str, key: &str) -> Result<(), Error> {
        let action = format!("delete metadata {key} of machine {id}");
        let call = Call::new(Method::DELETE, paths::metadata(&self.app, id, key), action);
        self.ignore_body(call).await
    }

    /// Cordons a machine, so that new connections are not routed to it, or uncordons it.
    pub async fn set_cordoned(&self, id: &str, cordoned: bool) -> Result<(), Error> {
        let verb = if cordoned { "cordon" } else { "uncordon" };
        let action = format!("{verb} machine {id}");
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, &format!("/{verb}")),
            action,
        );
        self.ignore_body(call).await
    }
}
