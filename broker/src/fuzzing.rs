//! The door for the fuzz targets (`broker/fuzz`): a session driven by hand, as its shell would, and the client's end of it.
//!
//! [`Drive`] owns the session, a log in memory, what is stored of the session, and a model of what the client has seen.
//! Every call checks what must hold in any order of calls: the output decodes as packets of a server; an acknowledgement comes
//! after its commit, and one for each publish; no more messages are under way than the client takes; output and unfinished
//! input are bounded; what has ended stays ended and silent. Only built for fuzzing; nothing of the product uses it.
//!
//! Limits: one client; commits and stores never fail half way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};

use crate::auth::{AllowAll, Identity};
use crate::codec::{Decoder, Packet, PacketId, Property, Publish, Reason, Version};
use crate::limits::Limits;
use crate::live::{Live, Reader};
use crate::log::sessions::{SessionId, SessionUpdate, StoredOutgoing, StoredSession};
use crate::log::{Gap, GapKind, LogMessage, Offset};
use crate::message::{Message, QoS};
use crate::retained::RetainedMessage;
use crate::session::{Acceptance, Durable, Ended, Event, Moment, Session};
use crate::shares::Shares;
use crate::topic::TopicFilter;

/// Small enough that a short run reaches every limit.
const PACKET_BYTES_MAX: usize = 2 * 1024;
const OUTBOUND_BYTES_MAX: usize = 4 * 1024;
const INBOUND_BYTES_MAX: usize = 8 * 1024;
const INFLIGHT_MAX: u16 = 16;
const SUBSCRIPTIONS_MAX: usize = 6;

/// Where the last PUBLISH may begin in the output: what is held until it is stored counts half, and a packet is never cut.
const OUTPUT_AHEAD_MAX: usize = OUTBOUND_BYTES_MAX + OUTBOUND_BYTES_MAX / 2 + 2 * PACKET_BYTES_MAX;

/// Of which messages the log of the model forgets the oldest.
const LOG_MAX: usize = 64;

/// A session, everything around it, and what must hold.
pub struct Drive {
    session: Session,
    limits: Arc<Limits>,
    decoder: Decoder,
    input: BytesMut,
    client: Client,
    start: Instant,
    now_ms: u64,
    log: VecDeque<Arc<LogMessage>>,
    head: u64,
    taken: VecDeque<Durable>,
    committed_qos1: u64,
    storing: Option<SessionUpdate>,
    stored: Option<StoredSession>,
    shares: Shares,
    reader: Reader,
    /// What wants retained messages.
    fetches: VecDeque<TopicFilter>,
    ended: Option<Ended>,
    next_number: u32,
}

/// What the client knows from the packets that it sent and got on this connection.
#[derive(Default)]
struct Client {
    decoder: Option<Decoder>,
    /// Bytes of the output that it has read, though they may still be there.
    seen: usize,
    window: usize,
    aliases_max: u16,
    accepted: bool,
    under_way: BTreeSet<PacketId>,
    aliases: BTreeMap<u16, bool>,
    acknowledged_qos1: u64,
    /// Answers that are missing: PUBACK, PUBREC, SUBACK, UNSUBACK, PINGRESP.
    owed: [i64; 5],
}

impl Default for Drive {
    fn default() -> Drive {
        let limits = Limits {
            packet_bytes_max: PACKET_BYTES_MAX,
            outbound_bytes_max: OUTBOUND_BYTES_MAX,
            inbound_bytes_max: INBOUND_BYTES_MAX,
            inflight_max: INFLIGHT_MAX,
            receive_max: 8,
            subscriptions_max: SUBSCRIPTIONS_MAX,
            topic_aliases_max: 3,
            ..Limits::default()
        };
        let (limits, start) = (Arc::new(limits), Instant::now());
        Drive {
            session: Session::new(Arc::clone(&limits), Arc::new(AllowAll), start),
            decoder: Decoder::server(PACKET_BYTES_MAX),
            limits,
            input: BytesMut::new(),
            client: Client::default(),
            start,
            now_ms: 0,
            log: VecDeque::new(),
            head: 1,
            taken: VecDeque::new(),
            committed_qos1: 0,
            storing: None,
            stored: None,
            shares: Shares::new(Vec::new()),
            reader: Live::default().reader(),
            fetches: VecDeque::new(),
            ended: None,
            next_number: 1,
        }
    }
}

