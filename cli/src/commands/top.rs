//! `mctl top`: a live view of the machines: state, CPU, memory, how the last start went.

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
use crate::session::Session;

/// How often keys are looked for.
const KEY_INTERVAL: Duration = Duration::from_millis(100);

/// Watch machines, their CPU and memory, live
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys: q or Esc ends it. Without a terminal, `mctl list --watch --json` serves programs.

Example:
  mctl top --interval 1s")]
pub(crate) struct Args {
    /// Time between refreshes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = crate::span::parse_duration)]
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
    // Asked once before the screen is taken, so that what is wrong is told in the usual way.
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
    let place = session.client.endpoint().to_string();
    let mut problem = None;
    loop {
        terminal.draw(|frame| view::draw(frame, &place, &rows, problem.as_deref()))?;
        let next = Instant::now() + interval;
        while Instant::now() < next {
            if ended()? {
                return Ok(());
            }
            tokio::time::sleep(KEY_INTERVAL).await;
        }
        // A supervisor that is restarted comes back; until then the last view stays.
        match self::rows(session).await {
            Ok(fresh) => {
                rows = fresh;
                problem = None;
            }
            Err(error) => problem = Some(error.to_string()),
        }
    }
}

/// Whether somebody pressed a key that ends the view.
fn ended() -> io::Result<bool> {
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
            // A machine may have been suspended since; it then has no usage.
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
