//! The sockets on which the API is served.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};

use super::tcp::Network;
use super::tls::Tls;
use super::{Access, Api, Tokens, router};
use crate::machine::Registry;

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Another program listens on the socket.
    #[error("another program serves {}", .0.display())]
    InUse(PathBuf),
    /// The socket can't be made.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No such group.
    #[error("no group {0:?}")]
    Group(String),
    /// The address can't be used.
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
    let host = registry.host().clone();
    let configuration = &host.configuration;
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
    // A client that finds no socket knows at once that nobody serves.
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
    // Nobody can connect before the mode says who may: until then it has another name.
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

/// A group's number, from itself or from `/etc/group`.
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
