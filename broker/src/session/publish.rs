//! Publishes from the client: what becomes of them and when they are acknowledged.

use std::collections::{HashMap, VecDeque};

use super::persist::Held;
use super::{Ended, Session};
use crate::codec::{Ack, MessageProperties, Packet, PacketId, Publish, Reason, Version};
use crate::limits::Limits;
use crate::message::{Message, QoS};
use crate::topic::TopicName;

/// Acknowledgements that a 3.1.1 client, which knows no receive maximum, may have us owe before its socket is not read
/// any more. 24 bytes each.
pub(super) const ACKS_OWED_MAX: usize = 4_096;

/// QoS 0 messages that the shell must take before the next packet: as many come between two pauses of a publisher that
/// is held back.
const VOLATILE_MAX: usize = 256;

/// What a queued message costs besides its bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 200;

/// A message for [`crate::log::Log::append`].
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    pub(crate) message: Message,
    /// False: only the retained row (a retained QoS 0 message).
    pub(crate) log: bool,
    /// A QoS 2 identifier that the session has to store together with the message.
    pub(crate) receipt: Option<PacketId>,
}

/// How far a QoS 2 message from the client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receipt {
    /// On an earlier connection, and on disk.
    Before,
    /// On its way to the disk.
    Taken,
    /// PUBREC was sent.
    Received,
    /// PUBREL came; PUBCOMP waits until the store has forgotten the identifier.
    Released,
}

/// An acknowledgement that waits for its turn.
#[derive(Debug)]
struct Owed {
    /// How many durable messages of this session must be on disk first.
    after: u64,
    packet_id: PacketId,
    qos2: bool,
    /// The last of those is what it acknowledges.
    own: bool,
    reason: Reason,
}

/// What came in and is not finished.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// PUBLISH packets ever.
    publishes: u64,
    owed: VecDeque<Owed>,
    /// How many of them are PUBACKs.
    owed_qos1: usize,
    /// QoS 2 identifiers between PUBLISH and PUBCOMP.
    received: HashMap<PacketId, Receipt>,
    /// Those of them that came on an earlier connection only.
    received_before: usize,
    /// Not yet taken by the shell.
    durable: VecDeque<Durable>,
    volatile: Vec<Message>,
    /// Sizes of the durable messages that are not committed yet, in order.
    uncommitted: VecDeque<usize>,
    uncommitted_bytes: usize,
    /// Durable messages ever, and how many of them are settled.
    durable_count: u64,
    settled_count: u64,
    aliases: Vec<Option<TopicName>>,
}

impl Inbound {
    pub(super) fn publishes(&self) -> u64 {
        self.publishes
    }

    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        self.uncommitted_bytes < limits.inbound_bytes_max
            && self.owed.len() < ACKS_OWED_MAX
            && self.volatile.len() < VOLATILE_MAX
    }

    pub(super) fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// Takes the identifiers that an earlier connection left.
    pub(super) fn resume(&mut self, stored: &[PacketId]) {
        self.received.extend(stored.iter().map(|packet_id| (*packet_id, Receipt::Before)));
        self.received_before = self.received.len();
    }

    fn receipt(&self, packet_id: PacketId) -> Option<Receipt> {
        self.received.get(&packet_id).copied()
    }

    fn knows(&self, packet_id: Option<PacketId>) -> bool {
        packet_id.is_some_and(|packet_id| self.received.contains_key(&packet_id))
    }

    fn set_receipt(&mut self, packet_id: PacketId, receipt: Receipt) {
        if self.received.insert(packet_id, receipt) == Some(Receipt::Before) {
            self.received_before -= 1;
        }
    }

    fn forget(&mut self, packet_id: PacketId) {
        if self.received.remove(&packet_id) == Some(Receipt::Before) {
            self.received_before -= 1;
        }
    }

    /// PUBCOMP is sent: the identifier may be used again.
    pub(super) fn completed(&mut self, packet_id: PacketId) {
        self.forget(packet_id);
    }
}

impl Session {
    pub(super) fn on_publish(&mut self, publish: Publish) {
        self.inbound.publishes += 1;
        if !publish.subscription_identifiers.is_empty() {
            return self.protocol_error("MQTT-3.3.4-6", "a client's PUBLISH has a subscription identifier");
        }
        let Some(topic) = self.resolve_alias(&publish) else { return };
        if publish.qos != QoS::AtMostOnce && self.exceeds_receive_max(&publish) {
            let what = "more unacknowledged publishes than the receive maximum";
            return self.violation(Reason::ReceiveMaximumExceeded, "MQTT-3.3.4-9", what);
        }
        // A message that comes again was checked when it came first; refused now, its identifier would be free for the client
        // and taken here.
        let comes_again = publish.qos == QoS::ExactlyOnce && self.inbound.knows(publish.packet_id);
        if let Err(reason) = self.check_publish(&publish, &topic)
            && !comes_again
        {
            if reason == Reason::NotAuthorized {
                self.deny(topic.as_str());
            }
            return self.reject(&publish, reason);
        }
        let message = Message {
            topic,
            payload: publish.payload,
            properties: publish.properties,
            qos: publish.qos,
            retain: publish.retain,
            origin: self.number,
        };
        match (publish.qos, publish.packet_id) {
            (QoS::AtMostOnce, _) if publish.retain => self.enqueue(message, false, None),
            (QoS::AtMostOnce, _) | (_, None) => self.inbound.volatile.push(message),
            (QoS::AtLeastOnce, Some(packet_id)) => {
                self.enqueue(message, true, None);
                self.owe(packet_id, false, true, Reason::Success);
            }
            (QoS::ExactlyOnce, Some(packet_id)) => self.on_publish_qos2(message, packet_id),
        }
    }

