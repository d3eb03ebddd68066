//! Mistakes in a configuration file, and how they are told.
//!
//! Owns the one line that a mistake becomes: `gateway.toml:LINE:COLUMN: [section] key: what is wrong; what to do`.
//! Never decides what a mistake is.

use std::fmt;

/// One mistake, or one warning: where it is, what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The section and key, such as `[broker] listen`; empty when the file as a whole is meant.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it; may be empty when `what` says it all.
    pub remedy: String,
}

impl Mistake {
    /// The line that a person reads, with the file's name in front as compilers do it.
    pub fn line_for(&self, file: &str) -> String {
        let Mistake { line, column, place, what, remedy } = self;
        let mut text = format!("{file}:{line}:{column}: ");
        if !place.is_empty() {
            text.push_str(place);
            text.push_str(": ");
        }
        text.push_str(what);
        if !remedy.is_empty() {
            text.push_str("; ");
            text.push_str(remedy);
        }
        text
    }
}

/// Every mistake of one configuration file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// The file as it was named.
    pub file: String,
    /// At least one.
    pub mistakes: Vec<Mistake>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}", mistake.line_for(&self.file))?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}; check the path and its permissions")]
    Unreadable {
        /// The file as it was named.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too large to be a configuration.
    #[error("{file}: has {bytes} bytes, a configuration has at most {bytes_max}; check the path")]
    TooLarge {
        /// The file as it was named.
        file: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The file holds mistakes: one line each.
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// The candidate that `typed` was most probably meant to be: the one with the fewest edits, if these are few.
pub(super) fn suggestion<'c>(typed: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // A third of the characters: `lisen` is `listen`, `port` is not `path`.
    let edits_max = (typed.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edits(typed, candidate), candidate))
        .filter(|(edits, _)| *edits <= edits_max)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Inserted, dropped, changed and swapped neighbouring characters between two words (optimal string alignment).
fn edits(left: &str, right: &str) -> usize {
    // Keys have at most some 30 characters; what is longer is cut, so that a hostile key costs nothing.
    const CHARS_MAX: usize = 64;
    let left: Vec<char> = left.chars().take(CHARS_MAX).map(|c| c.to_ascii_lowercase()).collect();
    let right: Vec<char> = right.chars().take(CHARS_MAX).map(|c| c.to_ascii_lowercase()).collect();
    let width = right.len() + 1;
    let mut before: Vec<usize> = vec![0; width];
    let mut last: Vec<usize> = (0..width).collect();
    for (row, l) in left.iter().enumerate() {
        let mut current = vec![row + 1; width];
        for (column, r) in right.iter().enumerate() {
            let changed = last[column] + usize::from(l != r);
            let mut fewest = changed.min(last[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && *l == right[column - 1] && left[row - 1] == *r {
                fewest = fewest.min(before[column - 1] + 1);
            }
            current[column + 1] = fewest;
        }
        before = std::mem::replace(&mut last, current);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    // The number of edits is what a person would count.
    #[test]
    fn edits_are_counted() {
        for (left, right, expected) in [
            ("listen", "listen", 0),
            ("lisen", "listen", 1),
            ("lsiten", "listen", 1),
            ("quota", "quota_mb", 3),
            ("", "abc", 3),
            ("abc", "", 3),
            ("Listen", "listen", 0),
        ] {
            assert_eq!(edits(left, right), expected, "{left} {right}");
        }
    }

    // A near miss gets a suggestion, a far one none.
    #[test]
    fn near_misses_are_recognised() {
        let keys = ["listen", "max_connections", "max_packet_bytes"];
        assert_eq!(suggestion("lisetn", keys), Some("listen"));
        assert_eq!(suggestion("max_connection", keys), Some("max_connections"));
        assert_eq!(suggestion("colour", keys), None);
        assert_eq!(suggestion("", keys), None);
    }

    // A mistake is one line in the form that editors jump to.
    #[test]
    fn a_mistake_is_one_line() {
        let mistake = Mistake {
            line: 3,
            column: 10,
            place: "[broker] listen".into(),
            what: "no port".into(),
            remedy: "add one".into(),
        };
        assert_eq!(mistake.line_for("gateway.toml"), "gateway.toml:3:10: [broker] listen: no port; add one");
    }
}
