//! Moves pushed models along: from a retained manifest to the model that scores, and back.
//!
//! Owns which version of each model stands where, and tells it on `mw/v1/model/<model>/state/<gateway>`. It works from what is retained
//! now, not from messages as they pass: a restart or a missed message changes nothing. Whatever takes time (loading, trying, watching)
//! happens in a worker or on a blocking thread; the pipeline scores on. Never touches an asset. Looks at
//! [`FLEET_MODELS_MAX`] manifests at most; at most [`WATCHED_MAX`] models are watched at once, the others wait.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millwright_broker::Publisher;
use millwright_broker::log::Log;
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::{TopicFilter, TopicName};
use millwright_models::Manifest;
use millwright_models::runtime::LoadLimits;
use millwright_models::signature::PublicKey;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::admission::{self, Admission};
use super::collect::{Collected, collect};
use super::files;
use super::judge::{self, Bounds, Figures, Verdict};
use super::order::{Order, Wish};
use super::watch::Watch;
use super::worker::process::Worker;
use super::worker::protocol::Begin;
use crate::clock;
use crate::ids::GatewayId;
use crate::pipeline::engine::Installation;
use crate::pipeline::fleet::{FLEET_MODELS_MAX, Installed, Origin};
use crate::pipeline::install;
use crate::pipeline::runner::Command;
use crate::pipeline::tap::TAPS_MAX;
use crate::state::State;
use crate::state::versions::{AuditRow, VersionRow, VersionState};

/// Models watched at once, in shadow or on trial; half of the taps may be those that are just ending.
const WATCHED_MAX: usize = TAPS_MAX / 2;
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
}

