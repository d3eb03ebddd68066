//! One MQTT connection as a state machine.
//!
//! [`Session`] takes packets, the outcome of appends, messages to deliver and the time; it gives bytes to send
//! ([`Session::output`]), batches to append ([`Session::take_durable`]), messages to fan out ([`Session::take_volatile`])
//! and [`Event`]s. There is no socket, no clock, no database and no task in it: the shell around it
//! (`connection.rs`) has those, and tests drive it by hand.
//!
//! The order of acknowledgements is the order of the publishes, whatever the reason they carry ([MQTT-4.6.0-2]). A
//! PUBACK or PUBREC is sent only after [`Session::committed`] said that its message is on disk.
//!
//! A session that outlives its connection is stored as it goes (`persist`) and taken up by the next connection
//! ([`Acceptance`]); the messages it missed are in the log.
//!
//! Limits: see [`Limits`]. When one is reached, [`Session::wants_packets`] turns false and the shell stops reading.

mod connect;
mod deliver;
mod outgoing;
mod persist;
mod publish;
mod redeliver;
mod sharing;
mod subscribe;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::auth::{Authorize, Identity};
use crate::codec::{Ack, ConnAck, Connect, DecodeError, Disconnect, Packet, Property, Reason, Text, Version, encode};
use crate::limits::Limits;
use crate::log::sessions::StoredWill;
use crate::log::{Gap, Offset};
use crate::message::{Message, QoS};
use crate::topic::TopicFilter;

pub(crate) use connect::Acceptance;
pub(crate) use publish::Durable;

/// What the shell knows about the world when it calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// For deadlines.
    pub(crate) at: Instant,
    /// For records and expiry, microseconds since 1970 UTC.
    pub(crate) utc_us: i64,
    /// The offset that the next logged message will get.
    pub(crate) head: Offset,
    /// Whether a filter more can be stored.
    pub(crate) filters_fit: bool,
    /// Whether all clients together may have a subscription more.
    pub(crate) subscriptions_fit: bool,
}

/// Something for the shell to do.
#[derive(Debug)]
pub(crate) enum Event {
    /// Authenticate, take over, then [`Session::accept`] or [`Session::refuse`].
    Connect(Box<Connect>),
    /// The subscription to this filter has this QoS from now on; `None`: it ended. To be handled before the output is
    /// sent, so that live messages published after the SUBACK come.
    Watch { filter: TopicFilter, qos: Option<QoS> },
    /// Answer with [`Session::retained`].
    FetchRetained(TopicFilter),
    /// Join the group of a shared subscription, then [`Session::joined`]; if it `counts` and `is_new`, a stored session
    /// more belongs to it.
    Join { filter: TopicFilter, counts: bool, is_new: bool },
    /// The session left a group for good; if it was `counted`, a stored session less belongs to it.
    Left { filter: TopicFilter, counted: bool },
    /// Append, if it is durable, and fan out; the connection did not end well.
    Will(Message),
    /// Flush the output and close the connection.
    Close,
}

/// Why a session ended; for the log line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the client disconnected")]
    Disconnected,
    #[error("the client disconnected and asked for its will")]
    DisconnectedWithWill,
    #[error("the client reported an error: {0}")]
    ReportedByClient(Reason),
    #[error("the client sent bytes that are not MQTT: {0}")]
    Malformed(#[from] DecodeError),
    #[error("the client broke the protocol: {what} [{clause}]")]
    Protocol { reason: Reason, clause: &'static str, what: &'static str },
    #[error("no CONNECT within the deadline")]
    ConnectDeadline,
    #[error("nothing from the client for one and a half keep-alives")]
    KeepAlive,
    #[error("refused: {0}")]
    Refused(Reason),
    #[error("closed by the broker: {0}")]
    Broker(Reason),
    #[error("the network connection broke")]
    Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for CONNECT.
    Connecting,
    /// The shell authenticates.
    Deciding,
    Open,
    Closed,
}

