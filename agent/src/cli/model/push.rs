//! `model push`: publish a model to its gateways, and wait for the answer of the first.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use millwright_models::contract::Contract;
use millwright_models::manifest::{CHUNK_BYTES_MAX, Manifest};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use serde_json::Value;

use super::super::{FAILED, Failure, output, runtime};
use super::{manifest_of, read, secret_key};
use crate::clock;
use crate::config::upstream::UpstreamTls;
use crate::upstream::tls;

/// Messages sent and not yet acknowledged.
const IN_FLIGHT: u16 = 16;
/// A chunk with its topic, and a manifest of the largest model.
const PACKET_BYTES_MAX: usize = 2 * CHUNK_BYTES_MAX;
/// Longest time for the broker to take everything.
const PUBLISH: Duration = Duration::from_secs(120);

/// Arguments of `model push`.
#[derive(Debug, Args)]
pub(super) struct PushArguments {
    /// The ONNX file; its name and version are in its metadata. If the manifest of its package lies beside it, that is published
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Sign it with this private key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The assets it is for; `*` stands for any text, may be given several times. Default: the asset called like the model
    #[arg(long = "assets", visible_alias = "asset", value_name = "PATTERN")]
    assets: Vec<String>,
    #[command(flatten)]
    broker: Broker,
    /// How long to wait for a gateway's answer, seconds; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Print the answer as one JSON object
    #[arg(long)]
    json: bool,
}

/// Publishes and reports.
///
/// # Errors
/// The file is no model by the contract, or the broker does not take it.
pub(super) fn run(arguments: &PushArguments) -> Result<ExitCode, Failure> {
    let file = read(&arguments.file)?;
    let (manifest, json) = manifest(arguments, &file)?;
    let answer = runtime()?.block_on(push(arguments, &manifest, json, &file))?;
    Ok(report(arguments, &manifest, answer.as_ref())?)
}

/// The manifest of the package, if the file is one of a package; else one made now.
fn manifest(arguments: &PushArguments, file: &[u8]) -> Result<(Manifest, Vec<u8>), Failure> {
    let beside = manifest_of(&arguments.file);
    if arguments.assets.is_empty() && arguments.key.is_none() && beside.exists() {
        let json = read(&beside)?;
        let manifest =
            Manifest::parse(&json).with_context(|| beside.display().to_string()).map_err(Failure::wrong_use)?;
        if *manifest.sha256() != millwright_models::Digest::of(file) {
            let told = format!(
                "{} is not the manifest of {}: pack the model again",
                beside.display(),
                arguments.file.display()
            );
            return Err(Failure::wrong_use(anyhow::anyhow!(told)));
        }
        return Ok((manifest, json));
    }
    let contract =
        Contract::read(file).with_context(|| arguments.file.display().to_string()).map_err(Failure::wrong_use)?;
    let manifest = Manifest::describe(contract.name.clone(), contract.version, file, CHUNK_BYTES_MAX, None)
        .and_then(|manifest| manifest.for_assets(arguments.assets.clone()))
        .map_err(Failure::wrong_use)?;
    let json = manifest.to_json();
    let json = match &arguments.key {
        Some(key) => secret_key(key)?.sign(&json)?,
        None => json,
    };
    Ok((manifest, json))
}

