//! The session as a member of groups: shared subscriptions. [MQTT-4.8.2]
//!
//! Messages of a group come from the log like all others; the [`Member`] tells which of them are this client's. What
//! other members gave back is read from the log once more. Messages published at QoS 0 come live, to one reader.

use super::deliver::Envelope;
use super::outgoing::Place;
use super::{Event, Moment, Session};
use crate::log::sessions::StoredSubscription;
use crate::log::{LogMessage, Offset};
use crate::shares::Member;
use crate::topic::TopicFilter;

/// A membership, and what it is about to send.
#[derive(Debug)]
pub(super) struct Sharing {
    member: Member,
    /// The group counts this session among its stored ones.
    counted: bool,
    /// Given back by another member, or taken when there was no room, to be read from the log.
    fetching: Option<Offset>,
    /// What the store has as its position.
    stored_since: Option<Offset>,
}

impl Session {
    /// The session is a member of the group from now on, and reads the log from `start`; `counted` if the group counts it
    /// as a stored session.
    pub(crate) fn joined(&mut self, member: Member, start: Offset, counted: bool, moment: Moment) {
        self.outbound.rewind(start, moment.head);
        self.sharing.push(Sharing { member, counted, fetching: None, stored_since: None });
    }

    /// The group of a new subscription is to be joined.
    pub(super) fn join_group(&mut self, filter: &TopicFilter, is_new: bool) {
        if !self.sharing.iter().any(|sharing| sharing.member.filter() == filter) {
            // A group has counted a session that it was stored with, even if that ends with this connection.
            let counts = self.persists() || !is_new;
            self.events.push_back(Event::Join { filter: filter.clone(), counts, is_new });
        }
    }

    pub(super) fn leave_group(&mut self, filter: &TopicFilter) {
        let index = self.sharing.iter().position(|sharing| sharing.member.filter() == filter);
        if let Some(index) = index {
            let sharing = self.sharing.swap_remove(index);
            self.leave(sharing, true);
        }
    }

    /// The connection has ended. What another member may have is given back: all of it if the session ends too, else what
    /// this client has not come to.
    pub(super) fn leave_groups(&mut self) {
        let lasts = self.persist.as_ref().is_some_and(|persist| persist.expiry_s() > 0);
        if lasts && let Some(position) = self.outbound.position() {
            let positions = self.group_positions(position);
            self.store_positions(positions);
        }
        for sharing in std::mem::take(&mut self.sharing) {
            self.leave(sharing, !lasts);
        }
    }

    fn leave(&mut self, sharing: Sharing, for_good: bool) {
        let Sharing { member, counted, fetching, .. } = sharing;
        let unfinished = if for_good { self.outbound.outgoing.unfinished_of(member.group()) } else { Vec::new() };
        member.give_back(unfinished.into_iter().chain(fetching));
        if for_good {
            self.events.push_back(Event::Left { filter: member.filter().clone(), counted });
        }
    }

    /// Delivers a message of the log to the groups in which it is this client's turn: a copy each, so the first may take the
    /// last room. The others are read once more when there is some. [MQTT-3.3.4-9]
    pub(super) fn deliver_shared(&mut self, logged: &LogMessage, moment: Moment) {
        let filters = self.subscriptions.shared_wanting(logged.topic_id, &logged.message.topic);
        for filter in filters.iter() {
            let has_space = self.has_space();
            let sharing = self.sharing.iter_mut().find(|sharing| sharing.member.filter() == filter);
            let Some(sharing) = sharing.filter(|sharing| sharing.member.take(logged.offset)) else { continue };
            if has_space {
                self.send_shared(filter, logged, moment);
            } else {
                sharing.fetching = Some(logged.offset);
            }
        }
    }

