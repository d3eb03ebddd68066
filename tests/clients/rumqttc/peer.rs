//! One face on rumqttc's clients of both versions: connect, subscribe, publish, wait for the next message.
//!
//! Owns the waiting. Never judges what a broker does. Every wait ends after [`PATIENCE`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use bytes::Bytes;
use harness::PATIENCE;
use rumqttc::v5::mqttbytes::v5 as p5;
use rumqttc::v5::{self, mqttbytes as m5};
use rumqttc::{self as v4, mqttbytes::v4 as p4};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::kind::Turn;

/// How long a session that expires should be kept: longer than any run.
pub(super) const LONG_S: u32 = 3_600;
/// Events of a client that nobody has looked at yet; no scenario has as many.
const EVENTS_MAX: usize = 10_000;
/// Requests that may wait for the event loop.
const REQUESTS_MAX: usize = 1_000;
/// rumqttc's own limit is 10 KiB.
const PACKET_BYTES_MAX: u32 = 1 << 20;

/// A message that came.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) dup: bool,
    pub(super) properties: p5::PublishProperties,
}

impl Message {
    /// The payload as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// What the event loop tells.
#[derive(Debug)]
enum Heard {
    ConnAck(bool, Box<Option<p5::ConnAckProperties>>),
    SubAck(Vec<u8>),
    UnsubAck(Vec<u8>),
    Acknowledged,
    PingResp,
    Message(Message),
    /// The connection is over; with the reason, if the broker gave one.
    Closed(Option<u8>, String),
}

/// How to connect.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    /// Go on with the session of this name, and have it kept after the connection for so many seconds.
    pub(super) keep_s: Option<u32>,
    pub(super) keep_alive_s: Option<u64>,
    /// Topic, payload, QoS.
    pub(super) will: Option<(&'static str, &'static str, u8)>,
    pub(super) will_properties: Option<p5::LastWillProperties>,
    pub(super) never_ack: bool,
    pub(super) receive_max: Option<u16>,
    pub(super) packet_bytes_max: Option<u32>,
    pub(super) topic_alias_max: Option<u16>,
}

impl Wishes {
    /// A session that is kept.
    pub(super) fn kept() -> Wishes {
        Wishes { keep_s: Some(LONG_S), ..Wishes::default() }
    }
}

#[derive(Debug)]
enum Client {
    V311(v4::AsyncClient),
    V5(v5::AsyncClient),
}

