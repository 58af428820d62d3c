//! `mctl token`: the tokens that clients of the API over TCP need.

use clap::{Subcommand, ValueEnum};
use machine_api::{CreateToken, TokenScope};

use crate::confirm::confirm;
use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::units::without_fraction;

/// Create, list and revoke tokens for access over TCP
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  export MCTL_TOKEN=$(mctl token create ci --scope read)")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a token and print its secret, which is not shown again
    #[command(after_help = "Example:\n  mctl token create ci --scope read")]
    Create {
        /// Name of the token, such as its purpose
        name: String,
        /// What the token allows
        #[arg(long, default_value = "write")]
        scope: Scope,
    },
    /// List tokens, without their secrets
    #[command(after_help = "Example:\n  mctl token list")]
    List,
    /// Revoke a token
    #[command(after_help = "Example:\n  mctl token revoke 01ABC --yes")]
    Revoke {
        /// Id of the token
        id: String,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    /// Read requests only
    Read,
    /// All requests
    Write,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match args.action {
        Action::Create { name, scope } => create(session, name, scope).await,
        Action::List => list(session).await,
        Action::Revoke { id, yes } => {
            if !yes {
                confirm(session, &format!("revoke token {id}?"))?;
            }
            session.client.revoke_token(&id).await?;
            session.output.note(&format!("token {id}: revoked"));
            Ok(())
        }
    }
}

async fn create(session: &Session, name: String, scope: Scope) -> Result<(), CommandError> {
    let scope = match scope {
        Scope::Read => TokenScope::Read,
        Scope::Write => TokenScope::Write,
    };
    let created = session
        .client
        .create_token(&CreateToken { name, scope })
        .await?;
    if session.output.is_json() {
        return Ok(session.output.json(&created)?);
    }
    let id = &created.token.id;
    session.output.note(&format!(
        "token {id}: created; save the secret, it is not shown again"
    ));
    Ok(session.output.line(&created.secret)?)
}

async fn list(session: &Session) -> Result<(), CommandError> {
    let tokens = session.client.tokens().await?;
    if session.output.is_json() {
        return Ok(session.output.json(&tokens)?);
    }
    let mut table = Table::new(["ID", "NAME", "SCOPE", "CREATED"]);
    for token in tokens {
        table.row([
            token.id.into(),
            token.name.into(),
            token.scope.name().into(),
            without_fraction(&token.created_at).into(),
        ]);
    }
    Ok(session.output.table(&table)?)
}
