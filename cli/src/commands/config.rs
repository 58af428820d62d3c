//! `mctl config`: the settings of this call, and where each value came from.

use serde_json::json;

use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::settings::SettingSource;

/// Show the settings, and where each came from
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Flags take precedence over environment variables, and these over the configuration file.
The file is TOML with the keys host, token, ca_cert, wait_timeout and color.

Example:
  MCTL_HOST=http://10.0.0.7:4280 mctl config")]
pub(crate) struct Args {}

pub(crate) fn run(session: &Session, Args {}: Args) -> Result<(), CommandError> {
    let settings = &session.settings;
    let (token, token_from) = match &settings.token {
        // The end of a token is enough to tell tokens apart, but not to use one.
        Some(token) => (masked(&token.value), token.from.clone()),
        None => ("none".to_owned(), SettingSource::Default),
    };
    let (ca_cert, ca_cert_from) = match &settings.ca_cert {
        Some(file) => (file.value.display().to_string(), file.from.clone()),
        None => ("the system's".to_owned(), SettingSource::Default),
    };
    let wait = settings.wait_timeout.value;
    let rows = [
        (
            "config",
            settings.file.value.display().to_string(),
            settings.file.from.clone(),
        ),
        (
            "host",
            settings.host.value.to_string(),
            settings.host.from.clone(),
        ),
        ("token", token, token_from),
        ("ca_cert", ca_cert, ca_cert_from),
        (
            "wait_timeout",
            format!("{wait:?}"),
            settings.wait_timeout.from.clone(),
        ),
        (
            "color",
            settings.color.value.to_string(),
            settings.color.from.clone(),
        ),
    ];
    if session.output.is_json() {
        let object: serde_json::Map<String, serde_json::Value> = rows
            .into_iter()
            .map(|(name, value, from)| {
                (
                    name.to_owned(),
                    json!({"value": value, "from": from.to_string()}),
                )
            })
            .collect();
        return Ok(session.output.json(&object)?);
    }
    let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
    for (name, value, from) in rows {
        table.row([name.into(), value.into(), from.to_string().into()]);
    }
    Ok(session.output.table(&table)?)
}

fn masked(token: &str) -> String {
    match token.char_indices().nth_back(3) {
        Some((start, _)) if token.len() >= 16 => format!("…{}", &token[start..]),
        _ => "set".to_owned(),
    }
}
