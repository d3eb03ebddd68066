//! Messages to the client: from the log, retained, live; and their acknowledgements.
//!
//! The session pulls: it reads the log as its in-flight window and its output buffer allow, so a slow client leaves its
//! messages on disk. Live QoS 0 messages cannot wait: when the output buffer is full they are skipped and counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::outgoing::{Outgoing, Place};
use super::persist::{Held, Persist};
use super::redeliver::Redelivery;
use super::{Event, Moment, Session};
use crate::codec::{Ack, MessageProperties, OutgoingPublish, Packet, PacketId, Reason, Version};
use crate::limits::Limits;
use crate::log::sessions::{Stage, StoredSession};
use crate::log::{LogMessage, Offset};
use crate::message::{Message, QoS};
use crate::retained::RetainedMessage;
use crate::topic::{TopicFilter, TopicName};

/// What goes out and is not finished.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) outgoing: Outgoing,
    /// What an earlier connection left; nothing else is sent before it.
    pub(super) redelivery: Redelivery,
    packet_bytes_max: usize,
    /// Topic aliases given to the client, and how many it takes. They hold for the connection. [MQTT-3.3.2.3.4]
    aliases: HashMap<TopicName, u16>,
    aliases_max: usize,
    /// Where to read the log next; `None` without a subscription that reads it.
    read_from: Option<Offset>,
    /// Where this client's own subscriptions go on; the log may be read again from before, for a group.
    own_from: Offset,
    /// Read from the log, not yet delivered.
    tail: VecDeque<Arc<LogMessage>>,
    /// What was in `tail` when it came.
    tail_bytes: usize,
    retained: Vec<Arc<RetainedMessage>>,
    retained_for: Option<TopicFilter>,
    retained_wanted: VecDeque<TopicFilter>,
    fetching_retained: bool,
    pub(super) counts: Counts,
}

/// What happened to deliveries, since the shell took it last.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// PUBLISH packets sent.
    pub(crate) delivered: u64,
    /// Live messages that the client was too slow for.
    pub(crate) skipped: u64,
    /// Messages larger than the client takes. [MQTT-3.1.2-25]
    pub(crate) too_large: u64,
    /// Messages whose expiry interval was over. [MQTT-3.3.2-5]
    pub(crate) expired: u64,
    /// Messages that were to be sent again and are not in the log any more.
    pub(crate) lost: u64,
}

/// How a message is sent, beyond what it is.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) identifiers: Box<[u32]>,
    /// Of the message, 0 if it did not wait.
    pub(super) received_us: i64,
}

impl Outbound {
    pub(super) fn new(limits: &Limits) -> Outbound {
        Outbound {
            outgoing: Outgoing::new(usize::from(limits.inflight_max.max(1))),
            redelivery: Redelivery::default(),
            packet_bytes_max: limits.packet_bytes_max,
            aliases: HashMap::new(),
            aliases_max: 0,
            read_from: None,
            own_from: Offset(0),
            tail: VecDeque::new(),
            tail_bytes: 0,
            retained: Vec::new(),
            retained_for: None,
            retained_wanted: VecDeque::new(),
            fetching_retained: false,
            counts: Counts::default(),
        }
    }

    /// Payload bytes of the messages read from the log, counted until the last of them is delivered.
    pub(super) fn tail_bytes(&self) -> usize {
        if self.tail.is_empty() { 0 } else { self.tail_bytes }
    }

    pub(super) fn set_receive_max(&mut self, max: u16) {
        self.outgoing.limit_window(max);
    }

    pub(super) fn set_packet_bytes_max(&mut self, max: u32) {
        self.packet_bytes_max = self.packet_bytes_max.min(usize::try_from(max).unwrap_or(usize::MAX));
    }

    pub(super) fn packet_bytes_max(&self) -> usize {
        self.packet_bytes_max
    }