    fn send_shared(&mut self, filter: &TopicFilter, logged: &LogMessage, moment: Moment) {
        let Some(subscription) = self.subscriptions.get(filter) else { return };
        let message = &logged.message;
        let envelope = Envelope {
            qos: message.qos.min(subscription.qos),
            retain: message.retain && subscription.retain_as_published,
            identifiers: subscription.identifier.into_iter().collect(),
            received_us: logged.received_us,
        };
        let group = self.sharing.iter().find(|sharing| sharing.member.filter() == filter);
        let group = group.map(|sharing| sharing.member.group());
        self.publish(message, envelope, Place { offset: logged.offset, retained: false, group }, moment);
    }

    /// Whether a message of a group is to be read from the log once more.
    pub(super) fn fetches_returned(&self) -> bool {
        self.sharing.iter().any(|sharing| sharing.fetching.is_some())
    }

    /// Where the log is to be read for a message that another member gave back.
    pub(crate) fn wants_returned(&mut self) -> Option<Offset> {
        if !self.is_open() || !self.has_space() {
            return None;
        }
        for sharing in &mut self.sharing {
            sharing.fetching = sharing.fetching.or_else(|| sharing.member.take_returned());
            if sharing.fetching.is_some() {
                return sharing.fetching;
            }
        }
        None
    }

    /// What was read at [`Session::wants_returned`]; `None` if the log does not have it any more.
    pub(crate) fn offer_returned(&mut self, offset: Offset, logged: Option<&LogMessage>, moment: Moment) {
        if logged.is_some() && !self.has_space() {
            // What was sent meanwhile took the room: it is read again later.
            return;
        }
        let Some(sharing) = self.sharing.iter_mut().find(|sharing| sharing.fetching == Some(offset)) else { return };
        sharing.fetching = None;
        let filter = sharing.member.filter().clone();
        match logged {
            Some(logged) => self.send_shared(&filter, logged, moment),
            None => self.outbound.counts.lost += 1,
        }
    }

    /// Tells the groups how far this client has come, and whether it has room.
    pub(crate) fn update_groups(&mut self) {
        if self.sharing.is_empty() {
            return;
        }
        let has_space = self.is_open() && self.has_space();
        let position = self.outbound.position();
        for sharing in &mut self.sharing {
            sharing.member.set_ready(has_space);
            if let Some(position) = position {
                sharing.member.passed(position);
            }
        }
    }

    /// Whether it is a member of any group.
    pub(crate) fn is_sharing(&self) -> bool {
        !self.sharing.is_empty()
    }

    /// The filters of its groups with the positions that the store has to know: everything before was given out.
    fn group_positions(&mut self, read_from: Offset) -> Vec<(TopicFilter, Offset)> {
        let mut moved = Vec::new();
        for sharing in &mut self.sharing {
            let given = sharing.member.oldest_given().into_iter().chain(sharing.fetching).min();
            let since = given.map_or(read_from, |given| given.min(read_from));
            if sharing.stored_since != Some(since) {
                sharing.stored_since = Some(since);
                moved.push((sharing.member.filter().clone(), since));
            }
        }
        moved
    }

    /// Puts the groups' positions into the next update, which is being made.
    pub(super) fn store_group_positions(&mut self, read_from: Offset) {
        let positions = self.group_positions(read_from);
        self.store_positions(positions);
    }

    fn store_positions(&mut self, positions: Vec<(TopicFilter, Offset)>) {
        for (filter, since) in positions {
            if let (Some(subscription), Some(persist)) = (self.subscriptions.get(&filter), &mut self.persist) {
                let subscribed = &mut persist.update().subscribed;
                subscribed.retain(|stored| stored.filter != filter);
                subscribed.push(StoredSubscription { since, ..subscription.to_store() });
            }
        }
    }

    /// The oldest message that it was given and has not sent.
    pub(super) fn oldest_given(&self) -> Option<Offset> {
        let given = |sharing: &Sharing| sharing.member.oldest_given().into_iter().chain(sharing.fetching).min();
        self.sharing.iter().filter_map(given).min()
    }
}
