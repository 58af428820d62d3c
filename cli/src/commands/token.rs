//! `mctl token`: who may use the API over TCP.

use clap::{Subcommand, ValueEnum};
use machine_api::{CreateToken, TokenScope};

use super::destroy::confirm;
use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::wording::to_second;

/// Create, list and revoke tokens for access over TCP
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  export MCTL_TOKEN=$(mctl token create ci --scope read)")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a token and print its secret, this once
    #[command(after_help = "Example:\n  mctl token create ci --scope read")]
    Create {
        /// What it is for
        name: String,
        /// What it allows
        #[arg(long, default_value = "write")]
        scope: Scope,
    },
    /// List tokens, without their secrets
    #[command(after_help = "Example:\n  mctl token list")]
    List,
    /// Make a token useless
    #[command(after_help = "Example:\n  mctl token revoke 01ABC --yes")]
    Revoke {
        /// Its id
        id: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    /// Looking, and nothing else
    Read,
    /// Everything
    Write,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match args.verb {
        Verb::Create { name, scope } => create(session, name, scope).await,
        Verb::List => list(session).await,
        Verb::Revoke { id, yes } => {
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
        "token {id}: keep the secret, it is not shown again"
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
            to_second(&token.created_at).into(),
        ]);
    }
    Ok(session.output.table(&table)?)
}
