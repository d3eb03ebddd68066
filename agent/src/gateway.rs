//! The gateway as a whole: the order in which its parts start and stop.
//!
//! Start: a backup that waits to be taken, log, `state.db`, models, historian, pipeline, upstreams, outbox, broker, HTTP, model updates. Clients are let in when
//! everything behind them works. Stop, in this order: the broker stops accepting and closes its sessions; model updates;
//! the pipeline folds what is left and writes its last checkpoint; the historian; the outbox publishes it; upstreams end what is under way; HTTP; the
//! log commits and closes. Never does the work of a part.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millwright_broker::log::{self, CursorError, DirLock, Log, LogConfig, OpenError, WhenFull};
use millwright_broker::message::{Message, QoS};
use millwright_broker::pulse::Pulse;
use millwright_broker::topic::TopicName;
use millwright_broker::{
    AccessRules, Addresses, AllowAll, Authorize, BindError, Broker, BrokerConfig, Publisher, TlsListen, TlsState,
    UserError, Users, WebSocketListen,
};
use millwright_models::runtime::LoadLimits;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::alarm::AlarmSettings;
use crate::backup::{BackupError, swap};
use crate::casebook::Casebook;
use crate::clock;
use crate::conditions::watch::{self as conditions, Condensed, WatchParts};
use crate::config::{self, Config};
use crate::dashboard::api::{ApiParts, Workshop};
use crate::dashboard::{Dashboard, DashboardParts, HttpError};
use crate::descriptors;
use crate::historian::{Historian, HistorianParts};
use crate::models::order::ORDERS_MAX;
use crate::models::steward::{self, ModelsView, StewardParts};
use crate::models::worker::protocol::Begin;
use crate::outbox;
use crate::pipeline::engine::EngineSettings;
use crate::pipeline::health::HealthTiming;
use crate::pipeline::learning::LearningSettings;
use crate::pipeline::live::LiveFeed;
use crate::pipeline::runner::{self, PipelineStatus, RunnerHandle, RunnerParts};
use crate::resume::{self, Resumed};
use crate::source::SourceMap;
use crate::state::{State, StateError};
use crate::status::{Status, StatusSource};
use crate::upstream::{UpstreamParts, Upstreams};

