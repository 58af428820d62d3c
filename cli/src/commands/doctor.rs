//! `mctl doctor`: checks what a host needs to run machines, and says what to do about problems.

mod host;
mod vsock;

use clap::Subcommand;
use serde::Serialize;

use crate::error::CommandError;
use crate::output::{Cell, Style, Table};
use crate::session::Session;

/// Check whether this host can run machines
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl doctor || mctl doctor --json | jq .checks")]
pub(crate) struct Args {
    #[command(subcommand)]
    subject: Option<Subject>,
}

#[derive(Debug, Subcommand)]
enum Subject {
    Vsock(vsock::Args),
}

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// As it should be.
    Ok,
    /// Machines run, but an operator should know.
    Warning,
    /// Keeps machines from running.
    Problem,
}

/// One check, its result, and what to do.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    grade: Grade,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            grade: Grade::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            grade: Grade::Warning,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            grade: Grade::Problem,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    if let Some(Subject::Vsock(args)) = args.subject {
        return vsock::run(session, args).await;
    }
    let findings = {
        let _spinner = session.output.spinner("checking the host".to_owned());
        host::check(session).await
    };
    if session.output.is_json() {
        session
            .output
            .json(&serde_json::json!({ "checks": findings }))?;
    } else {
        session.output.table(&table(&findings))?;
    }
    let problems = findings
        .iter()
        .filter(|f| f.grade == Grade::Problem)
        .count();
    if problems > 0 {
        return Err(CommandError::Unhealthy {
            problems,
            checks: findings.len(),
        });
    }
    Ok(())
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(["CHECK", "GRADE", "FOUND"]);
    for finding in findings {
        let (word, style) = match finding.grade {
            Grade::Ok => ("ok", Style::Good),
            Grade::Warning => ("warning", Style::Busy),
            Grade::Problem => ("problem", Style::Bad),
        };
        let cells = [finding.check, word, finding.found.as_str()].map(Cell::new);
        let [check, grade, found] = cells;
        table.row([check, grade.styled(style), found]);
        if let Some(advice) = &finding.advice {
            table.row(["", "", &format!("-> {advice}")].map(Cell::new));
        }
    }
    table
}
