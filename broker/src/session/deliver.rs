//! Messages to the client: from the log, retained, live; and their acknowledgements.
//!
//! The session pulls: it reads the log as its in-flight window and its output buffer allow, so a slow client leaves its
//! messages on disk. Live QoS 0 messages cannot wait: when the output buffer is full they are skipped and counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::{Event, Moment, Session};
use crate::codec::{Ack, MessageProperties, Outgoing, Packet, PacketId, Reason, Version};
use crate::limits::Limits;
use crate::log::{LogMessage, Offset};
use crate::message::{Message, QoS};
use crate::retained::RetainedMessage;
use crate::topic::{TopicFilter, TopicName};

/// A QoS 1 or 2 message that the client has not finished.
#[derive(Debug)]
struct InFlight {
    packet_id: PacketId,
    waits_for: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// PUBACK.
    Acknowledged,
    /// PUBREC.
    Received,
    /// PUBCOMP.
    Completed,
}

/// What goes out and is not finished.
#[derive(Debug)]
pub(super) struct Outbound {
    in_flight: VecDeque<InFlight>,
    window: usize,
    last_id: u16,
    ids: PacketIds,
    packet_bytes_max: usize,
    /// Topic aliases given to the client, and how many it takes. They hold for the connection. [MQTT-3.3.2.3.4]
    aliases: HashMap<TopicName, u16>,
    aliases_max: usize,
    /// Where to read the log next; `None` without a subscription that reads it.
    read_from: Option<Offset>,
    /// Read from the log, not yet delivered.
    tail: VecDeque<Arc<LogMessage>>,
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
}

/// How a message is sent, beyond what it is.
struct Envelope<'d> {
    qos: QoS,
    retain: bool,
    identifiers: &'d [u32],
    /// Of the message, 0 if it did not wait.
    received_us: i64,
}

impl Outbound {
    pub(super) fn new(limits: &Limits) -> Outbound {
        Outbound {
            in_flight: VecDeque::new(),
            window: usize::from(limits.inflight_max.max(1)),
            last_id: 0,
            ids: PacketIds::default(),
            packet_bytes_max: limits.packet_bytes_max,
            aliases: HashMap::new(),
            aliases_max: 0,
            read_from: None,
            tail: VecDeque::new(),
            retained: Vec::new(),
            retained_for: None,
            retained_wanted: VecDeque::new(),
            fetching_retained: false,
            counts: Counts::default(),
        }
    }

    pub(super) fn set_receive_max(&mut self, max: u16) {
        self.window = self.window.min(usize::from(max));
    }

    pub(super) fn set_packet_bytes_max(&mut self, max: u32) {
        self.packet_bytes_max = self.packet_bytes_max.min(usize::try_from(max).unwrap_or(usize::MAX));
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

    /// A free identifier. There is one: the window is smaller than the number of identifiers.
    fn allocate(&mut self) -> Option<PacketId> {
        for _ in 0..=u16::MAX {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.ids.insert(self.last_id) {
                return PacketId::new(self.last_id);
            }
        }
        None
    }

    fn find(&mut self, packet_id: PacketId) -> Option<(usize, &mut InFlight)> {
        self.in_flight.iter_mut().enumerate().find(|(_, in_flight)| in_flight.packet_id == packet_id)
    }

    fn release(&mut self, index: usize) {
        if let Some(gone) = self.in_flight.remove(index) {
            self.ids.remove(gone.packet_id.get());
        }
    }
}

impl Session {
    /// From where the log is to be read for [`Session::offer`]: some subscription reads it and nothing is left to send.
    pub(crate) fn wants_log(&self) -> Option<Offset> {
        let hungry = self.is_open() && self.outbound.tail.is_empty() && self.has_space();
        self.outbound.read_from.filter(|_| hungry)
    }

    fn has_space(&self) -> bool {
        self.output.len() < self.limits.outbound_bytes_max / 2 && self.outbound.in_flight.len() < self.outbound.window
    }

    /// Messages read from the log at [`Session::wants_log`]; `next` is where to go on.
    pub(crate) fn offer(&mut self, messages: Vec<Arc<LogMessage>>, next: Offset, moment: Moment) {
        if self.outbound.read_from.is_none() {
            return;
        }
        self.outbound.read_from = Some(next);
        self.outbound.tail.extend(messages);
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
        if !self.is_open() {
            return;
        }
        self.pump_retained(moment);
        while self.has_space() {
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
            identifiers: &decision.identifiers,
            received_us: logged.received_us,
        };
        self.publish(message, &envelope, moment);
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
        let identifiers: Vec<u32> = subscription.identifier.into_iter().collect();
        let envelope = Envelope { qos, retain: true, identifiers: &identifiers, received_us: retained.stored_us };
        self.publish(message, &envelope, moment);
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
        let envelope = Envelope { qos: QoS::AtMostOnce, retain, identifiers, received_us: 0 };
        self.publish(message, &envelope, moment);
    }

