//! Calls about what is left aside: machines that the supervisor's database does not know, and images that
//! no resume uses any more.

use hyper::Method;
use machine_api::{AdoptMachine, ImageSetAside, Machine, UnlistedMachine};

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

    /// Images that were set aside.
    pub async fn images_set_aside(&self) -> Result<Vec<ImageSetAside>, Error> {
        let action = "list images that were set aside";
        self.json(Call::new(Method::GET, "/v1/set-aside", action))
            .await
    }

    /// Removes an image that was set aside.
    pub async fn remove_set_aside(&self, id: &str, generation: u64) -> Result<(), Error> {
        let action = format!("remove the image of generation {generation} of machine {id}");
        let path = paths::machine(&self.app, id, &format!("/set-aside/{generation}"));
        self.ok(Call::new(Method::DELETE, path, action)).await
    }
}
