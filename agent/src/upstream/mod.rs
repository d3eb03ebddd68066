//! Upstream: what the gateway knows goes on to the engines that plants and clouds run.
//!
//! Owns the couriers, one for each `[[upstream]]`. The path of a message: a [`lane`] reads the log ahead of its cursor, [`selection`]
//! chooses, [`condense`] condenses, the [`courier`] delivers through a [`sink`] of one of the [`kinds`], and what is confirmed
//! moves the cursor. No message waits anywhere but in the log. All couriers share one thread of a lower priority: forwarding takes
//! the processor's time that ingest and scoring leave.
//!
//! Bounds: [`crate::config::UPSTREAMS_MAX`] upstreams, each lane of four deliveries in memory, and what its client holds.

mod condense;
mod courier;
mod kinds;
mod lane;
mod latest;
mod rate;
mod record;
mod retry;
mod selection;
pub mod sink;
pub mod status;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

use std::sync::Arc;

use millwright_broker::Publisher;
use millwright_broker::log::{CursorError, Log, Offset};
use tokio::sync::watch;

use self::condense::Condenser;
use self::courier::Courier;
use self::lane::{Lane, Make};
use self::latest::Latest;
use self::record::Origin;
pub use self::record::{Content, Record, header};
use self::selection::Selection;
use self::status::{Tally, UpstreamStatus};
use crate::config::upstream::{Begin, Contents};
use crate::config::{SourceConfig, UpstreamConfig};
use crate::ids::GatewayId;
use crate::source::SourceMap;

/// What the names of upstreams' cursors begin with.
const CURSOR: &str = "upstream/";
/// What the cursors of urgent messages end with.
const URGENT: &str = "/urgent";
/// How much of the processor's time the thread gives way: it gets a third of what an ordinary thread gets when both want all.
const NICE: i32 = 5;

/// What couriers are made of.
pub struct UpstreamParts {
    /// This gateway.
    pub gateway: GatewayId,
    /// The log.
    pub log: Log,
    /// For what comes down.
    pub publisher: Publisher,
    /// Which topics are telemetry.
    pub sources: Vec<SourceConfig>,
    /// What the pipeline remembers to decode them.
    pub saved_sources: Option<Vec<u8>>,
    /// The upstreams.
    pub upstreams: Vec<UpstreamConfig>,
}

/// Where messages go that come from an upstream.
#[derive(Debug, Clone)]
pub struct Down {
    /// This gateway.
    pub gateway: GatewayId,
    /// Publishes them here.
    pub publisher: Publisher,
    /// Knows what is retained here already.
    pub log: Log,
}

/// Reads how the upstreams do.
#[derive(Debug, Clone, Default)]
pub struct UpstreamView(Vec<Arc<Tally>>);

impl UpstreamView {
    /// All upstreams, in the order of the configuration.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        self.0.iter().map(|tally| tally.status()).collect()
    }
}

/// The running couriers.
pub struct Upstreams {
    view: UpstreamView,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstreams {
    /// Starts them. What a removed upstream has not confirmed is not kept any more.
    ///
    /// # Errors
    /// A cursor cannot be registered, or the system gives no thread.
    pub async fn start(parts: UpstreamParts) -> anyhow::Result<Upstreams> {
        forget_removed(&parts)?;
        let (stop, stopped) = watch::channel(false);
        let mut couriers = Vec::new();
        for config in &parts.upstreams {
            couriers.push(courier(&parts, config, stopped.clone())?);
        }
        // A new upstream must not begin later than it was told to after a crash.
        parts.log.flush().await?;
        let view = UpstreamView(couriers.iter().map(|courier| Arc::clone(&courier.tally)).collect());
        let thread = if couriers.is_empty() { None } else { Some(spawn(couriers)?) };
        Ok(Upstreams { view, stop, thread })
    }

    /// Reads how they do.
    pub fn view(&self) -> UpstreamView {
        self.view.clone()
    }

    /// Ends the deliveries that are under way, for a few seconds at most.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let Some(thread) = self.thread else { return };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the thread of the upstreams ended badly");
        }
    }
}