/// Follows the retained manifests, the watched models and the orders until `stop`.
pub async fn run(parts: StewardParts, mut stop: watch::Receiver<bool>) {
    let mut changed = parts.log.retained().watch();
    let mut steward =
        Steward { parts, versions: Vec::new(), looked: HashMap::new(), watched: HashMap::new(), next_tap: 1 };
    let manifests = TopicFilter::parse("mw/v1/model/+/manifest").expect("the filter is written right here");
    let follow = async {
        steward.resume().await;
        let mut tick = tokio::time::interval(JUDGE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            changed.mark_unchanged();
            steward.look(&manifests).await;
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                order = steward.parts.orders.recv() => {
                    let Some(order) = order else { return };
                    steward.obey(order).await;
                }
                _ = tick.tick() => steward.judge_all().await,
            }
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
                let manifest = Manifest::parse(&message.payload).ok();
                let sha256 = manifest.as_ref().map(|manifest| manifest.sha256().to_string());
                let name = message.topic.as_str().split('/').nth(3).unwrap_or_default().to_owned();
                self.tell(&name, manifest.as_ref().map(Manifest::version), sha256.as_deref(), &state).await;
            }
            self.looked.insert(message.topic.clone(), Looked { stored_us, state });
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
        let file = match self.file_of(&manifest).await {
            Collected::Missing { chunks, of } => return Some(UpdateState::Staged { chunks, of }),
            Collected::Bad(reason) => return rejected(reason),
            Collected::File(file) => file,
        };
        if !back && self.watched.len() >= WATCHED_MAX && !self.watched.contains_key(name) {
            let of = manifest.chunk_count();
            return Some(UpdateState::Staged { chunks: of, of });
        }
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
        self.store(vec![row.clone()]).await;
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

/// Steps.
impl Steward {
    /// Goes on with what was under way before this start, and tells where everything stands.
    async fn resume(&mut self) {
        self.reload().await;
        for row in self.versions.clone() {
            match row.state {
                VersionState::Shadow => self.resume_shadow(row).await,
                VersionState::Trial => {
                    let (_, installation) = self.installation(&row.sha256).await;
                    self.begin_trial(&row, &installation).await;
                    self.tell_row(&row).await;
                }
                _ => {}
            }
        }
        // What was decided just before the last end may not have been told.
        let newest: HashMap<String, VersionRow> =
            self.versions.iter().map(|row| (row.name.clone(), row.clone())).collect();
        for row in newest.into_values() {
            self.tell_row(&row).await;
        }
    }

    async fn resume_shadow(&mut self, row: VersionRow) {
        let (dir, sha256) = (self.parts.models_dir.clone(), row.sha256.clone());
        let file = tokio::task::spawn_blocking(move || files::load(&dir, &sha256)).await;
        let state = match file {
            Ok(Ok(file)) => match self.try_out(&row, file).await {
                Ok(worker) => self.begin_shadow(row.clone(), worker).await,
                Err(reason) => self.refuse(row.clone(), reason).await,
            },
            _ => self.refuse(row.clone(), "its file is no longer there: publish it again".to_owned()).await,
        };
        self.tell(&row.name, Some(row.version), Some(&row.sha256), &state).await;
    }

    async fn refuse(&mut self, row: VersionRow, reason: String) -> UpdateState {
        self.watched.remove(&row.name);
        self.store(vec![row.turned(VersionState::Rejected, Some(reason.clone()))]).await;
        UpdateState::Rejected { reason }
    }

    /// Lets a version score from now on.
    async fn promote(&mut self, row: VersionRow, reason: Option<String>) -> UpdateState {
        self.watched.remove(&row.name);
        let model = match self.load(&row).await {
            Ok(model) => model,
            Err(reason) => return self.refuse(row, reason).await,
        };
        let trial = self.parts.bounds.trial_us > 0;
        let turned = row.turned(if trial { VersionState::Trial } else { VersionState::Active }, reason);
        let mut versions: Vec<VersionRow> = self
            .versions
            .iter()
            .filter(|other| other.name == row.name && other.sha256 != row.sha256 && other.state.scores())
            .map(|other| other.turned(VersionState::Retired, Some(format!("version {} took over", row.version))))
            .collect();
        versions.push(turned.clone());
        let (reply, answer) = oneshot::channel();
        let command = Command::Install { model, versions, reply };
        let stopping = || UpdateState::Rejected { reason: "the gateway is stopping".to_owned() };
        if self.parts.commands.send(command).await.is_err() {
            return stopping();
        }
        match answer.await {
            Ok(Ok(installation)) => {
                self.reload().await;
                if trial {
                    self.begin_trial(&turned, &installation).await;
                }
                UpdateState::Active { assets: installation.assets, trial }
            }
            Ok(Err(error)) => self.refuse(row, error.to_string()).await,
            Err(_) => stopping(),
        }
    }

    /// Watches what the models before a version say while it is on trial.
    async fn begin_trial(&mut self, row: &VersionRow, installation: &Installation) {
        let (model, _) = self.installation(&row.sha256).await;
        let before = model.as_ref().map_or((0, 0), |model| (model.tally.scored(), model.tally.failed()));
        let watch = match self.watch_predecessors(installation).await {
            Ok(watch) => watch,
            Err(reason) => {
                tracing::warn!(model = row.name, reason, "the models before it cannot be asked during the trial");
                None
            }
        };
        let watched = Watched { sha256: row.sha256.clone(), began_us: clock::utc_us(), watch, model, before };
        self.watched.insert(row.name.clone(), watched);
    }

    async fn watch_predecessors(&mut self, installation: &Installation) -> Result<Option<Watch>, String> {
        let mut assets: HashMap<&str, Vec<String>> = HashMap::new();
        for (asset, sha256) in &installation.previous {
            if assets.len() < PREDECESSORS_MAX || assets.contains_key(sha256.as_str()) {
                assets.entry(sha256).or_default().push(asset.clone());
            }
        }
        if assets.is_empty() {
            return Ok(None);
        }
        let mut worker = Worker::start(&self.parts.program, self.parts.begin.clone()).await?;
        let mut patterns = Vec::new();
        for (sha256, assets) in assets {
            let (dir, sha256) = (self.parts.models_dir.clone(), sha256.to_owned());
            let file = tokio::task::spawn_blocking(move || files::load(&dir, &sha256)).await;
            let file = file.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            worker.load(file, assets.clone()).await?;
            patterns.extend(assets);
        }
        let id = self.tap_id();
        Watch::begin(id, worker, patterns, self.parts.commands.clone()).await.map(Some)
    }

    /// Takes a version back: the one before it scores again, or each asset's own model.
    async fn roll_back(&mut self, row: &VersionRow, reason: String) -> UpdateState {
        self.watched.remove(&row.name);
        let before = self.before(row);
        let previous = match &before {
            Some(before) => self.load(before).await.ok(),
            None => None,
        };
        let mut versions = vec![row.turned(VersionState::RolledBack, Some(reason.clone()))];
        if let (Some(before), Some(_)) = (&before, &previous) {
            let why = format!("version {} was taken back", row.version);
            versions.push(before.turned(VersionState::Active, Some(why)));
        }
        let (reply, answer) = oneshot::channel();
        // A name that was stored is a name.
        let Ok(name) = millwright_models::ModelName::parse(&row.name) else {
            return UpdateState::Rejected { reason: "its name is none".to_owned() };
        };
        let command = Command::RollBack { name, sha256: row.sha256.clone(), previous, versions, reply };
        if self.parts.commands.send(command).await.is_ok()
            && let Ok(assets) = answer.await
        {
            tracing::warn!(model = row.name, version = row.version, assets, reason, "a model was taken back");
        }
        self.reload().await;
        UpdateState::RolledBack { reason }
    }

    /// The version that scored before this one.
    fn before(&self, row: &VersionRow) -> Option<VersionRow> {
        let same = self.versions.iter().filter(|other| other.name == row.name && other.sha256 != row.sha256);
        same.filter(|other| other.state == VersionState::Retired).max_by_key(|other| other.since_us).cloned()
    }

    /// Loads a model of the gateway's own folder, off the scoring path.
    async fn load(&self, row: &VersionRow) -> Result<Arc<Installed>, String> {
        let (dir, limits, row) = (self.parts.models_dir.clone(), self.parts.limits, row.clone());
        let work = move || {
            let file = files::load(&dir, &row.sha256).map_err(|error| format!("its file cannot be read: {error}"))?;
            install::load(&file, Origin::Pushed, row.assets, &limits).map_err(|error| error.to_string())
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?.map(Arc::new)
    }

    async fn judge_all(&mut self) {
        let now_us = clock::utc_us();
        for row in self.versions.clone() {
            let Some(watched) = self.watched.get(&row.name).filter(|watched| watched.sha256 == row.sha256) else {
                continue;
            };
            // A clock that was set back begins the span anew; none ends early.
            let elapsed_us = now_us.saturating_sub(watched.began_us).max(0);
            let seen = watched.watch.as_ref().map(Watch::seen).unwrap_or_default();
            let state = match row.state {
                VersionState::Shadow => {
                    let verdict = match seen.ended {
                        Some(reason) => Verdict::Failed(reason),
                        None => judge::judge_shadow(elapsed_us, &seen.comparison, &self.parts.bounds),
                    };
                    match verdict {
                        Verdict::NotYet => continue,
                        Verdict::Passed => self.promote(row.clone(), Some(passed(&seen.comparison.figures()))).await,
                        Verdict::Failed(reason) => self.refuse(row.clone(), reason).await,
                    }
                }
                VersionState::Trial => {
                    let tally = watched.model.as_ref().map_or((0, 0), |model| {
                        let (scored, failed) = watched.before;
                        (model.tally.scored().saturating_sub(scored), model.tally.failed().saturating_sub(failed))
                    });
                    match judge::judge_trial(elapsed_us, tally, Some(&seen.comparison), &self.parts.bounds) {
                        Verdict::NotYet => continue,
                        Verdict::Passed => self.confirm(&row).await,
                        Verdict::Failed(reason) => self.roll_back(&row, reason).await,
                    }
                }
                _ => continue,
            };
            self.tell(&row.name, Some(row.version), Some(&row.sha256), &state).await;
        }
        self.show().await;
    }

    /// A trial ends well.
    async fn confirm(&mut self, row: &VersionRow) -> UpdateState {
        self.watched.remove(&row.name);
        self.store(vec![row.turned(VersionState::Active, Some("its trial ended well".to_owned()))]).await;
        let (_, installation) = self.installation(&row.sha256).await;
        UpdateState::Active { assets: installation.assets, trial: false }
    }

    async fn obey(&mut self, order: Order) {
        let by = match order.authorise(&self.parts.trusted) {
            Ok(key) => key.map_or_else(String::new, |key| format!(" with the key {key}")),
            Err(error) => {
                tracing::warn!(model = order.model.as_str(), "an order is refused: {error}");
                return;
            }
        };
        // A file that was refused may have had the same number.
        let named = self.versions.iter().filter(|row| row.name == order.model.as_str() && row.version == order.version);
        let row = named.max_by_key(|row| row.state != VersionState::Rejected).cloned();
        let reason = order.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        let state = match (order.wish, row) {
            (_, None) => {
                tracing::warn!(
                    model = order.model.as_str(),
                    version = order.version,
                    "an order names no version that is here"
                );
                return;
            }
            (Wish::Promote, Some(row)) if matches!(row.state, VersionState::Shadow | VersionState::RolledBack) => {
                self.promote(row.clone(), Some(format!("promoted by hand{by}{reason}"))).await
            }
            (Wish::Rollback, Some(row)) if row.state.scores() => {
                let (_, installation) = self.installation(&row.sha256).await;
                if self.before(&row).is_none() && installation.previous.is_empty() {
                    tracing::warn!(
                        model = row.name,
                        "an order to roll back is refused: there is no model to go back to"
                    );
                    return;
                }
                self.roll_back(&row, format!("taken back by hand{by}{reason}")).await
            }
            (Wish::Rollback, Some(row)) if row.state == VersionState::Shadow => {
                self.refuse(row, format!("refused by hand{by}{reason}")).await
            }
            (wish, Some(row)) => {
                tracing::warn!(
                    model = row.name,
                    version = row.version,
                    state = row.state.as_str(),
                    ?wish,
                    "an order has nothing to act on"
                );
                return;
            }
        };
        self.tell_as(order.model.as_str(), order.version, &state).await;
        self.show().await;
    }

    async fn installation(&self, sha256: &str) -> (Option<Arc<Installed>>, Installation) {
        let (reply, answer) = oneshot::channel();
        let command = Command::Installation { sha256: sha256.to_owned(), reply };
        if self.parts.commands.send(command).await.is_err() {
            return (None, Installation::default());
        }
        answer.await.unwrap_or_default()
    }
}

/// What is stored and what is told.
impl Steward {
    async fn store(&mut self, rows: Vec<VersionRow>) {
        let state = Arc::clone(&self.parts.state);
        let stored = tokio::task::spawn_blocking(move || state.store_versions(&rows)).await;
        if let Ok(Err(error)) = stored {
            tracing::error!(%error, "what became of a model could not be stored");
        }
        self.reload().await;
    }

    async fn reload(&mut self) {
        let state = Arc::clone(&self.parts.state);
        match tokio::task::spawn_blocking(move || state.versions()).await {
            Ok(Ok(versions)) => self.versions = versions,
            Ok(Err(error)) => tracing::error!(%error, "the models' versions cannot be read"),
            Err(error) => tracing::error!(%error, "the models' versions cannot be read"),
        }
    }

    /// Renews what HTTP shows.
    async fn show(&mut self) {
        let state = Arc::clone(&self.parts.state);
        let audit = tokio::task::spawn_blocking(move || state.audit(AUDIT_SHOWN)).await;
        let figures = |row: &VersionRow| {
            let watched = self.watched.get(&row.name).filter(|watched| watched.sha256 == row.sha256)?;
            Some(watched.watch.as_ref()?.seen().comparison.figures())
        };
        let models = self.versions.iter().map(|row| VersionView { version: row.clone(), figures: figures(row) });
        let audit = audit.ok().and_then(Result::ok).unwrap_or_default();
        self.parts.view.send_replace(Arc::new(ModelsView { models: models.collect(), audit }));
    }

    async fn state_of(&self, row: &VersionRow) -> UpdateState {
        let reason = || row.reason.clone().unwrap_or_default();
        match row.state {
            VersionState::Shadow => {
                let began_us = self.watched.get(&row.name).map_or(row.since_us, |watched| watched.began_us);
                UpdateState::Shadow { until_us: began_us.saturating_add(self.parts.bounds.shadow_us) }
            }
            VersionState::Trial | VersionState::Active => {
                let (_, installation) = self.installation(&row.sha256).await;
                UpdateState::Active { assets: installation.assets, trial: row.state == VersionState::Trial }
            }
            VersionState::Rejected => UpdateState::Rejected { reason: reason() },
            VersionState::RolledBack => UpdateState::RolledBack { reason: reason() },
            VersionState::Retired => UpdateState::Rejected {
                reason: format!(
                    "{}: give it a higher version",
                    row.reason.as_deref().unwrap_or("a later version scores")
                ),
            },
        }
    }

    async fn tell_row(&mut self, row: &VersionRow) {
        let state = self.state_of(row).await;
        self.tell_as(&row.name, row.version, &state).await;
    }

    async fn tell_as(&mut self, name: &str, version: u64, state: &UpdateState) {
        let row = self.versions.iter().find(|row| row.name == name && row.version == version);
        let sha256 = row.map(|row| row.sha256.clone());
        self.tell(name, Some(version), sha256.as_deref(), state).await;
    }

    /// Tells where an update stands, unless that is retained already.
    async fn tell(&mut self, model: &str, version: Option<u64>, sha256: Option<&str>, state: &UpdateState) {
        let message = StateMessage { model, version, sha256, gateway: self.parts.gateway.as_str(), state };
        let topic = TopicName::parse(&format!("mw/v1/model/{model}/state/{}", self.parts.gateway));
        let (Ok(topic), Ok(payload)) = (topic, serde_json::to_vec(&message)) else { return };
        // A push waits for an answer to itself: only what a start repeats is left out.
        let retained = self.parts.log.retained().get(&topic);
        let repeated = self.looked.is_empty() && retained.is_some_and(|retained| retained.message.payload == payload);
        if repeated {
            return;
        }
        tracing::info!(model, version, ?state, "model update");
        let message = Message {
            topic,
            payload: Bytes::from(payload),
            properties: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: true,
            origin: 0,
        };
        match tokio::time::timeout(TELL, self.parts.publisher.publish(message)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(model, %error, "the outcome of a model update could not be published"),
            Err(_) => tracing::error!(
                model,
                "the outcome of a model update waits for the log: it is told after the next start"
            ),
        }
    }
}

fn passed(figures: &Figures) -> String {
    format!(
        "passed its shadow: {} rows, {:.1} % of {} compared rows in alarm (the active model: {:.1} %), agreement {:.1} %, {} ms a window at most",
        figures.scored,
        100.0 * figures.alarm_rate,
        figures.compared,
        100.0 * figures.active_alarm_rate,
        100.0 * figures.agreement,
        figures.latency_p99_ms
    )
}
