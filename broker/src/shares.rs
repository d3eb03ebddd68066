//! Shared subscriptions: each message of a group goes to one of its members. [MQTT-4.8.2]
//!
//! A group is a position in the log: everything before it was given to a member. Every member reads the log; the first that
//! comes to a message of the group gives it out, in turn, to a member that has room, itself included. The others find it
//! given when they come to it, and the chosen one finds it is its own. So nobody waits for a slow member, messages stay in
//! the log until they are sent, and a member that leaves gives back what it had not reached.
//!
//! A group lives as long as a member is connected or a stored session belongs to it; while all its members are away its
//! messages wait in the log, like those of any session. After a crash the group goes on at the oldest position that its
//! stored sessions wrote: some messages may be given out again.
//!
//! Limits: a member is given at most [`GIVEN_MAX`] messages ahead; groups are bounded by the subscriptions of clients.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::live::{Live, ReaderKey};
use crate::log::Offset;
use crate::message::{Message, QoS};
use crate::topic::TopicFilter;

/// Messages that a member is given before it has come to them: few, so that one that stalls holds few.
const GIVEN_MAX: usize = 20;

/// All groups.
#[derive(Debug)]
pub(crate) struct Shares {
    groups: Mutex<HashMap<TopicFilter, Arc<Group>>>,
    next_id: AtomicU32,
    /// Moves when messages were given back, for members that are not reading.
    returned: watch::Sender<u64>,
}

#[derive(Debug)]
struct Group {
    id: GroupId,
    state: Mutex<State>,
}

/// The number of a group, while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupId(u32);

#[derive(Debug)]
struct State {
    /// Every message of the group before it was given to a member.
    next: Offset,
    members: Vec<Given>,
    /// Whose turn it is.
    turn: usize,
    /// Given to members that left before they sent it.
    returned: VecDeque<Offset>,
    /// Stored sessions that belong to the group, connected or not.
    stored: usize,
}

/// What a connected member was given and has not come to.
#[derive(Debug)]
struct Given {
    number: u32,
    /// Where its live messages go.
    reader: ReaderKey,
    ahead: VecDeque<Offset>,
    /// It has room for more.
    is_ready: bool,
}

/// A connected member of a group; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Member {
    filter: TopicFilter,
    group: Arc<Group>,
    number: u32,
    was_ready: bool,
    returned: watch::Sender<u64>,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every statement leaves the state consistent, so a panic while it was held changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn member(&mut self, number: u32) -> Option<&mut Given> {
        self.members.iter_mut().find(|given| given.number == number)
    }

    fn next_reader(&mut self) -> Option<ReaderKey> {
        let index = self.turn % self.members.len().max(1);
        self.turn = index + 1;
        self.members.get(index).map(|given| given.reader)
    }

    /// The member that gets the next message: the next in turn that has room, else `asking`, which has.
    fn choose(&mut self, asking: u32) -> u32 {
        let count = self.members.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Some(given) = self.members.get(index) else { break };
            if given.number == asking || (given.is_ready && given.ahead.len() < GIVEN_MAX) {
                self.turn = index + 1;
                return given.number;
            }
        }
        asking
    }
}

impl Shares {
    /// The groups that stored sessions belong to, with the positions of each.
    pub(crate) fn new(stored: Vec<(TopicFilter, Offset)>) -> Shares {
        let shares = Shares { groups: Mutex::default(), next_id: AtomicU32::new(1), returned: watch::Sender::new(0) };
        let mut groups = shares.lock();
        for (filter, position) in stored {
            let group = groups.entry(filter).or_insert_with(|| shares.group(position));
            let mut state = group.lock();
            state.next = state.next.min(position);
            state.stored += 1;
        }
        drop(groups);
        shares
    }