    /// The counts since the last call.
    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.outbound.counts)
    }

    fn publish(&mut self, message: &Message, envelope: &Envelope<'_>, moment: Moment) {
        let Ok(expiry) = remaining_expiry(&message.properties, envelope.received_us, moment.utc_us) else {
            self.outbound.counts.expired += 1;
            return;
        };
        let v5 = self.version == Version::V5;
        let mut outgoing = Outgoing {
            dup: false,
            qos: envelope.qos,
            retain: envelope.retain,
            topic: message.topic.as_str(),
            // A placeholder of the right length; an identifier is taken only if the packet is sent.
            packet_id: (envelope.qos != QoS::AtMostOnce).then_some(PacketId::MIN),
            topic_alias: None,
            subscription_identifiers: if v5 { envelope.identifiers } else { &[] },
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
            return;
        }
        if envelope.qos != QoS::AtMostOnce {
            let Some(packet_id) = self.outbound.allocate() else { return };
            let waits_for = if envelope.qos == QoS::AtLeastOnce { Stage::Acknowledged } else { Stage::Received };
            self.outbound.in_flight.push_back(InFlight { packet_id, waits_for });
            outgoing.packet_id = Some(packet_id);
        }
        if let Some((alias, false)) = alias {
            self.outbound.aliases.insert(message.topic.clone(), alias);
        }
        outgoing.encode(self.version, &mut self.output);
        self.outbound.counts.delivered += 1;
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

    pub(super) fn on_puback(&mut self, ack: &Ack) {
        match self.outbound.find(ack.packet_id) {
            Some((index, InFlight { waits_for: Stage::Acknowledged, .. })) => self.outbound.release(index),
            Some(_) => self.protocol_error("MQTT-4.3.3-1", "PUBACK for a QoS 2 message"),
            None => {}
        }
    }

    pub(super) fn on_pubrec(&mut self, ack: &Ack) {
        let reason = match self.outbound.find(ack.packet_id) {
            Some((_, InFlight { waits_for: Stage::Acknowledged, .. })) => {
                return self.protocol_error("MQTT-4.3.2-1", "PUBREC for a QoS 1 message");
            }
            Some((index, _)) if ack.reason.is_error() => return self.outbound.release(index),
            Some((_, in_flight)) => {
                in_flight.waits_for = Stage::Completed;
                Reason::Success
            }
            None if ack.reason.is_error() => return,
            None => Reason::PacketIdentifierNotFound,
        };
        self.send_ack(Packet::PubRel, Ack::new(ack.packet_id, reason));
    }

    pub(super) fn on_pubcomp(&mut self, ack: &Ack) {
        match self.outbound.find(ack.packet_id) {
            Some((index, InFlight { waits_for: Stage::Completed, .. })) => self.outbound.release(index),
            Some(_) => self.protocol_error("MQTT-4.3.3-1", "PUBCOMP for a message that is not released"),
            None => {}
        }
    }
}

/// What is left of the message expiry interval and where it stands; `Err` if nothing is left.
fn remaining_expiry(properties: &Bytes, received_us: i64, now_us: i64) -> Result<Option<(usize, u32)>, ()> {
    let Some((at, seconds)) = MessageProperties::read(properties).expiry else { return Ok(None) };
    if received_us == 0 {
        return Ok(Some((at, seconds)));
    }
    let waited_s = u64::try_from(now_us.saturating_sub(received_us)).unwrap_or(0) / 1_000_000;
    match u64::from(seconds).checked_sub(waited_s) {
        None | Some(0) => Err(()),
        Some(left) => Ok(Some((at, u32::try_from(left).unwrap_or(u32::MAX)))),
    }
}

/// The identifiers in use, a bit each: 8 KiB, from the first QoS 1 delivery on.
#[derive(Debug, Default)]
struct PacketIds(Vec<u64>);

impl PacketIds {
    /// False if it was there.
    fn insert(&mut self, id: u16) -> bool {
        if self.0.is_empty() {
            self.0.resize(1 << 10, 0);
        }
        let Some(word) = self.0.get_mut(usize::from(id >> 6)) else { return false };
        let bit = 1 << (id & 63);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    fn remove(&mut self, id: u16) {
        if let Some(word) = self.0.get_mut(usize::from(id >> 6)) {
            *word &= !(1 << (id & 63));
        }
    }
}