/// A connection's state machine.
#[derive(Debug)]
pub(crate) struct Session {
    limits: Arc<Limits>,
    authorize: Arc<dyn Authorize>,
    phase: Phase,
    version: Version,
    identity: Identity,
    /// Number of this session, in the messages it publishes.
    number: u32,
    /// From CONNECT until it is accepted.
    connect: Option<Connect>,
    will: Option<StoredWill>,
    /// The will of a connection that has ended and whose session goes on.
    delayed_will: Option<StoredWill>,
    /// `None`: the session ends with its connection.
    persist: Option<persist::Persist>,
    /// `None`: the client need not speak.
    deadline: Option<Instant>,
    keep_alive: Option<Duration>,
    /// The shell does not read, so silence is not the client's.
    keep_alive_held: bool,
    ended: Option<Ended>,
    output: BytesMut,
    events: VecDeque<Event>,
    inbound: publish::Inbound,
    outbound: deliver::Outbound,
    subscriptions: subscriptions::Subscriptions,
    sharing: Vec<sharing::Sharing>,
    denied: Denied,
}

/// What access rules did not allow.
#[derive(Debug, Default)]
struct Denied {
    /// Not yet counted by the shell.
    count: u64,
    /// The first topic or filter, for the log: a device that is denied once is denied all the time.
    first: Option<Box<str>>,
}

impl Session {
    /// A session for a connection made now.
    pub(crate) fn new(limits: Arc<Limits>, authorize: Arc<dyn Authorize>, now: Instant) -> Session {
        Session {
            deadline: Some(now + limits.connect_deadline),
            inbound: publish::Inbound::default(),
            outbound: deliver::Outbound::new(&limits),
            limits,
            authorize,
            phase: Phase::Connecting,
            version: Version::V311,
            identity: Identity::default(),
            number: 0,
            connect: None,
            will: None,
            delayed_will: None,
            persist: None,
            keep_alive: None,
            keep_alive_held: false,
            ended: None,
            output: BytesMut::new(),
            events: VecDeque::new(),
            subscriptions: subscriptions::Subscriptions::default(),
            sharing: Vec::new(),
            denied: Denied::default(),
        }
    }

    /// A packet from the client.
    pub(crate) fn handle(&mut self, packet: Packet, moment: Moment) {
        match (self.phase, packet) {
            (Phase::Connecting, Packet::Connect(connect)) => self.on_connect(*connect),
            (Phase::Connecting | Phase::Deciding, _) => {
                self.protocol_error("MQTT-3.1.0-1", "the first packet is not CONNECT");
            }
            (Phase::Open, packet) => {
                self.deadline = self.keep_alive.map(|keep_alive| moment.at + keep_alive);
                self.on_packet(packet, moment);
            }
            (Phase::Closed, _) => {}
        }
    }

