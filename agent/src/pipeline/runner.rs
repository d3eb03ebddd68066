//! The pipeline's own thread: reads the log from the cursor, folds, and writes checkpoints.
//!
//! Owns the [`Engine`] and the inference cursor. A checkpoint (cursor, changed assets, new models, alerts for the
//! outbox) is one transaction, written at once when there is an alert or a model, otherwise every [`CHECKPOINT`] and every
//! eighth of the log: after a crash the messages since then are folded again, with the same result. Commands reach it
//! through a channel of [`COMMANDS_MAX`] and are carried out between two batches.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millwright_broker::Publisher;
use millwright_broker::log::{
    Cursor, FetchLimit, Log, LogMessage, LogReader, MESSAGE_OVERHEAD_BYTES, Offset, ReadError,
};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use millwright_models::ModelName;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::engine::{Engine, InstallError, Installation, Output};
use super::fleet::Installed;
use super::health::{HealthReports, HealthTiming};
use super::queue::{QueueFigures, QueueMeter};
use super::tap::{Tap, Taps};
use crate::alarm::message::{AlertEvent, AlertState, EventKind, Health};
use crate::clock;
use crate::models::files;
use crate::models::order::{self, ORDERS_MAX, Order};
use crate::source::{Fault, Reading, SourceError, SourceMap, sparkplug};
use crate::state::versions::VersionRow;
use crate::state::{Checkpoint, ModelRow, State, StateError};

/// Longest time without a checkpoint while messages come: it bounds what is folded again after a crash, and the wear.
pub const CHECKPOINT: Duration = Duration::from_secs(5);
/// A checkpoint is also due when this share of the log has been folded since the last one: retention drops only what a
/// checkpoint has passed, so a small or busy log would be full before the time is over, and publishers would wait.
const CHECKPOINT_LOG_SHARE: u64 = 8;
/// Commands that may wait.
pub const COMMANDS_MAX: usize = 16;
/// How often the status is renewed.
const STATUS: Duration = Duration::from_millis(500);
/// Pause between two questions to Sparkplug nodes for their birth messages.
const REBIRTH: Duration = Duration::from_secs(5);
/// Pause after the log or the state file failed.
const RETRY: Duration = Duration::from_secs(1);
/// Longest time a stop waits for the backlog to be folded; the rest is done after the next start.
const DRAIN: Duration = Duration::from_secs(10);

/// What the pipeline is asked to do.
pub enum Command {
    /// Install a pushed model that is stored already, so that no sample waits for a disk: after a crash, what was folded since the
    /// last checkpoint is folded again, with this model. The answer comes when it is in use.
    Install {
        /// The model.
        model: Arc<Installed>,
        /// Which assets it scores now, or why not.
        reply: oneshot::Sender<Result<Installation, InstallError>>,
    },
    /// Take a pushed model back.
    RollBack {
        /// Its name.
        name: ModelName,
        /// SHA-256 of its file.
        sha256: String,
        /// The version that takes its place, if there is one.
        previous: Option<Arc<Installed>>,
        /// What to store in the same transaction.
        versions: Vec<VersionRow>,
        /// How many assets went back.
        reply: oneshot::Sender<usize>,
    },
    /// Ask which assets a model scores.
    Installation {
        /// SHA-256 of its file.
        sha256: String,
        /// The model, as it is in use, and its assets.
        reply: oneshot::Sender<(Option<Arc<Installed>>, Installation)>,
    },
    /// Show what is folded to a model that is watched.
    Tap(Tap),
    /// No longer.
    Untap(u64),
}

/// What is known of the pipeline from outside.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PipelineStatus {
    /// λ, μ and backlog of the inference cursor.
    pub queue: QueueFigures,
    /// The next offset to fold.
    pub position: u64,
    /// Messages that were no valid telemetry.
    pub decode_errors: u64,
    /// The last of them.
    pub last_decode_error: Option<String>,
    /// Readings of assets beyond the limit.
    pub refused_readings: u64,
    /// Messages that retention dropped before they were folded.
    pub lost_messages: u64,
    /// All assets.
    pub assets: Vec<AssetStatus>,
}

