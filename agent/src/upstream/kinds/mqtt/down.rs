//! What comes down: manifests and chunks of models, and commands for this gateway.
//!
//! Owns the way from the server above to the gateway's own broker. A message is acknowledged there when it is on the disk here, so
//! nothing that the server gave up is missing after a power cut; what is retained here already is only acknowledged, so that
//! a reconnect writes nothing twice. Runs beside the deliveries: a log that is full holds what comes down, not what goes up.

use bytes::Bytes;
use millwright_broker::log::AppendError;
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::{TopicFilter, TopicName};
use tokio::sync::mpsc;

use super::super::super::Down;
use super::link::{Client, Received};
use crate::config::upstream::MqttUpstream;

/// Messages that came down and are not on disk yet: chunks of 64 KiB are 16 MiB. A server that speaks MQTT 5 sends fewer at a time.
pub(super) const RECEIVED_MAX: usize = 256;

/// What is asked for.
pub(super) struct Wanted {
    prefix: String,
    models: Vec<TopicFilter>,
    command: Option<TopicName>,
}

impl Wanted {
    /// What the configuration asks for; `None` if nothing.
    pub(super) fn new(mqtt: &MqttUpstream, down: &Down) -> Option<Wanted> {
        let filters: &[&str] = match mqtt.models_down {
            true => &["mw/v1/model/+/manifest", "mw/v1/model/+/chunk/+/+"],
            false => &[],
        };
        let models = filters.iter().filter_map(|filter| TopicFilter::parse(filter).ok()).collect::<Vec<_>>();
        let command = format!("mw/v1/gateway/{}/command", down.gateway);
        let command = if mqtt.commands_down { TopicName::parse(&command).ok() } else { None };
        let wanted = Wanted { prefix: mqtt.prefix.clone(), models, command };
        (!wanted.models.is_empty() || wanted.command.is_some()).then_some(wanted)
    }

    /// The filters to subscribe to.
    pub(super) fn filters(&self) -> Vec<String> {
        let models = self.models.iter().map(TopicFilter::as_str);
        let command = self.command.iter().map(TopicName::as_str);
        models.chain(command).map(|filter| format!("{}{filter}", self.prefix)).collect()
    }

    /// The message to publish here; `None` if it is nothing that was asked for.
    fn message(&self, received: &Received) -> Option<Message> {
        let topic = TopicName::parse(received.topic.strip_prefix(&self.prefix)?).ok()?;
        let is_command = self.command.as_ref() == Some(&topic);
        if is_command && received.retain {
            tracing::warn!("a retained command came from above and is not carried out: it would be at each restart");
            return None;
        }
        if !is_command && !self.models.iter().any(|filter| filter.matches(&topic)) {
            return None;
        }
        Some(Message {
            topic,
            payload: received.payload.clone(),
            properties: Bytes::new(),
            qos: QoS::AtLeastOnce,
            // Models are retained, whatever became of the flag on the way; an empty payload takes them back.
            retain: !is_command,
            origin: 0,
        })
    }
}

/// Takes what comes down until the connection ends.
pub(super) async fn run(wanted: Wanted, down: Down, client: Client, mut received: mpsc::Receiver<Received>) {
    while let Some(received) = received.recv().await {
        if let Some(message) = wanted.message(&received)
            && !is_known(&down, &message)
            && let Err(error) = down.publisher.publish(message).await
        {
            tracing::error!(topic = received.topic, %error, "a message from above cannot be stored");
            if !matches!(error, AppendError::MessageTooLarge { .. }) {
                // Not acknowledged: the server sends it again on the next connection.
                continue;
            }
        }
        client.acknowledge(&received).await;
    }
}

/// Whether the same is retained here, or it takes back what is not.
fn is_known(down: &Down, message: &Message) -> bool {
    message.retain
        && match down.log.retained().get(&message.topic) {
            Some(here) => here.message.payload == message.payload,
            None => message.payload.is_empty(),
        }
}