    fn on_packet(&mut self, packet: Packet, moment: Moment) {
        match packet {
            Packet::Publish(publish) => self.on_publish(publish),
            Packet::PubRel(ack) => self.on_pubrel(&ack),
            Packet::PubAck(ack) => self.on_puback(&ack),
            Packet::PubRec(ack) => self.on_pubrec(&ack),
            Packet::PubComp(ack) => self.on_pubcomp(&ack),
            Packet::Subscribe(subscribe) => self.on_subscribe(subscribe, moment),
            Packet::Unsubscribe(unsubscribe) => self.on_unsubscribe(unsubscribe),
            Packet::PingReq => self.send(&Packet::PingResp),
            Packet::Disconnect(disconnect) => self.on_disconnect(&disconnect),
            Packet::Connect(_) => self.protocol_error("MQTT-3.1.0-2", "a second CONNECT"),
            Packet::Auth(_) => {
                self.protocol_error("MQTT-4.12.0-6", "AUTH without an authentication method in CONNECT");
            }
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                self.protocol_error("MQTT-2.1.2", "a packet that only a server sends");
            }
        }
    }

    fn on_disconnect(&mut self, disconnect: &Disconnect) {
        let expiry_s = disconnect.properties.iter().find_map(|property| match property {
            Property::SessionExpiryInterval(expiry_s) => Some(*expiry_s),
            _ => None,
        });
        if let Some(expiry_s) = expiry_s {
            match &mut self.persist {
                Some(persist) if persist.expiry_s() > 0 => {
                    persist.set_expiry(expiry_s.min(self.limits.session_expiry_max_s));
                }
                _ if expiry_s > 0 => {
                    let what = "DISCONNECT asks for a session that CONNECT did not ask for";
                    return self.protocol_error("MQTT-3.14.2.2.2", what);
                }
                _ => {}
            }
        }
        match disconnect.reason {
            Reason::Success => {
                self.will = None;
                self.end(Ended::Disconnected);
            }
            Reason::DisconnectWithWill => self.end(Ended::DisconnectedWithWill),
            reason => self.end(Ended::ReportedByClient(reason)),
        }
    }

    /// The client's bytes cannot be read; `version` is what its CONNECT announced, if it came so far.
    pub(crate) fn malformed(&mut self, error: DecodeError, version: Option<Version>) {
        if self.phase == Phase::Connecting {
            if let Some(version) = version {
                self.version = version;
                // 3.1.1 has no code for a malformed CONNECT: the connection is closed without an answer.
                let answer = version == Version::V5 || error.reason == Reason::UnsupportedProtocolVersion;
                if answer {
                    self.send_connack(error.reason, Vec::new());
                }
            }
            self.end(Ended::Malformed(error));
        } else {
            self.close(error.reason, Ended::Malformed(error));
        }
    }

    /// The network connection is gone.
    pub(crate) fn disconnected(&mut self) {
        self.end(Ended::Network);
    }

    /// Messages that the session was to have are gone: retention dropped them, or the file is damaged there. A client
    /// whose session goes on is told.
    pub(crate) fn lost(&mut self, gap: Gap, moment: Moment) {
        if self.phase != Phase::Open || self.give_up(gap, moment) {
            return;
        }
        let count = gap.to.0.saturating_sub(gap.from.0);
        if self.version == Version::V5 && self.persists() {
            let text = format!("up to {count} messages were dropped before this session had read them");
            let properties = vec![Property::ReasonString(Text::from(&*text))];
            self.send(&Packet::Disconnect(Disconnect { reason: Reason::QuotaExceeded, properties }));
            self.end(Ended::Broker(Reason::QuotaExceeded));
        }
    }

    /// Ends the session from the broker's side: shutdown, takeover, administrative action.
    pub(crate) fn shut(&mut self, reason: Reason) {
        self.close(reason, Ended::Broker(reason));
    }

    /// The earliest time at which [`Session::handle_timeout`] or [`Session::take_update`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.silence_deadline(), self.store_deadline()].into_iter().flatten().min()
    }

    fn silence_deadline(&self) -> Option<Instant> {
        if self.keep_alive_held { None } else { self.deadline }
    }

    /// Looks at the deadlines.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.silence_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.phase {
            Phase::Connecting => self.end(Ended::ConnectDeadline),
            Phase::Open => self.close(Reason::KeepAliveTimeout, Ended::KeepAlive),
            Phase::Deciding | Phase::Closed => self.deadline = None,
        }
    }

    /// While the shell does not read, the client cannot be heard: its keep-alive stands still, and begins anew after.
    pub(crate) fn hold_keep_alive(&mut self, held: bool, now: Instant) {
        if self.phase != Phase::Open || held == self.keep_alive_held {
            return;
        }
        self.keep_alive_held = held;
        self.deadline = self.keep_alive.map(|keep_alive| now + keep_alive);
    }

    /// Whether [`Session::handle`] may be called. False while the shell decides or has events to handle, after the end,
    /// and while the client has filled what the limits give it.
    pub(crate) fn wants_packets(&self) -> bool {
        let open = matches!(self.phase, Phase::Connecting | Phase::Open);
        open && self.events.is_empty()
            && self.output.len() < self.limits.outbound_bytes_max
            && self.inbound.has_room(&self.limits)
            && self.persist.as_ref().is_none_or(persist::Persist::has_room)
    }

    /// Bytes that wait for the disk or the socket, and bytes read from the log that wait for the client.
    pub(crate) fn held_bytes(&self) -> (usize, usize) {
        (self.inbound.uncommitted_bytes() + self.output.len(), self.outbound.tail_bytes())
    }

    /// The next thing to do.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes to send; the shell takes them from the front.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Why the session ended, once it has.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Who the client is.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The number of the session, in the messages it publishes.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Whether the client was accepted and is served.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Publishes received on this connection.
    pub(crate) fn publishes(&self) -> u64 {
        self.inbound.publishes()
    }

    /// How many subscriptions it has.
    pub(crate) fn subscription_count(&self) -> usize {
        self.subscriptions.len()
    }

    /// What was denied since the last call: how often, and, once in a connection, the first topic or filter.
    pub(crate) fn take_denied(&mut self) -> (u64, Option<Box<str>>) {
        let count = std::mem::take(&mut self.denied.count);
        let is_first = self.denied.first.as_ref().is_some_and(|first| !first.is_empty());
        // An empty text stays: the first was told.
        let first = if is_first { self.denied.first.replace("".into()) } else { None };
        (count, first)
    }

    fn deny(&mut self, topic: &str) {
        self.denied.count += 1;
        self.denied.first.get_or_insert_with(|| topic.into());
    }

    /// Sends a packet, unless it is larger than the client takes: then the connection ends. [MQTT-3.1.2-24]
    fn send(&mut self, packet: &Packet) {
        let start = self.output.len();
        encode(packet, self.version, &mut self.output);
        if self.version == Version::V311 || self.output.len() - start <= self.outbound.packet_bytes_max() {
            return;
        }
        self.output.truncate(start);
        let reason = Reason::PacketTooLarge;
        match packet {
            Packet::Disconnect(_) => {}
            Packet::ConnAck(connack) => {
                if !connack.properties.is_empty() {
                    self.send_connack(reason, Vec::new());
                }
                self.end(Ended::Refused(reason));
            }
            _ => self.close(reason, Ended::Broker(reason)),
        }
    }

    fn send_ack(&mut self, make: fn(Ack) -> Packet, ack: Ack) {
        self.send(&make(ack));
    }

    fn send_connack(&mut self, reason: Reason, properties: Vec<Property>) {
        self.send(&Packet::ConnAck(ConnAck { session_present: false, reason, properties }));
    }

    fn protocol_error(&mut self, clause: &'static str, what: &'static str) {
        self.violation(Reason::ProtocolError, clause, what);
    }

    fn violation(&mut self, reason: Reason, clause: &'static str, what: &'static str) {
        self.close(reason, Ended::Protocol { reason, clause, what });
    }

    /// Ends the session and tells an MQTT 5 client why.
    fn close(&mut self, reason: Reason, ended: Ended) {
        if self.phase == Phase::Open && self.version == Version::V5 {
            // A second CONNECT may be wrong in ways that only a first one can be refused for.
            let reason = if reason.fits_disconnect() { reason } else { Reason::ProtocolError };
            self.send(&Packet::Disconnect(Disconnect { reason, properties: Vec::new() }));
        }
        self.end(ended);
    }

    /// Ends the session without a word; the will goes out unless DISCONNECT took it back.
    fn end(&mut self, ended: Ended) {
        if self.phase == Phase::Closed {
            return;
        }
        self.phase = Phase::Closed;
        self.deadline = None;
        self.leave_groups();
        if let Some(will) = self.will.take() {
            let outlives = self.persist.as_ref().is_some_and(|persist| persist.expiry_s() > 0);
            if outlives {
                // Stored with the end of the connection, and published when it is due, which may be at once.
                self.delayed_will = Some(will);
            } else {
                self.events.push_back(Event::Will(will.message));
            }
        }
        self.events.push_back(Event::Close);
        self.ended = Some(ended);
    }
}

/// The properties of a list that travel with a message, in wire form.
fn wire_properties(properties: &[Property]) -> Bytes {
    let mut wire = BytesMut::new();
    for property in properties {
        if !matches!(property, Property::WillDelayInterval(_)) {
            crate::codec::put_property(&mut wire, property);
        }
    }
    wire.freeze()
}
