//! The ring and its readers: bounds, order, counts, and that nobody sleeps through a message.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::ring::{
    BATCH_BYTES, BYTES_MAX, HELD_BACK_BYTES, HELD_BACK_MESSAGES, INBOX_MAX, MESSAGE_BYTES, MESSAGES_MAX,
};
use super::*;
use crate::topic::TopicName;

/// Longer than any test takes; one that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).unwrap()
}

/// A message that carries a number, with a payload of so many bytes but at least 8.
fn sized(topic: &str, number: u64, bytes: usize) -> Message {
    let mut payload = vec![0; bytes.max(8)];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    Message {
        topic: TopicName::parse(topic).unwrap(),
        payload: payload.into(),
        properties: Bytes::new(),
        qos: QoS::AtMostOnce,
        retain: false,
        origin: 7,
    }
}

fn message(topic: &str, number: u64) -> Message {
    sized(topic, number, 8)
}

/// A batch of `count` messages of so many bytes, wanted by these slots.
fn batch_of(count: usize, number: u64, bytes: usize, slots: u64) -> Batch {
    let messages = (0..count).map(|_| sized("t", number, bytes)).collect();
    Batch::new(messages, vec![slots; count], [slots, 0])
}

fn batch(slots: u64, number: u64) -> Batch {
    batch_of(1, number, 8, slots)
}

fn number(message: &Message) -> u64 {
    u64::from_be_bytes(*message.payload.first_chunk().unwrap())
}

fn numbers(batches: &[Arc<Batch>], wants: SlotSet) -> Vec<u64> {
    batches.iter().flat_map(|batch| batch.wanted(wants)).map(number).collect()
}

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A reader of a bare ring, and its waker.
struct Reading<'r> {
    ring: &'r Ring,
    key: ReaderKey,
    wants: SlotSet,
    wakes: Arc<Wakes>,
}

impl<'r> Reading<'r> {
    fn new(ring: &'r Ring, slots: u64) -> Reading<'r> {
        let mut reading = Reading { ring, key: ring.join(), wants: [0; 2], wakes: Arc::default() };
        reading.want(slots);
        reading
    }

    fn want(&mut self, slots: u64) {
        self.wants = [slots, 0];
        self.ring.set_wants(self.key, self.wants);
    }

    /// The numbers of what comes at once; `None` if it sleeps from now on.
    fn take(&self) -> Option<Vec<u64>> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        match self.ring.poll_take(self.key, &Context::from_waker(&waker)) {
            Poll::Ready(batches) => Some(numbers(&batches, self.wants)),
            Poll::Pending => None,
        }
    }

    /// Everything, until it sleeps.
    fn take_all(&self) -> Vec<u64> {
        std::iter::from_fn(|| self.take()).flatten().collect()
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::Relaxed)
    }
}

// A push wakes the readers that sleep and want it, once: one that is awake and one that wants something else are left
// alone.
#[test]
fn a_push_wakes_who_sleeps_and_wants_it() {
    let ring = Ring::default();
    let [one, other, awake] = [0b01, 0b10, 0b11].map(|slots| Reading::new(&ring, slots));
    assert_eq!((one.take(), other.take()), (None, None));
    ring.push(batch(0b01, 1));
    ring.push(batch(0b01, 2));
    assert_eq!((one.wakes(), other.wakes(), awake.wakes()), (1, 0, 0));
    assert_eq!((one.take(), one.take(), one.take()), (Some(vec![1, 2]), None, None));
    ring.push(batch(0b11, 3));
    assert_eq!((one.wakes(), other.wakes(), awake.wakes()), (2, 1, 0));
    assert_eq!((one.take_all(), other.take_all(), awake.take_all()), (vec![3], vec![3], vec![1, 2, 3]));
    ring.push(batch(0b100, 4));
    assert_eq!((one.wakes(), other.wakes(), awake.wakes(), ring.size()), (2, 1, 0, (0, 0)));
}

// A batch stays until the last reader that wants it has taken it, or is gone, and not longer.
#[test]
fn a_batch_leaves_with_its_last_reader() {
    let ring = Ring::default();
    let [one, other, mut third] = [1, 1, 1].map(|slots| Reading::new(&ring, slots));
    ring.push(batch(1, 1));
    let size = (1, BATCH_BYTES + MESSAGE_BYTES + 8);
    assert_eq!((one.take(), ring.size()), (Some(vec![1]), size));
    assert_eq!((other.take(), ring.size()), (Some(vec![1]), size));
    third.want(0b10);
    assert_eq!((third.take(), ring.size()), (None, (0, 0)));
    ring.push(batch(0b11, 2));
    assert_eq!((one.take(), other.take(), ring.size()), (Some(vec![2]), Some(vec![2]), size));
    ring.leave(third.key);
    assert_eq!((ring.size(), ring.dropped()), ((0, 0), 0));
}