impl Drive {
    fn moment(&self) -> Moment {
        Moment {
            at: self.start + Duration::from_millis(self.now_ms),
            utc_us: i64::try_from(self.now_ms).unwrap_or(i64::MAX) * 1_000 + 1,
            head: Offset(self.head),
            filters_fit: true,
            subscriptions_fit: true,
        }
    }

    /// Bytes from the client, as many packets as they are; the client is let in if it is to be.
    pub fn receive(&mut self, wire: &[u8], lets_in: bool) {
        if !self.session.wants_packets() {
            return;
        }
        self.input.extend_from_slice(wire);
        while self.session.wants_packets() {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(packet)) => self.handle(packet),
                Ok(None) => break,
                Err(error) => self.session.malformed(error, self.decoder.version()),
            }
            self.look(lets_in);
        }
        self.session.take_volatile();
        self.look(lets_in);
    }

    fn handle(&mut self, packet: Packet) {
        if let Packet::Connect(connect) = &packet
            && self.client.decoder.is_none()
        {
            self.client.meet(connect.version, &connect.properties);
        }
        let was_open = self.session.is_open();
        let owes = match &packet {
            Packet::Publish(Publish { qos: QoS::AtLeastOnce, .. }) => Some(0),
            Packet::Publish(Publish { qos: QoS::ExactlyOnce, .. }) => Some(1),
            Packet::Subscribe(_) => Some(2),
            Packet::Unsubscribe(_) => Some(3),
            Packet::PingReq => Some(4),
            _ => None,
        };
        if let Some(owed) = owes.filter(|_| was_open) {
            self.client.owed[owed] += 1;
        }
        match &packet {
            Packet::PubAck(ack) | Packet::PubComp(ack) => {
                self.client.under_way.remove(&ack.packet_id);
            }
            Packet::PubRec(ack) if ack.reason.is_error() => {
                self.client.under_way.remove(&ack.packet_id);
            }
            _ => {}
        }
        let moment = self.moment();
        self.session.handle(packet, moment);
    }

    /// Handles the events, reads the output, and checks what must hold at all times.
    fn look(&mut self, lets_in: bool) {
        while let Some(event) = self.session.poll_event() {
            self.on_event(event, lets_in);
        }
        self.session.update_groups();
        self.client.read(self.session.output());
        assert!(self.client.acknowledged_qos1 <= self.committed_qos1, "a PUBACK before its commit");
        let unfinished: usize = self.taken.iter().map(|durable| durable.message.payload.len()).sum();
        assert!(unfinished <= INBOUND_BYTES_MAX + PACKET_BYTES_MAX, "{unfinished} bytes wait for the disk");
        assert!(self.session.subscription_count() <= SUBSCRIPTIONS_MAX, "too many subscriptions");
        match (&self.ended, self.session.ended()) {
            (Some(before), now) => assert_eq!(Some(before), now, "an ended session ended again"),
            (None, now) => self.ended = now.cloned(),
        }
        if self.ended.is_some() {
            assert!(!self.session.is_open() && !self.session.wants_packets(), "an ended session goes on");
            self.client.is_silent(self.session.output());
        }
    }

    fn on_event(&mut self, event: Event, lets_in: bool) {
        match event {
            Event::Connect(connect) => {
                let identity = Identity { client_id: "c".into(), ..Identity::default() };
                if !self.session.identify(identity) {
                    return;
                }
                if !lets_in {
                    return self.session.refuse(Reason::BadUserNameOrPassword);
                }
                let moment = self.moment();
                let stored = self.stored.take().filter(|_| !connect.clean_start);
                let id = (self.session.granted_expiry_s() > 0 || stored.is_some()).then_some(SessionId(1));
                if let Some(id) = id {
                    self.stored = Some(stored.clone().unwrap_or_else(|| empty(id, moment.head)));
                }
                let number = self.next_number;
                self.next_number += 1;
                self.session.accept(Acceptance { number, id, stored, lost: 0 }, moment);
            }
            Event::Join { filter, counts, is_new } => {
                let moment = self.moment();
                let me = (self.session.number(), self.reader.key());
                let (member, start) = self.shares.join(&filter, me, moment.head);
                if counts && is_new {
                    self.shares.count_stored(&filter, moment.head, true);
                }
                self.session.joined(member, start, counts, moment);
            }
            Event::Left { filter, counted } if counted => {
                self.shares.count_stored(&filter, Offset(self.head), false);
            }
            Event::Left { filter, .. } => self.shares.tidy(&filter),
            Event::FetchRetained(filter) => self.fetches.push_back(filter),
            Event::Watch { .. } | Event::Will(_) | Event::Close => {}
        }
    }

    /// The outcome of the oldest `count` of the messages that wait for the disk.
    pub fn commit(&mut self, count: usize, is_on_disk: bool) {
        self.taken.extend(self.session.take_durable(8, INBOUND_BYTES_MAX));
        let mut settled = 0;
        for _ in 0..count {
            let Some(Durable { message, log, receipt }) = self.taken.pop_front() else { break };
            settled += 1;
            if !is_on_disk {
                continue;
            }
            self.committed_qos1 += u64::from(message.qos == QoS::AtLeastOnce);
            if let (Some(packet_id), Some(stored)) = (receipt, &mut self.stored) {
                stored.incoming.retain(|known| *known != packet_id);
                stored.incoming.push(packet_id);
            }
            if log {
                self.append(message);
            }
        }
        self.session.committed(settled, if is_on_disk { Reason::Success } else { Reason::QuotaExceeded });
        self.look(true);
    }

    /// A message of another client, in the log.
    pub fn append(&mut self, message: Message) {
        let (offset, received_us) = (Offset(self.head), self.moment().utc_us);
        let topic_id = message.topic.as_str().bytes().fold(7, |id: u32, byte| id.wrapping_mul(31) ^ u32::from(byte));
        self.head += 1;
        self.log.push_back(Arc::new(LogMessage { offset, received_us, topic_id, message }));
        if self.log.len() > LOG_MAX {
            self.log.pop_front();
        }
    }

    /// Reads the log, at most `rows` messages of it, if the session wants it.
    pub fn fetch(&mut self, rows: usize) {
        let moment = self.moment();
        let oldest = self.log.front().map_or(self.head, |logged| logged.offset.0);
        if let Some(offset) = self.session.wants_returned() {
            let logged = self.log.iter().find(|logged| logged.offset == offset).cloned();
            self.session.offer_returned(offset, logged.as_deref(), moment);
        } else if let Some(from) = self.session.wants_log().filter(|from| from.0 < self.head) {
            let mut next = from;
            if from.0 < oldest {
                next = Offset(oldest);
                self.session.lost(Gap { from, to: next, kind: GapKind::Dropped }, moment);
            }
            let tail = self.log.iter().filter(|logged| logged.offset >= next);
            let messages: Vec<_> = if next == from { tail.take(rows.max(1)).cloned().collect() } else { Vec::new() };
            let next = messages.last().map_or(next, |last| Offset(last.offset.0 + 1));
            self.session.offer(from, messages, next, moment);
        }
        self.look(true);
    }

    /// The oldest messages are dropped from the log.
    pub fn drop_oldest(&mut self, count: usize) {
        self.log.drain(..count.min(self.log.len()));
    }

    /// A live message.
    pub fn live(&mut self, message: &Message) {
        let moment = self.moment();
        self.session.deliver_live(message, moment);
        self.look(true);
    }

    /// Answers what the session asked for with the newest messages of the log that match.
    pub fn retained(&mut self, count: usize) {
        let Some(filter) = self.fetches.pop_front() else { return };
        let matching = self.log.iter().rev().filter(|logged| filter.matches(&logged.message.topic));
        let retained = |logged: &Arc<LogMessage>| {
            Arc::new(RetainedMessage::stored(&logged.message, logged.received_us, Some(logged.offset)))
        };
        let messages = matching.take(count).map(retained).collect();
        let moment = self.moment();
        self.session.retained(filter, messages, moment);
        self.look(true);
    }

    /// Takes an update of the stored session, or says that the one under way is on disk.
    pub fn store(&mut self) {
        let moment = self.moment();
        match self.storing.take() {
            Some(update) => {
                self.write(update);
                self.session.stored(moment);
            }
            None => self.storing = self.session.take_update(moment),
        }
        self.look(true);
    }

    /// What the store does with an update.
    fn write(&mut self, update: SessionUpdate) {
        if update.ends.is_some() {
            self.stored = None;
            return;
        }
        let Some(stored) = &mut self.stored else { return };
        stored.read_from = update.progress.map_or(stored.read_from, |progress| progress.read_from);
        stored
            .subscriptions
            .retain(|known| !update.unsubscribed.iter().any(|gone| **gone == *known.filter.as_written()));
        stored.subscriptions.retain(|known| !update.subscribed.iter().any(|new| new.filter == known.filter));
        stored.subscriptions.extend(update.subscribed);
        stored.outgoing.retain(|known| !update.finished.contains(&known.packet_id));
        stored.outgoing.retain(|known| !update.outgoing.iter().any(|new| new.packet_id == known.packet_id));
        stored.outgoing.extend(update.outgoing);
        stored.outgoing.sort_by_key(|outgoing: &StoredOutgoing| outgoing.sequence);
        stored.incoming.retain(|known| !update.released.contains(known));
    }

    /// Time passes.
    pub fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
        let moment = self.moment();
        self.session.handle_timeout(moment.at);
        self.session.pump(moment);
        self.look(true);
    }

    /// The shell stops reading, or reads again.
    pub fn hold(&mut self, held: bool) {
        let moment = self.moment();
        self.session.hold_keep_alive(held, moment.at);
        self.look(true);
    }

    /// The socket takes bytes.
    pub fn take_output(&mut self, count: usize) {
        let output = self.session.output();
        let count = count.min(output.len());
        output.advance(count);
        self.client.seen -= count;
        let moment = self.moment();
        self.session.pump(moment);
        self.look(true);
    }

    /// The broker ends the connection.
    pub fn shut(&mut self) {
        self.session.shut(Reason::ServerShuttingDown);
        self.look(true);
    }

    /// The connection ends, as it may have already, and the client comes again; `crashes` if the end was not stored.
    pub fn reconnect(&mut self, crashes: bool) {
        self.session.disconnected();
        self.look(true);
        while !self.taken.is_empty() {
            self.commit(usize::MAX, true);
        }
        if !crashes {
            if self.storing.is_some() {
                self.store();
            }
            let moment = self.moment();
            if let Some(update) = self.session.last_update(moment) {
                self.write(update);
            }
        }
        self.storing = None;
        self.fetches.clear();
        self.input.clear();
        self.client = Client::default();
        self.committed_qos1 = 0;
        self.ended = None;
        self.decoder = Decoder::server(PACKET_BYTES_MAX);
        self.session = Session::new(Arc::clone(&self.limits), Arc::new(AllowAll), self.moment().at);
    }

    /// Once everything is committed, stored and read, nothing is owed.
    pub fn finish(&mut self) {
        for _ in 0..64 {
            self.commit(usize::MAX, true);
            self.store();
            self.take_output(usize::MAX);
        }
        if self.session.is_open() {
            assert_eq!(self.client.owed, [0; 5], "missing PUBACK, PUBREC, SUBACK, UNSUBACK, PINGRESP");
        }
    }
}

