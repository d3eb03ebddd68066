//! What an earlier connection left unfinished is sent again, before anything new. [MQTT-4.4.0-1]
//!
//! In the order of the first sending, with the same packet identifiers and the DUP flag; the messages are read from the
//! log once more. A message that the log no longer has is given up: at QoS 1 its identifier is freed, at QoS 2 the
//! client is told to forget it (PUBREL).

use std::collections::VecDeque;
use std::sync::Arc;

use super::deliver::Envelope;
use super::persist::Held;
use super::{Moment, Session};
use crate::codec::{Ack, Packet, PacketId, Reason};
use crate::log::sessions::Stage;
use crate::log::{Gap, LogMessage, Offset};
use crate::message::QoS;

/// What is to be sent again.
#[derive(Debug, Default)]
pub(super) struct Redelivery {
    waiting: VecDeque<PacketId>,
    /// Read from the log, in order and without holes.
    read: Vec<Arc<LogMessage>>,
    /// Where the log is to be read for the next.
    wanted: Option<Offset>,
}

impl Redelivery {
    pub(super) fn new(waiting: VecDeque<PacketId>) -> Redelivery {
        Redelivery { waiting, ..Redelivery::default() }
    }

    /// Where the log is to be read, if that is what it waits for.
    pub(super) fn wanted(&self) -> Option<Offset> {
        self.wanted
    }

    /// Takes what was read at [`Redelivery::wanted`].
    pub(super) fn offer(&mut self, messages: Vec<Arc<LogMessage>>) {
        self.read = messages;
        self.wanted = None;
    }

    fn find(&self, offset: Offset) -> Option<Arc<LogMessage>> {
        let first = self.read.first()?.offset.0;
        let index = usize::try_from(offset.0.checked_sub(first)?).ok()?;
        self.read.get(index).filter(|message| message.offset == offset).cloned()
    }
}

impl Session {
    /// Sends again what may be sent again; true once nothing is left.
    pub(super) fn pump_redelivery(&mut self, moment: Moment) -> bool {
        while let Some(packet_id) = self.outbound.redelivery.waiting.front().copied() {
            // The client may have acknowledged it in the meantime.
            if let Some(in_flight) = self.outbound.outgoing.get(packet_id) {
                if self.persist.as_ref().is_some_and(|persist| persist.holds_release(packet_id)) {
                    // The client was faster: its PUBREC came before, and the PUBREL goes out when that is stored.
                } else if in_flight.stage == Stage::Completed {
                    self.send_ack(Packet::PubRel, Ack::new(packet_id, Reason::Success));
                } else if !self.has_space() {
                    return false;
                } else if let Some(logged) = self.outbound.redelivery.find(in_flight.offset) {
                    self.send_again(packet_id, &logged, moment);
                } else {
                    self.outbound.redelivery.wanted = Some(in_flight.offset);
                    return false;
                }
            }
            self.outbound.redelivery.waiting.pop_front();
        }
        self.outbound.redelivery = Redelivery::default();
        true
    }

    fn send_again(&mut self, packet_id: PacketId, logged: &LogMessage, moment: Moment) {
        let Some(in_flight) = self.outbound.outgoing.get(packet_id) else { return };
        let message = &logged.message;
        let decision = self.subscriptions.decide_logged(logged.topic_id, &message.topic, false, logged.offset);
        let as_published = message.retain && decision.as_ref().is_some_and(|decision| decision.retain_as_published);
        let envelope = Envelope {
            qos: if in_flight.stage == Stage::Acknowledged { QoS::AtLeastOnce } else { QoS::ExactlyOnce },
            retain: in_flight.retained || as_published,
            identifiers: decision.map(|decision| decision.identifiers.clone()).unwrap_or_default(),
            received_us: logged.received_us,
        };
        self.outbound.outgoing.sent_again(packet_id, true);
        if !self.send_publish(message, &envelope, Some(packet_id), true, moment) {
            // Expired, or larger than this connection takes.
            self.abandon(packet_id);
        }
    }

    /// Takes a gap in what was to be sent again; false if the gap is not in that.
    pub(super) fn give_up(&mut self, gap: Gap, moment: Moment) -> bool {
        if self.outbound.redelivery.wanted.is_none_or(|wanted| wanted < gap.from || wanted >= gap.to) {
            return false;
        }
        self.outbound.redelivery.wanted = None;
        let waiting: Vec<PacketId> = self.outbound.redelivery.waiting.iter().copied().collect();
        for packet_id in waiting {
            let in_flight = self.outbound.outgoing.get(packet_id);
            if in_flight.is_some_and(|it| (gap.from..gap.to).contains(&it.offset) && it.stage != Stage::Completed) {
                self.outbound.counts.lost += 1;
                self.abandon(packet_id);
                self.outbound.redelivery.waiting.retain(|waiting| *waiting != packet_id);
            }
        }
        self.pump(moment);
        true
    }

    /// The message cannot be sent any more. The client may have had it; at QoS 2 it must forget the identifier before that
    /// is used for another.
    pub(super) fn abandon(&mut self, packet_id: PacketId) {
        let stage = self.outbound.outgoing.get(packet_id).map(|in_flight| in_flight.stage);
        match (stage, &mut self.persist) {
            (Some(Stage::Acknowledged), _) => self.outbound.outgoing.finish(packet_id),
            (Some(Stage::Received | Stage::Completed), Some(persist)) => {
                persist.hold(Held::PubRel(packet_id));
                self.outbound.outgoing.received(packet_id);
            }
            (Some(_), None) => {
                self.outbound.outgoing.received(packet_id);
                self.send_ack(Packet::PubRel, Ack::new(packet_id, Reason::Success));
            }
            (None, _) => {}
        }
    }
}