    pub(super) fn set_topic_aliases_max(&mut self, max: u16, limits: &Limits) {
        self.aliases_max = usize::from(max.min(limits.topic_aliases_max));
    }

    pub(super) fn follow_log(&mut self, reads: bool, head: Offset) {
        if reads && self.read_from.is_none() {
            self.read_from = Some(head);
        }
        self.stop_following_log(reads);
    }

    pub(super) fn stop_following_log(&mut self, reads: bool) {
        if !reads {
            self.read_from = None;
            self.tail.clear();
        }
    }

    pub(super) fn want_retained(&mut self, filters: Vec<TopicFilter>) {
        for filter in filters {
            if !self.retained_wanted.contains(&filter) {
                self.retained_wanted.push_back(filter);
            }
        }
    }

    pub(super) fn forget_retained(&mut self, filter: &TopicFilter) {
        self.retained_wanted.retain(|wanted| wanted != filter);
    }

    /// The first message that was not delivered, if any subscription reads the log.
    pub(super) fn position(&self) -> Option<Offset> {
        let read_from = self.read_from?;
        Some(self.tail.front().map_or(read_from, |next| next.offset))
    }

    /// Where the client's own subscriptions go on.
    pub(super) fn own_position(&self) -> Option<Offset> {
        self.position().map(|position| position.max(self.own_from))
    }

    /// Reads the log again from `start` on, for a group.
    pub(super) fn rewind(&mut self, start: Offset, head: Offset) {
        let position = self.position().unwrap_or(head);
        if start < position {
            self.own_from = self.own_from.max(position);
            self.tail.clear();
        }
        self.read_from = Some(start.min(position));
    }

    /// Goes on where an earlier connection was.
    pub(super) fn resume(&mut self, stored: &StoredSession, reads: bool) {
        self.redelivery = Redelivery::new(self.outgoing.resume(&stored.outgoing));
        self.read_from = reads.then_some(stored.read_from);
    }
}

impl Session {
    /// From where the log is to be read for [`Session::offer`]: some subscription reads it and nothing is left to send.
    pub(crate) fn wants_log(&self) -> Option<Offset> {
        if let Some(wanted) = self.outbound.redelivery.wanted() {
            return self.is_open().then_some(wanted);
        }
        let hungry = self.is_open() && self.outbound.tail.is_empty() && self.has_space();
        self.outbound.read_from.filter(|_| hungry)
    }

    /// Whether one more message may be sent. What is held until it is stored counts as if it were in the output already.
    pub(super) fn has_space(&self) -> bool {
        let held_bytes = self.persist.as_ref().map_or(0, Persist::held_bytes);
        self.output.len() + held_bytes < self.limits.outbound_bytes_max / 2 && self.outbound.outgoing.has_room()
    }

    /// Messages read from the log `from` what [`Session::wants_log`] said; `next` is where to go on.
    pub(crate) fn offer(&mut self, from: Offset, messages: Vec<Arc<LogMessage>>, next: Offset, moment: Moment) {
        if self.outbound.redelivery.wanted().is_some() {
            if self.outbound.redelivery.wanted() == Some(from) {
                self.outbound.redelivery.offer(messages);
            }
        } else if self.outbound.read_from == Some(from) {
            self.outbound.read_from = Some(next);
            self.outbound.tail_bytes = messages.iter().map(|logged| logged.message.payload.len()).sum();
            self.outbound.tail.extend(messages);
        }
        self.pump(moment);
    }

    /// The retained messages that [`Event::FetchRetained`] asked for.
    pub(crate) fn retained(&mut self, filter: TopicFilter, mut messages: Vec<Arc<RetainedMessage>>, moment: Moment) {
        messages.reverse();
        self.outbound.fetching_retained = false;
        self.outbound.retained = messages;
        self.outbound.retained_for = Some(filter);
        self.pump(moment);
    }

