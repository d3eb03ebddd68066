//! The worker's side: `millwright worker`.
//!
//! Owns the watched models: the same engine as the gateway's, with nothing learned in it. It limits its own memory before it reads a
//! model, ends with its parent, and gives way to it on a busy machine. Reads standard input, writes standard output, nothing else.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use millwright_models::State;
use millwright_models::runtime::LoadLimits;

use super::protocol::{self, Answer, Begin, Loaded, Request};
use crate::alarm::AlarmSettings;
use crate::alarm::message::EventKind;
use crate::ids::{AssetId, GatewayId};
use crate::models::judge::Comparison;
use crate::pipeline::engine::{Engine, EngineSettings, Output};
use crate::pipeline::fleet::{Installed, Origin};
use crate::pipeline::install;
use crate::pipeline::learning::LearningSettings;
use crate::pipeline::tap::Feed;

/// How much later than the gateway the worker gets the processor.
const NICENESS: i32 = 10;
/// Windows that are scored to see how long one takes.
const TRIES: usize = 25;
/// Rows after which an asset whose model does not fit forgets them: nothing is learned here.
const LEARNING_ROWS: usize = 1_000;

/// Serves until the input ends.
///
/// # Errors
/// The gateway says something that is no request, or is gone.
pub fn serve(mut input: impl Read, mut output: impl Write) -> anyhow::Result<()> {
    end_with_the_parent();
    let Some(first) = protocol::read(&mut input)? else { return Ok(()) };
    let Request::Begin(begin) = first else { anyhow::bail!("the first request is not how to begin") };
    limit_memory(begin.memory_bytes_max)?;
    let mut watcher = Watcher::new(&begin)?;
    while let Some(request) = protocol::read(&mut input)? {
        let answer = match request {
            Request::Begin(_) => anyhow::bail!("it has begun already"),
            Request::Load { file, assets } => match watcher.load(&file, assets) {
                Ok(loaded) => Answer::Loaded(loaded),
                Err(reason) => Answer::Refused(reason),
            },
            Request::Feed(feed) => Answer::Seen(Box::new(watcher.fold(feed))),
        };
        protocol::write(&mut output, &answer)?;
    }
    Ok(())
}

/// A worker whose model never comes to an end does not see that its input has ended.
fn end_with_the_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        tracing::warn!(%error, "the worker may outlive the gateway");
    }
    // Giving way is a courtesy: without it the worker works all the same.
    let _ = rustix::process::nice(NICENESS);
}

/// Limits the address space to what is in use now and `bytes` more: beyond it an allocation fails, which ends the process.
fn limit_memory(bytes: u64) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let used = address_space_bytes().unwrap_or(0);
    let limit = used.saturating_add(bytes);
    let present = getrlimit(Resource::As);
    let limit = present.maximum.map_or(limit, |most| limit.min(most));
    setrlimit(Resource::As, Rlimit { current: Some(limit), maximum: present.maximum })
        .context("the worker's memory cannot be limited")
}

/// The size of the address space, from the first field of `/proc/self/statm`, in pages.
fn address_space_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().next()?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

struct Watcher {
    engine: Engine,
    models: Vec<Arc<Installed>>,
    limits: LoadLimits,
    seen: Comparison,
}

impl Watcher {
    fn new(begin: &Begin) -> anyhow::Result<Watcher> {
        let settings = EngineSettings {
            gateway: GatewayId::parse("worker")?,
            learning: LearningSettings {
                rows: LEARNING_ROWS,
                extend: true,
                params: millwright_models::Params::default(),
            },
            alarm: AlarmSettings {
                raise_rows: begin.raise_rows,
                raise_after_us: begin.raise_after_us,
                clear_rows: begin.clear_rows,
                ..AlarmSettings::default()
            },
        };
        let limits = LoadLimits {
            file_bytes_max: usize::try_from(begin.file_bytes_max).unwrap_or(usize::MAX),
            memory_bytes_max: begin.memory_bytes_max.min(LoadLimits::default().memory_bytes_max),
            ..LoadLimits::default()
        };
        let engine = Engine::new(settings, 0);
        Ok(Watcher { engine, models: Vec::new(), limits, seen: Comparison::default() })
    }

    fn load(&mut self, file: &[u8], assets: Vec<String>) -> Result<Loaded, String> {
        let model = install::load(file, Origin::Pushed, assets, &self.limits).map_err(|error| error.to_string())?;
        install::check_window(model.model.contract())?;
        let latency_us = time_one_window(&model)?;
        let loaded =
            Loaded { name: model.name.to_string(), version: model.version, sha256: model.sha256.clone(), latency_us };
        let model = Arc::new(model);
        self.engine.install(&model).map_err(|error| error.to_string())?;
        self.models.push(model);
        Ok(loaded)
    }

    /// Folds what the gateway folded, and compares with how its models judged the same rows.
    fn fold(&mut self, feed: Feed) -> Comparison {
        let begun = Instant::now();
        let before = self.windows();
        let mut alarms: HashMap<(AssetId, i64), bool> = HashMap::new();
        let mut observe = |asset: &AssetId, row: crate::pipeline::engine::RowScore| {
            alarms.insert((asset.clone(), row.time_us), row.state != State::Ok);
        };
        for reading in feed.readings {
            let received_us = reading.received_us;
            self.engine.ingest(&reading.into_reading(), received_us, &mut observe);
        }
        self.engine.flush(&mut observe);
        let windows = self.windows().saturating_sub(before);
        if windows > 0 {
            self.seen.note_latency(windows, u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        for row in feed.scores {
            if let Some(alarm) = alarms.get(&(row.asset, row.time_us)) {
                self.seen.note_pair(*alarm, row.alarm);
            }
        }
        self.seen.scored = self.models.iter().map(|model| model.tally.scored()).sum();
        self.seen.failed = self.models.iter().map(|model| model.tally.failed()).sum();
        for output in self.engine.take_outputs() {
            if let Output::Event(event) = output
                && event.event == EventKind::Raise
            {
                self.seen.alerts += 1;
            }
        }
        self.seen.clone()
    }

    fn windows(&self) -> u64 {
        self.models.iter().map(|model| model.tally.scored() + model.tally.failed()).sum()
    }
}

/// The median time for one window that stands at the learned normals.
fn time_one_window(model: &Installed) -> Result<u64, String> {
    let contract = model.model.contract();
    let row: Vec<f32> = contract.channels.iter().map(|channel| channel.normal.unwrap_or(0.0)).collect();
    let window = row.repeat(contract.samples);
    let mut times_us = Vec::with_capacity(TRIES);
    for _ in 0..TRIES {
        let begun = Instant::now();
        model.model.score(&window, 1).map_err(|error| error.to_string())?;
        times_us.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    times_us.sort_unstable();
    Ok(times_us.get(TRIES / 2).copied().unwrap_or(0))
}
