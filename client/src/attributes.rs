//! What is attached to a machine without being part of its life: lease, metadata, cordon.

use std::collections::BTreeMap;

use hyper::Method;
use machine_api::{Lease, LeaseRequest, LeaseResponse, MetadataValue};

use crate::call::{Call, escaped};
use crate::machines::of;
use crate::{Client, Error};

impl Client {
    /// Takes a lease; a client that sends the nonce of a standing one refreshes that.
    pub async fn take_lease(&self, id: &str, request: &LeaseRequest) -> Result<Lease, Error> {
        let what = format!("lease machine {id}");
        let call = Call::new(Method::POST, of(id, "/lease"), what).body(request);
        self.json::<LeaseResponse>(call)
            .await
            .map(|answer| answer.data)
    }

    /// The standing lease; with its nonce for who may change machines.
    pub async fn lease(&self, id: &str) -> Result<Lease, Error> {
        let what = format!("look up the lease of {id}");
        let call = Call::new(Method::GET, of(id, "/lease"), what);
        self.json::<LeaseResponse>(call)
            .await
            .map(|answer| answer.data)
    }

    /// Gives back the lease whose nonce this client sends.
    pub async fn release_lease(&self, id: &str) -> Result<(), Error> {
        let what = format!("release the lease of {id}");
        let call = Call::new(Method::DELETE, of(id, "/lease"), what);
        self.done(call).await
    }

    /// All metadata.
    pub async fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>, Error> {
        let what = format!("read metadata of {id}");
        self.json(Call::new(Method::GET, of(id, "/metadata"), what))
            .await
    }

    /// Sets one value, without a new version.
    pub async fn set_metadata(&self, id: &str, key: &str, value: &str) -> Result<(), Error> {
        let what = format!("set metadata {key} of {id}");
        let body = MetadataValue {
            value: value.to_owned(),
        };
        let call = Call::new(Method::POST, metadata_key(id, key), what).body(&body);
        self.done(call).await
    }

    /// Removes one value.
    pub async fn delete_metadata(&self, id: &str, key: &str) -> Result<(), Error> {
        let what = format!("delete metadata {key} of {id}");
        let call = Call::new(Method::DELETE, metadata_key(id, key), what);
        self.done(call).await
    }

    /// Takes a machine out of the routing of new connections, or brings it back.
    pub async fn set_cordoned(&self, id: &str, cordoned: bool) -> Result<(), Error> {
        let verb = if cordoned { "cordon" } else { "uncordon" };
        let what = format!("{verb} machine {id}");
        let call = Call::new(Method::POST, of(id, &format!("/{verb}")), what);
        self.done(call).await
    }
}

fn metadata_key(id: &str, key: &str) -> String {
    of(id, &format!("/metadata/{}", escaped(key)))
}