    fn group(&self, next: Offset) -> Arc<Group> {
        let state = State { next, members: Vec::new(), turn: 0, returned: VecDeque::new(), stored: 0 };
        Arc::new(Group { id: GroupId(self.next_id.fetch_add(1, Ordering::Relaxed)), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TopicFilter, Arc<Group>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client joins a group; gives its membership and where it has to read. A new group begins at `head`.
    pub(crate) fn join(
        &self,
        filter: &TopicFilter,
        (number, reader): (u32, ReaderKey),
        head: Offset,
    ) -> (Member, Offset) {
        let mut groups = self.lock();
        let group = Arc::clone(groups.entry(filter.clone()).or_insert_with(|| self.group(head)));
        let mut state = group.lock();
        if state.members.is_empty() && state.stored == 0 {
            state.next = head;
            state.returned.clear();
        }
        state.members.retain(|given| given.number != number);
        state.members.push(Given { number, reader, ahead: VecDeque::new(), is_ready: true });
        let start = state.next;
        drop(state);
        drop(groups);
        let returned = self.returned.clone();
        (Member { filter: filter.clone(), group, number, was_ready: true, returned }, start)
    }

    /// Gives live messages to one member of each group that wants them: the next in turn that takes it.
    pub(crate) fn give_live(&self, live: &Live, messages: &[Message]) {
        let groups = self.lock();
        if groups.is_empty() {
            return;
        }
        for message in messages.iter().filter(|message| message.qos == QoS::AtMostOnce) {
            for (filter, group) in groups.iter().filter(|(filter, _)| filter.matches(&message.topic)) {
                let mut state = group.lock();
                for _ in 0..state.members.len() {
                    let Some(reader) = state.next_reader() else { break };
                    if live.publish_to(reader, filter.clone(), message.clone()) {
                        break;
                    }
                }
            }
        }
    }

    /// A stored session begins (`true`) or ceases to belong to a group.
    pub(crate) fn count_stored(&self, filter: &TopicFilter, head: Offset, belongs: bool) {
        let mut groups = self.lock();
        if belongs {
            groups.entry(filter.clone()).or_insert_with(|| self.group(head)).lock().stored += 1;
            return;
        }
        let Some(group) = groups.get(filter) else { return };
        let mut state = group.lock();
        state.stored = state.stored.saturating_sub(1);
        let is_over = state.stored == 0 && state.members.is_empty();
        drop(state);
        if is_over {
            groups.remove(filter);
        }
    }

    /// Forgets a group that nobody belongs to.
    pub(crate) fn tidy(&self, filter: &TopicFilter) {
        let mut groups = self.lock();
        let is_over = groups.get(filter).is_some_and(|group| {
            let state = group.lock();
            state.stored == 0 && state.members.is_empty()
        });
        if is_over {
            groups.remove(filter);
        }
    }

    /// Moves when messages were given back.
    pub(crate) fn watch_returned(&self) -> watch::Receiver<u64> {
        self.returned.subscribe()
    }
}

impl Member {
    pub(crate) fn filter(&self) -> &TopicFilter {
        &self.filter
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group.id
    }

    /// The member came to a message of the group, in the order of the log; true if it is the one to send it.
    pub(crate) fn take(&self, offset: Offset) -> bool {
        let mut state = self.group.lock();
        if offset >= state.next {
            state.next = Offset(offset.0 + 1);
            let chosen = state.choose(self.number);
            if chosen == self.number {
                return true;
            }
            if let Some(given) = state.member(chosen) {
                given.ahead.push_back(offset);
            }
            return false;
        }
        let Some(given) = state.member(self.number) else { return false };
        // What retention dropped is never come to.
        while given.ahead.front().is_some_and(|front| *front < offset) {
            given.ahead.pop_front();
        }
        let mine = given.ahead.front() == Some(&offset);
        if mine {
            given.ahead.pop_front();
        }
        mine
    }

    /// The member has read the log up to here: all messages of the group before it are given.
    pub(crate) fn passed(&self, offset: Offset) {
        let mut state = self.group.lock();
        state.next = state.next.max(offset);
    }

    /// Whether the member has room for more.
    pub(crate) fn set_ready(&mut self, is_ready: bool) {
        if self.was_ready != is_ready {
            self.was_ready = is_ready;
            if let Some(given) = self.group.lock().member(self.number) {
                given.is_ready = is_ready;
            }
        }
    }

    /// A message that another member gave back, to be sent by this one.
    pub(crate) fn take_returned(&self) -> Option<Offset> {
        self.group.lock().returned.pop_front()
    }

    /// The oldest message that the member was given and has not come to.
    pub(crate) fn oldest_given(&self) -> Option<Offset> {
        self.group.lock().member(self.number)?.ahead.front().copied()
    }

    /// Gives back messages that the member took and will not finish.
    pub(crate) fn give_back(&self, unfinished: impl IntoIterator<Item = Offset>) {
        let mut state = self.group.lock();
        let before = state.returned.len();
        state.returned.extend(unfinished);
        state.returned.make_contiguous().sort_unstable();
        if state.returned.len() > before {
            drop(state);
            self.returned.send_modify(|times| *times = times.wrapping_add(1));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        let index = state.members.iter().position(|given| given.number == self.number);
        let ahead = index.map(|index| state.members.remove(index).ahead).unwrap_or_default();
        drop(state);
        self.give_back(ahead);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn join(shares: &Shares, number: u32, head: u64) -> (Member, Offset) {
        let reader = Live::default().reader().key();
        shares.join(&filter(), (number, reader), Offset(head))
    }

    fn filter() -> TopicFilter {
        TopicFilter::parse("$share/g/t").unwrap()
    }

    /// Reads messages `from..to` as a member does, and gives which it has to send.
    fn read(member: &Member, from: u64, to: u64) -> Vec<u64> {
        (from..to).filter(|offset| member.take(Offset(*offset))).collect()
    }

    // Every message goes to exactly one member, in turn, whoever comes to it first.
    #[test]
    fn each_message_has_one_taker() {
        let shares = Shares::new(Vec::new());
        let (one, start) = join(&shares, 1, 5);
        let (two, _) = join(&shares, 2, 9);
        assert_eq!(start, Offset(5));
        assert_eq!(read(&one, 5, 11), [5, 7, 9]);
        assert_eq!(read(&two, 5, 13), [6, 8, 10, 12]);
        assert_eq!(read(&one, 11, 15), [11, 13]);
        assert_eq!(read(&two, 13, 15), [14]);
    }

    // A member without room, or too far behind, is passed over; the one that asks always has room.
    #[test]
    fn slow_members_are_passed_over() {
        let shares = Shares::new(Vec::new());
        let (fast, _) = join(&shares, 1, 1);
        let (mut slow, _) = join(&shares, 2, 1);
        let taken = read(&fast, 1, 101).len();
        assert_eq!(taken, 100 - GIVEN_MAX);
        slow.set_ready(false);
        assert_eq!(read(&fast, 101, 111).len(), 10);
        assert_eq!(read(&slow, 1, 111).len(), GIVEN_MAX);
    }

    // What a member had not come to, or gives back, goes to another.
    #[test]
    fn messages_are_given_back() {
        let shares = Shares::new(Vec::new());
        let mut returned = shares.watch_returned();
        let (one, _) = join(&shares, 1, 1);
        let (two, _) = join(&shares, 2, 1);
        assert_eq!(read(&one, 1, 5), [1, 3]);
        two.give_back([Offset(2)]);
        assert_eq!(two.oldest_given(), Some(Offset(2)));
        drop(two);
        assert!(returned.has_changed().unwrap());
        returned.mark_unchanged();
        let back: Vec<u64> = std::iter::from_fn(|| one.take_returned()).map(|offset| offset.0).collect();
        assert_eq!(back, [2, 2, 4]);
        assert_eq!(read(&one, 5, 7), [5, 6]);
    }

    // A group waits for its stored sessions, from the oldest of their positions on; without them it is forgotten.
    #[test]
    fn groups_wait_for_stored_sessions() {
        let shares = Shares::new(vec![(filter(), Offset(7)), (filter(), Offset(4))]);
        let (one, start) = join(&shares, 1, 100);
        assert_eq!(start, Offset(4));
        one.passed(Offset(50));
        drop(one);
        shares.count_stored(&filter(), Offset(100), false);
        let (one, start) = join(&shares, 1, 100);
        assert_eq!(start, Offset(50));
        drop(one);
        shares.count_stored(&filter(), Offset(100), false);
        assert!(shares.lock().is_empty());
        let (_one, start) = join(&shares, 1, 100);
        assert_eq!(start, Offset(100));
    }
}