// The oldest batches leave when messages or bytes exceed their bound, not when they reach it. Each message counts once
// for each reader that had not taken it and whose slots wanted it.
#[test]
fn the_ring_is_bounded() {
    let ring = Ring::default();
    let [behind, also_behind, up_to_date] = [0b01, 0b10, 0b11].map(|slots| Reading::new(&ring, slots));
    let many = |slots: [u64; 2], number: u64| {
        let each: Vec<u64> = slots.into_iter().cycle().take(MESSAGES_MAX / 2).collect();
        let messages = each.iter().map(|_| message("t", number)).collect();
        Batch::new(messages, each, [slots[0] | slots[1], 0])
    };
    ring.push(many([0b01, 0b11], 1));
    ring.push(many([0b10, 0b10], 2));
    assert_eq!(up_to_date.take_all().len(), MESSAGES_MAX);
    assert_eq!((ring.size().0, ring.dropped()), (MESSAGES_MAX, 0));
    ring.push(batch(0b01, 3));
    // Of the first batch, `behind` wanted all and `also_behind` every other message.
    let dropped = (MESSAGES_MAX / 2 + MESSAGES_MAX / 4) as u64;
    assert_eq!((ring.size().0, ring.dropped()), (MESSAGES_MAX / 2 + 1, dropped));
    assert_eq!((behind.take(), behind.take()), (Some(vec![3]), None));
    assert_eq!(also_behind.take_all(), vec![2; MESSAGES_MAX / 2]);
    assert_eq!((up_to_date.take_all(), ring.size(), ring.dropped()), (vec![3], (0, 0), dropped));

    let large = |bytes: usize| batch_of(1, 0, bytes - BATCH_BYTES - MESSAGE_BYTES, 1);
    ring.push(large(BYTES_MAX / 2));
    ring.push(large(BYTES_MAX / 2));
    assert_eq!((ring.size(), ring.dropped()), ((2, BYTES_MAX), dropped));
    assert_eq!((behind.take_all().len(), up_to_date.take_all().len()), (2, 2));
    ring.push(large(BYTES_MAX / 2));
    ring.push(large(BYTES_MAX / 2 + 1));
    assert_eq!((ring.size(), ring.dropped()), ((1, BYTES_MAX / 2 + 1), dropped + 2));
    // One that is larger than the bound is held alone.
    ring.push(large(2 * BYTES_MAX));
    assert_eq!((ring.size(), ring.dropped()), ((1, 2 * BYTES_MAX), dropped + 4));
}

// Publishers are asked to wait when messages or bytes are beyond the mark, not at it.
#[test]
fn publishers_are_held_back_beyond_the_mark() {
    let ring = Ring::default();
    let reading = Reading::new(&ring, 1);
    assert!(!ring.push(batch_of(HELD_BACK_MESSAGES, 0, 8, 1)));
    assert!(ring.push(batch(1, 1)));
    assert_eq!(reading.take_all().len(), HELD_BACK_MESSAGES + 1);
    assert!(!ring.push(batch_of(1, 0, HELD_BACK_BYTES - BATCH_BYTES - MESSAGE_BYTES, 1)));
    assert!(ring.push(batch(1, 1)));
}

// A publisher that waits goes on when half of what held it back was taken, or at its deadline.
#[tokio::test]
async fn waiting_for_room() {
    let ring = Ring::default();
    let reading = Reading::new(&ring, 1);
    let part = HELD_BACK_MESSAGES / 4;
    let push = || ring.push(batch_of(part, 0, 64, 1));
    assert_eq!([push(), push(), push(), push(), push()], [false, false, false, false, true]);
    ring.room(Instant::now() + Duration::from_millis(5)).await;
    let waits = ring.room(Instant::now() + PATIENCE);
    let takes = async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
            assert_eq!(reading.take().map(|taken| taken.len()), Some(part));
        }
    };
    tokio::time::timeout(PATIENCE / 2, async { tokio::join!(waits, takes) }).await.unwrap();
    ring.room(Instant::now() + PATIENCE).await;
}