    fn on_publish_qos2(&mut self, message: Message, packet_id: PacketId) {
        // A second PUBLISH with an identifier that PUBREL has not released is the same message. [MQTT-4.3.3-10]
        match self.inbound.receipt(packet_id) {
            None => {
                self.inbound.set_receipt(packet_id, Receipt::Taken);
                let receipt = self.persists().then_some(packet_id);
                self.enqueue(message, true, receipt);
                self.owe(packet_id, true, true, Reason::Success);
            }
            Some(Receipt::Released) => {
                self.protocol_error("MQTT-2.2.1-3", "a packet identifier is used again before PUBCOMP");
            }
            Some(_) => {
                self.inbound.set_receipt(packet_id, Receipt::Taken);
                self.owe(packet_id, true, false, Reason::Success);
            }
        }
    }

    /// The topic, by name or by alias. An alias is remembered for this connection only. [MQTT-3.3.2-7]
    fn resolve_alias(&mut self, publish: &Publish) -> Option<TopicName> {
        let Some(alias) = publish.topic_alias else { return publish.topic.clone() };
        if alias == 0 || alias > self.limits.topic_aliases_max {
            self.violation(Reason::TopicAliasInvalid, "MQTT-3.3.2-9", "the topic alias is above the maximum");
            return None;
        }
        let index = usize::from(alias);
        if let Some(topic) = &publish.topic {
            if self.inbound.aliases.len() <= index {
                self.inbound.aliases.resize(index + 1, None);
            }
            if let Some(entry) = self.inbound.aliases.get_mut(index) {
                *entry = Some(topic.clone());
            }
            return Some(topic.clone());
        }
        let known = self.inbound.aliases.get(index).cloned().flatten();
        if known.is_none() {
            self.protocol_error("MQTT-3.3.2.3.4", "the topic alias was never given a topic");
        }
        known
    }

    fn exceeds_receive_max(&self, publish: &Publish) -> bool {
        let resent = self.inbound.knows(publish.packet_id);
        // QoS 2 counts until PUBCOMP, QoS 1 until PUBACK. [MQTT-4.9]
        let open = self.inbound.owed_qos1 + self.inbound.received.len() - self.inbound.received_before;
        self.version == Version::V5 && !resent && open >= usize::from(self.limits.receive_max)
    }

    /// Whether the client may publish to this topic, at all.
    pub(super) fn check_topic(&self, topic: &TopicName) -> Result<(), Reason> {
        if !self.limits.fits_topic(topic.as_str()) {
            return Err(Reason::TopicNameInvalid);
        }
        // Statistics come from the broker alone. [MQTT-4.7.2]
        if topic.as_str().starts_with("$SYS/") || !self.authorize.may_publish(&self.identity, topic) {
            return Err(Reason::NotAuthorized);
        }
        Ok(())
    }

    fn check_publish(&self, publish: &Publish, topic: &TopicName) -> Result<(), Reason> {
        self.check_topic(topic)?;
        if !publish.properties.is_empty()
            && MessageProperties::read(&publish.properties).payload_is_text
            && std::str::from_utf8(&publish.payload).is_err()
        {
            return Err(Reason::PayloadFormatInvalid);
        }
        Ok(())
    }

    /// Refuses a publish: MQTT 5 says why; 3.1.1 can only close, since an acknowledgement means on disk here.
    fn reject(&mut self, publish: &Publish, reason: Reason) {
        match (self.version, publish.packet_id) {
            // Nothing has to be said about a message that nobody waits for.
            (_, None) if reason == Reason::NotAuthorized => {}
            (_, None) => self.violation(reason, "MQTT-3.3.2.3.2", "a QoS 0 publish that cannot be accepted"),
            (Version::V5, Some(packet_id)) => self.owe(packet_id, publish.qos == QoS::ExactlyOnce, false, reason),
            (Version::V311, Some(_)) if reason == Reason::NotAuthorized => self.close(reason, Ended::Broker(reason)),
            (Version::V311, Some(_)) => {
                self.violation(reason, "MQTT-3.3.5-2 of 3.1.1", "a publish that cannot be accepted");
            }
        }
    }

