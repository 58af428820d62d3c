//! Tables for people: columns as wide as their widest cell, two spaces between them.

use super::style::{Style, painted};
use super::visible::visible;

/// A cell: its text and its style.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: visible(&text.into(), false),
            style: Style::Plain,
        }
    }

    pub(crate) const fn styled(mut self, style: Style) -> Self {
        self.style = style;
        self
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// Rows of cells under an optional header. A title that starts with `>` aligns its column to the
/// right.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    titles: Vec<String>,
    right_aligned: Vec<bool>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new<T: AsRef<str>>(titles: impl IntoIterator<Item = T>) -> Self {
        let mut table = Self::default();
        for title in titles {
            let title = title.as_ref();
            table.right_aligned.push(title.starts_with('>'));
            table.titles.push(title.trim_start_matches('>').to_owned());
        }
        table
    }

    /// A table of names and values, without a header.
    pub(crate) fn fields() -> Self {
        Self::default()
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// A row of [`Table::fields`].
    pub(crate) fn field(&mut self, name: &str, value: impl Into<Cell>) {
        self.rows
            .push(vec![Cell::new(name).styled(Style::Faint), value.into()]);
    }

    pub(super) fn render(&self, colour: bool) -> String {
        let header: Vec<Cell> = self
            .titles
            .iter()
            .map(|title| Cell::new(title.as_str()).styled(Style::Strong))
            .collect();
        let lines: Vec<&Vec<Cell>> = (!header.is_empty())
            .then_some(&header)
            .into_iter()
            .chain(&self.rows)
            .collect();
        let columns = lines.iter().map(|line| line.len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = lines.iter().filter_map(|line| line.get(column));
                cells
                    .map(|cell| cell.text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for line in lines {
            text.push_str(self.render_line(line, &widths, colour).trim_end());
            text.push('\n');
        }
        text
    }

    fn render_line(&self, line: &[Cell], widths: &[usize], colour: bool) -> String {
        let mut text = String::new();
        for (column, cell) in line.iter().enumerate() {
            let blanks = " ".repeat(widths[column] - cell.text.chars().count());
            let painted = painted(&cell.text, cell.style, colour);
            if column > 0 {
                text.push_str("  ");
            }
            if self.right_aligned.get(column).copied().unwrap_or(false) {
                text.push_str(&blanks);
                text.push_str(&painted);
            } else {
                text.push_str(&painted);
                text.push_str(&blanks);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_to_the_right() {
        let mut table = Table::new(["NAME", ">MS"]);
        table.row([Cell::new("spawn"), Cell::new("3")]);
        table.row([Cell::new("map memory"), Cell::new("12.5")]);
        assert_eq!(
            table.render(false),
            "NAME          MS\nspawn          3\nmap memory  12.5\n"
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let mut table = Table::new(["A", "B"]);
        table.row([Cell::new("x").styled(Style::Good), Cell::new("y")]);
        assert_eq!(
            table.render(true),
            "\x1b[1mA\x1b[0m  \x1b[1mB\x1b[0m\n\x1b[32mx\x1b[0m  y\n"
        );
    }

    #[test]
    fn a_cell_can_not_break_out_of_its_line() {
        let mut table = Table::fields();
        table.field("name", "a\nb\x1b[2J");
        assert_eq!(table.render(false), "name  a\\nb\\x1b[2J\n");
    }
}
