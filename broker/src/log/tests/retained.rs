//! Retained messages.

use super::*;
use crate::topic::TopicFilter;

fn matching(log: &Log, filter: &str) -> Vec<String> {
    let found = log.retained().matching(&TopicFilter::parse(filter).unwrap());
    found.iter().map(|retained| retained.message.topic.to_string()).collect()
}

fn payload(log: &Log, topic: &str) -> Option<Bytes> {
    log.retained().get(&TopicName::parse(topic).unwrap()).map(|retained| retained.message.payload.clone())
}

// The last retained message of a topic survives a restart; an empty one deletes it; one that is not logged takes no
// offset.
#[tokio::test]
async fn retained_messages_survive() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    let mut unlogged = retain("c", "3");
    unlogged.log = false;
    unlogged.message.properties = Bytes::from_static(b"\x01\x00");
    log.append(vec![retain("a", "1"), retain("b", "2"), unlogged.clone(), append("b", "live")]).await.unwrap();
    log.append(vec![retain("a", "1b"), retain("b", "")]).await.unwrap();
    let check = |log: &Log| {
        assert_eq!(matching(log, "#"), vec!["a", "c"]);
        let a = log.retained().get(&TopicName::parse("a").unwrap()).unwrap();
        assert_eq!(
            (&*a.message.payload, a.offset, a.stored_us, a.message.retain),
            (b"1b".as_slice(), Some(Offset(4)), 1_000, true)
        );
        let c = log.retained().get(&TopicName::parse("c").unwrap()).unwrap();
        assert_eq!((&c.message, c.offset), (&unlogged.message, None));
    };
    check(&log);
    assert_eq!(log.head(), Offset(6));
    log.close();
    let log = open(config(dir.path()));
    check(&log);
    assert_eq!(log.head(), Offset(6));
}

// A message is retained when its publisher is told, not before its commit.
#[tokio::test]
async fn retained_after_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append(vec![retain("a", "1")]).await.unwrap();
    assert_eq!(payload(&log, "a"), Some(Bytes::from_static(b"1")));
    let other = peek(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.append(vec![retain("a", "2")]).await }
    });
    until("the writer is held", || log.stats().full.is_some()).await;
    assert_eq!(payload(&log, "a"), Some(Bytes::from_static(b"1")));
    let mut changes = log.retained().watch();
    other.execute_batch("COMMIT").unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(payload(&log, "a"), Some(Bytes::from_static(b"2")));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    log.append(vec![append("a", "not retained")]).await.unwrap();
    assert!(!changes.has_changed().unwrap());
}

// Filters find what they match and nothing else, in topic order.
#[tokio::test]
async fn filters_find_retained_messages() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    let topics = ["a", "a/b", "a/b/c", "a/x/c", "a-b", "ab/c", "b/b/c", "$sys/b", "/b", "ä/b"];
    log.append(topics.iter().map(|topic| retain(topic, "x")).collect()).await.unwrap();
    let all: Vec<TopicName> = {
        let mut all: Vec<TopicName> = topics.iter().map(|topic| TopicName::parse(topic).unwrap()).collect();
        all.sort();
        all
    };
    for filter in
        ["#", "a", "a/#", "a/+", "a/+/c", "+/b", "+/+/c", "a/b/#", "/+", "$sys/#", "ä/+", "none/#", "+", "$share/g/a/#"]
    {
        let parsed = TopicFilter::parse(filter).unwrap();
        let expected: Vec<String> = all.iter().filter(|topic| parsed.matches(topic)).map(ToString::to_string).collect();
        assert_eq!(matching(&log, filter), expected, "{filter}");
    }
}

// Volatile messages are in memory only: a stored one replaces them, an empty one deletes them, a restart ends them.
#[tokio::test]
async fn volatile_messages_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(config(dir.path()));
    log.append(vec![retain("both", "stored")]).await.unwrap();
    for topic in ["both", "health", "gone"] {
        log.retained().set_volatile(message(topic, "volatile")).unwrap();
    }
    log.retained().set_volatile(message("gone", "")).unwrap();
    assert_eq!(matching(&log, "#"), vec!["both", "health"]);
    assert_eq!(payload(&log, "both"), Some(Bytes::from_static(b"volatile")));
    assert!(log.retained().get(&TopicName::parse("health").unwrap()).unwrap().message.retain);
    log.append(vec![retain("health", "stored")]).await.unwrap();
    assert_eq!(payload(&log, "health"), Some(Bytes::from_static(b"stored")));
    log.close();
    let log = open(config(dir.path()));
    assert_eq!(payload(&log, "both"), Some(Bytes::from_static(b"stored")));
    assert_eq!(matching(&log, "#"), vec!["both", "health"]);
}

// Both kinds are bounded, each at exactly its limit; replacing and deleting always work, and a refused batch changes
// nothing.
#[tokio::test]
async fn retained_messages_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { retained_count_max: 3, retained_bytes_max: 2_000, ..Limits::default() };
    let log = open(LogConfig { limits: limits.clone(), ..config(dir.path()) });
    let full = AppendError::RetainedLimit { count_max: 3, bytes_max: 2_000 };
    log.append(vec![retain("a", "1"), retain("b", "2")]).await.unwrap();
    assert_eq!(log.append(vec![retain("a", "changed"), retain("c", "3"), retain("d", "4")]).await, Err(full.clone()));
    assert_eq!((payload(&log, "a"), log.head()), (Some(Bytes::from_static(b"1")), Offset(3)));
    log.append(vec![retain("b", ""), retain("c", "3"), retain("d", "4")]).await.unwrap();
    // Each costs 200 bytes, its topic and its payload: 3 × 201 + 2 are taken.
    assert_eq!(log.append(vec![retain("a", vec![0; 1_397])]).await, Err(full));
    log.append(vec![retain("a", vec![0; 1_395])]).await.unwrap();
    for topic in ["x", "y", "z"] {
        log.retained().set_volatile(message(topic, "v")).unwrap();
    }
    assert!(log.retained().set_volatile(message("w", "v")).is_err());
    log.retained().set_volatile(message("x", "again")).unwrap();
    assert_eq!(log.retained().len(), 6);
    log.close();
    let log = open(LogConfig { limits, ..config(dir.path()) });
    assert!(log.append(vec![retain("e", "5")]).await.is_err(), "the limit is kept after a restart");
}
