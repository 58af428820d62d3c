//! `mctl top`: a live view of the machines with state, CPU, memory and last start.

mod view;

use std::io::{self, IsTerminal};
use std::time::Duration;

use client::ListFilter;
use futures_util::future::join_all;
use machine_api::{EventType, Machine, MachineState, Usage};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::time::Instant;

use crate::error::CommandError;
use crate::parse;
use crate::session::Session;

/// Time between two checks for pressed keys.
const KEY_INTERVAL: Duration = Duration::from_millis(100);

/// Watch machines with their CPU and memory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Press q or Esc to end the view. Programs and pipes can use `mctl list --watch --json`.

Example:
  mctl top --interval 1s")]
pub(crate) struct Args {
    /// Time between refreshes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse::duration)]
    interval: Duration,
}

/// One line of the view.
#[derive(Debug, Clone)]
struct Row {
    machine: Machine,
    usage: Option<Usage>,
}

impl Row {
    /// How long the newest start or resume took.
    fn last_start_ms(&self) -> Option<f64> {
        let starts = self
            .machine
            .events
            .iter()
            .filter(|event| event.kind == EventType::Start);
        starts.filter_map(|event| event.duration_ms).next()
    }
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CommandError::NoTerminal);
    }
    // The first request comes before the view opens, so that its failure is reported as usual.
    let rows = rows(session).await?;
    let mut terminal = ratatui::try_init()?;
    let end = show(session, &mut terminal, rows, args.interval).await;
    ratatui::try_restore()?;
    end
}

async fn show(
    session: &Session,
    terminal: &mut DefaultTerminal,
    mut rows: Vec<Row>,
    interval: Duration,
) -> Result<(), CommandError> {
    let address = session.client.endpoint().to_string();
    let mut problem = None;
    loop {
        terminal.draw(|frame| view::draw(frame, &address, &rows, problem.as_deref()))?;
        let next = Instant::now() + interval;
        while Instant::now() < next {
            if end_key_pressed()? {
                return Ok(());
            }
            tokio::time::sleep(KEY_INTERVAL).await;
        }
        // A restarted supervisor comes back; until then the view shows the last rows.
        match self::rows(session).await {
            Ok(fresh) => {
                rows = fresh;
                problem = None;
            }
            Err(error) => problem = Some(error.to_string()),
        }
    }
}

/// Whether a key was pressed that ends the view.
fn end_key_pressed() -> io::Result<bool> {
    while event::poll(Duration::ZERO)? {
        let Event::Key(key) = event::read()? else {
            continue;
        };
        let interrupt =
            key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        let quit = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
        if key.kind == KeyEventKind::Press && (interrupt || quit) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn rows(session: &Session) -> Result<Vec<Row>, CommandError> {
    let machines = session.client.list(&ListFilter::default()).await?;
    let rows = machines.into_iter().map(async |machine| {
        let mut usage = None;
        if machine.state == MachineState::Started {
            // A machine that was suspended in the meantime has no usage.
            usage = session
                .client
                .usage(&machine.id)
                .await
                .ok()
                .filter(|usage| usage.known);
        }
        Row { machine, usage }
    });
    Ok(join_all(rows).await)
}
