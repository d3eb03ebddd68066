//! How much the gateway wrote to the device on a day.
//!
//! Owns the rows `written_day` and `written_bytes` of `meta`: one page of one commit each time, so that keeping them wears little.
//! Never counts; the conditions do. A file from before there were any says nothing, and a program that knows none leaves them alone.

use rusqlite::Connection;

use super::{State, StateError, meta, set_meta};

const DAY: &str = "written_day";
const BYTES: &str = "written_bytes";

/// What was written on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WrittenOn {
    /// UTC days since 1970.
    pub day: i64,
    /// Bytes sent to the device.
    pub bytes: u64,
}

pub(super) fn of(connection: &Connection) -> Result<Option<WrittenOn>, rusqlite::Error> {
    let (day, bytes) = (meta(connection, DAY)?, meta::<i64>(connection, BYTES)?);
    Ok(day.zip(bytes).map(|(day, bytes)| WrittenOn { day, bytes: u64::try_from(bytes).unwrap_or(0) }))
}

impl State {
    /// The last day that was stored.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn written(&self) -> Result<Option<WrittenOn>, StateError> {
        Ok(of(&self.reader())?)
    }

    /// Stores a day in the place of the last.
    ///
    /// # Errors
    /// SQLite fails; the last is kept then.
    pub fn store_written(&self, written: WrittenOn) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        set_meta(&transaction, DAY, written.day)?;
        set_meta(&transaction, BYTES, i64::try_from(written.bytes).unwrap_or(i64::MAX))?;
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A day is there after reopening, the next takes its place, and a file that has none says so.
    #[test]
    fn a_day_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let open = || State::open(dir.path()).unwrap().state;
        assert_eq!(open().written().unwrap(), None);
        for written in [WrittenOn { day: 20_000, bytes: 5 << 40 }, WrittenOn { day: 20_001, bytes: 0 }] {
            open().store_written(written).unwrap();
            assert_eq!(open().written().unwrap(), Some(written));
        }
    }
}
