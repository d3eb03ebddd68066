//! What open dashboards cost ingest, and how long the whole plant takes to answer.
//!
//! One gateway, the program as users run it, and a publisher at QoS 1 that keeps a window under way; it is measured by turns without
//! dashboards and with so many live views that read all they are sent. The readers take their share of the same machine.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::gateway::Gateway;
use harness::http::Http;
use harness::wait_for;

use super::publisher::Publisher;
use super::table::{Figure, Target, median};
use super::{Options, SCRATCH, figure};

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_millwright-under-test");
/// The plant that the figures are about.
const ASSETS: usize = 200;
/// Live views.
const DASHBOARDS: usize = 100;
/// Each measurement, with and without.
const TURN: Duration = Duration::from_secs(5);
/// How often the readers look for what has come.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let turn = if options.is_quick() { TURN / 10 } else { TURN };
    let dir = tempfile::Builder::new().prefix("live-").tempdir_in(SCRATCH)?;
    let config = "[http]\nlisten = \"127.0.0.1:0\"\nmax_connections_per_network = 256\n";
    let gateway = Gateway::start(PROGRAM, dir.path(), config)?;
    let mut plant = Plant { publisher: Publisher::connect(gateway.mqtt, "plant")?, sequence: 0 };
    plant.publish_for(turn / 5)?;
    let http = Http::new(gateway.http);
    wait_for("all assets", || (http.get("/api/v1/plant").ok()?.json()["counts"]["total"] == ASSETS).then_some(()))?;
    let (mut without, mut with, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..options.runs {
        without.push(Some(plant.publish_for(turn)?));
        let dashboards = Dashboards::open(gateway.http)?;
        with.push(Some(plant.publish_for(turn)?));
        bytes = bytes.max(dashboards.close()?);
    }
    let (with, without) = (median(with), median(without));
    let cost = with.zip(without).map(|(with, without)| 100.0 * (1.0 - with / without));
    let times = (0..20).map(|_| plant_ms(&http)).collect::<anyhow::Result<Vec<f64>>>()?;
    let scenario = format!("{DASHBOARDS} live views, {ASSETS} assets");
    Ok(vec![
        figure(scenario.clone(), "messages/s without", without, None),
        figure(scenario.clone(), "messages/s with", with, None),
        figure(scenario.clone(), "cost to ingest, %", cost, Some(Target::Max(5.0))),
        figure(scenario, "KiB a view", Some(bytes as f64 / 1_024.0 / DASHBOARDS as f64), None),
        figure(format!("{ASSETS} assets"), "/plant, ms", median(times.into_iter().map(Some)), None),
    ])
}

fn plant_ms(http: &Http) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let answer = http.get("/api/v1/plant")?;
    ensure!(answer.status == 200 && answer.body.len() > ASSETS * 100, "the plant is empty");
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Machines that send as fast as they are acknowledged.
struct Plant {
    publisher: Publisher,
    sequence: usize,
}

impl Plant {
    /// Messages acknowledged a second.
    fn publish_for(&mut self, span: Duration) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut count = 0;
        while begun.elapsed() < span {
            self.sequence += 1;
            let wave = (self.sequence as f64 * 0.1).sin();
            let payload = format!(
                r#"{{"seq": {}, "values": {{"flow": {}, "pressure": {}, "speed": {}}}}}"#,
                self.sequence,
                30.0 + wave,
                5.0 - wave,
                1_450.0 + 10.0 * wave
            );
            let topic = |n: usize| format!("mw/v1/telemetry/asset-{}/json", n % ASSETS);
            count += self.publisher.window(payload.as_bytes(), topic)?;
        }
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }
}

/// Live views that read all they are sent, in one thread.
struct Dashboards {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Dashboards {
    fn open(addr: SocketAddr) -> anyhow::Result<Dashboards> {
        let streams = (0..DASHBOARDS).map(|_| listen(addr)).collect::<anyhow::Result<Vec<TcpStream>>>()?;
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, read) = (Arc::clone(&stop), Arc::clone(&bytes));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                read.fetch_add(streams.iter().map(take).sum(), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        Ok(Dashboards { stop, bytes, thread })
    }

    /// Bytes that all were sent.
    fn close(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the readers ended badly")?;
        Ok(self.bytes.load(Ordering::Relaxed))
    }
}

fn listen(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(format!("GET /api/v1/live HTTP/1.1\r\nHost: {addr}\r\n\r\n").as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    ensure!(&head == b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&head));
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Reads what is there.
fn take(mut stream: &TcpStream) -> u64 {
    let mut buffer = [0; 65_536];
    let mut taken = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return taken,
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return taken,
        }
    }
}