    /// Sends what may be sent; to be called when the window opened or output was taken.
    pub(crate) fn pump(&mut self, moment: Moment) {
        // What a subscription brings comes after its SUBACK, though it need not. [MQTT-3.8.4]
        if !self.is_open() || self.awaits_suback() || !self.pump_redelivery(moment) {
            return;
        }
        self.pump_retained(moment);
        // What a group had no room for comes first.
        while self.has_space() && !self.fetches_returned() {
            let Some(logged) = self.outbound.tail.pop_front() else { break };
            self.deliver_logged(&logged, moment);
        }
    }

    fn deliver_logged(&mut self, logged: &LogMessage, moment: Moment) {
        let message = &logged.message;
        if message.qos == QoS::AtMostOnce {
            // Logged telemetry; its subscribers had it live.
            return;
        }
        if logged.offset >= self.outbound.own_from {
            self.deliver_own(logged, moment);
        }
        if self.subscriptions.has_shared() {
            self.deliver_shared(logged, moment);
        }
    }

    /// For the client's own subscriptions, those of no group.
    fn deliver_own(&mut self, logged: &LogMessage, moment: Moment) {
        let message = &logged.message;
        let from_me = message.origin == self.number;
        let topic = &message.topic;
        let Some(decision) = self.subscriptions.decide_logged(logged.topic_id, topic, from_me, logged.offset) else {
            return;
        };
        if decision.qos == QoS::AtMostOnce {
            return;
        }
        let envelope = Envelope {
            qos: message.qos.min(decision.qos),
            retain: message.retain && decision.retain_as_published,
            identifiers: decision.identifiers.clone(),
            received_us: logged.received_us,
        };
        let place = Place { offset: logged.offset, retained: false, group: None };
        self.publish(message, envelope, place, moment);
    }

    fn pump_retained(&mut self, moment: Moment) {
        loop {
            while self.has_space() {
                let Some(retained) = self.outbound.retained.pop() else { break };
                self.deliver_retained(&retained, moment);
            }
            if !self.outbound.retained.is_empty() || self.outbound.fetching_retained {
                return;
            }
            let Some(filter) = self.outbound.retained_wanted.pop_front() else {
                self.outbound.retained = Vec::new();
                return;
            };
            if self.subscriptions.get(&filter).is_some() {
                self.outbound.fetching_retained = true;
                self.events.push_back(Event::FetchRetained(filter));
                return;
            }
        }
    }

    fn deliver_retained(&mut self, retained: &RetainedMessage, moment: Moment) {
        let Some(filter) = self.outbound.retained_for.clone() else { return };
        let Some(subscription) = self.subscriptions.get(&filter) else { return };
        let message = &retained.message;
        let qos = message.qos.min(subscription.qos);
        let comes_again = retained.offset.is_some_and(|offset| offset >= subscription.since);
        let own = subscription.no_local && message.origin == self.number;
        if (comes_again && qos > QoS::AtMostOnce) || own {
            return;
        }
        let identifiers = subscription.identifier.into_iter().collect();
        let envelope = Envelope { qos, retain: true, identifiers, received_us: retained.stored_us };
        let place = Place { offset: retained.offset.unwrap_or_default(), retained: true, group: None };
        self.publish(message, envelope, place, moment);
    }

    /// A live message.
    pub(crate) fn deliver_live(&mut self, message: &Message, moment: Moment) {
        if !self.is_open() {
            return;
        }
        let from_me = message.origin == self.number;
        let Some(decision) = self.subscriptions.decide_live(&message.topic, from_me) else { return };
        // QoS 1 and 2 come from the log.
        if message.qos.min(decision.qos) == QoS::AtMostOnce {
            self.publish_live(message, decision.retain_as_published, &decision.identifiers, moment);
        }
    }

