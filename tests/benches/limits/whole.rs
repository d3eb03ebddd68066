//! The whole gateway: its memory while a plant is scored and watched, and how soon it takes clients when there is much in its log.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::client::{Client, Connect};
use harness::gateway::{Gateway, write_config};
use harness::http::Http;
use rustix::process::{Pid, Signal, kill_process};

use crate::publisher::{Publisher, WINDOW};
use crate::table::{Figure, Target, median};
use crate::{Options, process, scratch};

/// Machines of the plant, and how often all of them send together.
const ASSETS: usize = 200;
const WAVE: Duration = Duration::from_millis(100);
/// Live views that are open, and how often a page is loaded besides.
const VIEWS: usize = 3;
const PAGE_EVERY: Duration = Duration::from_secs(1);
/// Rows that take a few seconds, and more than a period of the slow part of a reading.
const SOON_LEARNED: &str = "[commissioning]\nsamples = 200\nextend = false\n";
/// Before the first look at memory.
const SETTLE: Duration = Duration::from_secs(5);
/// What the log holds in the scenario of starts, bytes, and in which messages.
const LOG_BYTES: u64 = 1 << 30;
const MESSAGE_BYTES: usize = 1_000;
/// How often a start is tried to connect to.
const KNOCK: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut figures = memory(options)?;
    figures.extend(starts(options)?);
    Ok(figures)
}

fn figure(name: &'static str, ours: Option<f64>, max: f64) -> Figure {
    Figure { scenario: "whole gateway".to_owned(), name, ours, peer: None, target: Some(Target::Max(max)) }
}

/// While all assets are learned, and while a model scores each.
fn memory(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let (learning, scoring) = (plant(options, "")?, plant(options, SOON_LEARNED)?);
    Ok(vec![
        figure("idle RSS MiB", learning.idle, 30.0),
        Figure { target: None, ..figure("messages/s of 200 assets", Some(learning.rate), 0.0) },
        figure("most RSS MiB, 200 assets learned, dashboard open", Some(learning.most), 64.0),
        Figure { target: None, ..figure("messages/s of 200 assets", Some(scoring.rate), 0.0) },
        figure("most RSS MiB, 200 assets scored, dashboard open", Some(scoring.most), 64.0),
    ])
}

/// What a plant takes.
struct Plant {
    /// MiB before anything is sent.
    idle: Option<f64>,
    /// Messages per second.
    rate: f64,
    /// MiB, the most.
    most: f64,
}

fn plant(options: &Options, settings: &str) -> anyhow::Result<Plant> {
    ensure!(WINDOW == ASSETS, "a wave is a message of each machine");
    let dir = scratch()?;
    let gateway = Gateway::start(&options.program, dir.path(), settings)?;
    std::thread::sleep(SETTLE);
    let idle = rss_mib(gateway.pid());
    let stop = Arc::new(AtomicBool::new(false));
    let viewers: Vec<_> = (0..VIEWS).map(|_| view(gateway.http, Arc::clone(&stop))).collect();
    let mut publisher = Publisher::connect(gateway.mqtt, "plant")?;
    let http = Http::new(gateway.http);
    let (begun, mut sequence, mut most, mut loaded) = (Instant::now(), 0_u32, 0.0_f64, Instant::now());
    let span = Duration::from_secs(options.seconds);
    while begun.elapsed() < span {
        let payload = reading(sequence);
        publisher.window(payload.as_bytes(), |n| format!("mw/v1/telemetry/asset-{n}/json"))?;
        sequence += 1;
        if loaded.elapsed() >= PAGE_EVERY {
            loaded = Instant::now();
            for path in ["/api/v1/plant", "/api/v1/assets/asset-7", "/api/v1/alerts"] {
                http.get(path)?;
            }
            // Buffers and models are there by the second half.
            if begun.elapsed() > span / 2 {
                most = most.max(rss_mib(gateway.pid()).context("no memory of the process")?);
            }
        }
        std::thread::sleep((begun + WAVE * sequence).saturating_duration_since(Instant::now()));
    }
    let rate = f64::from(sequence) * WINDOW as f64 / begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for viewer in viewers {
        viewer.join().ok().context("a view ended badly")??;
    }
    let counts = &http.get("/api/v1/plant")?.json()["counts"];
    println!("plant after {} s: {counts}", options.seconds);
    Ok(Plant { idle, rate, most })
}

/// A machine's reading; what differs between two is what a sensor gives.
fn reading(sequence: u32) -> String {
    let (slow, fast) = ((f64::from(sequence) * 0.05).sin(), (f64::from(sequence) * 0.7).sin());
    format!(
        r#"{{"seq": {sequence}, "values": {{"flow": {}, "pressure": {}, "speed": {}, "current": {}}}}}"#,
        30.0 + slow + 0.1 * fast,
        5.0 - slow + 0.05 * fast,
        1_450.0 + 10.0 * slow + fast,
        3.4 + 0.2 * slow
    )
}

/// A page that shows what happens, until it is told to stop.
fn view(addr: SocketAddr, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<anyhow::Result<()>> {
    std::thread::spawn(move || {
        let mut events = Http::new(addr).events("/api/v1/live")?;
        while !stop.load(Ordering::Relaxed) {
            events.next_event()?;
        }
        Ok(())
    })
}

fn rss_mib(pid: u32) -> Option<f64> {
    process::rss_kib_of(pid).map(|kib| kib as f64 / 1_024.0)
}

fn starts(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let dir = scratch()?;
    let settings = "[log]\nquota_mb = 2048\n";
    let gateway = Gateway::start(&options.program, dir.path(), settings)?;
    let mut publisher = Publisher::connect(gateway.mqtt, "filler")?;
    let bytes = if options.is_quick() { LOG_BYTES / 64 } else { LOG_BYTES };
    let mut sent = 0;
    while sent < bytes {
        let count = publisher.window(&[7; MESSAGE_BYTES], |n| format!("mw/bench/topic-{n}"))?;
        sent += (count * MESSAGE_BYTES) as u64;
    }
    gateway.terminate()?;
    let mib = std::fs::metadata(dir.path().join("data/log.db"))?.len() as f64 / f64::from(1 << 20);
    let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = write_config(dir.path(), &format!("{settings}[broker]\nlisten = \"{addr}\"\n"))?;
    let mut after_kill = Vec::new();
    let mut after_stop = Vec::new();
    for _ in 0..options.runs.max(1) {
        for (times, signal) in [(&mut after_kill, Signal::TERM), (&mut after_stop, Signal::KILL)] {
            let (took, mut child) = start(&options.program, &config, addr)?;
            times.push(Some(took));
            let pid = Pid::from_child(&child);
            kill_process(pid, signal)?;
            child.wait()?;
        }
    }
    // The very first start came after an orderly stop too.
    let log = Figure { target: None, ..figure("MiB in the log", Some(mib), 0.0) };
    Ok(vec![
        log,
        figure("ms from start to the first client, after a kill", median(after_kill.into_iter().skip(1)), 300.0),
        figure("ms from start to the first client, after a stop", median(after_stop), 300.0),
    ])
}

/// How long it takes from the start of the program until a client is accepted, ms.
fn start(program: &str, config: &std::path::Path, addr: SocketAddr) -> anyhow::Result<(f64, Child)> {
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    loop {
        if Client::connect(addr, &Connect::new("first")).is_ok() {
            return Ok((begun.elapsed().as_secs_f64() * 1e3, child));
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            anyhow::bail!("the gateway takes no clients");
        }
        std::thread::sleep(KNOCK);
    }
}
