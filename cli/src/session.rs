//! What every command gets: the client, the output, and the settings that they were made from.

use client::Client;

use crate::output::Output;
use crate::settings::Settings;

/// One call of `mctl`.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) output: Output,
    pub(crate) settings: Settings,
    /// Whether this call carries the nonce of a lease.
    pub(crate) holds_lease: bool,
}

impl Session {
    pub(crate) fn new(
        settings: Settings,
        app: String,
        lease_nonce: Option<String>,
        output: Output,
    ) -> Self {
        let token = settings.token.as_ref().map(|token| token.value.clone());
        let holds_lease = lease_nonce.is_some();
        let client = Client::new(settings.host.value.clone())
            .with_trust(settings.trust())
            .with_token(token)
            .with_lease_nonce(lease_nonce)
            .with_app(app);
        Self {
            client,
            output,
            settings,
            holds_lease,
        }
    }
}