/// The name of the inference cursor in the log.
const INFERENCE: &str = "inference";
/// How often the retained status is renewed.
const STATUS_BEAT: Duration = Duration::from_secs(10);

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `state.db`.
    #[error(transparent)]
    State(#[from] StateError),
    /// `log.db`.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// A backup that waits to be taken.
    #[error(transparent)]
    Restore(#[from] BackupError),
    /// The inference cursor.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// The MQTT port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A user of the configuration.
    #[error(transparent)]
    User(#[from] UserError),
    /// The HTTP port.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Anything that should not fail on a sound machine.
    #[error("the gateway cannot start: {0:#}")]
    Other(#[from] anyhow::Error),
}

/// The running gateway.
pub struct Gateway {
    log: Log,
    state: Arc<State>,
    broker: Broker,
    publisher: Publisher,
    runner: RunnerHandle,
    pipeline_pulse: Pulse,
    status: Arc<StatusSource>,
    dashboard: Dashboard,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// The outbox stops after the pipeline, whose last alerts it publishes.
    stop_outbox: watch::Sender<bool>,
    outbox: JoinHandle<()>,
    historian: Arc<Historian>,
    upstreams: Upstreams,
}

impl Gateway {
    /// Starts all parts. When it returns, clients are served.
    ///
    /// # Errors
    /// Each names what is wrong and what to do; parts that were started are stopped.
    pub async fn start(config: &Config) -> Result<Gateway, StartError> {
        take_restore(&config.gateway.data_dir)?;
        // The log first: its lock keeps a second gateway away from everything in the directory.
        let opened = Log::open(log_config(config))?;
        warn_set_aside(opened.set_aside.as_deref());
        let log = opened.log;
        match Gateway::start_on(config, log.clone()).await {
            Ok(gateway) => Ok(gateway),
            Err(error) => {
                let _ = tokio::task::spawn_blocking(move || log.close()).await;
                Err(error)
            }
        }
    }

    async fn start_on(config: &Config, log: Log) -> Result<Gateway, StartError> {
        let opened = State::open(&config.gateway.data_dir)?;
        warn_set_aside(opened.set_aside.as_deref());
        let state = Arc::new(opened.state);
        let models_dir = config.gateway.data_dir.join("models");
        let limits = LoadLimits {
            file_bytes_max: usize::try_from(config.models.size_bytes_max).unwrap_or(usize::MAX),
            ..LoadLimits::default()
        };
        let resumed = resume_pipeline(config, &state, &log, &models_dir, &limits).await?;
        let saved_sources = resumed.sources.save();
        let broker = Broker::bind(broker_config(config, &resumed.sources)?, log.clone()).await?;
        let publisher = broker.publisher();
        if config.models.trusted_keys.is_empty() && !config.broker.listen.ip().is_loopback() {
            tracing::warn!(
                "models are taken from whoever may publish: set `trusted_keys` in [models] (`millwright model keygen`)"
            );
        }
        let (order_topic, orders) = (order_topic(config)?, mpsc::channel(ORDERS_MAX));
        let wake = Arc::new(Notify::new());
        let historian = Historian::start(HistorianParts {
            dir: config.gateway.data_dir.clone(),
            state: Arc::clone(&state),
            log: log.clone(),
            sources: config.sources.clone(),
            quota_bytes: config.history.quota_bytes,
            days: config.history.days,
        })?;
        let feed = LiveFeed::new();
        let pipeline_pulse = Pulse::default();
        let cursor = log.cursor(INFERENCE)?;
        cursor.advance(resumed.position);
        let runner = runner::start(RunnerParts {
            log: log.clone(),
            state: Arc::clone(&state),
            sources: resumed.sources,
            engine: resumed.engine,
            position: resumed.position,
            cursor,
            publisher: publisher.clone(),
            models_dir: models_dir.clone(),
            health: health_timing(config),
            outbox: Arc::clone(&wake),
            order_topic,
            orders: orders.0.clone(),
            feed: Arc::clone(&feed),
            historian: Arc::clone(&historian),
            pulse: pipeline_pulse.clone(),
            runtime: tokio::runtime::Handle::current(),
        })?;
        let upstreams = Upstreams::start(UpstreamParts {
            gateway: config.gateway.id.clone(),
            log: log.clone(),
            publisher: publisher.clone(),
            sources: config.sources.clone(),
            saved_sources,
            upstreams: config.upstreams.clone(),
        })
        .await?;
        let models_view = watch::channel(Arc::new(ModelsView::default()));
        let condition = watch::channel(Arc::new(Condensed::default()));
        let status = Arc::new(StatusSource {
            gateway: config.gateway.id.clone(),
            started: Instant::now(),
            log: log.clone(),
            mqtt: broker.local_addr(),
            publisher: publisher.clone(),
            pipeline: runner.status.clone(),
            models: models_view.1,
            condition: condition.1,
            upstreams: upstreams.view(),
        });
        let workshop = Workshop { config: Arc::new(config.clone()), models_dir: models_dir.clone(), limits };
        let api = ApiParts {
            orders: orders.0,
            commands: runner.commands.clone(),
            workshop: Arc::new(workshop),
            views: runner.views.clone(),
            feed,
            historian: Arc::clone(&historian),
            casebook: Casebook::new(Arc::clone(&state), runner.commands.clone()),
        };
        let dashboard =
            Dashboard::start(DashboardParts { http: config.http.clone(), status: Arc::clone(&status), api }).await;
        let dashboard = match dashboard {
            Ok(dashboard) => dashboard,
            Err(error) => {
                broker.shutdown().await;
                runner.stop().await;
                stop_historian(historian).await;
                upstreams.stop().await;
                return Err(error.into());
            }
        };
        let (stop, stopped) = watch::channel(false);
        let steward = StewardParts {
            gateway: config.gateway.id.clone(),
            log: log.clone(),
            publisher: publisher.clone(),
            commands: runner.commands.clone(),
            state: Arc::clone(&state),
            models_dir,
            limits,
            trusted: config.models.trusted_keys.clone(),
            bounds: config.models.bounds,
            begin: worker_begin(config),
            program: own_program()?,
            orders: orders.1,
            view: models_view.0,
        };
        let (stop_outbox, outbox_stopped) = watch::channel(false);
        let outbox = tokio::spawn(outbox::run(Arc::clone(&state), publisher.clone(), wake, outbox_stopped));
        let judged = WatchParts {
            gateway: config.gateway.id.clone(),
            log: log.clone(),
            drops_oldest: matches!(config.log.when_full, config::WhenFull::DropOldest),
            data_dir: config.gateway.data_dir.clone(),
            state: Arc::clone(&state),
            publisher: publisher.clone(),
            tls: Box::new(both(broker.tls_view(), dashboard.tls_view())),
            history: Arc::clone(&historian),
            upstreams: upstreams.view(),
            view: condition.0,
        };
        let tasks = vec![
            tokio::spawn(conditions::run(judged, stopped.clone())),
            tokio::spawn(steward::run(steward, stopped.clone())),
            tokio::spawn(beat(Arc::clone(&status), publisher.clone(), stopped)),
        ];
        Ok(Gateway {
            log,
            state,
            broker,
            publisher,
            runner,
            pipeline_pulse,
            status,
            dashboard,
            stop,
            tasks,
            stop_outbox,
            outbox,
            historian,
            upstreams,
        })
    }

    /// Where MQTT clients connect.
    pub fn mqtt_addr(&self) -> SocketAddr {
        self.broker.local_addr()
    }

    /// All addresses where MQTT clients connect.
    pub fn mqtt_addresses(&self) -> Addresses {
        self.broker.addresses()
    }

    /// Reads the certificates of all TLS listeners again; what is wrong with them is told in the log.
    pub fn reload_certificates(&self) {
        self.broker.reload_certificates();
        self.dashboard.reload_certificates();
    }

    /// Where HTTP clients connect.
    pub fn http_addr(&self) -> SocketAddr {
        self.dashboard.addr()
    }

    /// What the pipeline is doing.
    pub fn pipeline(&self) -> watch::Receiver<Arc<PipelineStatus>> {
        self.runner.status.clone()
    }

    /// The parts that must never stop, with what shows that they work.
    pub fn pulses(&self) -> Vec<(&'static str, Pulse)> {
        vec![
            ("the log", self.log.pulse()),
            ("the pipeline", self.pipeline_pulse.clone()),
            ("the broker", self.broker.pulse()),
        ]
    }

    /// What does not work as it should, or will not for long, in one line.
    pub fn degraded(&self) -> Option<String> {
        self.status.trouble().or_else(|| self.status.warnings().into_iter().next())
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.status.status()
    }

    /// Waits until everything that is in the log now has been folded, or `at_most` has passed. Returns whether it has.
    pub async fn settle(&self, at_most: Duration) -> bool {
        let head = self.log.head().0;
        let mut pipeline = self.pipeline();
        let folded = pipeline.wait_for(|status| status.position >= head);
        tokio::time::timeout(at_most, folded).await.is_ok()
    }

    /// Stops all parts in the order of the module's description.
    pub async fn stop(self) {
        let down = Status { state: "down", ..self.status.status() };
        publish_status(&self.publisher, &down);
        self.broker.shutdown().await;
        self.stop.send_replace(true);
        for task in self.tasks {
            join(task).await;
        }
        self.runner.stop().await;
        stop_historian(self.historian).await;
        self.stop_outbox.send_replace(true);
        join(self.outbox).await;
        self.upstreams.stop().await;
        self.dashboard.stop().await;
        let state = self.state;
        match tokio::task::spawn_blocking(move || state.end_run()).await {
            Ok(Ok(())) => {}
            failed => {
                tracing::error!(?failed, "the end of the run could not be noted: a model on trial will be taken back")
            }
        }
        let log = self.log;
        if tokio::task::spawn_blocking(move || log.close()).await.is_err() {
            tracing::error!("the log did not close cleanly; nothing acknowledged is lost");
        }
    }
}

/// What the historian has not written yet is in the state file's journal.
async fn stop_historian(historian: Arc<Historian>) {
    if tokio::task::spawn_blocking(move || historian.stop()).await.is_err() {
        tracing::error!("the historian did not end cleanly; its journal is kept");
    }
}

async fn join(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a task ended badly");
    }
}

/// Loading models and reading back the log is work for a thread that may block.
async fn resume_pipeline(
    config: &Config,
    state: &Arc<State>,
    log: &Log,
    models_dir: &Path,
    limits: &LoadLimits,
) -> Result<Resumed, StartError> {
    let (state, log, limits) = (Arc::clone(state), log.clone(), *limits);
    let (settings, models_dir): (_, PathBuf) = (engine_settings(config), models_dir.to_owned());
    let source_configs = config.sources.clone();
    let work = move || -> anyhow::Result<_> {
        let already = outbox::reconcile(&state, &log)?;
        if already > 0 {
            tracing::info!(already, "alerts had reached the log before the last stop");
        }
        for row in state.begin_run()? {
            tracing::error!(
                model = row.name,
                version = row.version,
                "a model is taken back: {}",
                row.reason.unwrap_or_default()
            );
        }
        let mut saved = state.load()?;
        let kept = state.versions()?.into_iter().filter(|row| row.state.keeps_file()).map(|row| row.sha256);
        saved.models = resume::forget_unused_models(&saved, &kept.collect::<Vec<_>>(), &state, &models_dir)?;
        Ok(resume::resume(settings, saved, &models_dir, &limits, &source_configs, &log)?)
    };
    Ok(tokio::task::spawn_blocking(work).await.map_err(anyhow::Error::from)??)
}

/// Puts a backup in place that was restored while the gateway ran.
fn take_restore(dir: &Path) -> Result<(), StartError> {
    if !swap::is_waiting(dir) {
        return Ok(());
    }
    let lock = DirLock::take(dir)?;
    if let Some(taken) = swap::take(dir, &lock)? {
        let made = clock::rfc3339(taken.manifest.made_us);
        let kept = taken.aside.map_or("there were none".to_owned(), |aside| aside.display().to_string());
        tracing::warn!(made, kept, "a backup takes the place of the data, which are kept");
    }
    Ok(())
}

fn warn_set_aside(path: Option<&Path>) {
    if let Some(path) = path {
        tracing::error!(
            "a database was corrupt: it is kept as {} and a new one was begun; recover it with `sqlite3 {} .recover`, and check the disk",
            path.display(),
            path.display()
        );
    }
}

fn log_config(config: &Config) -> LogConfig {
    LogConfig {
        dir: config.gateway.data_dir.clone(),
        quota_bytes: config.log.quota_bytes,
        when_full: match config.log.when_full {
            config::WhenFull::Refuse => WhenFull::Refuse,
            config::WhenFull::DropOldest => WhenFull::DropOldest,
        },
        commit_delay: config.log.commit_delay,
        limits: log::Limits { sessions_max: config.broker.sessions_max, ..log::Limits::default() },
    }
}

fn broker_config(config: &Config, sources: &SourceMap) -> Result<BrokerConfig, UserError> {
    let mut users = Users::new();
    for user in &config.broker.users {
        users.insert(&user.name, user.password_hash.as_str())?;
    }
    let broker = &config.broker;
    let tls = broker.tls.clone().map(|tls| TlsListen { listen: tls.listen, files: tls.files });
    let websocket = broker.websocket.clone().map(|it| WebSocketListen {
        listen: it.listen,
        tls_listen: it.tls_listen,
        rules: it.rules,
    });
    Ok(BrokerConfig {
        listen: broker.listen,
        tls,
        websocket,
        users: broker.must_log_in().then_some(users),
        allow_anonymous: broker.access.iter().any(|rule| rule.anonymous),
        telemetry: sources.filters(),
        authorize: authorize(config),
        limits: descriptors::fit(broker.limits.clone()),
        sys_interval: broker.sys_interval,
    })
}

/// Without users and rules everybody may do everything; else nobody may do anything that no rule allows.
fn authorize(config: &Config) -> Arc<dyn Authorize> {
    let broker = &config.broker;
    if !broker.must_log_in() && broker.access.is_empty() {
        return Arc::new(AllowAll);
    }
    let members = broker.users.iter().flat_map(|user| user.groups.iter().map(|group| (&*user.name, &**group)));
    Arc::new(AccessRules::new(&broker.access, members))
}

/// This program. On Linux by a name that still leads to it when an upgrade has replaced the file under the running gateway.
fn own_program() -> anyhow::Result<PathBuf> {
    let linux = PathBuf::from("/proc/self/exe");
    if linux.exists() { Ok(linux) } else { Ok(std::env::current_exe()?) }
}

/// What a worker may use, and how it judges scores: as the pipeline does.
fn worker_begin(config: &Config) -> Begin {
    let alarm = engine_settings(config).alarm;
    Begin {
        memory_bytes_max: config.models.memory_bytes_max,
        load_s_max: config.models.load_s_max,
        file_bytes_max: config.models.size_bytes_max,
        raise_rows: alarm.raise_rows,
        raise_after_us: alarm.raise_after_us,
        clear_rows: alarm.clear_rows,
    }
}

fn order_topic(config: &Config) -> anyhow::Result<TopicName> {
    Ok(TopicName::parse(&format!("mw/v1/gateway/{}/command", config.gateway.id))?)
}

/// How the pipeline learns and watches by the configuration.
pub(crate) fn engine_settings(config: &Config) -> EngineSettings {
    let params = millwright_models::Params { window: config.commissioning.window, ..Default::default() };
    EngineSettings {
        gateway: config.gateway.id.clone(),
        learning: LearningSettings { rows: config.commissioning.samples, extend: config.commissioning.extend, params },
        alarm: AlarmSettings {
            raise_rows: config.alarm.min_samples,
            raise_after_us: micros(config.alarm.min_duration),
            clear_rows: config.alarm.clear_samples,
            critical_score: config.alarm.critical_score,
        },
    }
}

fn health_timing(config: &Config) -> HealthTiming {
    let beat_us = micros(config.pipeline.health_interval);
    HealthTiming { beat_us, silent_after_us: beat_us }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Renews the retained status until the gateway stops.
async fn beat(source: Arc<StatusSource>, publisher: Publisher, mut stop: watch::Receiver<bool>) {
    loop {
        publish_status(&publisher, &source.status());
        tokio::select! {
            () = tokio::time::sleep(STATUS_BEAT) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// How the certificates of two listeners stand together: the first that ends, and what was refused of either.
fn both(
    one: impl Fn() -> Option<TlsState> + Send + Sync,
    other: impl Fn() -> Option<TlsState> + Send + Sync,
) -> impl Fn() -> Option<TlsState> + Send + Sync {
    move || match (one(), other()) {
        (Some(one), Some(other)) => Some(TlsState {
            not_after_s: one.not_after_s.min(other.not_after_s),
            refused: one.refused.or(other.refused),
        }),
        (one, other) => one.or(other),
    }
}

fn publish_status(publisher: &Publisher, status: &Status) {
    let topic = TopicName::parse(&format!("mw/v1/gateway/{}/status", status.gateway));
    if let (Ok(topic), Ok(payload)) = (topic, serde_json::to_vec(status)) {
        let (payload, properties) = (Bytes::from(payload), Bytes::new());
        publisher.publish_volatile(Message {
            topic,
            payload,
            properties,
            qos: QoS::AtMostOnce,
            retain: true,
            origin: 0,
        });
    }
}