/// One asset in the status.
#[derive(Debug, Clone, Serialize)]
pub struct AssetStatus {
    /// Its health.
    #[serde(flatten)]
    pub health: Health,
    /// Its counts.
    pub counters: super::asset::Counters,
    /// The alert that is up.
    pub alert: Option<String>,
}

/// What the runner is built from.
pub struct RunnerParts {
    /// The log.
    pub log: Log,
    /// The state file.
    pub state: Arc<State>,
    /// Payload decoding.
    pub sources: SourceMap,
    /// The fold, restored.
    pub engine: Engine,
    /// Where to go on.
    pub position: Offset,
    /// Registered with the log for retention.
    pub cursor: Cursor,
    /// For health.
    pub publisher: Publisher,
    /// Folder of model files.
    pub models_dir: PathBuf,
    /// How often health is told.
    pub health: HealthTiming,
    /// Told when the outbox has something.
    pub outbox: Arc<Notify>,
    /// Where operators' orders arrive; they are told to `orders`.
    pub order_topic: TopicName,
    /// Orders about models, for who carries them out.
    pub orders: mpsc::Sender<Order>,
    /// For waiting from a thread of its own.
    pub runtime: tokio::runtime::Handle,
}

/// The running pipeline, seen from outside.
pub struct RunnerHandle {
    thread: std::thread::JoinHandle<()>,
    stop: watch::Sender<bool>,
    /// Commands.
    pub commands: mpsc::Sender<Command>,
    /// Status.
    pub status: watch::Receiver<Arc<PipelineStatus>>,
}

impl RunnerHandle {
    /// Folds what is in the log (for at most 10 s), writes a last checkpoint and joins the thread.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if tokio::task::spawn_blocking(move || self.thread.join()).await.is_err() {
            tracing::error!("the pipeline's thread could not be joined");
        }
    }
}

struct Runner {
    parts: RunnerParts,
    reader: LogReader,
    commands: mpsc::Receiver<Command>,
    taps: Taps,
    orders: Vec<Order>,
    status: watch::Sender<Arc<PipelineStatus>>,
    stop: watch::Receiver<bool>,
    readings: Vec<Reading>,
    reports: HealthReports,
    meter: QueueMeter,
    started: Instant,
    checkpointed: Instant,
    reported: Instant,
    dirty: bool,
    /// Bytes folded since the last checkpoint, and how many make one due.
    folded_bytes: u64,
    checkpoint_bytes: u64,
    decode_errors: u64,
    last_decode_error: Option<String>,
    asked_for_rebirth: Option<Instant>,
    lost_messages: u64,
}

/// Starts the pipeline's thread.
///
/// # Errors
/// The log cannot be read, or the system gives no thread.
pub fn start(parts: RunnerParts) -> anyhow::Result<RunnerHandle> {
    let (commands_tx, commands) = mpsc::channel(COMMANDS_MAX);
    let (status_tx, status) = watch::channel(Arc::new(PipelineStatus::default()));
    let (stop_tx, stop) = watch::channel(false);
    let reader = parts.log.reader()?;
    let now = Instant::now();
    let reports = HealthReports::new(parts.health);
    let checkpoint_bytes = parts.log.stats().bytes_max / CHECKPOINT_LOG_SHARE;
    let runner = Runner {
        parts,
        reader,
        commands,
        taps: Taps::default(),
        orders: Vec::new(),
        status: status_tx,
        stop,
        readings: Vec::new(),
        reports,
        meter: QueueMeter::default(),
        started: now,
        checkpointed: now,
        reported: now,
        dirty: false,
        folded_bytes: 0,
        checkpoint_bytes,
        decode_errors: 0,
        last_decode_error: None,
        asked_for_rebirth: None,
        lost_messages: 0,
    };
    let thread = std::thread::Builder::new().name("pipeline".into()).spawn(move || runner.run())?;
    Ok(RunnerHandle { thread, stop: stop_tx, commands: commands_tx, status })
}

