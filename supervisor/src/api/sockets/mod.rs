//! The sockets on which the API is served: this one is the Unix socket.

mod tcp;
pub(super) mod tls;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};

use tcp::Network;
use tls::Tls;

use crate::api::request::auth::Tokens;
use crate::api::routes::router;
use crate::api::{Access, Api};
use crate::machine::Registry;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Another program listens on the socket.
    #[error("another program serves {}", .0.display())]
    InUse(PathBuf),
    /// The socket cannot be created.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The group does not exist.
    #[error("no group {0:?}")]
    Group(String),
    /// The address cannot be used.
    #[error("cannot listen on {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Accepting connections failed for good.
    #[error("cannot serve the API any more")]
    Accept(#[source] io::Error),
}

/// Serves until `stopped` resolves.
pub(crate) async fn serve(
    registry: Registry,
    tokens: Tokens,
    tls: Option<Arc<Tls>>,
    stopped: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let context = registry.context().clone();
    let configuration = &context.configuration;
    let socket =
        listen_locally(&configuration.socket, configuration.socket_group.as_deref()).await?;
    let network = match configuration.listen {
        Some(address) => Some(Network::bind(address, tls).await?),
        None => None,
    };
    let api = Api {
        registry,
        tokens: Arc::new(tokens),
        address: network.as_ref().map(|network| network.address().into()),
    };
    let local = axum::serve(socket, router(api.clone(), Access::Local));
    tracing::info!(socket = %configuration.socket.display(), "serving the API");
    let network = async {
        match network {
            Some(network) => {
                tracing::info!(address = network.address(), "serving the API over TCP");
                network.serve(router(api, Access::Network)).await;
            }
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        served = async { local.await } => served.map_err(ServeError::Accept),
        () = network => Ok(()),
        () = stopped => Ok(()),
    };
    // Without the socket a client knows at once that no supervisor runs.
    let _ = fs::remove_file(&configuration.socket);
    result
}

async fn listen_locally(path: &Path, group: Option<&str>) -> Result<UnixListener, ServeError> {
    let fail = |source| ServeError::Socket {
        path: path.to_owned(),
        source,
    };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServeError::InUse(path.to_owned()));
    }
    // It has another name until its mode is set, so that nobody connects before.
    let made = path.with_extension("new");
    match fs::remove_file(&made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&made).map_err(fail)?;
    let mode = match group {
        Some(group) => {
            let id = group_id(group).ok_or_else(|| ServeError::Group(group.to_owned()))?;
            std::os::unix::fs::chown(&made, None, Some(id)).map_err(fail)?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(&made, fs::Permissions::from_mode(mode)).map_err(fail)?;
    fs::rename(&made, path).map_err(fail)?;
    Ok(listener)
}

/// The id of a group given by number, or by name in `/etc/group`.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(number) = group.parse() {
        return Some(number);
    }
    let text = fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (name == group).then(|| fields.nth(1)?.parse().ok())?
    })
}
