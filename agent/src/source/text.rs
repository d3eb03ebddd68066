//! Telemetry as plain text: a number, or lines of separated values.
//!
//! Owns what counts as a number in text. Never guesses a column.

use super::error::{Fault, Faulty, Place};
use super::rows::Rows;
use super::{SAMPLES_MAX, time};
use crate::config::{CsvColumn, CsvFormat};
use crate::ids::shorten;

/// A number as text: with a point, or with a comma where the comma separates nothing. `None` if it is none; NaN and
/// infinities are read as such.
pub fn number(text: &str, decimal_comma: bool) -> Option<f64> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    if decimal_comma && text.matches(',').count() == 1 && !text.contains('.') {
        return text.replace(',', ".").parse().ok();
    }
    None
}

/// The value of a payload that is one number: also `true` and `false`; NaN is a missing value.
pub(super) fn decode_number(payload: &[u8]) -> Faulty<f32> {
    let text = utf8(payload)?.trim();
    match text {
        "" => Err((Place::Whole, Fault::Empty)),
        "true" => Ok(1.0),
        "false" => Ok(0.0),
        _ => match number(text, true) {
            Some(number) => Ok(finite(number)),
            None => Err((Place::Whole, Fault::NotANumber { found: shorten(text) })),
        },
    }
}

/// Decodes lines of separated values. A line that repeats the names of the columns is skipped.
pub(super) fn decode_csv(rows: &mut Rows<'_>, format: &CsvFormat, payload: &[u8], received_us: i64) -> Faulty<()> {
    let text = utf8(payload)?;
    let decimal_comma = format.separator != b',';
    let expected = format.columns.len();
    let mut fields: Vec<(&str, f32)> = Vec::with_capacity(expected);
    let mut samples = 0_usize;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = Place::Line(index.saturating_add(1), 0);
        let found = line.split(char::from(format.separator)).count();
        if found != expected {
            return Err((place, Fault::Columns { found, expected }));
        }
        let cells = || line.split(char::from(format.separator)).map(cell).zip(&format.columns);
        if index == 0 && is_header(cells()) {
            continue;
        }
        samples += 1;
        if samples > SAMPLES_MAX {
            return Err((place, Fault::TooManySamples));
        }
        let mut time_us = None;
        fields.clear();
        for (cell, column) in cells() {
            match column {
                CsvColumn::Skip => {}
                CsvColumn::Time => time_us = time::from_text(cell, format.time_unit).filter(|t| usable(*t, format)),
                CsvColumn::Channel(name) => {
                    fields.push((name.as_str(), number(cell, decimal_comma).map_or(f32::NAN, finite)));
                }
            }
        }
        rows.report.times_replaced += u64::from(time_us.is_none() && format.columns.contains(&CsvColumn::Time));
        rows.push(None, time_us.unwrap_or(received_us), &fields);
    }
    if samples == 0 {
        return Err((Place::Whole, Fault::Empty));
    }
    Ok(())
}

/// A recognised unit must give a plausible time; a configured one is taken at its word.
fn usable(time_us: i64, format: &CsvFormat) -> bool {
    format.time_unit != crate::config::TimeUnit::Auto || time::is_plausible(time_us)
}

fn is_header<'c>(mut cells: impl Iterator<Item = (&'c str, &'c CsvColumn)>) -> bool {
    cells.any(|(cell, column)| matches!(column, CsvColumn::Channel(name) if name.as_str() == cell))
}

/// A cell without blanks and without the quotes around it.
fn cell(raw: &str) -> &str {
    let raw = raw.trim();
    raw.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(raw)
}

/// As an `f32`; what it cannot hold is missing.
fn finite(number: f64) -> f32 {
    let number = number as f32;
    if number.is_finite() { number } else { f32::NAN }
}

fn utf8(payload: &[u8]) -> Faulty<&str> {
    if payload.is_empty() {
        return Err((Place::Whole, Fault::Empty));
    }
    std::str::from_utf8(payload).map_err(|error| (Place::Byte(error.valid_up_to()), Fault::NotText))
}