impl Runner {
    fn run(mut self) {
        let mut stop_by: Option<Instant> = None;
        loop {
            if stop_by.is_none() && *self.stop.borrow() {
                stop_by = Some(Instant::now() + DRAIN);
            }
            let idle = match self.fold_batch() {
                Ok(folded) => folded == 0,
                Err(error) => {
                    tracing::error!(%error, "the log cannot be read");
                    self.pause(RETRY);
                    true
                }
            };
            if idle {
                self.complete_waiting_rows();
            }
            self.pass_orders();
            self.carry_out_commands();
            self.checkpoint_if_due(false);
            self.report();
            match stop_by {
                Some(by) if idle || Instant::now() >= by => break,
                None if idle => self.wait(),
                _ => {}
            }
        }
        self.checkpoint_if_due(true);
        self.report();
    }

    /// Reads and folds the next messages; returns how many there were.
    fn fold_batch(&mut self) -> Result<usize, ReadError> {
        let begun = Instant::now();
        let fetched = self.reader.read(self.parts.position, FetchLimit::default())?;
        if let Some(gap) = &fetched.lost {
            let lost = gap.to.0.saturating_sub(gap.from.0);
            self.lost_messages = self.lost_messages.saturating_add(lost);
            tracing::error!(from = gap.from.0, to = gap.to.0, "messages were dropped before they could be scored");
        }
        for message in &fetched.messages {
            let bytes = message.message.payload.len() + message.message.properties.len() + MESSAGE_OVERHEAD_BYTES;
            self.folded_bytes = self.folded_bytes.saturating_add(bytes as u64);
            self.take(message);
        }
        self.flush();
        self.dirty |= fetched.next != self.parts.position;
        self.parts.position = fetched.next;
        let count = fetched.messages.len();
        if count > 0 {
            self.meter.note_service(count as u64, begun.elapsed().as_secs_f64());
        }
        Ok(count)
    }

    fn take(&mut self, message: &LogMessage) {
        let Some(route) = self.parts.sources.resolve(&message.message.topic) else {
            return self.take_order(message);
        };
        self.readings.clear();
        // Rows of single numbers are completed by the log's own time, so that a replay completes them alike.
        self.parts.sources.handle_timeout(message.received_us, &mut self.readings);
        let decoded =
            self.parts.sources.decode(&route, &message.message.payload, message.received_us, &mut self.readings);
        if let Err(error) = decoded {
            self.note_decode_error(&error);
        }
        self.ingest(message.received_us);
    }

    fn ingest(&mut self, received_us: i64) {
        for reading in &self.readings {
            self.taps.note_reading(reading, received_us);
            let taps = &mut self.taps;
            self.parts.engine.ingest(reading, received_us, &mut |asset, score| taps.note_score(asset, &score));
        }
    }

    fn flush(&mut self) {
        let taps = &mut self.taps;
        self.parts.engine.flush(&mut |asset, score| taps.note_score(asset, &score));
        self.taps.send();
    }

    /// Passes orders on, after a checkpoint: one that brings the gateway down must not be found again at the next start.
    fn pass_orders(&mut self) {
        if self.orders.is_empty() {
            return;
        }
        self.checkpoint_until_stored(ModelChanges::default());
        for order in std::mem::take(&mut self.orders) {
            if let Err(error) = self.parts.orders.try_send(order) {
                tracing::error!(%error, "an order could not be taken: give it again");
            }
        }
    }

    /// Keeps an operator's order until the batch is folded.
    fn take_order(&mut self, message: &LogMessage) {
        if message.message.topic != self.parts.order_topic {
            return;
        }
        match order::parse(&message.message.payload) {
            Ok(order) if self.orders.len() < ORDERS_MAX => self.orders.push(order),
            Ok(order) => tracing::error!(model = order.model.as_str(), "too many orders at once: give it again"),
            Err(error) => tracing::warn!("an order on {} is refused: {error}", self.parts.order_topic.as_str()),
        }
    }

