//! Draws the view of `mctl top`.

use machine_api::MachineState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row as TableRow, Table};

use super::Row;
use crate::output::{self, visible};
use crate::units::{bytes, memory, milliseconds};
use crate::wording::{start_kind, state_style};

const TITLES: [&str; 7] = [
    "NAME",
    "STATE",
    "CPU",
    "MEMORY",
    "LOAD",
    "LAST START",
    "TOOK",
];

const WIDTHS: [Constraint; 7] = [
    Constraint::Min(12),
    Constraint::Length(10),
    Constraint::Length(7),
    Constraint::Length(19),
    Constraint::Length(5),
    Constraint::Min(10),
    Constraint::Length(8),
];

/// Draws one line per row below a summary. `address` is the supervisor's, `problem` why the rows are
/// not current.
pub(super) fn draw(frame: &mut Frame<'_>, address: &str, rows: &[Row], problem: Option<&str>) {
    let parts = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).split(frame.area());
    let started = rows
        .iter()
        .filter(|row| row.machine.state == MachineState::Started)
        .count();
    let summary = match problem {
        Some(problem) => format!(
            "{address}: {} (showing the last known data)",
            visible(problem, false)
        ),
        None => format!(
            "{address}: {} machines, {started} started; q ends",
            rows.len()
        ),
    };
    frame.render_widget(Line::from(summary), parts[0]);
    let header = TableRow::new(TITLES).style(Style::new().add_modifier(Modifier::BOLD));
    let table = Table::new(rows.iter().map(line), WIDTHS).header(header);
    frame.render_widget(table, parts[1]);
}

fn line(row: &Row) -> TableRow<'static> {
    let machine = &row.machine;
    let all = machine.config.guest.clone().unwrap_or_default().memory_mb;
    let (cpu, used, load) = match &row.usage {
        Some(usage) => {
            let used_kib = usage
                .memory_total_kib
                .saturating_sub(usage.memory_available_kib);
            (
                format!("{:.1} %", usage.cpu_percent),
                format!(
                    "{} of {}",
                    bytes(used_kib.saturating_mul(1024)),
                    memory(all)
                ),
                format!("{:.2}", usage.load[0]),
            )
        }
        None => ("-".to_owned(), memory(all), "-".to_owned()),
    };
    let last = machine
        .last_start
        .as_ref()
        .map_or("-".to_owned(), start_kind);
    let took = row.last_start_ms().map_or("-".to_owned(), milliseconds);
    TableRow::new([
        Cell::new(visible(&machine.name, false)),
        Cell::new(machine.state.name()).style(style(machine.state)),
        Cell::new(cpu),
        Cell::new(used),
        Cell::new(load),
        Cell::new(visible(&last, false)),
        Cell::new(took),
    ])
}

fn style(state: MachineState) -> Style {
    match state_style(state) {
        output::Style::Good => Style::new().fg(Color::Green),
        output::Style::Bad => Style::new().fg(Color::Red),
        output::Style::Busy => Style::new().fg(Color::Yellow),
        output::Style::Faint => Style::new().add_modifier(Modifier::DIM),
        output::Style::Strong => Style::new().add_modifier(Modifier::BOLD),
        output::Style::Plain => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use machine_api::{Machine, Usage};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn machine(name: &str, state: &str) -> Machine {
        let event = json!({"id": "1", "type": "start", "status": "started", "source": "flyd",
                           "timestamp": 0, "duration_ms": 212.0});
        let machine = json!({
            "id": "1", "name": name, "state": state, "region": "", "instance_id": "", "config": {},
            "image_ref": {"registry": "", "repository": "", "tag": "", "digest": ""},
            "private_ip": "", "created_at": "", "updated_at": "", "host_status": "ok",
            "last_start": {"kind": "resumed"}, "events": [event],
        });
        serde_json::from_value(machine).unwrap()
    }

    fn drawn(rows: &[Row], problem: Option<&str>) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(84, 4)).unwrap();
        terminal
            .draw(|frame| draw(frame, "unix:///s", rows, problem))
            .unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..84).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..4).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn each_machine_is_a_line() {
        let usage = Usage {
            known: true,
            cpu_percent: 12.34,
            load: [0.5, 0.0, 0.0],
            memory_total_kib: 250 << 10,
            memory_available_kib: 200 << 10,
            uptime_ms: 1,
        };
        let rows = [
            Row {
                machine: machine("web", "started"),
                usage: Some(usage),
            },
            Row {
                machine: machine("db\u{1b}[2J", "suspended"),
                usage: None,
            },
        ];
        let expected = [
            "unix:///s: 2 machines, 1 started; q ends",
            "NAME            STATE      CPU     MEMORY              LOAD  LAST START     TOOK",
            "web             started    12.3 %  50 MiB of 256 MiB   0.50  resumed        212 ms",
            "db\\x1b[2J       suspended  -       256 MiB             -     resumed        212 ms",
        ];
        assert_eq!(drawn(&rows, None), expected);
    }

    #[test]
    fn without_a_supervisor_the_last_rows_stay_below_the_problem() {
        let rows = [Row {
            machine: machine("web", "started"),
            usage: None,
        }];
        let lines = drawn(&rows, Some("no connection"));
        assert_eq!(
            lines[0],
            "unix:///s: no connection (showing the last known data)"
        );
        assert!(lines[2].starts_with("web"), "{lines:?}");
    }
}
