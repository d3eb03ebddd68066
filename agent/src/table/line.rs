//! Lines of separated values.
//!
//! Owns the splitting of a line into cells and the bound on a line's length: telemetry has one row a line, so a quote
//! that is never closed spoils its line and not the rest of the file. Never interprets a cell.

use std::io::{self, BufRead, Read};

/// The longest line, in bytes: 64 channels and as many other columns at 512 bytes each.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;

/// What reading a line gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineRead {
    Line,
    End,
    TooLong,
}

/// Reads the next line into `line`, without its end.
pub(super) fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<LineRead> {
    line.clear();
    // One byte more than allowed, and a line end, so that what is too long is seen to be.
    let read = input.take(LINE_BYTES_MAX as u64 + 2).read_until(b'\n', line)?;
    if read == 0 {
        return Ok(LineRead::End);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(if line.len() > LINE_BYTES_MAX { LineRead::TooLong } else { LineRead::Line })
}

/// Splits a line into its cells, without blanks and quotes around them.
pub(super) fn split(line: &str, separator: u8) -> Vec<&str> {
    let mut cells = Vec::new();
    let mut rest = Some(line);
    while let Some(text) = rest {
        let (cell, after) = match quoted(text, separator) {
            Some(split) => split,
            None => match text.split_once(char::from(separator)) {
                Some((cell, after)) => (cell, Some(after)),
                None => (text, None),
            },
        };
        cells.push(cell.trim());
        rest = after;
    }
    cells
}

/// A cell in quotes, if `text` begins with one that is closed and ends there, and what follows it. Doubled quotes
/// within stay doubled: only names have them.
fn quoted(text: &str, separator: u8) -> Option<(&str, Option<&str>)> {
    let inner = text.trim_start_matches(' ').strip_prefix('"')?;
    let mut from = 0;
    loop {
        let end = from + inner.get(from..)?.find('"')?;
        let after = inner.get(end + 1..)?;
        if after.starts_with('"') {
            from = end + 2;
            continue;
        }
        let after = after.trim_start_matches(' ');
        let cell = inner.get(..end)?;
        return match after.strip_prefix(char::from(separator)) {
            Some(rest) => Some((cell, Some(rest))),
            None if after.is_empty() => Some((cell, None)),
            None => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Cells are split at separators outside of quotes, and a broken quote spoils no other line.
    #[test]
    fn lines_are_split() {
        let check = |line: &str, expected: &[&str]| assert_eq!(split(line, b';'), expected, "{line}");
        check("", &[""]);
        check("a;b", &["a", "b"]);
        check(" a ;; b;", &["a", "", "b", ""]);
        check("\"a;b\";c", &["a;b", "c"]);
        check("\"a\" ; \"\"", &["a", ""]);
        check("\"say \"\"x;y\"\"\";1", &["say \"\"x;y\"\"", "1"]);
        check("\"open;1", &["\"open", "1"]);
        check("\"a\"b;1", &["\"a\"b", "1"]);
    }

    // The longest line is read, one byte more is not, and line ends of both kinds are dropped.
    #[test]
    fn lines_are_bounded() {
        let mut line = Vec::new();
        for (extra, expected) in [(0, LineRead::Line), (1, LineRead::TooLong), (100, LineRead::TooLong)] {
            let text = format!("{}\n", "x".repeat(LINE_BYTES_MAX + extra));
            assert_eq!(read_line(&mut text.as_bytes(), &mut line).unwrap(), expected);
        }
        let mut text = &b"a\r\nb"[..];
        for (expected, found) in [(LineRead::Line, "a"), (LineRead::Line, "b"), (LineRead::End, "")] {
            assert_eq!(read_line(&mut text, &mut line).unwrap(), expected);
            assert_eq!(line, found.as_bytes());
        }
    }
}
