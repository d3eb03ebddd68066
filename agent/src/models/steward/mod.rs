//! Moves pushed models along: from a retained manifest to the model that scores, and back.
//!
//! Owns which version of each model stands where, and tells it on `mw/v1/model/<model>/state/<gateway>`. It works from what is retained
//! now, not from messages as they pass: a restart or a missed message changes nothing. Whatever takes time (loading, trying, watching)
//! happens in a worker or on a blocking thread; the pipeline scores on. Never touches an asset. Looks at
//! [`FLEET_MODELS_MAX`] manifests at most; at most [`SHADOWS_MAX`] models are in shadow at once, and one version of a
//! model is watched at a time: the others wait.

mod steps;
mod tell;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millwright_broker::Publisher;
use millwright_broker::log::Log;

use millwright_broker::topic::{TopicFilter, TopicName};
use millwright_models::Manifest;
use millwright_models::runtime::LoadLimits;
use millwright_models::signature::PublicKey;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::ids::GatewayId;
use crate::models::admission::{self, Admission};
use crate::models::collect::{Collected, collect};
use crate::models::files;
use crate::models::judge::{Bounds, Figures};
use crate::models::order::Order;
use crate::models::watch::Watch;
use crate::models::worker::process::Worker;
use crate::models::worker::protocol::Begin;

use crate::pipeline::fleet::{FLEET_MODELS_MAX, Installed};

use crate::pipeline::runner::Command;
use crate::pipeline::tap::TAPS_MAX;
use crate::state::State;
use crate::state::versions::{AuditRow, VersionRow, VersionState};

/// Models in shadow at once, each in a process of some 20 MB; the others wait.
const SHADOWS_MAX: usize = TAPS_MAX / 2;
/// Models on trial whose predecessors are asked at once; of the others only their own errors are judged.
const COMPARED_TRIALS_MAX: usize = TAPS_MAX - SHADOWS_MAX;
/// How often the watched models are judged.
const JUDGE: Duration = Duration::from_secs(1);
/// Steps of the audit trail that are shown.
const AUDIT_SHOWN: usize = 200;
/// Models whose predecessors are asked during a trial: one worker holds them all.
const PREDECESSORS_MAX: usize = 64;
/// Longest time to go on with the log's commit of an outcome; what is told late is told at the next start.
const TELL: Duration = Duration::from_secs(30);

/// What the steward works with.
pub struct StewardParts {
    /// This gateway, for the state topic.
    pub gateway: GatewayId,
    /// Its retained messages are the manifests and chunks.
    pub log: Log,
    /// For the outcome.
    pub publisher: Publisher,
    /// To the pipeline.
    pub commands: mpsc::Sender<Command>,
    /// Where the versions stand.
    pub state: Arc<State>,
    /// Folder of model files.
    pub models_dir: PathBuf,
    /// What a model may be.
    pub limits: LoadLimits,
    /// Who may vouch for a model; without any, everybody.
    pub trusted: Vec<PublicKey>,
    /// What a version must keep to.
    pub bounds: Bounds,
    /// What a worker is told at its beginning.
    pub begin: Begin,
    /// The program whose `worker` command is a worker.
    pub program: PathBuf,
    /// Operators' orders.
    pub orders: mpsc::Receiver<Order>,
    /// What is known of the models, for HTTP.
    pub view: watch::Sender<Arc<ModelsView>>,
}

/// All pushed models, and what became of them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ModelsView {
    /// Versions, oldest first.
    pub models: Vec<VersionView>,
    /// The newest steps, newest first.
    pub audit: Vec<AuditRow>,
}

/// One version, with what is seen of it now.
#[derive(Debug, Clone, Serialize)]
pub struct VersionView {
    /// Where it stands.
    #[serde(flatten)]
    pub version: VersionRow,
    /// In shadow: what it did beside the active models. On trial: what the models before it say.
    pub figures: Option<Figures>,
    /// Readings that the watched models were not shown, because they were slower than the stream.
    pub missed_readings: Option<u64>,
}

/// Where an update stands; retained on the model's state topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
enum UpdateState {
    /// Chunks are missing, or it waits for its turn.
    Staged {
        /// Chunks that have arrived.
        chunks: usize,
        /// Chunks in all.
        of: usize,
    },
    /// It is watched beside the active models.
    Shadow {
        /// When it can be promoted, UTC microseconds.
        until_us: i64,
    },
    /// It scores.
    Active {
        /// Assets that it scores now.
        assets: usize,
        /// Whether it is on trial.
        trial: bool,
    },
    /// It was refused; the one before it runs on.
    Rejected {
        /// Why, and what to do.
        reason: String,
    },
    /// It scored, and was taken back.
    RolledBack {
        /// Why.
        reason: String,
    },
}

