//! Many assets: one model for a hundred, and a thousand each with the model that was learned for it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use millwright::alarm::AlarmSettings;
use millwright::ids::{AssetId, ChannelName, GatewayId};
use millwright::pipeline::engine::{Engine, EngineSettings};
use millwright::pipeline::fleet::Origin;
use millwright::pipeline::install;
use millwright::pipeline::learning::LearningSettings;
use millwright::source::{Reading, StreamPosition};
use millwright_models::{LoadLimits, Model, Params, Subject, commission::commission_subject};

use crate::graph::Noise;
use crate::process;

const SECOND_US: i64 = 1_000_000;
const CHANNELS: usize = 8;
/// Rows from which an asset's model is learned here; the gateway's own default is hours.
const LEARNED_ROWS: usize = 120;
/// Swaps that the median is taken of.
const SWAPS: u64 = 5;

/// Windows a second of `model`, `assets` in one run and one by one.
pub(crate) fn batched_and_single(onnx: &[u8], assets: usize, time: Duration) -> anyhow::Result<(f64, f64)> {
    let model = Model::load(onnx, &LoadLimits::default())?;
    let mut noise = Noise::new(9);
    let window_len = model.contract().window_len();
    let windows: Vec<f32> = (0..assets * window_len).map(|_| noise.normal()).collect();
    let rate = |step: &dyn Fn() -> anyhow::Result<()>| -> anyhow::Result<f64> {
        let (begin, mut rounds) = (Instant::now(), 0_u32);
        while begin.elapsed() < time {
            step()?;
            rounds += 1;
        }
        Ok(f64::from(rounds) * assets as f64 / begin.elapsed().as_secs_f64())
    };
    let score = |windows: &[f32], batch| -> anyhow::Result<()> {
        black_box(model.score(black_box(windows), batch)?);
        Ok(())
    };
    let batched = rate(&|| score(&windows, assets))?;
    let single = rate(&|| windows.chunks(window_len).try_for_each(|window| score(window, 1)))?;
    Ok((batched, single))
}

/// What a fleet costs.
pub(crate) struct Load {
    /// Processor time of the pipeline's thread for each second of telemetry, in percent of one core.
    pub(crate) core_percent: f64,
    /// Memory of the process beyond what it had before, for each asset.
    pub(crate) kib_per_asset: f64,
    /// Processor time to learn an asset's model and load it.
    pub(crate) learn_ms: f64,
    /// How long nothing is scored while a pushed model takes over all assets.
    pub(crate) swap_ms: f64,
}

/// `assets` of eight channels at 1 Hz through the pipeline's engine, each with the model that was learned from its own telemetry.
pub(crate) fn at_one_hertz(assets: usize, seconds: usize) -> anyhow::Result<Load> {
    let before_kib = process::rss_kib().unwrap_or(0);
    let settings = EngineSettings {
        gateway: GatewayId::parse("bench").context("a valid name")?,
        learning: LearningSettings { rows: LEARNED_ROWS, extend: false, params: Params::default() },
        alarm: AlarmSettings::default(),
    };
    let mut engine = Engine::new(settings, 1);
    let mut fleet = Telemetry::new(assets)?;
    let mut scored = 0_usize;
    let begin_ns = process::thread_cpu_ns();
    for _ in 0..LEARNED_ROWS + 30 {
        fleet.second(|reading, now_us| engine.ingest(reading, now_us, &mut |_, _| scored += 1));
        engine.flush(&mut |_, _| scored += 1);
        // What the owner would store and publish.
        drop(engine.take_outputs());
    }
    let learn_ns = process::thread_cpu_ns() - begin_ns;
    ensure!(scored >= assets, "only {scored} windows were scored after learning");
    let kib = process::rss_kib().unwrap_or(0).saturating_sub(before_kib);

    scored = 0;
    let mut spent_ns = 0;
    for _ in 0..seconds {
        let begin_ns = process::thread_cpu_ns();
        fleet.second(|reading, now_us| engine.ingest(reading, now_us, &mut |_, _| scored += 1));
        engine.flush(&mut |_, _| scored += 1);
        drop(engine.take_outputs());
        spent_ns += process::thread_cpu_ns() - begin_ns;
    }
    ensure!(scored == assets * seconds, "{scored} windows were scored of {}", assets * seconds);
    let swap_ms = swap(&mut engine, assets)?;
    Ok(Load {
        core_percent: spent_ns as f64 / (seconds as f64 * 1e9) * 100.0,
        kib_per_asset: kib as f64 / assets as f64,
        learn_ms: learn_ns as f64 / 1e6 / assets as f64,
        swap_ms,
    })
}

/// Installs pushed models for all assets, as the pipeline does between two batches; the median time of some.
fn swap(engine: &mut Engine, assets: usize) -> anyhow::Result<f64> {
    let channels: Vec<String> = (0..CHANNELS).map(|c| format!("channel-{c}")).collect();
    let mut noise = Noise::new(13);
    let rows: Vec<f32> = (0..400 * CHANNELS).map(|at| 10.0 * (at % CHANNELS) as f32 + noise.uniform()).collect();
    let mut times_ms = Vec::new();
    for version in 1..=SWAPS {
        let subject = Subject::new("fleet", version, &channels);
        let onnx = commission_subject(&subject, &rows, &Params::default())?.onnx;
        let model = install::load(&onnx, Origin::Pushed, vec!["asset-*".to_owned()], &LoadLimits::default())?;
        let model = Arc::new(model);
        let begin = Instant::now();
        let installed = engine.install(&model)?;
        times_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(installed.assets == assets, "the model took over {} of {assets} assets", installed.assets);
    }
    times_ms.sort_by(f64::total_cmp);
    Ok(times_ms[times_ms.len() / 2])
}

/// One reading a second from each asset.
struct Telemetry {
    readings: Vec<Reading>,
    noise: Noise,
    second: u64,
}

impl Telemetry {
    fn new(assets: usize) -> anyhow::Result<Telemetry> {
        let channels: Option<std::sync::Arc<[ChannelName]>> =
            (0..CHANNELS).map(|c| ChannelName::parse(&format!("channel-{c}")).ok()).collect();
        let channels = channels.context("valid names")?;
        let reading = |asset: usize| -> anyhow::Result<Reading> {
            Ok(Reading {
                asset: AssetId::parse(&format!("asset-{asset}")).ok().context("a valid name")?,
                stream: None,
                channels: channels.clone(),
                times_us: vec![0],
                values: vec![0.0; CHANNELS],
            })
        };
        let readings: anyhow::Result<Vec<Reading>> = (0..assets).map(reading).collect();
        Ok(Telemetry { readings: readings?, noise: Noise::new(11), second: 0 })
    }

    fn second(&mut self, mut take: impl FnMut(&Reading, i64)) {
        let now_us = 1_700_000_000 * SECOND_US + self.second as i64 * SECOND_US;
        for reading in &mut self.readings {
            reading.stream =
                Some(StreamPosition { device: "plc".into(), boot: Some(1), seq: self.second, device_time: true });
            reading.times_us[0] = now_us;
            for (channel, value) in reading.values.iter_mut().enumerate() {
                *value = 10.0 * channel as f32 + self.noise.uniform();
            }
            take(reading, now_us);
        }
        self.second += 1;
    }
}
