//! Writing answers to stdout: text tables and one JSON object.

use std::io::Write;

use serde::Serialize;

/// Writes text to stdout. A reader that has gone away (`| head`) ends the output, not the program.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes one JSON object and a newline.
///
/// # Errors
/// The value cannot be encoded.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), serde_json::Error> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    print(&text);
    Ok(())
}

/// Lays rows out in columns; the first row is the heading. Widths are counted in characters.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text.push_str(&line(row, &widths));
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
            text.push_str(&line(&rule, &widths));
        }
    }
    text
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| {
        let fill = width.saturating_sub(cell.chars().count());
        format!("{cell}{}", " ".repeat(fill))
    });
    let joined: Vec<String> = padded.collect();
    format!("{}\n", joined.join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Columns line up whatever the characters, and no line ends in blanks.
    #[test]
    fn columns_line_up() {
        let rows = [vec!["asset".to_owned(), "°C".to_owned()], vec!["pump-1 ü".to_owned(), "7".to_owned()]];
        assert_eq!(table(&rows), "asset     °C\n────────  ──\npump-1 ü  7\n");
    }
}
