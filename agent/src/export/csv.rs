//! A table as CSV: commas, a header, `\n`, UTF-8; quotes only where they are needed. [RFC 4180]
//!
//! Owns how values are written: times as `2026-03-02T06:00:00.250Z` with as many decimals as they have, values with the fewest digits that
//! give the same 32-bit number back, nothing for what is missing. Holds [`BUFFER_BYTES`].

use std::fmt::Write as _;
use std::io::{self, Write};

use super::table::{Cell, Column, TableWriter};
use crate::clock::SECOND_US;

/// Text that is gathered before it is written.
const BUFFER_BYTES: usize = 64 * 1024;

/// Writes CSV.
pub(crate) struct CsvWriter<'w> {
    out: &'w mut (dyn Write + Send),
    text: String,
}

impl<'w> CsvWriter<'w> {
    /// Writes the header.
    pub(crate) fn new(columns: &[Column], out: &'w mut (dyn Write + Send)) -> io::Result<CsvWriter<'w>> {
        let mut writer = CsvWriter { out, text: String::with_capacity(BUFFER_BYTES + 4_096) };
        let names: Vec<Cell<'_>> = columns.iter().map(|column| Cell::Text(&column.name)).collect();
        writer.row(&names)?;
        Ok(writer)
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.out.write_all(self.text.as_bytes())?;
        self.text.clear();
        Ok(())
    }
}

impl TableWriter for CsvWriter<'_> {
    fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        for (index, cell) in cells.iter().enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            push(&mut self.text, cell);
        }
        self.text.push('\n');
        if self.text.len() >= BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.out.flush()
    }
}

fn push(text: &mut String, cell: &Cell<'_>) {
    // Writing into a string does not fail.
    let _ = match cell {
        Cell::Empty => Ok(()),
        Cell::Time(time_us) => return push_time(text, *time_us),
        Cell::Text(value) => return push_text(text, value),
        Cell::Float(value) => write!(text, "{value}"),
        Cell::Number(number) => write!(text, "{number}"),
        Cell::Flag(flag) => write!(text, "{flag}"),
    };
}

fn push_time(text: &mut String, time_us: i64) {
    let Ok(time) = jiff::Timestamp::from_microsecond(time_us) else {
        // A time that no calendar holds is its number, which readers take as well.
        let _ = write!(text, "{time_us}");
        return;
    };
    let _ = match time_us {
        us if us % SECOND_US == 0 => write!(text, "{time:.0}"),
        us if us % 1_000 == 0 => write!(text, "{time:.3}"),
        _ => write!(text, "{time:.6}"),
    };
}

fn push_text(text: &mut String, value: &str) {
    let blank = |at: Option<char>| at.is_some_and(char::is_whitespace);
    let quoted =
        value.contains([',', '"', '\n', '\r', ';', '\t']) || blank(value.chars().next()) || blank(value.chars().last());
    if quoted {
        text.push('"');
        text.push_str(&value.replace('"', "\"\""));
        text.push('"');
    } else {
        text.push_str(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::table::Kind;
    use super::*;

    fn written(columns: &[Column], rows: &[&[Cell<'_>]]) -> String {
        let mut out = Vec::new();
        let mut writer = CsvWriter::new(columns, &mut out).unwrap();
        rows.iter().for_each(|row| writer.row(row).unwrap());
        writer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    // Times have the decimals they need, what is missing is empty, and a text that would end its cell is quoted.
    #[test]
    fn values_are_written_as_readers_take_them() {
        let columns = [
            Column::required("time", Kind::Time),
            Column::optional("flow, cold", Kind::Float),
            Column::optional("note", Kind::Text),
        ];
        let time = 1_772_431_200_000_000;
        let text = written(
            &columns,
            &[
                &[Cell::Time(time), Cell::float(31.91), Cell::Text("plain")],
                &[Cell::Time(time + 250_000), Cell::float(f32::NAN), Cell::Text("said \"no\"\nand left")],
                &[Cell::Time(time + 1), Cell::float(-0.0), Cell::Empty],
                &[Cell::Time(-1), Cell::float(1e-7), Cell::Text(" padded")],
                &[Cell::Time(i64::MAX), Cell::float(f32::INFINITY), Cell::Empty],
            ],
        );
        let expected = "time,\"flow, cold\",note\n\
            2026-03-02T06:00:00Z,31.91,plain\n\
            2026-03-02T06:00:00.250Z,,\"said \"\"no\"\"\nand left\"\n\
            2026-03-02T06:00:00.000001Z,-0,\n\
            1969-12-31T23:59:59.999999Z,0.0000001,\" padded\"\n\
            9223372036854775807,,\n";
        assert_eq!(text, expected);
    }

    proptest! {
        // Every finite value comes back from its text to the bit.
        #[test]
        fn values_are_exact(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            let mut text = String::new();
            push(&mut text, &Cell::Float(value));
            prop_assert_eq!(text.parse::<f32>().unwrap().to_bits(), bits);
        }
    }
}
