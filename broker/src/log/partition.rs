//! The list of partition tables, oldest first, as the writer sees it.
//!
//! Offsets have no holes between partitions: one ends where the next begins, the newest at the head. Owns no
//! connection.

use std::collections::VecDeque;
use std::sync::Arc;

use super::schema;

/// One partition table.
#[derive(Debug, Clone)]
pub(crate) struct Partition {
    /// The number in its name; never used twice.
    pub(crate) number: u32,
    /// The first offset it holds.
    pub(crate) first: u64,
    /// Bytes of its payloads and properties with the rows' overhead; an estimate after a restart.
    pub(crate) bytes: u64,
    /// The statement that inserts into it.
    pub(crate) insert_sql: Arc<str>,
}

impl Partition {
    /// A partition that begins at `first`.
    pub(crate) fn new(number: u32, first: u64) -> Partition {
        Partition { number, first, bytes: 0, insert_sql: Arc::from(schema::insert_sql(number)) }
    }
}

/// A point to return to when a transaction fails.
#[derive(Debug)]
pub(crate) struct Mark {
    count: usize,
    newest_bytes: u64,
    next_number: u32,
    roll: bool,
}

/// The partitions, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    list: VecDeque<Partition>,
    next_number: u32,
    /// The newest must not be written any more.
    roll: bool,
}

impl Partitions {
    /// The partitions found in the file, oldest first.
    pub(crate) fn new(list: VecDeque<Partition>, next_number: u32) -> Partitions {
        Partitions { list, next_number, roll: false }
    }

    /// The one that retention would drop.
    pub(crate) fn oldest(&self) -> Option<&Partition> {
        self.list.front()
    }

    /// The offset behind the oldest partition: where the next begins, or the head.
    pub(crate) fn oldest_end(&self, head: u64) -> u64 {
        self.list.get(1).map_or(head, |next| next.first)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Forgets the oldest, which was dropped.
    pub(crate) fn remove_oldest(&mut self) {
        self.list.pop_front();
    }

    /// The newest, if it may take a row that gets `offset`.
    pub(crate) fn writable(&mut self, offset: u64, rows_max: u64, bytes_max: u64) -> Option<&mut Partition> {
        if self.roll {
            return None;
        }
        self.list.back_mut().filter(|newest| offset.saturating_sub(newest.first) < rows_max && newest.bytes < bytes_max)
    }

    /// Begins a partition at `first` and gives it.
    pub(crate) fn begin(&mut self, first: u64) -> &mut Partition {
        self.roll = false;
        let number = self.next_number.max(1);
        self.next_number = number.saturating_add(1);
        self.list.push_back(Partition::new(number, first));
        let newest = self.list.len() - 1;
        &mut self.list[newest]
    }

    /// The number that the next partition gets.
    pub(crate) fn next_number(&self) -> u32 {
        self.next_number.max(1)
    }

    /// Writes no more rows into the newest: its pages are damaged.
    pub(crate) fn roll(&mut self) {
        self.roll = true;
    }

    /// Remembers the state before a transaction.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            count: self.list.len(),
            newest_bytes: self.list.back().map_or(0, |newest| newest.bytes),
            next_number: self.next_number,
            roll: self.roll,
        }
    }

    /// Returns to the state before a transaction that failed.
    pub(crate) fn rewind(&mut self, mark: &Mark) {
        self.list.truncate(mark.count);
        if let Some(newest) = self.list.back_mut() {
            newest.bytes = mark.newest_bytes;
        }
        self.next_number = mark.next_number;
        self.roll = mark.roll;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // A partition takes rows up to exactly its row limit, and up to the row that reaches its byte limit.
    #[test]
    fn partition_limits_are_exact() {
        let mut partitions = Partitions::default();
        assert!(partitions.writable(1, 10, 100).is_none());
        partitions.begin(1);
        assert!(partitions.writable(10, 10, 100).is_some());
        assert!(partitions.writable(11, 10, 100).is_none());
        partitions.writable(2, 10, 100).unwrap().bytes = 99;
        assert!(partitions.writable(3, 10, 100).is_some());
        partitions.writable(3, 10, 100).unwrap().bytes = 100;
        assert!(partitions.writable(3, 10, 100).is_none());
    }

    // After a failed transaction the list is what it was, and a number is given again only if it was never stored.
    #[test]
    fn a_failed_transaction_leaves_no_partition() {
        let mut partitions = Partitions::default();
        partitions.begin(1).bytes = 7;
        let mark = partitions.mark();
        partitions.writable(2, 10, 100).unwrap().bytes = 50;
        partitions.begin(5);
        assert_eq!((partitions.len(), partitions.next_number(), partitions.oldest_end(9)), (2, 3, 5));
        partitions.rewind(&mark);
        assert_eq!((partitions.len(), partitions.next_number(), partitions.oldest_end(9)), (1, 2, 9));
        assert_eq!(partitions.writable(2, 10, 100).unwrap().bytes, 7);
    }
}