/// One client.
#[derive(Debug)]
pub(super) struct Peer<'a> {
    turn: &'a Turn,
    client: Client,
    task: JoinHandle<()>,
    heard: mpsc::Receiver<Heard>,
    aliases: HashMap<u16, String>,
    messages: VecDeque<Message>,
    /// Of the CONNACK.
    pub(super) session_present: bool,
    /// Of the CONNACK.
    pub(super) granted: Option<p5::ConnAckProperties>,
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<'a> Peer<'a> {
    /// A clean session.
    pub(super) async fn new(turn: &'a Turn, name: &str) -> anyhow::Result<Peer<'a>> {
        Peer::connect(turn, name, Wishes::default()).await
    }

    /// Connects and waits for the CONNACK; without a name, without an identifier.
    pub(super) async fn connect(turn: &'a Turn, name: &str, wishes: Wishes) -> anyhow::Result<Peer<'a>> {
        let id = if name.is_empty() { String::new() } else { turn.client_id(name) };
        let (sender, heard) = mpsc::channel(EVENTS_MAX);
        let (client, task) = if turn.is_v5() {
            let (client, events) = v5::AsyncClient::new(options_v5(turn, id, wishes)?, REQUESTS_MAX);
            (Client::V5(client), tokio::spawn(run_v5(events, sender)))
        } else {
            let (client, events) = v4::AsyncClient::new(options_v311(turn, id, &wishes)?, REQUESTS_MAX);
            (Client::V311(client), tokio::spawn(run_v311(events, sender)))
        };
        let (aliases, messages) = (HashMap::new(), VecDeque::new());
        let mut peer = Peer { turn, client, task, heard, aliases, messages, session_present: false, granted: None };
        let (session_present, granted) = peer
            .answer("CONNACK", |heard| match heard {
                Heard::ConnAck(session_present, granted) => Some((session_present, granted)),
                _ => None,
            })
            .await?;
        (peer.session_present, peer.granted) = (session_present, *granted);
        Ok(peer)
    }

    /// Waits for the next event; a message is kept.
    async fn hear(&mut self, what: &str) -> anyhow::Result<Option<Heard>> {
        match tokio::time::timeout(PATIENCE, self.heard.recv()).await {
            Err(_) => bail!("no {what} within {PATIENCE:?}"),
            Ok(None) => bail!("no {what}: the connection is over"),
            Ok(Some(Heard::Message(message))) => {
                self.keep(message)?;
                Ok(None)
            }
            Ok(Some(other)) => Ok(Some(other)),
        }
    }

    /// The event loop hands aliases of the broker on as they are. [MQTT-3.3.2.3.4]
    fn keep(&mut self, mut message: Message) -> anyhow::Result<()> {
        if let Some(alias) = message.properties.topic_alias {
            if message.topic.is_empty() {
                message.topic = self.aliases.get(&alias).cloned().ok_or_else(|| anyhow!("unknown alias {alias}"))?;
            }
            self.aliases.insert(alias, message.topic.clone());
        }
        self.messages.push_back(message);
        Ok(())
    }

    async fn answer<T>(&mut self, what: &str, mut pick: impl FnMut(Heard) -> Option<T>) -> anyhow::Result<T> {
        loop {
            match self.hear(what).await? {
                Some(Heard::Closed(_, error)) => bail!("no {what}: {error}"),
                Some(heard) => {
                    if let Some(value) = pick(heard) {
                        return Ok(value);
                    }
                }
                None => {}
            }
        }
    }

    /// Subscribes to one filter below the prefix; gives the code of the SUBACK.
    pub(super) async fn subscribe(&mut self, rest: &str, qos: u8) -> anyhow::Result<u8> {
        self.subscribe_raw(&self.turn.topic(rest), qos).await
    }

    /// Subscribes to a filter as it stands.
    pub(super) async fn subscribe_raw(&mut self, filter: &str, qos: u8) -> anyhow::Result<u8> {
        match &self.client {
            Client::V311(client) => client.subscribe(filter, qos_v311(qos)?).await?,
            Client::V5(client) => client.subscribe(filter, qos_v5(qos)?).await?,
        }
        self.suback().await
    }

    /// Subscribes with the options of MQTT 5.
    pub(super) async fn subscribe_with(
        &mut self,
        rest: &str,
        identifier: Option<usize>,
        set: impl FnOnce(&mut p5::Filter),
    ) -> anyhow::Result<u8> {
        let mut filter = p5::Filter::new(self.turn.topic(rest), m5::QoS::AtLeastOnce);
        set(&mut filter);
        let Client::V5(client) = &self.client else { bail!("only MQTT 5 has options of subscriptions") };
        match identifier {
            Some(id) => {
                let properties = p5::SubscribeProperties { id: Some(id), user_properties: Vec::new() };
                client.subscribe_many_with_properties([filter], properties).await?;
            }
            None => client.subscribe_many([filter]).await?,
        }
        self.suback().await
    }

    async fn suback(&mut self) -> anyhow::Result<u8> {
        let codes = self.answer("SUBACK", |heard| if let Heard::SubAck(codes) = heard { Some(codes) } else { None });
        codes.await?.first().copied().ok_or_else(|| anyhow!("a SUBACK without codes"))
    }

    /// Gives the codes of the UNSUBACK.
    pub(super) async fn unsubscribe(&mut self, rest: &str) -> anyhow::Result<Vec<u8>> {
        let filter = self.turn.topic(rest);
        match &self.client {
            Client::V311(client) => client.unsubscribe(filter).await?,
            Client::V5(client) => client.unsubscribe(filter).await?,
        }
        self.answer("UNSUBACK", |heard| if let Heard::UnsubAck(codes) = heard { Some(codes) } else { None }).await
    }

    /// Publishes and, at QoS 1 and 2, waits for the acknowledgement.
    pub(super) async fn publish(
        &mut self,
        rest: &str,
        payload: impl Into<Bytes>,
        qos: u8,
        retain: bool,
    ) -> anyhow::Result<()> {
        self.send(&self.turn.topic(rest), payload.into(), qos, retain, None).await?;
        self.acknowledged(qos).await
    }

    /// Publishes with properties of MQTT 5; an empty `topic` is left to the alias.
    pub(super) async fn publish_with(
        &mut self,
        topic: &str,
        payload: impl Into<Bytes>,
        qos: u8,
        retain: bool,
        properties: p5::PublishProperties,
    ) -> anyhow::Result<()> {
        self.send(topic, payload.into(), qos, retain, Some(properties)).await?;
        self.acknowledged(qos).await
    }

    /// Publishes all of them before it waits for the acknowledgements.
    pub(super) async fn publish_all(&mut self, rest: &str, payloads: &[String], qos: u8) -> anyhow::Result<()> {
        for payload in payloads {
            self.send(&self.turn.topic(rest), payload.clone().into(), qos, false, None).await?;
        }
        for _ in payloads {
            self.acknowledged(qos).await?;
        }
        Ok(())
    }

    async fn send(
        &self,
        topic: &str,
        payload: Bytes,
        qos: u8,
        retain: bool,
        properties: Option<p5::PublishProperties>,
    ) -> anyhow::Result<()> {
        match (&self.client, properties) {
            (Client::V311(client), None) => client.publish_bytes(topic, qos_v311(qos)?, retain, payload).await?,
            (Client::V311(_), Some(_)) => bail!("only MQTT 5 has properties"),
            (Client::V5(client), None) => client.publish_bytes(topic, qos_v5(qos)?, retain, payload).await?,
            (Client::V5(client), Some(properties)) => {
                client.publish_with_properties(topic, qos_v5(qos)?, retain, payload, properties).await?;
            }
        }
        Ok(())
    }

    async fn acknowledged(&mut self, qos: u8) -> anyhow::Result<()> {
        if qos == 0 {
            return Ok(());
        }
        self.answer("acknowledgement", |heard| matches!(heard, Heard::Acknowledged).then_some(())).await
    }

    /// Waits for the answer to one of the pings that the event loop sends by itself.
    pub(super) async fn pong(&mut self) -> anyhow::Result<()> {
        self.answer("PINGRESP", |heard| matches!(heard, Heard::PingResp).then_some(())).await
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> anyhow::Result<Message> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            if let Some(Heard::Closed(_, error)) = self.hear("message").await? {
                bail!("no message: {error}");
            }
        }
    }

    /// The messages that are here and not taken yet.
    pub(super) fn waiting(&mut self) -> anyhow::Result<usize> {
        while let Ok(heard) = self.heard.try_recv() {
            if let Heard::Message(message) = heard {
                self.keep(message)?;
            }
        }
        Ok(self.messages.len())
    }

    /// The next message, which must be this one.
    pub(super) async fn expect(&mut self, rest: &str, payload: impl AsRef<[u8]>, qos: u8) -> anyhow::Result<Message> {
        let message = self.next().await?;
        let (topic, payload) = (self.turn.topic(rest), payload.as_ref());
        ensure!(
            (message.topic.as_str(), &message.payload[..], message.qos) == (topic.as_str(), payload, qos),
            "expected {topic} at QoS {qos} with {:?}, got {} at QoS {} with {:?}",
            brief(payload),
            message.topic,
            message.qos,
            brief(&message.payload)
        );
        Ok(message)
    }

    /// The messages before the next one on this topic: nothing else is on its way once it is here.
    pub(super) async fn until(&mut self, rest: &str) -> anyhow::Result<Vec<Message>> {
        let (end, mut before) = (self.turn.topic(rest), Vec::new());
        loop {
            let message = self.next().await?;
            if message.topic == end {
                return Ok(before);
            }
            before.push(message);
        }
    }

    /// Waits for the end of the connection; gives the reason, if the broker gave one.
    pub(super) async fn closed(&mut self) -> anyhow::Result<Option<u8>> {
        loop {
            if let Some(Heard::Closed(reason, _)) = self.hear("end of the connection").await? {
                return Ok(reason);
            }
        }
    }

    /// Says DISCONNECT and waits until the connection is closed.
    pub(super) async fn leave(mut self) -> anyhow::Result<()> {
        match &self.client {
            Client::V311(client) => client.disconnect().await?,
            Client::V5(client) => client.disconnect().await?,
        }
        self.closed().await.map(drop)
    }

    /// Closes the connection without DISCONNECT, as when the process is killed.
    pub(super) async fn vanish(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

fn brief(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).chars().take(60).collect()
}

fn qos_v311(qos: u8) -> anyhow::Result<v4::QoS> {
    v4::qos(qos).map_err(|error| anyhow!("{error}"))
}

fn qos_v5(qos: u8) -> anyhow::Result<m5::QoS> {
    m5::qos(qos).ok_or_else(|| anyhow!("there is no QoS {qos}"))
}

fn options_v311(turn: &Turn, id: String, wishes: &Wishes) -> anyhow::Result<v4::MqttOptions> {
    let mut options = v4::MqttOptions::new(id, turn.broker.ip().to_string(), turn.broker.port());
    options.set_clean_session(wishes.keep_s.is_none());
    options.set_keep_alive(Duration::from_secs(wishes.keep_alive_s.unwrap_or(60)));
    options.set_manual_acks(wishes.never_ack);
    options.set_max_packet_size(PACKET_BYTES_MAX as usize, PACKET_BYTES_MAX as usize);
    if let Some((topic, payload, qos)) = wishes.will {
        options.set_last_will(p4::LastWill::new(turn.topic(topic), payload, qos_v311(qos)?, false));
    }
    Ok(options)
}

fn options_v5(turn: &Turn, id: String, wishes: Wishes) -> anyhow::Result<v5::MqttOptions> {
    let mut options = v5::MqttOptions::new(id, turn.broker.ip().to_string(), turn.broker.port());
    options.set_clean_start(wishes.keep_s.is_none());
    options.set_keep_alive(Duration::from_secs(wishes.keep_alive_s.unwrap_or(60)));
    options.set_manual_acks(wishes.never_ack);
    options.set_max_packet_size(Some(wishes.packet_bytes_max.unwrap_or(PACKET_BYTES_MAX)));
    options.set_session_expiry_interval(wishes.keep_s);
    options.set_receive_maximum(wishes.receive_max);
    options.set_topic_alias_max(wishes.topic_alias_max);
    if let Some((topic, payload, qos)) = wishes.will {
        options.set_last_will(p5::LastWill::new(
            turn.topic(topic),
            payload,
            qos_v5(qos)?,
            false,
            wishes.will_properties,
        ));
    }
    Ok(options)
}

async fn run_v311(mut events: v4::EventLoop, sender: mpsc::Sender<Heard>) {
    loop {
        let heard = match events.poll().await {
            Ok(v4::Event::Incoming(packet)) => match packet {
                v4::Packet::ConnAck(connack) => Heard::ConnAck(connack.session_present, Box::new(None)),
                v4::Packet::SubAck(suback) => Heard::SubAck(suback.return_codes.iter().map(code_v311).collect()),
                v4::Packet::UnsubAck(_) => Heard::UnsubAck(Vec::new()),
                v4::Packet::PubAck(_) | v4::Packet::PubComp(_) => Heard::Acknowledged,
                v4::Packet::PingResp => Heard::PingResp,
                v4::Packet::Publish(publish) => Heard::Message(Message {
                    topic: publish.topic,
                    payload: publish.payload,
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    dup: publish.dup,
                    properties: p5::PublishProperties::default(),
                }),
                _ => continue,
            },
            Ok(v4::Event::Outgoing(_)) => continue,
            Err(error) => {
                let _ = sender.send(Heard::Closed(None, error.to_string())).await;
                return;
            }
        };
        if sender.send(heard).await.is_err() {
            return;
        }
    }
}

async fn run_v5(mut events: v5::EventLoop, sender: mpsc::Sender<Heard>) {
    let mut reason = None;
    loop {
        let heard = match events.poll().await {
            Ok(v5::Event::Incoming(packet)) => match packet {
                p5::Packet::ConnAck(connack) => Heard::ConnAck(connack.session_present, Box::new(connack.properties)),
                p5::Packet::SubAck(suback) => Heard::SubAck(suback.return_codes.iter().map(code_v5).collect()),
                p5::Packet::UnsubAck(unsuback) => Heard::UnsubAck(unsuback.reasons.iter().map(unsubscribed).collect()),
                p5::Packet::PubAck(_) | p5::Packet::PubComp(_) => Heard::Acknowledged,
                p5::Packet::PingResp(_) => Heard::PingResp,
                p5::Packet::Publish(publish) => Heard::Message(Message {
                    topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                    payload: publish.payload,
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    dup: publish.dup,
                    properties: publish.properties.unwrap_or_default(),
                }),
                _ => continue,
            },
            Ok(v5::Event::Outgoing(_)) => continue,
            Err(error) => {
                if let v5::ConnectionError::MqttState(v5::StateError::ServerDisconnect { reason_code, .. }) = &error {
                    reason = Some(*reason_code as u8);
                }
                let _ = sender.send(Heard::Closed(reason, error.to_string())).await;
                return;
            }
        };
        if sender.send(heard).await.is_err() {
            return;
        }
    }
}

fn code_v311(code: &v4::SubscribeReasonCode) -> u8 {
    match code {
        v4::SubscribeReasonCode::Success(qos) => *qos as u8,
        v4::SubscribeReasonCode::Failure => 0x80,
    }
}

fn code_v5(code: &p5::SubscribeReasonCode) -> u8 {
    match code {
        p5::SubscribeReasonCode::Success(qos) => *qos as u8,
        p5::SubscribeReasonCode::Failure | p5::SubscribeReasonCode::Unspecified => 0x80,
        p5::SubscribeReasonCode::ImplementationSpecific => 0x83,
        p5::SubscribeReasonCode::NotAuthorized => 0x87,
        p5::SubscribeReasonCode::TopicFilterInvalid => 0x8F,
        p5::SubscribeReasonCode::PkidInUse => 0x91,
        p5::SubscribeReasonCode::QuotaExceeded => 0x97,
        p5::SubscribeReasonCode::SharedSubscriptionsNotSupported => 0x9E,
        p5::SubscribeReasonCode::SubscriptionIdNotSupported => 0xA1,
        p5::SubscribeReasonCode::WildcardSubscriptionsNotSupported => 0xA2,
    }
}

fn unsubscribed(reason: &p5::UnsubAckReason) -> u8 {
    match reason {
        p5::UnsubAckReason::Success => 0,
        p5::UnsubAckReason::NoSubscriptionExisted => 0x11,
        _ => 0x80,
    }
}
