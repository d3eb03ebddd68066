//! The log against a vector.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    /// Append batches of so many rows together, each row of so many bytes on one of a few topics.
    Append {
        batches: Vec<Vec<(u8, u16)>>,
    },
    /// Move a cursor to a share of the log.
    Advance {
        cursor: u8,
        to: u8,
    },
    Forget {
        cursor: u8,
    },
    /// Close in order and open again.
    Reopen,
    /// Read from a share of the log, from memory or disk.
    Read {
        from: u8,
        rows: u8,
    },
    ReadDisk {
        from: u8,
        rows: u8,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let row = (0..4_u8, prop_oneof![0..50_u16, 4_000..60_000_u16]);
    let batches = prop::collection::vec(prop::collection::vec(row, 1..20), 1..4);
    prop_oneof![
        4 => batches.prop_map(|batches| Op::Append { batches }),
        2 => (0..3_u8, any::<u8>()).prop_map(|(cursor, to)| Op::Advance { cursor, to }),
        1 => (0..3_u8).prop_map(|cursor| Op::Forget { cursor }),
        1 => Just(Op::Reopen),
        2 => (any::<u8>(), 1..60_u8).prop_map(|(from, rows)| Op::Read { from, rows }),
        2 => (any::<u8>(), 1..60_u8).prop_map(|(from, rows)| Op::ReadDisk { from, rows }),
    ]
}

struct Model {
    rows: Vec<(String, Vec<u8>)>,
    cursors: [Option<u64>; 3],
}

impl Model {
    /// Advances the cursors when they keep so much that the log would be full.
    fn make_room(&mut self, log: &Log) {
        let kept = self.cursors.iter().flatten().min().copied().unwrap_or(u64::MAX);
        let bytes: usize = self.rows.iter().skip(kept as usize - 1).map(|(_, payload)| payload.len()).sum();
        if bytes > 3 << 20 {
            for (number, position) in self.cursors.iter_mut().enumerate().filter(|(_, position)| position.is_some()) {
                log.cursor(&format!("c{number}")).unwrap().advance(log.head());
                *position = Some(log.head().0);
            }
        }
    }

    fn position(&self, share: u8) -> Offset {
        Offset(1 + (self.rows.len() as u64) * u64::from(share) / 255)
    }

    /// What was read must be what was appended, from where it was asked for.
    fn check(&self, log: &Log, from: Offset, fetched: &Fetched) {
        if let Some(gap) = fetched.lost {
            assert_eq!((gap.from, gap.to, gap.kind), (from, log.oldest(), GapKind::Dropped));
            // No cursor is registered there: `refuse` keeps what they need.
            assert!(self.cursors.iter().flatten().all(|position| *position >= gap.to.0));
            assert_eq!((fetched.next, fetched.messages.len()), (gap.to, 0));
            return;
        }
        assert_eq!(fetched.messages.is_empty(), from == log.head());
        assert_eq!(fetched.next.0, from.0 + fetched.messages.len() as u64);
        for (message, offset) in fetched.messages.iter().zip(from.0..) {
            let (topic, payload) = &self.rows[offset as usize - 1];
            assert_eq!(message.offset.0, offset);
            assert_eq!(
                (message.message.topic.as_str(), &*message.message.payload),
                (topic.as_str(), payload.as_slice())
            );
        }
    }
}

fn configuration(dir: &Path) -> LogConfig {
    let limits = Limits {
        partition_rows_max: 40,
        partition_bytes_max: 100_000,
        tail_rows_max: 50,
        topics_max: 6,
        ..Limits::default()
    };
    LogConfig { limits, ..small(dir, WhenFull::Refuse) }
}

async fn run(ops: Vec<Op>) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(configuration(dir.path()));
    let mut model = Model { rows: Vec::new(), cursors: [None; 3] };
    for op in ops {
        match op {
            Op::Append { batches } => {
                for batch in batches {
                    model.make_room(&log);
                    let rows: Vec<(String, Vec<u8>)> = batch
                        .into_iter()
                        .map(|(topic, bytes)| (format!("t/{topic}"), vec![topic; bytes.into()]))
                        .collect();
                    let appends = rows.iter().map(|(topic, payload)| append(topic, payload.clone())).collect();
                    let first = log.append(appends).await.unwrap();
                    assert_eq!(first, Offset(model.rows.len() as u64 + 1));
                    model.rows.extend(rows);
                }
                assert_eq!(log.head(), Offset(model.rows.len() as u64 + 1));
            }
            Op::Advance { cursor, to } => {
                let handle = log.cursor(&format!("c{cursor}")).unwrap();
                let known = &mut model.cursors[usize::from(cursor)];
                assert!(known.is_none_or(|position| position == handle.position().0));
                let next = Offset(1 + model.rows.len() as u64 * u64::from(to) / 255);
                handle.advance(next);
                *known = Some(handle.position().0);
                assert!(handle.position() >= next && handle.position() <= log.head());
            }
            Op::Forget { cursor } => {
                if model.cursors[usize::from(cursor)].take().is_some() {
                    log.cursor(&format!("c{cursor}")).unwrap().forget();
                }
            }
            Op::Reopen => {
                let id = log.id();
                log.close();
                log = open(configuration(dir.path()));
                assert_eq!((log.id(), log.head()), (id, Offset(model.rows.len() as u64 + 1)));
                assert!(verify(dir.path()).unwrap().is_sound());
            }
            Op::Read { from, rows } => {
                let from = model.position(from);
                let fetched = log.fetch(from, FetchLimit { rows: rows.into(), bytes: 50_000 }).await.unwrap();
                model.check(&log, from, &fetched);
            }
            Op::ReadDisk { from, rows } => {
                let from = model.position(from);
                let mut disk = reader::DiskReader::open(&log.inner.shared.path).unwrap();
                let limit = FetchLimit { rows: rows.into(), bytes: 50_000 };
                model.check(&log, from, &disk.read(from.0, log.head().0, limit).unwrap());
            }
        }
    }
    assert_eq!(log.stats().lost_rows, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    // Whatever is appended, advanced, forgotten, reopened and read, in any order, the log agrees with a vector.
    #[test]
    fn the_log_is_a_vector(ops in prop::collection::vec(op(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(ops));
    }
}
