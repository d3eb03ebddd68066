//! MQTT, 3.1.1 and 5, at QoS 1; and what comes down from there.
//!
//! Owns one connection: a task that polls it ([`link`]), the delivery, and a task that stores what comes down ([`down`]). Bounds:
//! [`TOLD_MAX`] events wait for the delivery, [`down::RECEIVED_MAX`] messages for the disk.

mod down;
mod link;

use std::collections::HashMap;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;

use self::down::Wanted;
use self::link::{Client, Events, Full, Options, Received, Told, Verdict};
use super::super::Down;
use super::super::record::Record;
use super::super::sink::{Confirmed, Sink, SinkError, password};
use super::super::tls;
use super::progress::Progress;
use crate::config::UpstreamConfig;
use crate::config::upstream::MqttUpstream;

/// Events that wait for the delivery: the connection is not read meanwhile.
const TOLD_MAX: usize = 4_096;
/// What a packet has besides topic, payload and the values of its properties, bytes.
const PACKET_OVERHEAD_BYTES: usize = 256;

/// What the delivery is told.
enum Event {
    Sent(u16),
    Acknowledged(u16, Verdict),
    TooLarge,
    Ended(SinkError),
}

struct Mqtt {
    client: Client,
    events: mpsc::Receiver<Event>,
    tasks: Tasks,
    prefix: String,
    packet_bytes_max: usize,
    retains: bool,
    /// Somebody was told that nobody subscribes.
    told_unwanted: bool,
}

/// They end with the connection.
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Connects, and subscribes to what is to come down.
pub(in super::super) async fn connect(
    config: &UpstreamConfig,
    mqtt: &MqttUpstream,
    down: &Down,
) -> Result<Box<dyn Sink>, SinkError> {
    let wanted = Wanted::new(mqtt, down);
    let (host, port) = config.address.rsplit_once(':').unwrap_or((&config.address, ""));
    let options = Options {
        v5: mqtt.v5,
        client_id: mqtt.client_id.clone().unwrap_or_else(|| down.gateway.to_string()),
        host: host.to_owned(),
        port: port.parse().map_err(|_| SinkError::setup("the address has no port", "write host:port"))?,
        login: password(config)?,
        tls: config.tls.as_ref().map(tls::client).transpose()?,
        keeps_session: wanted.is_some(),
        timeout: config.timeout,
    };
    let (client, mut events) = link::open(options);
    let (packet_bytes_max, retains) = loop {
        if let Told::Connected { packet_bytes_max, retains } = events.next().await? {
            break (packet_bytes_max as usize, retains);
        }
    };
    let (to_down, received) = mpsc::channel(down::RECEIVED_MAX);
    if let Some(wanted) = &wanted {
        subscribe(&client, &mut events, wanted, &to_down).await?;
    }
    let (to_delivery, told) = mpsc::channel(TOLD_MAX);
    let mut tasks = vec![tokio::spawn(drive(events, to_delivery, to_down))];
    if let Some(wanted) = wanted {
        tasks.push(tokio::spawn(down::run(wanted, down.clone(), client.clone(), received)));
    }
    Ok(Box::new(Mqtt {
        client,
        events: told,
        tasks: Tasks(tasks),
        prefix: mqtt.prefix.clone(),
        packet_bytes_max,
        retains,
        told_unwanted: false,
    }))
}

/// Subscribes, and waits for the answer; what comes down before it is kept.
async fn subscribe(
    client: &Client,
    events: &mut Events,
    wanted: &Wanted,
    to_down: &mpsc::Sender<Received>,
) -> Result<(), SinkError> {
    let filters = wanted.filters();
    client.subscribe(&filters).await?;
    loop {
        match events.next().await? {
            Told::Subscribed(Ok(())) => return Ok(()),
            Told::Subscribed(Err(why)) => {
                let what = format!("the server does not allow to subscribe to {} ({why})", filters.join(" and "));
                return Err(SinkError::setup(
                    what,
                    "allow it there, or write models_down = false, commands_down = false",
                ));
            }
            Told::Message(message) => store_later(to_down, *message)?,
            _ => {}
        }
    }
}

/// Hands over what came down. What the server does not keep may be lost, as its quality of service says.
fn store_later(to_down: &mpsc::Sender<Received>, message: Received) -> Result<(), SinkError> {
    match to_down.try_send(message) {
        Err(TrySendError::Full(message)) if message.is_kept => Err(SinkError::Lost(format!(
            "more than {} messages came down before they could be stored",
            down::RECEIVED_MAX
        ))),
        Err(TrySendError::Full(message)) => {
            tracing::warn!(topic = message.topic, "a message came down at QoS 0 and is lost: publish it at QoS 1");
            Ok(())
        }
        // The task has ended, and the connection with it.
        Err(TrySendError::Closed(_)) | Ok(()) => Ok(()),
    }
}

