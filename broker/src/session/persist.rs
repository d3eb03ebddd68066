//! What a session stores, and what may be sent only once it is stored.
//!
//! A session that outlives its connection collects its changes in a [`SessionUpdate`]; the shell takes it
//! ([`Session::take_update`]), commits it, and says so ([`Session::stored`]). One update is on its way at a time; what
//! changes meanwhile is in the next. Some answers mean that something is on disk, so they are held until it is: the
//! QoS 2 handshake in both directions (a packet identifier that is forgotten would deliver a message twice, or never),
//! SUBACK and UNSUBACK. QoS 1 needs none of this: what was sent and not stored is sent again, which QoS 1 allows.
//!
//! A session that ends with its connection stores nothing and holds nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::deliver::Envelope;
use super::publish::ACKS_OWED_MAX;
use super::subscribe::PendingSubAck;
use super::{Moment, Phase, Session};
use crate::codec::{Ack, FILTERS_PER_PACKET_MAX, Packet, PacketId, Reason, UnsubAck};
use crate::log::Offset;
use crate::log::sessions::{Presence, Progress, SessionId, SessionUpdate, StoredWill};
use crate::message::Message;

/// How long acknowledged QoS 1 messages may be unknown to the store: after a crash they are sent again.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the store may not know how far the log was read without a delivery: after a crash that is read again.
const POSITION_INTERVAL: Duration = Duration::from_secs(30);

/// Something that is sent once its update is stored.
#[derive(Debug)]
pub(super) enum Held {
    Publish { packet_id: PacketId, message: Message, envelope: Envelope },
    PubRel(PacketId),
    PubComp(PacketId, Reason),
    SubAck(PendingSubAck),
    UnsubAck(UnsubAck),
}

impl Held {
    /// Bytes of the message, if it is one.
    fn bytes(&self) -> usize {
        match self {
            Held::Publish { message, .. } => {
                message.topic.as_str().len() + message.payload.len() + message.properties.len()
            }
            _ => 0,
        }
    }

    /// Filters whose retained messages follow it.
    fn filters(&self) -> usize {
        match self {
            Held::SubAck(pending) => pending.filters(),
            _ => 0,
        }
    }
}

/// The stored side of a session.
#[derive(Debug)]
pub(super) struct Persist {
    id: SessionId,
    /// How long the session outlives its connection, in seconds.
    expiry_s: u32,
    /// Changes since the last update was taken, but for what `Outgoing` knows itself.
    update: SessionUpdate,
    is_urgent: bool,
    /// Updates taken, and those stored.
    taken: u64,
    stored: u64,
    /// With the number of the update that it waits for.
    held: VecDeque<(u64, Held)>,
    held_publishes: usize,
    /// Bytes of the messages that are held.
    held_bytes: usize,
    held_subacks: usize,
    /// Filters whose retained messages follow a held SUBACK.
    held_filters: usize,
    stored_from: Offset,
    stored_at: Instant,
}

impl Persist {
    pub(super) fn new(id: SessionId, expiry_s: u32, read_from: Offset, now: Instant) -> Persist {
        Persist {
            id,
            expiry_s,
            update: SessionUpdate::of(id),
            is_urgent: false,
            taken: 0,
            stored: 0,
            held: VecDeque::new(),
            held_publishes: 0,
            held_bytes: 0,
            held_subacks: 0,
            held_filters: 0,
            stored_from: read_from,
            stored_at: now,
        }
    }

    pub(super) fn set_expiry(&mut self, expiry_s: u32) {
        self.expiry_s = expiry_s;
    }

    pub(super) fn expiry_s(&self) -> u32 {
        self.expiry_s
    }

    /// What the next update will hold.
    pub(super) fn update(&mut self) -> &mut SessionUpdate {
        self.is_urgent = true;
        &mut self.update
    }

    /// Sends this once everything so far is stored.
    pub(super) fn hold(&mut self, held: Held) {
        self.held_publishes += usize::from(matches!(held, Held::Publish { .. }));
        self.held_bytes += held.bytes();
        self.held_subacks += usize::from(matches!(held, Held::SubAck(_)));
        self.held_filters += held.filters();
        self.is_urgent = true;
        self.held.push_back((self.taken + 1, held));
    }

    /// Whether a message is held: later ones must not overtake it. [MQTT-4.6.0-6]
    pub(super) fn holds_publishes(&self) -> bool {
        self.held_publishes > 0
    }

    /// Whether the message of this identifier is held.
    pub(super) fn holds_publish(&self, packet_id: PacketId) -> bool {
        let is_it = |held: &Held| matches!(held, Held::Publish { packet_id: id, .. } if *id == packet_id);
        self.holds_publishes() && self.held.iter().any(|(_, held)| is_it(held))
    }

    /// Whether the PUBREL of this identifier is held.
    pub(super) fn holds_release(&self, packet_id: PacketId) -> bool {
        self.held.iter().any(|(_, held)| matches!(held, Held::PubRel(id) if *id == packet_id))
    }

