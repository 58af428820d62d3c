//! `mctl config`: what holds for this call, and where each value came from.

use serde_json::json;

use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::settings::Origin;

/// Show the settings in force and where each came from
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A flag wins over the environment, the environment over the file, the file over the default.
The file is TOML: host, token, ca_cert, wait_timeout, color.

Example:
  MCTL_HOST=http://10.0.0.7:4280 mctl config")]
pub(crate) struct Args {}

pub(crate) fn run(session: &Session, Args {}: Args) -> Result<(), CommandError> {
    let settings = &session.settings;
    let (token, token_origin) = match &settings.token {
        // Enough to tell tokens apart, too little to use one.
        Some(token) => (masked(&token.value), token.origin.clone()),
        None => ("none".to_owned(), Origin::Default),
    };
    let (ca_cert, ca_cert_origin) = match &settings.ca_cert {
        Some(file) => (file.value.display().to_string(), file.origin.clone()),
        None => ("the system's".to_owned(), Origin::Default),
    };
    let wait = settings.wait_timeout.value;
    let rows = [
        (
            "config",
            settings.file.value.display().to_string(),
            settings.file.origin.clone(),
        ),
        (
            "host",
            settings.host.value.to_string(),
            settings.host.origin.clone(),
        ),
        ("token", token, token_origin),
        ("ca_cert", ca_cert, ca_cert_origin),
        (
            "wait_timeout",
            format!("{wait:?}"),
            settings.wait_timeout.origin.clone(),
        ),
        (
            "color",
            settings.color.value.to_string(),
            settings.color.origin.clone(),
        ),
    ];
    if session.output.is_json() {
        let object: serde_json::Map<String, serde_json::Value> = rows
            .into_iter()
            .map(|(name, value, origin)| {
                (
                    name.to_owned(),
                    json!({"value": value, "from": origin.to_string()}),
                )
            })
            .collect();
        return Ok(session.output.json(&object)?);
    }
    let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
    for (name, value, origin) in rows {
        table.row([name.into(), value.into(), origin.to_string().into()]);
    }
    Ok(session.output.table(&table)?)
}

fn masked(token: &str) -> String {
    match token.char_indices().nth_back(3) {
        Some((start, _)) if token.len() >= 16 => format!("…{}", &token[start..]),
        _ => "set".to_owned(),
    }
}
