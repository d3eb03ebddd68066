//! The pipeline's own thread: reads the log from the cursor, folds, and writes checkpoints.
//!
//! Owns the [`Engine`] and the inference cursor. A checkpoint (cursor, changed assets, new models, alerts for the
//! outbox) is one transaction, written at once when there is an alert or a model, otherwise every [`CHECKPOINT`] and every
//! eighth of the log: after a crash the messages since then are folded again, with the same result. Commands reach it
//! through a channel of [`COMMANDS_MAX`] and are carried out between two batches. What people do about alerts is numbered here, as
//! events are, and stored with a checkpoint too.

mod acts;
mod checkpoint;
mod commands;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millwright_broker::Publisher;
use millwright_broker::log::{
    Cursor, FetchLimit, Log, LogMessage, LogReader, MESSAGE_OVERHEAD_BYTES, Offset, ReadError,
};
use millwright_broker::message::{Message, QoS};
use millwright_broker::pulse::Pulse;
use millwright_broker::topic::TopicName;
use tokio::sync::{Notify, mpsc, watch};

pub use self::commands::Command;
pub use self::report::{AssetStatus, PipelineStatus};
use super::board::Board;
use super::engine::Engine;
use super::health::{HealthReports, HealthTiming};
use super::live::{LIVE_EVERY, LiveFeed, LiveSender};
use super::queue::QueueMeter;
use super::tap::Taps;
use super::view::{self, ViewSender, Views};
use crate::casebook::action::Order as Act;
use crate::clock;
use crate::historian::Historian;
use crate::memory::Spare;
use crate::models::order::Order;
use crate::source::{Fault, Reading, SourceError, SourceMap, sparkplug};
use crate::state::State;

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
    /// Where rows are shown that somebody looks at.
    pub feed: Arc<LiveFeed>,
    /// Keeps what charts of the past show.
    pub historian: Arc<Historian>,
    /// By which others see that the thread works.
    pub pulse: Pulse,
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
    /// What people see of the plant.
    pub views: Views,
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
    acts: Vec<Act>,
    board: Board,
    live: LiveSender,
    view: ViewSender,
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
    spare: Spare,
    decode_errors: u64,
    last_decode_error: Option<String>,
    asked_for_rebirth: Option<Instant>,
    lost_messages: u64,
}

/// Starts the pipeline's thread.
///
/// # Errors
/// The log or the state file cannot be read, or the system gives no thread.
pub fn start(mut parts: RunnerParts) -> anyhow::Result<RunnerHandle> {
    let (commands_tx, commands) = mpsc::channel(COMMANDS_MAX);
    let (status_tx, status) = watch::channel(Arc::new(PipelineStatus::default()));
    let (stop_tx, stop) = watch::channel(false);
    let reader = parts.log.reader()?;
    let board = Board::load(&parts.state, clock::utc_us())?;
    for (asset, until_us) in board.silenced() {
        parts.engine.silence(asset, Some(until_us));
    }
    parts.engine.record();
    parts.engine.show_on(parts.pulse.clone());
    let live = LiveSender::new(Arc::clone(&parts.feed));
    let (view, views) = view::views();
    let now = Instant::now();
    let reports = HealthReports::new(parts.health);
    let checkpoint_bytes = parts.log.stats().bytes_max / CHECKPOINT_LOG_SHARE;
    let runner = Runner {
        parts,
        reader,
        commands,
        taps: Taps::default(),
        orders: Vec::new(),
        acts: Vec::new(),
        board,
        live,
        view,
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
        spare: Spare::default(),
        checkpoint_bytes,
        decode_errors: 0,
        last_decode_error: None,
        asked_for_rebirth: None,
        lost_messages: 0,
    };
    let thread = std::thread::Builder::new().name("pipeline".into()).spawn(move || runner.run())?;
    Ok(RunnerHandle { thread, stop: stop_tx, commands: commands_tx, status, views })
}

impl Runner {
    fn run(mut self) {
        let mut stop_by: Option<Instant> = None;
        loop {
            self.parts.pulse.beat();
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
            self.live.send_if_due(&self.parts.engine);
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
        let disk = self.parts.pulse.on_disk();
        let fetched = self.reader.read(self.parts.position, FetchLimit::default())?;
        drop(disk);
        if let Some(gap) = &fetched.lost {
            let lost = gap.to.0.saturating_sub(gap.from.0);
            self.lost_messages = self.lost_messages.saturating_add(lost);
            tracing::error!(from = gap.from.0, to = gap.to.0, "messages were dropped before they could be scored");
        }
        for message in &fetched.messages {
            self.parts.pulse.beat();
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

    /// Waits for the log to grow, a command, or the stop; at most until the next status is due.
    fn wait(&mut self) {
        let mut head = self.parts.log.watch_head();
        let position = self.parts.position;
        let runtime = self.parts.runtime.clone();
        let longest = if self.live.is_watched() { LIVE_EVERY } else { STATUS };
        let (commands, stop) = (&mut self.commands, &mut self.stop);
        let mut carried = None;
        runtime.block_on(async {
            tokio::select! {
                _ = head.wait_for(|head| *head > position) => {}
                command = commands.recv() => carried = command,
                _ = stop.changed() => {}
                () = tokio::time::sleep(longest) => {}
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
