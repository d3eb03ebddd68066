//! What comes down over MQTT: a model and a command, past a network that fails and a gateway that is killed.

use std::time::Duration;

use anyhow::{Context, ensure};
use harness::gateway::read_log_after;
use harness::machine::Recording;
use harness::publisher::Publisher;
use millwright_firmware_sim::machine::MachineKind;
use millwright_models::commission::commission_subject;
use millwright_models::{Manifest, ModelName, Params, Subject};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};

use crate::kind::{Kind, Want};
use crate::secrets::PASSWORD;
use crate::stage::Stage;

pub(crate) const CLAIM: &str = "A model and a command that the server above has come down, whatever happens to the connection and the \
                                gateway on the way; what is here already is not written again.";

/// A machine is learned quickly, and what is pushed scores at once.
const CONFIG: &str = "models_down = true\ncommands_down = true\n[commissioning]\nsamples = 400\nextend = false\n[models]\n\
                      shadow_s = 0\ntrial_s = 0\n";
/// So small that the model has many.
const CHUNK_BYTES: usize = 100;
/// Put before topics on the server.
const PREFIX: &str = "site-7/";
/// Who may write there besides the gateway.
const FLEET: &str = "reader";
/// The longest wait for the server to take what the fleet publishes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn play(kind: &dyn Kind) -> anyhow::Result<()> {
    let machine = Recording::of("pump-1", MachineKind::Pump, 11, 2_000, None);
    let mut stage = Stage::set(kind, Want { alone: true, ..Want::default() }, CONFIG)?;
    let recording = machine.clone();
    let telemetry = Publisher::start("plc", &machine.topic(), 64, move |row| recording.frame(row));
    telemetry.progress.set_gateway(Some(stage.gateway()?.mqtt));
    telemetry.progress.allow(500);
    wait_for_version(&stage, 1)?;

    let (manifest, file) = model(&machine)?;
    let chunks: Vec<(String, Vec<u8>)> =
        manifest.split(&file).enumerate().map(|(n, chunk)| (manifest.chunk_topic(n), chunk.to_vec())).collect();
    ensure!(chunks.len() > 10, "{} chunks are too few to be interrupted", chunks.len());
    let (first, rest) = chunks.split_at(chunks.len() / 2);
    publish(&stage, [(manifest.topic(), manifest.to_json())], true)?;
    publish(&stage, first.iter().cloned(), true)?;
    stage.wait("some chunks to be here", |stage| Ok((chunks_here(stage)?.len() > 2).then_some(())))?;

    // The connection goes, then the gateway; meanwhile the fleet goes on.
    stage.proxy.cut_after(1);
    publish(&stage, rest.iter().cloned(), true)?;
    telemetry.progress.set_gateway(None);
    stage.kill_gateway()?;
    let command = serde_json::json!({"command": "promote", "model": "pump-1", "version": 9}).to_string();
    publish(&stage, [("mw/v1/gateway/gw-1/command".to_owned(), command.into_bytes())], false)?;
    stage.start_gateway()?;
    telemetry.progress.set_gateway(Some(stage.gateway()?.mqtt));
    wait_for_version(&stage, 2)?;
    let told = "there is no version 9 of `pump-1` here";
    stage.wait("the command to arrive", |stage| Ok(stage.gateway()?.log().contains(told).then_some(())))?;

    // A connection more brings nothing new.
    let before = stage.proxy.accepted();
    stage.proxy.close();
    stage.proxy.lead_to(stage.server.address(), stage.server.names_itself());
    stage.wait("another connection", |stage| {
        Ok((stage.proxy.accepted() > before && stage.status()?["link"] == "connected").then_some(()))
    })?;
    // What this brings comes after all that a new subscription may bring again.
    let last = ("mw/v1/model/other/manifest".to_owned(), b"{}".to_vec());
    publish(&stage, [last], true)?;
    stage.wait("what was published last", |stage| {
        Ok(stage.gateway()?.log().contains("model=\"other\"").then_some(()))
    })?;
    let mut here = chunks_here(&stage)?;
    let count = here.len();
    here.sort_unstable();
    here.dedup();
    ensure!(here.len() == chunks.len() && count == here.len(), "{count} chunks were written, {} are", chunks.len());
    Ok(())
}

/// The next version of what the machine's own normal is.
fn model(machine: &Recording) -> anyhow::Result<(Manifest, Vec<u8>)> {
    let channels = machine.channel_names();
    let subject = Subject::new("pump-1", 2, &channels);
    let learned = commission_subject(&subject, &machine.matrix(600), &Params::default());
    let file = learned.ok().context("the model is learned")?.onnx;
    let name = ModelName::parse("pump-1").ok().context("a name")?;
    let manifest = Manifest::describe(name, 2, &file, CHUNK_BYTES, None)?;
    Ok((manifest, file))
}

/// The topics of chunks in the gateway's log, one for each time that one was written.
fn chunks_here(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let log = read_log_after(&stage.gateway()?.data_dir(), 0)?;
    Ok(log.into_iter().map(|(_, topic, _)| topic).filter(|topic| topic.contains("/chunk/")).collect())
}

fn wait_for_version(stage: &Stage, version: u64) -> anyhow::Result<()> {
    stage.wait("the model to score", |stage| {
        let asset = stage.gateway()?.asset("pump-1")?;
        let scores = asset.and_then(|asset| asset.pointer("/model/version")?.as_u64());
        Ok((scores == Some(version)).then_some(()))
    })
}

/// Publishes to the server itself as the fleet does, and waits until it has taken all.
fn publish(stage: &Stage, messages: impl IntoIterator<Item = (String, Vec<u8>)>, retain: bool) -> anyhow::Result<()> {
    let server = stage.server.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut options = MqttOptions::new("fleet", server.ip().to_string(), server.port());
        options.set_credentials(FLEET, PASSWORD);
        let messages: Vec<(String, Vec<u8>)> = messages.into_iter().collect();
        let (client, mut events) = AsyncClient::new(options, messages.len() + 1);
        let mut waiting = messages.len();
        for (topic, payload) in messages {
            client.publish(format!("{PREFIX}{topic}"), QoS::AtLeastOnce, retain, payload).await?;
        }
        let taken = async {
            while waiting > 0 {
                waiting -= usize::from(matches!(events.poll().await?, Event::Incoming(Packet::PubAck(_))));
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, taken).await.context("the server does not take what the fleet publishes")?
    })
}
