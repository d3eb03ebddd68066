//! Model updates: from retained messages to a model that scores.
//!
//! Owns the way of a pushed model: manifest, chunks, SHA-256, trial load, file, hand-over to the pipeline, outcome on
//! `mw/v1/model/<model>/state/<gateway>`. It works from what is retained now, not from messages as they pass: a restart or a
//! missed message changes nothing, and what has arrived is never asked for again. Loading happens on a thread of its
//! own; the pipeline scores on. Never touches an asset. Looks at [`FLEET_MODELS_MAX`] manifests at most.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millwright_broker::Publisher;
use millwright_broker::log::Log;
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::{TopicFilter, TopicName};
use millwright_models::manifest::{Assembler, Manifest};
use millwright_models::runtime::LoadLimits;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ids::GatewayId;
use crate::model_files;
use crate::pipeline::fleet::{FLEET_MODELS_MAX, Installed, Origin};
use crate::pipeline::install;
use crate::pipeline::runner::Command;
use crate::state::ModelRow;

/// What the updater works with.
pub struct UpdateParts {
    /// This gateway, for the state topic.
    pub gateway: GatewayId,
    /// Its retained messages are the manifests and chunks.
    pub log: Log,
    /// For the outcome.
    pub publisher: Publisher,
    /// To the pipeline.
    pub commands: mpsc::Sender<Command>,
    /// What was installed before this start.
    pub installed: Vec<ModelRow>,
    /// Folder of model files.
    pub models_dir: PathBuf,
    /// What a model may be.
    pub limits: LoadLimits,
}

/// Where an update stands; retained on the model's state topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
enum UpdateState {
    /// Chunks are missing.
    Staged {
        /// Chunks that have arrived.
        chunks: usize,
        /// Chunks in all.
        of: usize,
    },
    /// The model scores.
    Active {
        /// Assets that it scores now.
        assets: usize,
    },
    /// The model was refused; the one before it runs on.
    Rejected {
        /// Why, and what to do.
        reason: String,
    },
}

#[derive(Serialize)]
struct StateMessage<'a> {
    model: &'a str,
    version: Option<u64>,
    sha256: Option<String>,
    gateway: &'a str,
    #[serde(flatten)]
    state: &'a UpdateState,
}

/// What is known of one manifest, so that it is worked on once.
struct Seen {
    /// When the manifest was stored: one that is published again is worked on again.
    stored_us: i64,
    state: UpdateState,
}

struct Updater {
    parts: UpdateParts,
    /// By manifest topic.
    seen: HashMap<TopicName, Seen>,
    /// Name → version and SHA-256 of what is active.
    active: HashMap<String, (u64, String)>,
}