fn empty(id: SessionId, head: Offset) -> StoredSession {
    let (subscriptions, outgoing, incoming) = (Vec::new(), Vec::new(), Vec::new());
    StoredSession { id, username: None, read_from: head, subscriptions, outgoing, incoming, will: None }
}

impl Client {
    fn meet(&mut self, version: Version, properties: &[Property]) {
        let mut packet_bytes_max = 1 << 28;
        self.window = usize::from(INFLIGHT_MAX);
        for property in properties {
            match property {
                Property::ReceiveMaximum(max) => self.window = self.window.min(usize::from(*max)),
                Property::MaximumPacketSize(max) => packet_bytes_max = usize::try_from(*max).unwrap_or(usize::MAX),
                Property::TopicAliasMaximum(max) => self.aliases_max = *max,
                _ => {}
            }
        }
        self.decoder = Some(Decoder::client(version, packet_bytes_max));
    }

    /// Reads what is new in the output, which keeps it.
    fn read(&mut self, output: &BytesMut) {
        let mut buffer = BytesMut::from(output.get(self.seen..).expect("output only grows until it is taken"));
        if self.decoder.is_none() {
            // The CONNECT could not be read: MQTT 5 is told why.
            self.decoder = Some(Decoder::client(version_of(output), 1 << 28));
        }
        loop {
            let begins = output.len() - buffer.len();
            let Some(decoder) = &mut self.decoder else { return };
            let decoded = decoder.decode(&mut buffer).expect("a server sends what can be decoded");
            let Some(packet) = decoded else { break };
            self.see(&packet, begins);
        }
        assert!(buffer.is_empty(), "a packet is cut off");
        self.seen = output.len();
    }