/// Polls the connection until it ends.
async fn drive(mut events: Events, to_delivery: mpsc::Sender<Event>, to_down: mpsc::Sender<Received>) {
    loop {
        let event = match events.next().await {
            Ok(Told::Sent(number)) => Event::Sent(number),
            Ok(Told::Acknowledged(number, verdict)) => Event::Acknowledged(number, verdict),
            Ok(Told::TooLarge) => Event::TooLarge,
            Ok(Told::Message(message)) => match store_later(&to_down, *message) {
                Ok(()) => continue,
                Err(error) => Event::Ended(error),
            },
            Ok(Told::Connected { .. } | Told::Subscribed(_) | Told::Else) => continue,
            Err(error) => Event::Ended(error),
        };
        let is_over = matches!(event, Event::Ended(_) | Event::TooLarge);
        if to_delivery.send(event).await.is_err() || is_over {
            return;
        }
    }
}

#[async_trait]
impl Sink for Mqtt {
    async fn deliver(&mut self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError> {
        let progress = Progress::new(records.len());
        // Numbers of packets to places in the delivery; they are given in the order of handing over.
        let (mut places, mut handed, mut numbered, mut done) = (HashMap::new(), 0, 0, 0);
        while done < records.len() {
            while let Some(record) = records.get(handed) {
                match self.publish(record)? {
                    true => handed += 1,
                    false => break,
                }
            }
            match self.events.recv().await {
                Some(Event::Sent(number)) => {
                    places.insert(number, numbered);
                    numbered += 1;
                }
                Some(Event::Acknowledged(number, verdict)) => {
                    let Some(place) = places.remove(&number) else { continue };
                    if let Some(record) = records.get(place) {
                        self.judge(record, verdict)?;
                    }
                    done = progress.done([place]);
                    confirmed.set(done);
                }
                Some(Event::TooLarge) => return Err(too_large(records.get(done..handed).unwrap_or_default())),
                Some(Event::Ended(error)) => return Err(error),
                None => return Err(SinkError::Lost("the connection ended".to_owned())),
            }
        }
        Ok(())
    }

    async fn ended(&mut self) -> SinkError {
        loop {
            match self.events.recv().await {
                Some(Event::Ended(error)) => return error,
                Some(_) => {}
                None => return SinkError::Lost("the connection ended".to_owned()),
            }
        }
    }

    async fn close(&mut self) {
        self.client.disconnect().await;
        // The task ends when the packet is out and the server has closed.
        if let Some(driver) = self.tasks.0.first_mut() {
            let _ = driver.await;
        }
    }
}

/// The server ended the connection for a message that is too large for it, without saying which.
fn too_large(unacknowledged: &[Record]) -> SinkError {
    match unacknowledged.iter().max_by_key(|record| record.payload.len()) {
        Some(record) => SinkError::refused(record, format!("{} bytes are too many for it", record.payload.len())),
        None => SinkError::Lost("the server says that a packet is too large".to_owned()),
    }
}

impl Mqtt {
    /// Hands a message over; returns whether there was room.
    fn publish(&self, record: &Record) -> Result<bool, SinkError> {
        let topic = format!("{}{}", self.prefix, record.topic.as_str());
        let bytes = record.payload.len() + 2 * topic.len() + record.id.len() + PACKET_OVERHEAD_BYTES;
        if bytes > self.packet_bytes_max {
            let reason = format!("it needs a packet of {bytes} bytes, the server takes {}", self.packet_bytes_max);
            return Err(SinkError::refused(record, reason));
        }
        match self.client.publish(topic, record, record.retain && self.retains) {
            Ok(()) => Ok(true),
            Err(Full::Wait) => Ok(false),
            Err(Full::Ended) => Err(SinkError::Lost("the connection ended".to_owned())),
        }
    }

    fn judge(&mut self, record: &Record, verdict: Verdict) -> Result<(), SinkError> {
        let topic = record.topic.as_str();
        match verdict {
            Verdict::Taken => Ok(()),
            Verdict::Unwanted => {
                if !std::mem::replace(&mut self.told_unwanted, true) {
                    tracing::warn!(
                        topic,
                        "nobody subscribes to this above: the server takes such messages and forgets them"
                    );
                }
                Ok(())
            }
            Verdict::Denied => {
                let what = format!("the server does not allow to publish to {}{topic}", self.prefix);
                Err(SinkError::setup(what, "allow it there, or leave it out of `send` or `filters`"))
            }
            Verdict::Refused(reason) => Err(SinkError::refused(record, reason)),
            Verdict::NotNow(reason) => {
                Err(SinkError::Lost(format!("the server does not take messages now ({reason})")))
            }
        }
    }
}