/// Follows the retained manifests until `stop`.
pub async fn run(parts: UpdateParts, mut stop: watch::Receiver<bool>) {
    let pushed = parts.installed.iter().filter(|model| model.origin == Origin::Pushed);
    let active = pushed.map(|model| (model.name.clone(), (model.version, model.sha256.clone()))).collect();
    let mut changed = parts.log.retained().watch();
    let mut updater = Updater { parts, seen: HashMap::new(), active };
    let manifests = TopicFilter::parse("mw/v1/model/+/manifest").expect("the filter is written right here");
    loop {
        changed.mark_unchanged();
        // A full log holds the outcome back: a stop does not wait for it. It is told after the next start.
        tokio::select! {
            () = updater.look(&manifests) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

impl Updater {
    async fn look(&mut self, manifests: &TopicFilter) {
        for retained in self.parts.log.retained().matching(manifests).into_iter().take(FLEET_MODELS_MAX) {
            let message = &retained.message;
            let stored_us = retained.stored_us;
            let seen = self.seen.get(&message.topic).filter(|seen| seen.stored_us == stored_us);
            if seen.is_some_and(|seen| !matches!(seen.state, UpdateState::Staged { .. })) {
                continue;
            }
            let state = self.work_on(&message.topic, &message.payload).await;
            let news =
                self.seen.get(&message.topic).is_none_or(|seen| seen.state != state || seen.stored_us != stored_us);
            if news {
                self.tell(&message.topic, &message.payload, &state).await;
            }
            self.seen.insert(message.topic.clone(), Seen { stored_us, state });
        }
        let retained = self.parts.log.retained();
        self.seen.retain(|topic, _| retained.get(topic).is_some());
    }

    /// Brings one update as far as it goes now.
    async fn work_on(&mut self, topic: &TopicName, payload: &Bytes) -> UpdateState {
        let rejected = |reason: String| UpdateState::Rejected { reason };
        let manifest = match Manifest::parse(payload) {
            Ok(manifest) => manifest,
            Err(error) => return rejected(error.to_string()),
        };
        if manifest.topic() != topic.as_str() {
            return rejected(format!(
                "the manifest names the model `{}`, and its topic another: publish it on {}",
                manifest.name(),
                manifest.topic()
            ));
        }
        let sha256 = manifest.sha256().to_string();
        if let Some((version, active)) = self.active.get(manifest.name().as_str()) {
            if *active == sha256 {
                return self.install_stored(&manifest).await;
            }
            if manifest.version() <= *version {
                return rejected(format!(
                    "version {} is not newer than version {version}, which is active: give it a higher version",
                    manifest.version()
                ));
            }
        }
        match self.collect(&manifest) {
            Collected::Missing { chunks, of } => UpdateState::Staged { chunks, of },
            Collected::Bad(reason) => rejected(reason),
            Collected::File(file) => match self.install(&manifest, file).await {
                Ok(assets) => {
                    self.active.insert(manifest.name().to_string(), (manifest.version(), sha256));
                    UpdateState::Active { assets }
                }
                Err(reason) => rejected(reason),
            },
        }
    }

    /// The model was active before this start and is loaded already; who asks gets the present number of assets.
    async fn install_stored(&mut self, manifest: &Manifest) -> UpdateState {
        let dir = self.parts.models_dir.clone();
        let sha256 = manifest.sha256().to_string();
        match tokio::task::spawn_blocking(move || model_files::load(&dir, &sha256)).await {
            Ok(Ok(file)) => match self.install(manifest, file).await {
                Ok(assets) => UpdateState::Active { assets },
                Err(reason) => UpdateState::Rejected { reason },
            },
            Ok(Err(error)) => UpdateState::Rejected { reason: format!("its stored file cannot be read: {error}") },
            Err(error) => UpdateState::Rejected { reason: error.to_string() },
        }
    }

    fn collect(&self, manifest: &Manifest) -> Collected {
        let mut assembler = Assembler::new(manifest.clone());
        for n in 0..manifest.chunk_count() {
            let Ok(topic) = TopicName::parse(&manifest.chunk_topic(n)) else { continue };
            let Some(chunk) = self.parts.log.retained().get(&topic) else { continue };
            if let Err(error) = assembler.accept(n, &chunk.message.payload) {
                return Collected::Bad(error.to_string());
            }
        }
        let of = manifest.chunk_count();
        let missing = assembler.missing().count();
        if missing > 0 {
            return Collected::Missing { chunks: of - missing, of };
        }
        match assembler.finish() {
            Ok(file) => Collected::File(file),
            Err(error) => Collected::Bad(error.to_string()),
        }
    }

    /// Trial load, file, hand-over. Returns how many assets the model scores now, or why it was refused.
    async fn install(&self, manifest: &Manifest, file: Vec<u8>) -> Result<usize, String> {
        let (dir, limits, manifest) = (self.parts.models_dir.clone(), self.parts.limits, manifest.clone());
        let work = move || trial(&manifest, &file, &dir, &limits);
        let model = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())??;
        let (reply, answer) = oneshot::channel();
        let command = Command::Install { model: Arc::new(model), reply };
        self.parts.commands.send(command).await.map_err(|_| "the gateway is stopping".to_owned())?;
        let installed = answer.await.map_err(|_| "the gateway is stopping".to_owned())?;
        installed.map_err(|error| error.to_string())
    }

    async fn tell(&self, manifest_topic: &TopicName, payload: &[u8], state: &UpdateState) {
        let manifest = Manifest::parse(payload).ok();
        let model = manifest_topic.as_str().split('/').nth(3).unwrap_or_default();
        let message = StateMessage {
            model,
            version: manifest.as_ref().map(Manifest::version),
            sha256: manifest.as_ref().map(|manifest| manifest.sha256().to_string()),
            gateway: self.parts.gateway.as_str(),
            state,
        };
        tracing::info!(model, ?state, "model update");
        let topic = TopicName::parse(&format!("mw/v1/model/{model}/state/{}", self.parts.gateway));
        let (Ok(topic), Ok(payload)) = (topic, serde_json::to_vec(&message)) else { return };
        let message = Message {
            topic,
            payload: Bytes::from(payload),
            properties: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: true,
            origin: 0,
        };
        if let Err(error) = self.parts.publisher.publish(message).await {
            tracing::error!(model, %error, "the outcome of a model update could not be published");
        }
    }
}

enum Collected {
    Missing { chunks: usize, of: usize },
    Bad(String),
    File(Vec<u8>),
}

/// Everything that can be known of a model before it scores: it loads, it is what the manifest says, and it is on disk.
fn trial(manifest: &Manifest, file: &[u8], dir: &std::path::Path, limits: &LoadLimits) -> Result<Installed, String> {
    let assets = manifest.assets().to_vec();
    let model = install::load(file, Origin::Pushed, assets, limits).map_err(|error| error.to_string())?;
    if model.name.as_str() != manifest.name().as_str() || model.version != manifest.version() {
        return Err(format!(
            "the file is `{}` version {}, the manifest says `{}` version {}: publish the manifest that belongs to it",
            model.name,
            model.version,
            manifest.name(),
            manifest.version()
        ));
    }
    model_files::store(dir, &model.sha256, file).map_err(|error| format!("it cannot be stored: {error}"))?;
    Ok(model)
}