#[derive(Serialize)]
struct StateMessage<'a> {
    model: &'a str,
    version: Option<u64>,
    sha256: Option<&'a str>,
    gateway: &'a str,
    #[serde(flatten)]
    state: &'a UpdateState,
}

/// What is known of one manifest, so that it is worked on once.
struct Looked {
    /// When the manifest was stored: one that is published again is worked on again.
    stored_us: i64,
    state: UpdateState,
}

/// A model in shadow or on trial.
struct Watched {
    sha256: String,
    began_us: i64,
    /// None while on trial with nothing to compare with.
    watch: Option<Watch>,
    /// On trial: the model as it scores.
    model: Option<Arc<Installed>>,
    /// What it had scored and failed when the trial began.
    before: (u64, u64),
}

struct Steward {
    parts: StewardParts,
    versions: Vec<VersionRow>,
    /// By manifest topic.
    looked: HashMap<TopicName, Looked>,
    /// By model name.
    watched: HashMap<String, Watched>,
    next_tap: u64,
    /// Everything that was retained at the start has been looked at.
    settled: bool,
    /// A version waits for its turn.
    waiting: bool,
}

/// Follows the retained manifests, the watched models and the orders until `stop`.
pub async fn run(parts: StewardParts, mut stop: watch::Receiver<bool>) {
    let mut changed = parts.log.retained().watch();
    let mut steward = Steward {
        parts,
        versions: Vec::new(),
        looked: HashMap::new(),
        watched: HashMap::new(),
        next_tap: 1,
        settled: false,
        waiting: false,
    };
    let manifests = TopicFilter::parse("mw/v1/model/+/manifest").expect("the filter is written right here");
    let follow = async {
        steward.resume().await;
        let mut tick = tokio::time::interval(JUDGE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut news = true;
        loop {
            if news || steward.waiting {
                changed.mark_unchanged();
                steward.look(&manifests).await;
                steward.settled = true;
            }
            news = tokio::select! {
                changed = changed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    true
                }
                order = steward.parts.orders.recv() => {
                    let Some(order) = order else { return };
                    steward.obey(order).await;
                    false
                }
                _ = tick.tick() => {
                    steward.judge_all().await;
                    false
                }
            };
        }
    };
    // A full log holds an outcome back, a worker may take its time: a stop does not wait for either.
    tokio::select! {
        () = follow => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// What is retained.
impl Steward {
    async fn look(&mut self, manifests: &TopicFilter) {
        let mut told = false;
        self.waiting = false;
        for retained in self.parts.log.retained().matching(manifests).into_iter().take(FLEET_MODELS_MAX) {
            let message = &retained.message;
            let stored_us = retained.stored_us;
            let looked = self.looked.get(&message.topic).filter(|looked| looked.stored_us == stored_us);
            if looked.is_some_and(|looked| !matches!(looked.state, UpdateState::Staged { .. })) {
                continue;
            }
            let Some(state) = self.work_on(&message.topic, &message.payload, stored_us).await else { continue };
            let news = self
                .looked
                .get(&message.topic)
                .is_none_or(|looked| looked.state != state || looked.stored_us != stored_us);
            if news {
                told = true;
                let manifest = Manifest::parse(&message.payload).ok();
                let sha256 = manifest.as_ref().map(|manifest| manifest.sha256().to_string());
                let name = message.topic.as_str().split('/').nth(3).unwrap_or_default().to_owned();
                self.tell(&name, manifest.as_ref().map(Manifest::version), sha256.as_deref(), &state).await;
            }
            self.looked.insert(message.topic.clone(), Looked { stored_us, state });
        }
        if told {
            self.show().await;
        }
        let retained = self.parts.log.retained();
        self.looked.retain(|topic, _| retained.get(topic).is_some());
    }

    /// Brings one update as far as it goes now; `None` when the gateway is stopping.
    async fn work_on(&mut self, topic: &TopicName, payload: &Bytes, stored_us: i64) -> Option<UpdateState> {
        let rejected = |reason: String| Some(UpdateState::Rejected { reason });
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
        let name = manifest.name().as_str();
        let known: Vec<VersionRow> = self.versions.iter().filter(|row| row.name == name).cloned().collect();
        let (signed_by, back) = match admission::decide(payload, &manifest, stored_us, &known, &self.parts.trusted) {
            Admission::Refused(reason) => return rejected(reason),
            Admission::Known(row) => return Some(self.state_of(&row).await),
            Admission::New { signed_by } => (signed_by, false),
            Admission::Rollback { signed_by } => (signed_by, true),
        };
        if !back && self.must_wait(&known) {
            self.waiting = true;
            let of = manifest.chunk_count();
            return Some(UpdateState::Staged { chunks: of, of });
        }
        let file = match self.file_of(&manifest).await {
            Collected::Missing { chunks, of } => return Some(UpdateState::Staged { chunks, of }),
            Collected::Bad(reason) => return rejected(reason),
            Collected::File(file) => file,
        };
        let row = VersionRow {
            name: name.to_owned(),
            sha256: manifest.sha256().to_string(),
            version: manifest.version(),
            assets: manifest.assets().to_vec(),
            state: VersionState::Shadow,
            reason: None,
            since_us: clock::utc_us(),
            signed_by,
        };
        Some(self.admit(row, file, back).await)
    }

    /// Whether a new version waits: for the end of the trial of the one before it, or for a place among the shadows. It takes the place
    /// of one of its own name.
    fn must_wait(&self, known: &[VersionRow]) -> bool {
        let shadows = self.watched.values().filter(|watched| watched.model.is_none()).count();
        let takes_a_place = known.iter().any(|row| row.state == VersionState::Shadow);
        known.iter().any(|row| row.state == VersionState::Trial) || (shadows >= SHADOWS_MAX && !takes_a_place)
    }

    /// The file of a manifest: one that the gateway keeps, or what is retained.
    async fn file_of(&self, manifest: &Manifest) -> Collected {
        let (dir, sha256) = (self.parts.models_dir.clone(), manifest.sha256().to_string());
        let kept = tokio::task::spawn_blocking(move || files::load(&dir, &sha256)).await;
        match kept {
            Ok(Ok(file)) if millwright_models::Digest::of(&file) == *manifest.sha256() => Collected::File(file),
            _ => collect(&self.parts.log, manifest),
        }
    }

    /// Has a file tried, keeps it, and begins its shadow; or promotes it at once where no shadow is asked for.
    async fn admit(&mut self, row: VersionRow, file: Vec<u8>, at_once: bool) -> UpdateState {
        let worker = match self.try_out(&row, file.clone()).await {
            Ok(worker) => worker,
            Err(reason) => return self.refuse(row, reason).await,
        };
        let (dir, sha256) = (self.parts.models_dir.clone(), row.sha256.clone());
        let stored = tokio::task::spawn_blocking(move || files::store(&dir, &sha256, &file)).await;
        if let Err(reason) = stored.map_err(|error| error.to_string()).and_then(|done| done.map_err(|e| e.to_string()))
        {
            return UpdateState::Rejected { reason: format!("it cannot be stored: {reason}") };
        }
        if at_once || self.parts.bounds.shadow_us == 0 {
            return self.promote(row, None).await;
        }
        let overtaken = format!("version {} came before it was promoted", row.version);
        let others = self.versions.iter().filter(|other| other.name == row.name && other.state == VersionState::Shadow);
        let mut rows: Vec<VersionRow> =
            others.map(|other| other.turned(VersionState::Rejected, Some(overtaken.clone()))).collect();
        rows.push(row.clone());
        self.store(rows).await;
        self.begin_shadow(row, worker).await
    }

    /// Loads and tries a model in a worker.
    async fn try_out(&self, row: &VersionRow, file: Vec<u8>) -> Result<Worker, String> {
        let mut worker = Worker::start(&self.parts.program, self.parts.begin.clone()).await?;
        let loaded = worker.load(file, row.assets.clone()).await?;
        if loaded.name != row.name || loaded.version != row.version {
            return Err(format!(
                "the file is `{}` version {}, the manifest says `{}` version {}: publish the manifest that belongs to it",
                loaded.name, loaded.version, row.name, row.version
            ));
        }
        let latency_us_max = self.parts.bounds.latency_us_max;
        if loaded.latency_us > latency_us_max {
            return Err(format!(
                "it takes {} ms for a window, and {} are allowed (`latency_ms_max`): make it smaller",
                loaded.latency_us as f64 / 1000.0,
                latency_us_max as f64 / 1000.0
            ));
        }
        Ok(worker)
    }

    async fn begin_shadow(&mut self, row: VersionRow, worker: Worker) -> UpdateState {
        let id = self.tap_id();
        let watch = Watch::begin(id, worker, row.assets.clone(), self.parts.commands.clone()).await;
        let watch = match watch {
            Ok(watch) => watch,
            Err(reason) => return UpdateState::Rejected { reason },
        };
        let watched = Watched {
            sha256: row.sha256.clone(),
            began_us: clock::utc_us(),
            watch: Some(watch),
            model: None,
            before: (0, 0),
        };
        self.watched.insert(row.name.clone(), watched);
        self.state_of(&row).await
    }

    fn tap_id(&mut self) -> u64 {
        self.next_tap += 1;
        self.next_tap
    }
}