// A message for one reader comes to it alone, in its place among the others; a reader that is gone, whoever has its place
// now, and one with a full inbox do not take it.
#[test]
fn messages_for_one_reader() {
    let ring = Ring::default();
    let [one, other] = [1, 1].map(|slots| Reading::new(&ring, slots));
    let only = |number: u64| Batch::only(message("elsewhere", number), filter("$share/g/#"));
    assert_eq!(one.take(), None);
    assert!(ring.push_for(one.key, only(1)));
    ring.push(batch(1, 2));
    assert!(ring.push_for(one.key, only(3)) && ring.push_for(other.key, only(4)));
    assert_eq!((one.wakes(), one.take_all(), other.take_all()), (1, vec![1, 2, 3], vec![2, 4]));
    assert_eq!(ring.size(), (0, 0));
    for number in 0..u64::from(INBOX_MAX) {
        assert!(ring.push_for(one.key, only(number)));
    }
    assert!(!ring.push_for(one.key, only(0)), "its inbox is full");
    assert_eq!(one.take_all().len(), INBOX_MAX as usize);
    assert!(ring.push_for(one.key, only(0)));
    ring.leave(one.key);
    let newcomer = Reading::new(&ring, 1);
    assert!(!ring.push_for(one.key, only(0)));
    assert_eq!((newcomer.take_all(), ring.size(), ring.dropped()), (vec![], (0, 0), 0));
}

// Messages come for the filters that a reader has at the time, and for no others; dropped, it takes them back.
#[tokio::test]
async fn readers_get_what_their_filters_want() {
    let live = Live::default();
    let publish = |topics: &[&str]| live.publish(topics.iter().map(|topic| message(topic, 1)).collect());
    publish(&["a/b"]);
    let (mut reader, mut other) = (live.reader(), live.reader());
    reader.set(&filter("a/+"), Some(QoS::AtMostOnce));
    other.set(&filter("a/b"), Some(QoS::AtLeastOnce));
    publish(&["a/b", "c", "a/c"]);
    let topics = async |reader: &mut Reader| {
        let (batches, wants) = (reader.next().await, reader.wants());
        let messages = batches.iter().flat_map(|batch| batch.wanted(wants));
        messages.map(|message| message.topic.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(topics(&mut reader).await, ["a/b", "a/c"]);
    assert_eq!(topics(&mut other).await, ["a/b"]);
    // Durable messages come live to subscriptions at QoS 0 only.
    live.publish(vec![Message { qos: QoS::AtLeastOnce, ..message("a/b", 2) }, message("a/b", 3)]);
    assert_eq!((topics(&mut reader).await.len(), topics(&mut other).await.len()), (2, 1));
    assert!(live.publish_to(other.key(), filter("$share/g/x"), message("x", 4)));
    assert_eq!(topics(&mut other).await, ["x"]);
    reader.set(&filter("a/+"), None);
    assert!(!live.wants(QoS::AtLeastOnce) && live.wants(QoS::AtMostOnce));
    let key = other.key();
    drop(other);
    assert!(!live.wants(QoS::AtMostOnce) && !live.publish_to(key, filter("x"), message("x", 5)));
    assert_eq!((live.shared.ring.size(), live.dropped()), ((0, 0), 0));
}

#[derive(Debug, Clone)]
enum Step {
    Push { slots: u64, kib: usize },
    PushFor { reader: usize },
    Take { reader: usize },
    Want { reader: usize, slots: u64 },
    Replace { reader: usize, slots: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..8_u64, prop_oneof![9 => Just(0_usize), 1 => 0..3_000_usize])
            .prop_map(|(slots, kib)| Step::Push { slots, kib }),
        2 => (0..4_usize).prop_map(|reader| Step::PushFor { reader }),
        6 => (0..4_usize).prop_map(|reader| Step::Take { reader }),
        2 => (0..4_usize, 0..8_u64).prop_map(|(reader, slots)| Step::Want { reader, slots }),
        1 => (0..4_usize, 0..8_u64).prop_map(|(reader, slots)| Step::Replace { reader, slots }),
    ]
}

proptest! {
    // Whatever is pushed, taken and changed in whatever order: a reader gets only what it wants, in order, and all that
    // it wanted all the time or it is counted; in the end the ring is empty.
    #[test]
    fn whatever_happens(steps in prop::collection::vec(step(), 1..200), changes: bool) {
        let ring = Ring::default();
        let mut readers: Vec<Reading<'_>> = (0..4).map(|reader| Reading::new(&ring, 1 << (reader % 3))).collect();
        // What each reader must get: number to slots, 0 if it is for it alone; and the last number that it got.
        let mut due: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); 4];
        let mut last = [0; 4];
        let mut missing = 0;
        for (number, step) in (1..).zip(steps) {
            match step {
                Step::Push { slots, kib } => {
                    ring.push(batch_of(1, number, kib * 1024, slots));
                    for (_, due) in readers.iter().zip(&mut due).filter(|(reading, _)| reading.wants[0] & slots != 0) {
                        due.insert(number, slots);
                    }
                }
                Step::PushFor { reader } => {
                    let only = Batch::only(message("t", number), filter("t"));
                    prop_assert!(ring.push_for(readers[reader].key, only));
                    due[reader].insert(number, 0);
                }
                Step::Take { reader } => {
                    // What was wanted later only may come too, if it is still there.
                    for got in readers[reader].take().unwrap_or_default() {
                        prop_assert!(last[reader] < got);
                        missing += due[reader].range(..got).count() as u64;
                        due[reader] = due[reader].split_off(&(got + 1));
                        last[reader] = got;
                    }
                }
                Step::Want { .. } if !changes => {}
                Step::Want { reader, slots } => {
                    readers[reader].want(slots);
                    due[reader].retain(|_, wanted| *wanted == 0 || *wanted & slots != 0);
                }
                Step::Replace { reader, slots } => {
                    // What was dropped before it goes was counted; what is there is not.
                    let before = ring.dropped();
                    let got = readers[reader].take_all();
                    prop_assert_eq!(ring.dropped(), before);
                    missing += due[reader].keys().filter(|number| !got.contains(number)).count() as u64;
                    due[reader].clear();
                    ring.leave(readers[reader].key);
                    readers[reader] = Reading::new(&ring, slots);
                    last[reader] = 0;
                }
            }
        }
        for (reading, due) in readers.iter().zip(&due) {
            let got = reading.take_all();
            missing += due.keys().filter(|number| !got.contains(number)).count() as u64;
        }
        prop_assert_eq!(ring.size(), (0, 0));
        // Less if a reader stopped wanting what it had lost already, more if it lost what it wanted later only.
        prop_assert!(missing <= ring.dropped(), "{} are missing, {} are counted", missing, ring.dropped());
        prop_assert!(changes || missing == ring.dropped(), "{} are missing, {} are counted", missing, ring.dropped());
    }
}