fn report(arguments: &PushArguments, manifest: &Manifest, answer: Option<&Value>) -> anyhow::Result<ExitCode> {
    let Some(answer) = answer else {
        if arguments.wait > 0 {
            bail!(
                "the model is published, but no gateway has answered within {} s: is one connected to {}?",
                arguments.wait,
                arguments.broker.address
            );
        }
        output::print(&format!("{} v{} published\n", manifest.name(), manifest.version()));
        return Ok(ExitCode::SUCCESS);
    };
    if arguments.json {
        output::print_json(answer)?;
    } else {
        let gateway = word(answer, "gateway");
        output::print(&format!("{} v{} on {gateway}: {}\n", manifest.name(), manifest.version(), told(answer)));
    }
    let taken = waits(answer) || matches!(word(answer, "state").as_str(), "active" | "shadow");
    Ok(if taken { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A field of an answer as text.
pub(super) fn word(answer: &Value, key: &str) -> String {
    answer.get(key).and_then(Value::as_str).unwrap_or("-").to_owned()
}

/// Everything has arrived, and the version waits for its turn.
fn waits(answer: &Value) -> bool {
    word(answer, "state") == "staged" && answer.get("chunks") == answer.get("of")
}

/// An answer on a model's state topic, in words.
pub(super) fn told(answer: &Value) -> String {
    let state = word(answer, "state");
    let number = |key: &str| answer.get(key).and_then(Value::as_i64).unwrap_or(0);
    match state.as_str() {
        "active" if answer.get("trial") == Some(&Value::Bool(true)) => {
            format!("active, on trial, scores {} assets", number("assets"))
        }
        "active" => format!("active, scores {} assets", number("assets")),
        "staged" => {
            "staged, waits until the version before it has ended its trial, or other models their shadows".to_owned()
        }
        "shadow" => format!("in shadow until {} or later", clock::rfc3339(number("until_us"))),
        _ => format!("{state}, {}", word(answer, "reason")),
    }
}

/// Publishes chunks, then the manifest, and returns the first answer about this file.
async fn push(
    arguments: &PushArguments,
    manifest: &Manifest,
    json: Vec<u8>,
    file: &[u8],
) -> anyhow::Result<Option<Value>> {
    let mut messages: Vec<(String, bool, Vec<u8>)> =
        manifest.split(file).enumerate().map(|(n, chunk)| (manifest.chunk_topic(n), true, chunk.to_vec())).collect();
    messages.push((manifest.topic(), true, json));
    let sha256 = manifest.sha256().to_string();
    let about = move |answer: &Value| {
        answer.get("sha256").and_then(Value::as_str) == Some(&sha256)
            && (word(answer, "state") != "staged" || waits(answer))
    };
    let state = format!("mw/v1/model/{}/state/+", manifest.name());
    arguments.broker.publish(&state, messages, &about, Duration::from_secs(arguments.wait)).await
}

/// The broker that carries models and orders.
#[derive(Debug, Args)]
pub(super) struct Broker {
    /// The broker
    #[arg(long = "broker", value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    address: String,
    /// MQTT user name; the password is read from the environment variable MILLWRIGHT_PASSWORD
    #[arg(long)]
    user: Option<String>,
    /// Connect over TLS, as brokers offer it on port 8883
    #[arg(long)]
    tls: bool,
    /// The authority that vouches for the broker's certificate; the system's are trusted without
    #[arg(long, visible_alias = "cafile", value_name = "FILE", requires = "tls")]
    ca: Option<PathBuf>,
    /// The certificate to show to the broker
    #[arg(long, value_name = "FILE", requires_all = ["tls", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// The private key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl Broker {
    /// Publishes messages (topic, retained, payload) in order, and waits up to `wait` for the first answer on `state` that is `about` them.
    pub(super) async fn publish(
        &self,
        state: &str,
        messages: Vec<(String, bool, Vec<u8>)>,
        about: &dyn Fn(&Value) -> bool,
        wait: Duration,
    ) -> anyhow::Result<Option<Value>> {
        let (client, mut connection) = AsyncClient::new(self.options()?, usize::from(IN_FLIGHT));
        let count = messages.len();
        let send = async {
            client.subscribe(state, QoS::AtLeastOnce).await?;
            for (topic, retain, payload) in messages {
                client.publish(topic, QoS::AtLeastOnce, retain, payload).await?;
            }
            anyhow::Ok(())
        };
        let mut answer = None;
        let mut taken = |event: &Event| {
            // A retained answer is from an earlier time.
            if let Event::Incoming(Packet::Publish(publish)) = event
                && !publish.retain
                && let Ok(value) = serde_json::from_slice::<Value>(&publish.payload)
                && about(&value)
            {
                answer = Some(value);
            }
            answer.is_some()
        };
        let acknowledge = async {
            let mut acknowledged = 0;
            while acknowledged < count {
                let event =
                    connection.poll().await.with_context(|| format!("the broker {} does not answer", self.address))?;
                acknowledged += usize::from(matches!(event, Event::Incoming(Packet::PubAck(_))));
                taken(&event);
            }
            anyhow::Ok(())
        };
        let published = tokio::time::timeout(PUBLISH, async { tokio::try_join!(send, acknowledge) }).await;
        published.with_context(|| format!("the broker {} has not taken it within {PUBLISH:?}", self.address))??;
        let answered = async {
            while !taken(&connection.poll().await?) {}
            anyhow::Ok(())
        };
        // No answer in time is reported by the caller.
        let _ = tokio::time::timeout(wait, answered).await;
        Ok(answer)
    }

    fn options(&self) -> anyhow::Result<MqttOptions> {
        let (host, port) = self.address.rsplit_once(':').context("--broker is HOST:PORT")?;
        let port: u16 = port.parse().context("--broker is HOST:PORT")?;
        let mut options = MqttOptions::new(format!("millwright-model-{}", std::process::id()), host, port);
        options.set_inflight(IN_FLIGHT).set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
        if let Some(user) = &self.user {
            let password =
                std::env::var("MILLWRIGHT_PASSWORD").context("--user needs MILLWRIGHT_PASSWORD to be set")?;
            options.set_credentials(user, password);
        }
        if self.tls {
            let identity = self.tls_cert.clone().zip(self.tls_key.clone());
            let config = tls::client(&UpstreamTls { ca: self.ca.clone(), identity })?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        }
        Ok(options)
    }
}
