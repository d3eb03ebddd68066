//! The demonstration's model from far away: signed and pushed over MQTT as a fleet's would be, so that there is one in shadow.
//!
//! Owns what it is trained on (an earlier, longer and healthy day of the first machine) and its key, which is made for this run and trusted by
//! this gateway alone. What the gateway makes of it is the steward's. That it cannot be pushed is logged and ends nothing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use millwright_firmware_sim::plant::{Plan, PlannedMachine};
use millwright_models::commission::{Subject, commission_subject};
use millwright_models::manifest::{CHUNK_BYTES_MAX, Manifest};
use millwright_models::signature::{PublicKey, SecretKey};
use millwright_models::{ModelName, Params};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};

/// Rows that it is trained on: three times what the gateway learns from.
const TRAINED_ROWS: usize = 1_200;
/// Its version.
const VERSION: u64 = 1;
/// Messages sent and not yet acknowledged.
const IN_FLIGHT: u16 = 16;
/// A chunk with its topic.
const PACKET_BYTES_MAX: usize = 2 * CHUNK_BYTES_MAX;
/// Longest time for the broker to take it.
const PUBLISH: Duration = Duration::from_secs(30);

/// Who pushes models.
pub struct Fleet {
    key: SecretKey,
}

impl Fleet {
    /// With a key of its own.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new() -> anyhow::Result<Fleet> {
        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("the system gives no random numbers: {error}"))?;
        Ok(Fleet { key: SecretKey::from_seed(&seed) })
    }

    /// The key that a gateway has to trust.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Trains a model for the first machine of the plant and pushes it.
    pub async fn push(self, plan: Plan, broker: SocketAddr) {
        let result = async {
            let machine = plan.machines.first().cloned().context("the plant has no machine")?;
            let messages = tokio::task::spawn_blocking(move || self.train(&machine)).await??;
            tokio::time::timeout(PUBLISH, publish(broker, messages)).await.context("the broker takes too long")?
        };
        if let Err(error) = result.await {
            tracing::error!("the demonstration's model is not pushed: {error:#}");
        }
    }

    /// Chunks and signed manifest, topic and payload.
    fn train(&self, planned: &PlannedMachine) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let healthy = PlannedMachine { fault: None, ..planned.clone() };
        let mut machine = healthy.build()?;
        let rows: Vec<f32> = (0..TRAINED_ROWS).flat_map(|row| machine.sample(row as f64).to_vec()).collect();
        let channels: Vec<String> = machine.channels().iter().map(|channel| channel.name.to_owned()).collect();
        let name = format!("{}-long-run", planned.asset);
        let units: Vec<Option<String>> =
            machine.channels().iter().map(|channel| Some(channel.unit.to_owned())).collect();
        let subject = Subject { units: &units, ..Subject::new(&name, VERSION, &channels) };
        let model = commission_subject(&subject, &rows, &Params::default())?.onnx;
        let manifest = Manifest::describe(ModelName::parse(&name)?, VERSION, &model, CHUNK_BYTES_MAX, None)?
            .for_assets(vec![planned.asset.to_owned()])?;
        let chunks = manifest.split(&model).enumerate().map(|(n, chunk)| (manifest.chunk_topic(n), chunk.to_vec()));
        let last = (manifest.topic(), self.key.sign(&manifest.to_json())?);
        Ok(chunks.chain([last]).collect())
    }
}

/// Publishes in order, retained, until all is acknowledged.
async fn publish(broker: SocketAddr, messages: Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let mut options = MqttOptions::new("millwright-fleet", broker.ip().to_string(), broker.port());
    options.set_inflight(IN_FLIGHT).set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    let (client, mut connection) = AsyncClient::new(options, usize::from(IN_FLIGHT));
    let mut waiting = messages.len();
    let send = async {
        for (topic, payload) in messages {
            client.publish(topic, QoS::AtLeastOnce, true, payload).await?;
        }
        anyhow::Ok(())
    };
    let acknowledge = async {
        while waiting > 0 {
            waiting -= usize::from(matches!(connection.poll().await?, Event::Incoming(Packet::PubAck(_))));
        }
        anyhow::Ok(())
    };
    tokio::try_join!(send, acknowledge)?;
    Ok(())
}
