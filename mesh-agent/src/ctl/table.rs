//! Aligned tables, and colours where somebody looks.

use clap::builder::styling::{AnsiColor, Style};

/// Between two columns.
const GAP: &str = "   ";

/// How a text is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As most.
    Plain,
    /// As it should be.
    Good,
    /// Something to look at.
    Doubtful,
    /// Something is wrong.
    Bad,
    /// Of less weight: heads of columns, notes.
    Faint,
}

/// Whether texts are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// For a terminal.
    Coloured,
    /// For anything else.
    Plain,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breadth {
    /// What fits in most windows.
    Usual,
    /// All.
    Wide,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// Rows under named columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Paint {
    /// A text in its colour. What no terminal should be told (it came from the network) is taken out of it.
    pub fn apply(self, text: &str, tone: Tone) -> String {
        let text = printable(text);
        let style = match (self, tone) {
            (Paint::Plain, _) | (_, Tone::Plain) => return text,
            (Paint::Coloured, Tone::Good) => AnsiColor::Green.on_default(),
            (Paint::Coloured, Tone::Doubtful) => AnsiColor::Yellow.on_default(),
            (Paint::Coloured, Tone::Bad) => AnsiColor::Red.on_default().bold(),
            (Paint::Coloured, Tone::Faint) => Style::new().dimmed(),
        };
        format!("{style}{text}{style:#}")
    }
}

fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl Cell {
    /// A cell; nothing is shown as `-`.
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        let text = printable(&text.into());
        Self { text: if text.is_empty() { "-".into() } else { text }, tone }
    }

    /// One like most.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::new(text, Tone::Plain)
    }
}

impl Table {
    /// An empty one.
    pub fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The lines, each ended. Nothing is put after what stands last in a line.
    pub fn render(&self, paint: Paint) -> String {
        let heads: Vec<Cell> = self.columns.iter().map(|head| Cell::new(*head, Tone::Faint)).collect();
        let mut widths = vec![0; self.columns.len()];
        for row in std::iter::once(&heads).chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut text = String::new();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut gap = 0;
            for (width, cell) in widths.iter().zip(row) {
                text.push_str(&" ".repeat(gap));
                text.push_str(&paint.apply(&cell.text, cell.tone));
                gap = width - cell.text.chars().count() + GAP.len();
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_whatever_the_colour() {
        let mut table = Table::new(&["NODE", "READY", "NOTE"]);
        table.push(vec![Cell::plain("worker-1"), Cell::new("yes", Tone::Good), Cell::plain("")]);
        table.push(vec![Cell::plain("a"), Cell::new("no", Tone::Bad), Cell::plain("élan")]);
        let plain = table.render(Paint::Plain);
        assert_eq!(plain, "NODE       READY   NOTE\nworker-1   yes     -\na          no      élan\n");
        let coloured = table.render(Paint::Coloured);
        assert!(coloured.contains("\x1b[32myes\x1b[0m     -"), "{coloured:?}");
    }

    #[test]
    fn what_an_agent_says_moves_no_cursor() {
        let mut table = Table::new(&["ERROR"]);
        table.push(vec![Cell::new("a\x1b[2J\r\nb", Tone::Bad)]);
        assert_eq!(table.render(Paint::Plain), "ERROR\na [2J  b\n");
        assert_eq!(Paint::Plain.apply("a\x1b]0;x\x07", Tone::Plain), "a ]0;x ");
    }
}