    fn see(&mut self, packet: &Packet, begins: usize) {
        assert_eq!(self.accepted, !matches!(packet, Packet::ConnAck(_)), "CONNACK comes first, and once");
        let paid = match packet {
            Packet::ConnAck(_) => {
                self.accepted = true;
                None
            }
            Packet::Publish(publish) => {
                assert!(begins <= OUTPUT_AHEAD_MAX, "a PUBLISH is put behind {begins} bytes");
                self.see_publish(publish);
                None
            }
            Packet::PubAck(ack) => {
                self.acknowledged_qos1 += u64::from(!ack.reason.is_error());
                Some(0)
            }
            Packet::PubRec(_) => Some(1),
            Packet::SubAck(_) => Some(2),
            Packet::UnsubAck(_) => Some(3),
            Packet::PingResp => Some(4),
            Packet::PubRel(_) | Packet::PubComp(_) | Packet::Disconnect(_) => None,
            packet => panic!("a server sent {}", packet.name()),
        };
        if let Some(paid) = paid {
            self.owed[paid] -= 1;
            assert!(self.owed[paid] >= 0, "{} for nothing", packet.name());
        }
    }

    fn see_publish(&mut self, publish: &Publish) {
        if let Some(packet_id) = publish.packet_id {
            assert!(self.under_way.insert(packet_id), "the identifier {packet_id} is under way already");
            assert!(self.under_way.len() <= self.window, "more messages under way than {}", self.window);
        }
        if let Some(alias) = publish.topic_alias {
            assert!(alias <= self.aliases_max, "the alias {alias} of {}", self.aliases_max);
            let is_known = self.aliases.insert(alias, true).is_some();
            assert!(is_known || publish.topic.is_some(), "the alias {alias} has no topic");
        }
    }

    /// Nothing was added to the output since it was read, nor will be.
    fn is_silent(&mut self, output: &BytesMut) {
        assert_eq!(self.seen, output.len());
        // From now on every packet is one too many.
        self.window = 0;
        self.owed = [0; 5];
    }
}

/// The version in which a refused CONNECT was answered: CONNACK has two bytes in 3.1.1, more in MQTT 5.
fn version_of(output: &BytesMut) -> Version {
    if output.get(1) == Some(&2) { Version::V311 } else { Version::V5 }
}