// Nobody sleeps through a message: readers on several threads, that come, go and change their filters, get everything of
// publishers on several threads that wait when they are asked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost() {
    const PUBLISHERS: u64 = 3;
    const READERS: u64 = 6;
    const COUNT: u64 = 3_000;
    let live = Live::default();
    let mut reading = Vec::new();
    for own in 0..READERS {
        let mut reader = live.reader();
        reader.set(&filter("n/+"), Some(QoS::AtMostOnce));
        let live = live.clone();
        reading.push(tokio::spawn(async move {
            let mut next = [0; PUBLISHERS as usize];
            while next != [COUNT; PUBLISHERS as usize] {
                for batch in reader.next().await {
                    for message in batch.wanted(reader.wants()) {
                        let publisher: usize = message.topic.as_str()[2..].parse().unwrap();
                        assert_eq!(number(message), next[publisher]);
                        next[publisher] += 1;
                    }
                }
                // Others come and go, and what it wants changes, while messages are on their way.
                let other = filter(&format!("other/{own}"));
                reader.set(&other, Some(QoS::AtMostOnce));
                drop(live.reader());
                reader.set(&other, None);
            }
        }));
    }
    for publisher in 0..PUBLISHERS {
        let live = live.clone();
        reading.push(tokio::spawn(async move {
            for number in 0..COUNT {
                if live.publish(vec![message(&format!("n/{publisher}"), number)]) {
                    live.room(Instant::now() + PATIENCE).await;
                }
                // Now and then the readers have time to fall asleep.
                if number % 64 == publisher {
                    tokio::task::yield_now().await;
                }
            }
        }));
    }
    for task in reading {
        tokio::time::timeout(PATIENCE, task).await.expect("somebody sleeps").unwrap();
    }
    assert_eq!((live.dropped(), live.shared.ring.size()), (0, (0, 0)));
}