    fn note_decode_error(&mut self, error: &SourceError) {
        self.decode_errors = self.decode_errors.saturating_add(1);
        // The first of a kind is worth a line, a device that repeats it is only counted.
        let text = error.to_string();
        if self.last_decode_error.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.last_decode_error = Some(text);
        }
        if matches!(error.fault, Fault::UnknownAlias { .. }) {
            self.ask_for_rebirth(&error.topic);
        }
    }

    /// A Sparkplug node that was born before the gateway listened must be asked to say again what its aliases mean; at
    /// most one question at a time, so that a node that does not answer is not flooded.
    fn ask_for_rebirth(&mut self, topic: &TopicName) {
        if self.asked_for_rebirth.is_some_and(|asked| asked.elapsed() < REBIRTH) {
            return;
        }
        self.asked_for_rebirth = Some(Instant::now());
        if let Some((topic, payload)) = sparkplug::rebirth_command(topic, clock::utc_us()) {
            self.parts.publisher.publish_volatile(Message {
                topic,
                payload: Bytes::from(payload),
                properties: Bytes::new(),
                qos: QoS::AtMostOnce,
                retain: false,
                origin: 0,
            });
        }
    }

    /// Completes rows of single numbers that no further message will complete.
    fn complete_waiting_rows(&mut self) {
        if self.parts.sources.poll_timeout().is_none() {
            return;
        }
        let now_us = clock::utc_us();
        self.readings.clear();
        self.parts.sources.handle_timeout(now_us, &mut self.readings);
        self.dirty |= !self.readings.is_empty();
        self.ingest(now_us);
        self.flush();
    }

    fn carry_out_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.carry_out(command);
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            // Nobody waits for an answer when the gateway is stopping.
            Command::Install { model, reply } => {
                let installed = self.parts.engine.install(&model);
                self.dirty |= installed.is_ok();
                let _ = reply.send(installed);
            }
            Command::RollBack { name, sha256, previous, versions, reply } => {
                let back = self.parts.engine.roll_back(&name, &sha256, previous);
                let withdrawn = vec![sha256];
                self.checkpoint_until_stored(ModelChanges { withdrawn, versions });
                let _ = reply.send(back);
            }
            Command::Installation { sha256, reply } => {
                let _ = reply.send((self.parts.engine.model(&sha256), self.parts.engine.installation(&sha256)));
            }
            Command::Tap(tap) => self.taps.add(tap),
            Command::Untap(id) => self.taps.remove(id),
        }
    }

    fn checkpoint_if_due(&mut self, last: bool) {
        let much = self.folded_bytes >= self.checkpoint_bytes;
        let due = self.dirty && (last || much || self.checkpointed.elapsed() >= CHECKPOINT);
        if due || self.parts.engine.has_outputs() {
            self.checkpoint_until_stored(ModelChanges::default());
        }
    }

    /// Writes a checkpoint; a state file that fails is tried again until the gateway stops: going on without it would
    /// lose alerts.
    fn checkpoint_until_stored(&mut self, changes: ModelChanges) {
        let mut checkpoint = self.gather_checkpoint(changes);
        while let Err(error) = self.parts.state.commit(&checkpoint) {
            tracing::error!(%error, "the checkpoint cannot be stored yet");
            if matches!(error, StateError::Encode { .. }) {
                checkpoint.assets.clear();
            }
            if *self.stop.borrow() {
                return;
            }
            self.pause(RETRY);
        }
        self.parts.cursor.advance(self.parts.position);
        self.checkpointed = Instant::now();
        self.folded_bytes = 0;
        self.dirty = false;
        if !checkpoint.outbox.is_empty() {
            self.parts.outbox.notify_one();
        }
    }

    fn gather_checkpoint(&mut self, changes: ModelChanges) -> Checkpoint {
        let ModelChanges { withdrawn, versions } = changes;
        let mut models = Vec::new();
        let mut outbox = Vec::new();
        for output in self.parts.engine.take_outputs() {
            match output {
                Output::Event(event) => outbox.extend(messages_of(&event)),
                Output::Commissioned { model, onnx } => {
                    let stored = files::store(&self.parts.models_dir, &model.sha256, &onnx);
                    if let Err(error) = stored {
                        tracing::error!(%error, asset = ?model, "a learned model could not be stored: it is learned again after a restart");
                    }
                    models.push(ModelRow::of(&model));
                }
            }
        }
        Checkpoint {
            log_id: self.parts.log.id().0,
            cursor: self.parts.position.0,
            next_event: self.parts.engine.next_event(),
            sources: self.parts.sources.save(),
            assets: self.parts.engine.take_changed(),
            models,
            withdrawn,
            versions,
            outbox,
        }
    }

    /// Publishes the health that is due and renews the status.
    fn report(&mut self) {
        if self.reported.elapsed() < STATUS {
            return;
        }
        self.reported = Instant::now();
        let now_us = clock::utc_us();
        for health in self.reports.due(self.parts.engine.assets(), now_us) {
            if let Some(message) = health_message(&health) {
                self.parts.publisher.publish_volatile(message);
            }
        }
        let at_s = self.started.elapsed().as_secs_f64();
        let queue = self.meter.measure(at_s, self.parts.log.head().0, self.parts.position.0);
        let assets = self.parts.engine.assets().iter().map(|asset| AssetStatus {
            health: self.reports.health_of(asset, now_us),
            counters: asset.counters,
            alert: asset.alarm.active().map(|alert| alert.id.clone()),
        });
        self.status.send_replace(Arc::new(PipelineStatus {
            queue,
            position: self.parts.position.0,
            decode_errors: self.decode_errors,
            last_decode_error: self.last_decode_error.clone(),
            refused_readings: self.parts.engine.refused_readings(),
            lost_messages: self.lost_messages,
            assets: assets.collect(),
        }));
    }

    /// Waits for the log to grow, a command, or the stop; at most until the next status is due.
    fn wait(&mut self) {
        let mut head = self.parts.log.watch_head();
        let position = self.parts.position;
        let runtime = self.parts.runtime.clone();
        let (commands, stop) = (&mut self.commands, &mut self.stop);
        let mut carried = None;
        runtime.block_on(async {
            tokio::select! {
                _ = head.wait_for(|head| *head > position) => {}
                command = commands.recv() => carried = command,
                _ = stop.changed() => {}
                () = tokio::time::sleep(STATUS) => {}
            }
        });
        if let Some(command) = carried {
            self.carry_out(command);
        }
    }

    fn pause(&mut self, pause: Duration) {
        let runtime = self.parts.runtime.clone();
        let stop = &mut self.stop;
        // Either way the loop goes on and looks again.
        let _ = runtime.block_on(async { tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() });
    }
}