    /// Bytes of messages that go out when they are stored.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn holds_subacks(&self) -> bool {
        self.held_subacks > 0
    }

    /// Whether one more packet may be answered with something to hold.
    pub(super) fn has_room(&self) -> bool {
        self.held.len() < ACKS_OWED_MAX && self.held_filters < FILTERS_PER_PACKET_MAX
    }

    fn next_ready(&mut self) -> Option<Held> {
        self.held.front().filter(|(number, _)| *number <= self.stored)?;
        let (_, held) = self.held.pop_front()?;
        self.held_publishes -= usize::from(matches!(held, Held::Publish { .. }));
        self.held_bytes -= held.bytes();
        self.held_subacks -= usize::from(matches!(held, Held::SubAck(_)));
        self.held_filters -= held.filters();
        Some(held)
    }
}

impl Session {
    /// Whether the session outlives its connection.
    pub(crate) fn persists(&self) -> bool {
        self.persist.is_some()
    }

    /// The number of the stored session.
    pub(crate) fn stored_id(&self) -> Option<SessionId> {
        self.persist.as_ref().map(|persist| persist.id)
    }

    /// When changes that can wait are due.
    pub(super) fn store_deadline(&self) -> Option<Instant> {
        let persist = self.persist.as_ref().filter(|persist| persist.taken == persist.stored)?;
        if self.outbound.outgoing.is_changed() {
            Some(persist.stored_at + PROGRESS_INTERVAL)
        } else if self.outbound.own_position().is_some_and(|from| from != persist.stored_from) {
            Some(persist.stored_at + POSITION_INTERVAL)
        } else {
            None
        }
    }

    /// Changes to store, if any are due. They are committed one after the other, each followed by [`Session::stored`].
    pub(crate) fn take_update(&mut self, moment: Moment) -> Option<SessionUpdate> {
        let due = self.store_deadline().is_some_and(|deadline| moment.at >= deadline);
        let persist = self.persist.as_ref().filter(|persist| persist.taken == persist.stored)?;
        if self.phase != Phase::Open || !(persist.is_urgent || due) {
            return None;
        }
        self.make_update(moment)
    }

    fn make_update(&mut self, moment: Moment) -> Option<SessionUpdate> {
        let progress = self.progress(moment);
        self.store_group_positions(self.outbound.position().unwrap_or(moment.head));
        let persist = self.persist.as_mut()?;
        let mut update = std::mem::replace(&mut persist.update, SessionUpdate::of(persist.id));
        self.outbound.outgoing.changes(&mut update);
        update.progress = Some(progress);
        persist.is_urgent = false;
        persist.taken += 1;
        persist.stored_from = progress.read_from;
        persist.stored_at = moment.at;
        Some(update)
    }

    /// How far the session has come.
    pub(crate) fn progress(&self, moment: Moment) -> Progress {
        // Without a subscription that reads the log nothing is missed.
        let read_from = self.outbound.own_position().unwrap_or(moment.head);
        let position = self.outbound.position().unwrap_or(moment.head);
        let needed = self.outbound.outgoing.oldest().into_iter().chain(self.oldest_given());
        Progress { read_from, position: needed.fold(position, Offset::min) }
    }

    /// The update taken last is on disk.
    pub(crate) fn stored(&mut self, moment: Moment) {
        if let Some(persist) = &mut self.persist {
            persist.stored = persist.taken;
        }
        while self.phase == Phase::Open
            && let Some(held) = self.persist.as_mut().and_then(Persist::next_ready)
        {
            match held {
                Held::Publish { packet_id, message, envelope } => {
                    if !self.send_publish(&message, &envelope, Some(packet_id), false, moment) {
                        // Expired meanwhile, and never sent.
                        self.outbound.outgoing.finish(packet_id);
                    }
                }
                Held::PubRel(packet_id) => {
                    self.send_ack(Packet::PubRel, Ack::new(packet_id, Reason::Success));
                }
                Held::PubComp(packet_id, reason) => {
                    self.inbound.completed(packet_id);
                    self.send_ack(Packet::PubComp, Ack::new(packet_id, reason));
                }
                Held::SubAck(pending) => self.send_suback(pending),
                Held::UnsubAck(unsuback) => self.send(&Packet::UnsubAck(unsuback)),
            }
        }
        self.pump(moment);
    }

    /// Everything that the store has to know of a session whose connection has ended, its will included if that is due
    /// later; `None` if the session was not stored.
    pub(crate) fn last_update(&mut self, moment: Moment) -> Option<SessionUpdate> {
        let (id, expiry_s) = self.persist.as_ref().map(|persist| (persist.id, persist.expiry_s))?;
        if expiry_s == 0 {
            return Some(SessionUpdate::end(id));
        }
        let mut update = self.make_update(moment)?;
        update.presence = Some(Presence { expiry_s, ended_us: Some(moment.utc_us) });
        update.will = Some(self.delayed_will.take().map(|will| {
            let delay_s = will.delay_s.min(expiry_s);
            StoredWill { due_us: Some(moment.utc_us.saturating_add(i64::from(delay_s) * 1_000_000)), ..will }
        }));
        Some(update)
    }
}
