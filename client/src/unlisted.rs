//! Calls about machines that the supervisor's database does not know.

use hyper::Method;
use machine_api::{AdoptMachine, Machine, UnlistedMachine};

use crate::call::Call;
use crate::client::Client;
use crate::error::Error;
use crate::paths;

impl Client {
    /// The machines that the database does not know.
    pub async fn unlisted(&self) -> Result<Vec<UnlistedMachine>, Error> {
        let action = "list machines that the database does not know";
        self.json(Call::new(Method::GET, "/v1/unlisted", action))
            .await
    }

    /// Takes back the machine in `folder`.
    pub async fn adopt(&self, folder: &str, request: &AdoptMachine) -> Result<Machine, Error> {
        let action = format!("take back machine {folder}");
        let path = format!("{}/adopt", paths::unlisted(folder));
        self.json(Call::new(Method::POST, path, action).body(request))
            .await
    }

    /// Removes the machine in `folder`, also while it runs if that is `forced`.
    pub async fn remove_unlisted(&self, folder: &str, forced: bool) -> Result<(), Error> {
        let action = format!("remove machine {folder}");
        let path = format!("{}?force={forced}", paths::unlisted(folder));
        self.ok(Call::new(Method::DELETE, path, action)).await
    }
}