/// What a command changes of the models that are installed.
#[derive(Default)]
struct ModelChanges {
    withdrawn: Vec<String>,
    versions: Vec<VersionRow>,
}

/// The messages of an event: the event itself, and the asset's current alert.
fn messages_of(event: &AlertEvent) -> Vec<(String, Vec<u8>, bool)> {
    let active = event.event != EventKind::Clear;
    let encoded = serde_json::to_vec(event).and_then(|bytes| {
        let current = serde_json::to_vec(&AlertState { active, event })?;
        Ok((bytes, current))
    });
    match encoded {
        Ok((bytes, current)) => vec![
            (format!("mw/v1/event/{}", event.asset), bytes, false),
            (format!("mw/v1/alert/{}", event.asset), current, true),
        ],
        Err(error) => {
            tracing::error!(%error, event = event.id, "an event cannot be encoded");
            Vec::new()
        }
    }
}

fn health_message(health: &Health) -> Option<Message> {
    let topic = TopicName::parse(&format!("mw/v1/health/{}", health.asset)).ok()?;
    let payload = serde_json::to_vec(health).ok()?;
    Some(Message {
        topic,
        payload: Bytes::from(payload),
        properties: Bytes::new(),
        qos: QoS::AtMostOnce,
        retain: true,
        origin: 0,
    })
}