    fn enqueue(&mut self, message: Message, log: bool, receipt: Option<PacketId>) {
        let bytes = message.payload.len() + message.properties.len() + MESSAGE_OVERHEAD_BYTES;
        self.inbound.uncommitted.push_back(bytes);
        self.inbound.uncommitted_bytes += bytes;
        self.inbound.durable_count += 1;
        self.inbound.durable.push_back(Durable { message, log, receipt });
    }

    fn owe(&mut self, packet_id: PacketId, qos2: bool, own: bool, reason: Reason) {
        let after = self.inbound.durable_count;
        self.inbound.owed.push_back(Owed { after, packet_id, qos2, own, reason });
        self.inbound.owed_qos1 += usize::from(!qos2);
        self.pay();
    }

    /// Durable messages for the next append, at most `rows_max` and about `bytes_max`; empty if there are none.
    pub(crate) fn take_durable(&mut self, rows_max: usize, bytes_max: usize) -> Vec<Durable> {
        let queue = &mut self.inbound.durable;
        let mut bytes = 0;
        let mut rows = 0;
        for durable in queue.iter().take(rows_max) {
            bytes += durable.message.payload.len() + durable.message.properties.len() + MESSAGE_OVERHEAD_BYTES;
            if rows > 0 && bytes > bytes_max {
                break;
            }
            rows += 1;
        }
        queue.drain(..rows).collect()
    }

    /// QoS 0 messages that are not retained, for live fan-out.
    pub(crate) fn take_volatile(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.inbound.volatile)
    }

    /// The next `count` durable messages, in the order in which they were taken, are on disk (`Success`) or were refused.
    pub(crate) fn committed(&mut self, count: usize, reason: Reason) {
        for _ in 0..count {
            let Some(bytes) = self.inbound.uncommitted.pop_front() else { break };
            self.inbound.uncommitted_bytes = self.inbound.uncommitted_bytes.saturating_sub(bytes);
            self.inbound.settled_count += 1;
            if reason.is_error() {
                self.settle_refused(reason);
            }
        }
        self.pay();
    }

    fn settle_refused(&mut self, reason: Reason) {
        let settled = self.inbound.settled_count;
        // A QoS 0 message has no acknowledgement.
        let mut owed = self.inbound.owed.iter_mut().take_while(|owed| owed.after <= settled);
        let Some(owed) = owed.find(|owed| owed.own && owed.after == settled) else { return };
        owed.reason = reason;
        if owed.qos2 {
            // What was sent a second time in the meantime is refused with it.
            let packet_id = owed.packet_id;
            let copies = self.inbound.owed.iter_mut().filter(|owed| owed.qos2 && owed.packet_id == packet_id);
            copies.for_each(|copy| copy.reason = reason);
        }
        if self.version == Version::V311 {
            self.end(Ended::Broker(reason));
        }
    }

    /// Sends the acknowledgements whose turn has come.
    fn pay(&mut self) {
        while self.inbound.owed.front().is_some_and(|owed| owed.after <= self.inbound.settled_count) {
            let Some(Owed { packet_id, qos2, own, reason, .. }) = self.inbound.owed.pop_front() else { break };
            if self.phase == super::Phase::Closed {
                return;
            }
            if !qos2 {
                self.inbound.owed_qos1 -= 1;
                self.send_ack(Packet::PubAck, Ack::new(packet_id, reason));
                continue;
            }
            if reason.is_error() {
                // A message that was never taken has not taken the identifier either: another may have it.
                if own {
                    self.inbound.forget(packet_id);
                }
            } else if self.inbound.receipt(packet_id).is_some() {
                self.inbound.set_receipt(packet_id, Receipt::Received);
            }
            self.send_ack(Packet::PubRec, Ack::new(packet_id, reason));
        }
    }

    pub(super) fn on_pubrel(&mut self, ack: &Ack) {
        let packet_id = ack.packet_id;
        let reason = match self.inbound.receipt(packet_id) {
            Some(Receipt::Taken) => {
                return self.protocol_error("MQTT-4.3.3-4", "PUBREL before PUBREC");
            }
            Some(Receipt::Before | Receipt::Received) => Reason::Success,
            // Its PUBCOMP is on its way.
            Some(Receipt::Released) => return,
            None => Reason::PacketIdentifierNotFound,
        };
        match &mut self.persist {
            Some(persist) if reason == Reason::Success => {
                // Forgotten by the client and remembered here, the identifier would swallow its next message.
                persist.update().released.push(packet_id);
                persist.hold(Held::PubComp(packet_id, reason));
                self.inbound.set_receipt(packet_id, Receipt::Released);
            }
            _ => {
                self.inbound.forget(packet_id);
                self.send_ack(Packet::PubComp, Ack::new(packet_id, reason));
            }
        }
    }
}