    /// A live message for the subscription to `filter` alone.
    pub(crate) fn deliver_live_for(&mut self, filter: &TopicFilter, message: &Message, moment: Moment) {
        if !self.is_open() {
            return;
        }
        let Some(subscription) = self.subscriptions.get(filter) else { return };
        let (retain_as_published, identifier) = (subscription.retain_as_published, subscription.identifier);
        self.publish_live(message, retain_as_published, identifier.as_slice(), moment);
    }

    fn publish_live(&mut self, message: &Message, retain_as_published: bool, identifiers: &[u32], moment: Moment) {
        if self.output.len() >= self.limits.outbound_bytes_max {
            self.outbound.counts.skipped += 1;
            return;
        }
        let retain = message.retain && retain_as_published;
        let envelope = Envelope { qos: QoS::AtMostOnce, retain, identifiers: identifiers.into(), received_us: 0 };
        self.send_publish(message, &envelope, None, false, moment);
    }

    /// The counts since the last call.
    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.outbound.counts)
    }

    /// Sends a message at any QoS; at QoS 2 of a stored session once its identifier is on disk.
    pub(super) fn publish(&mut self, message: &Message, envelope: Envelope, place: Place, moment: Moment) {
        if envelope.qos == QoS::AtMostOnce {
            self.send_publish(message, &envelope, None, false, moment);
            return;
        }
        // An identifier is taken only if the packet can be sent.
        let packet_id = Some(PacketId::MIN);
        let Some((mut outgoing, alias)) = self.outgoing_publish(message, &envelope, packet_id, false, moment) else {
            return;
        };
        let stage = if envelope.qos == QoS::AtLeastOnce { Stage::Acknowledged } else { Stage::Received };
        outgoing.packet_id = self.outbound.outgoing.add(stage, place);
        let Some(packet_id) = outgoing.packet_id else { return };
        match &mut self.persist {
            Some(persist) if envelope.qos == QoS::ExactlyOnce || persist.holds_publishes() => {
                persist.hold(Held::Publish { packet_id, message: message.clone(), envelope });
            }
            _ => self.put_publish(&outgoing, alias, message),
        }
    }

    /// Puts a PUBLISH into the output; false if it has expired or is larger than the client takes, which is counted.
    pub(super) fn send_publish(
        &mut self,
        message: &Message,
        envelope: &Envelope,
        packet_id: Option<PacketId>,
        dup: bool,
        moment: Moment,
    ) -> bool {
        let Some((outgoing, alias)) = self.outgoing_publish(message, envelope, packet_id, dup, moment) else {
            return false;
        };
        self.put_publish(&outgoing, alias, message);
        true
    }

    fn put_publish(&mut self, outgoing: &OutgoingPublish<'_>, alias: Option<(u16, bool)>, message: &Message) {
        outgoing.encode(self.version, &mut self.output);
        if let Some((alias, false)) = alias {
            self.outbound.aliases.insert(message.topic.clone(), alias);
        }
        self.outbound.counts.delivered += 1;
    }

    /// The PUBLISH as it would be sent now, with the alias of its topic.
    fn outgoing_publish<'m>(
        &mut self,
        message: &'m Message,
        envelope: &'m Envelope,
        packet_id: Option<PacketId>,
        dup: bool,
        moment: Moment,
    ) -> Option<(OutgoingPublish<'m>, Option<(u16, bool)>)> {
        let expiry = remaining_expiry(&message.properties, envelope.received_us, moment.utc_us);
        // At QoS 2 a message that was sent once does not expire. [MQTT-4.3.3-7]
        let waited = envelope.received_us != 0;
        if waited && expiry.is_some_and(|(_, left_s)| left_s == 0) && !(dup && envelope.qos == QoS::ExactlyOnce) {
            self.outbound.counts.expired += 1;
            return None;
        }
        let v5 = self.version == Version::V5;
        let mut outgoing = OutgoingPublish {
            dup,
            qos: envelope.qos,
            retain: envelope.retain,
            topic: message.topic.as_str(),
            packet_id,
            topic_alias: None,
            subscription_identifiers: if v5 { &envelope.identifiers } else { &[] },
            properties: if v5 { &message.properties } else { &[] },
            expiry: expiry.filter(|_| v5),
            payload: &message.payload,
        };
        let alias = self.alias(&message.topic);
        if let Some((alias, known)) = alias {
            outgoing.topic_alias = Some(alias);
            outgoing.topic = if known { "" } else { outgoing.topic };
        }
        if outgoing.len(self.version) > self.outbound.packet_bytes_max {
            self.outbound.counts.too_large += 1;
            return None;
        }
        Some((outgoing, alias))
    }

    /// The alias of a topic, and whether the client knows it already. Aliases are given to the first topics that come
    /// and never change.
    fn alias(&self, topic: &TopicName) -> Option<(u16, bool)> {
        if self.outbound.aliases_max == 0 {
            return None;
        }
        if let Some(alias) = self.outbound.aliases.get(topic) {
            return Some((*alias, true));
        }
        let given = self.outbound.aliases.len();
        let next = u16::try_from(given + 1).ok()?;
        (given < self.outbound.aliases_max).then_some((next, false))
    }

    /// How far a message is that the client has been sent. One that is held until it is stored cannot be acknowledged yet:
    /// finished now, it would go out afterwards, under an identifier that is nobody's.
    fn stage_of_sent(&self, packet_id: PacketId) -> Option<Stage> {
        let is_held = self.persist.as_ref().is_some_and(|persist| persist.holds_publish(packet_id));
        self.outbound.outgoing.get(packet_id).filter(|_| !is_held).map(|in_flight| in_flight.stage)
    }

    pub(super) fn on_puback(&mut self, ack: &Ack) {
        match self.stage_of_sent(ack.packet_id) {
            Some(Stage::Acknowledged) => self.outbound.outgoing.finish(ack.packet_id),
            Some(_) => self.protocol_error("MQTT-4.3.3-1", "PUBACK for a QoS 2 message"),
            None => {}
        }
    }

    pub(super) fn on_pubrec(&mut self, ack: &Ack) {
        let packet_id = ack.packet_id;
        let reason = match self.stage_of_sent(packet_id) {
            Some(Stage::Acknowledged) => {
                return self.protocol_error("MQTT-4.3.2-1", "PUBREC for a QoS 1 message");
            }
            Some(_) if ack.reason.is_error() => return self.outbound.outgoing.finish(packet_id),
            Some(_) => {
                self.outbound.outgoing.received(packet_id);
                Reason::Success
            }
            None if ack.reason.is_error() => return,
            None => Reason::PacketIdentifierNotFound,
        };
        match &mut self.persist {
            // PUBREL lets the client forget the identifier: sent and forgotten here, the message would come twice.
            Some(persist) if reason == Reason::Success => persist.hold(Held::PubRel(packet_id)),
            _ => self.send_ack(Packet::PubRel, Ack::new(packet_id, reason)),
        }
    }

    pub(super) fn on_pubcomp(&mut self, ack: &Ack) {
        match self.stage_of_sent(ack.packet_id) {
            Some(Stage::Completed) => self.outbound.outgoing.finish(ack.packet_id),
            Some(_) => self.protocol_error("MQTT-4.3.3-1", "PUBCOMP for a message that is not released"),
            None => {}
        }
    }
}

/// What is left of the message expiry interval, in seconds, and where it stands.
fn remaining_expiry(properties: &Bytes, received_us: i64, now_us: i64) -> Option<(usize, u32)> {
    let (at, seconds) = MessageProperties::read(properties).expiry?;
    if received_us == 0 {
        return Some((at, seconds));
    }
    let waited_s = now_us.saturating_sub(received_us) / 1_000_000;
    Some((at, seconds.saturating_sub(u32::try_from(waited_s.max(0)).unwrap_or(u32::MAX))))
}
