//! A flood of TLS handshakes from one address, and what it costs those who publish.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

use crate::publisher::Publisher;
use crate::table::{Figure, Target, median};
use crate::{Measured, Options, PROGRAM, scratch};

/// Handshakes begun each second.
const FLOOD_PER_S: u64 = 200;

/// Publishers beside it, each with a window of messages under way.
const PUBLISHERS: usize = 4;

const TIME: Duration = Duration::from_secs(3);

pub(crate) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut figures = measure(options, "handshakes", "")?;
    figures.extend(measure(options, "handshakes, no limit", "max_handshakes_per_s = 0\n")?);
    Ok(figures)
}

fn measure(options: &Options, scenario: &str, settings: &str) -> anyhow::Result<Vec<Figure>> {
    let dir = scratch()?;
    certificates(dir.path())?;
    let tls = format!(
        "[broker.tls]\nlisten = \"127.0.0.1:0\"\ncertificate = \"tls/server.crt\"\nkey = \"tls/server.key\"\n{settings}"
    );
    let client = client(dir.path())?;
    let measured = Measured::start(dir, &tls)?;
    let secure = measured.gateway.over("tls").context("the gateway has no TLS listener")?;
    let (mut quiet, mut flooded, mut done) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.runs.max(1) {
        quiet.push(Some(rate(measured.gateway.mqtt)?));
        let flood = Flood::start(secure, Arc::clone(&client));
        flooded.push(Some(rate(measured.gateway.mqtt)?));
        done.push(Some(flood.stop()?));
    }
    let (ours, peer) = (median(flooded), median(quiet));
    let figure = |name, ours, peer, target| Figure { scenario: scenario.to_owned(), name, ours, peer, target };
    Ok(vec![
        figure("messages/s while others flood; peer: without", ours, peer, Some(Target::TimesPeerMin(0.8))),
        figure("handshakes completed/s", median(done), None, None),
    ])
}

fn certificates(dir: &Path) -> anyhow::Result<()> {
    for arguments in [&["cert", "ca"][..], &["cert", "server", "--host", "localhost"]] {
        let output = Command::new(PROGRAM).args(arguments).arg("--dir").arg(dir.join("tls")).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn client(dir: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("tls/ca.crt"))?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each handshake is a full one.
    config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Messages acknowledged a second.
fn rate(addr: SocketAddr) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let counts: Vec<anyhow::Result<usize>> = std::thread::scope(|scope| {
        let run = |number: usize| {
            move || -> anyhow::Result<usize> {
                let mut publisher = Publisher::connect(addr, &format!("publisher-{number}"))?;
                let mut sent = 0;
                while begin.elapsed() < TIME {
                    sent += publisher.window(&[7; 100], |_| format!("mw/bench/{number}"))?;
                }
                Ok(sent)
            }
        };
        let threads: Vec<_> = (0..PUBLISHERS).map(|number| scope.spawn(run(number))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|result| result.unwrap_or_else(|_| Err(anyhow::anyhow!("a publisher panicked")))).collect()
    });
    let sent: usize = counts.into_iter().sum::<anyhow::Result<usize>>()?;
    Ok(sent as f64 / begin.elapsed().as_secs_f64())
}

struct Flood {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    began: Instant,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    fn start(addr: SocketAddr, client: Arc<ClientConfig>) -> Flood {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let begin = Instant::now();
            let mut begun = 0;
            while !ended.load(Ordering::Relaxed) {
                begun += 1;
                if shake(addr, &client).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                let due = begin + Duration::from_micros(1_000_000 / FLOOD_PER_S * begun);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        Flood { stop, done, began: Instant::now(), thread }
    }

    /// Handshakes completed a second.
    fn stop(self) -> anyhow::Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the flood's thread panicked"))?;
        Ok(self.done.load(Ordering::Relaxed) as f64 / self.began.elapsed().as_secs_f64())
    }
}

fn shake(addr: SocketAddr, client: &Arc<ClientConfig>) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut connection = ClientConnection::new(Arc::clone(client), ServerName::try_from("localhost")?)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    drop(StreamOwned::new(connection, socket));
    Ok(())
}