/// Couriers on a thread and a runtime of their own.
fn spawn(couriers: Vec<Courier>) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = move || {
        // Where the system does not let it, it works as any other thread does.
        let _ = rustix::process::nice(NICE);
        runtime.block_on(async {
            let mut running = tokio::task::JoinSet::new();
            for courier in couriers {
                running.spawn(courier.run());
            }
            while let Some(ended) = running.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a courier ended badly: its upstream gets nothing until the gateway is restarted");
                }
            }
        });
        // A client's own task must not keep the gateway from ending.
        runtime.shutdown_background();
    };
    Ok(std::thread::Builder::new().name("upstream".into()).spawn(work)?)
}

fn forget_removed(parts: &UpstreamParts) -> Result<(), CursorError> {
    let wanted: Vec<String> = parts.upstreams.iter().flat_map(cursor_names).collect();
    for cursor in parts.log.stats().cursors {
        if cursor.name.starts_with(CURSOR) && !wanted.contains(&cursor.name) {
            tracing::warn!(
                cursor = cursor.name,
                backlog = cursor.backlog_rows,
                "this upstream is configured no more, or gets no such messages: nothing is kept for it"
            );
            parts.log.cursor(&cursor.name)?.forget();
        }
    }
    Ok(())
}

fn urgent_contents(contents: Contents) -> Option<Contents> {
    let Contents { alerts, events, models, .. } = contents;
    (alerts || events || models).then_some(Contents { alerts, events, models, ..Contents::default() })
}

fn bulk_contents(contents: Contents) -> Option<Contents> {
    let Contents { telemetry, other, .. } = contents;
    (telemetry || other).then_some(Contents { telemetry, other, ..Contents::default() })
}

fn cursor_names(config: &UpstreamConfig) -> Vec<String> {
    let bulk = bulk_contents(config.content).map(|_| format!("{CURSOR}{}", config.name));
    let urgent = urgent_contents(config.content).map(|_| format!("{CURSOR}{}{URGENT}", config.name));
    bulk.into_iter().chain(urgent).collect()
}

fn courier(parts: &UpstreamParts, config: &UpstreamConfig, stop: watch::Receiver<bool>) -> anyhow::Result<Courier> {
    let origin = Origin::new(&parts.gateway, parts.log.lineage());
    let lane = |name: String, contents: Contents| -> anyhow::Result<Lane> {
        let is_new = !parts.log.stats().cursors.iter().any(|cursor| cursor.name == name);
        let cursor = parts.log.cursor(&name)?;
        if is_new && config.begin == Begin::Newest {
            cursor.advance(Offset(parts.log.head().0));
        }
        let selection = Selection::new(config, contents, sources(parts));
        let make = match config.downsample {
            Some(step) if contents.telemetry => Make::Condensed(Box::new(Condenser::new(selection, step))),
            _ => Make::Raw(Box::new(selection)),
        };
        Ok(Lane::new(cursor, origin.clone(), make))
    };
    let urgent = urgent_contents(config.content);
    let bulk = bulk_contents(config.content);
    Ok(Courier {
        config: config.clone(),
        log: parts.log.clone(),
        down: Down { gateway: parts.gateway.clone(), publisher: parts.publisher.clone(), log: parts.log.clone() },
        urgent: urgent.map(|contents| lane(format!("{CURSOR}{}{URGENT}", config.name), contents)).transpose()?,
        bulk: bulk.map(|contents| lane(format!("{CURSOR}{}", config.name), contents)).transpose()?,
        latest: Latest::new(config.content, origin.clone()),
        probes: false,
        unreadable: None,
        tally: Arc::new(Tally::new(config)),
        stop,
    })
}

fn sources(parts: &UpstreamParts) -> SourceMap {
    let mut sources = SourceMap::new(&parts.sources);
    if let Some(saved) = &parts.saved_sources
        && let Err(error) = sources.restore(saved)
    {
        tracing::warn!("{error}");
    }
    sources
}
