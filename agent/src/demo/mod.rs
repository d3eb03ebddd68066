//! The demonstration: a whole gateway and a small plant of simulated machines, in one process.
//!
//! Owns the script (how long to learn, when faults begin), the way to start and stop everything, and what is concluded
//! at the end. The machines publish over real MQTT connections and the view watches over another: nothing here has a
//! short cut into the pipeline. Its data lives in a temporary folder that is removed at the end.

pub mod fleet;
pub mod plant;
pub mod score;
pub mod view;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;

use self::fleet::Fleet;
use self::plant::{Pace, RunningPlant};
use self::score::{Scoreboard, Summary};
use self::view::View;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::ids::GatewayId;
use crate::observe::Observer;
use crate::temporary::TemporaryFolder;

/// Ports tried for MQTT, and as many for HTTP, before the system chooses one.
const PORTS_TRIED: u16 = 20;
/// How often the view is drawn.
const FRAME: Duration = Duration::from_millis(200);
/// Longest time for the pipeline to fold what the machines sent last.
const SETTLE: Duration = Duration::from_secs(10);
/// A quiet time after which no more events are on their way to the view.
const QUIET: Duration = Duration::from_millis(500);

/// What to show.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How long; `None` until interrupted.
    pub duration: Option<Duration>,
    /// How fast, and the script that follows from it.
    pub pace: Pace,
    /// Repeats the same plant, faults and noise.
    pub seed: u64,
}

/// Runs the demonstration to its end.
///
/// # Errors
/// The gateway does not start, or the view loses its terminal.
pub async fn run(options: DemoOptions, mut view: View) -> anyhow::Result<Summary> {
    let folder = TemporaryFolder::create("demo")?;
    let fleet = Fleet::new()?;
    let mut config = config(folder.path())?;
    config.models.trusted_keys = vec![fleet.public()];
    let gateway = Gateway::start(&config).await?;
    let push = tokio::spawn(fleet.push(options.pace.plan(options.seed), gateway.mqtt_addr()));
    let result = show(&options, &gateway, &mut view).await;
    // Who watches for a moment only does not wait for the model.
    push.abort();
    view.close();
    gateway.stop().await;
    result
}

async fn show(options: &DemoOptions, gateway: &Gateway, view: &mut View) -> anyhow::Result<Summary> {
    let mut observer = Observer::connect(gateway.mqtt_addr()).await?;
    let plant = RunningPlant::start(gateway.mqtt_addr(), options.seed, options.pace);
    let mut board = Scoreboard::new(plant.machines(), plant.epoch_us());
    view.begin(gateway, options, &board)?;
    let started = Instant::now();
    let mut frame = tokio::time::interval(FRAME);
    let mut interrupt = Interrupt::new();
    loop {
        tokio::select! {
            message = observer.messages.recv() => {
                let observed = message.context("the gateway closed the connection of the view")?;
                view.tell(&board.observe(observed));
            }
            _ = frame.tick() => {
                let ended = view.draw(&board, gateway, started.elapsed())?;
                if ended || options.duration.is_some_and(|duration| started.elapsed() >= duration) {
                    break;
                }
            }
            () = plant.finished() => break,
            () = interrupt.wait() => break,
        }
    }
    let machine_s = plant.stop().await;
    gateway.settle(SETTLE).await;
    while let Ok(Some(observed)) = tokio::time::timeout(QUIET, observer.messages.recv()).await {
        view.tell(&board.observe(observed));
    }
    Ok(board.conclude(options, machine_s, started.elapsed(), &gateway.status()))
}

fn config(data_dir: &std::path::Path) -> anyhow::Result<Config> {
    let mut config = Config::with_defaults(GatewayId::parse("demo")?, data_dir.to_owned());
    config.broker.listen = free_port(1883);
    config.http.listen = free_port(8080);
    config.commissioning.samples = plant::COMMISSIONING_SAMPLES;
    config.commissioning.extend = false;
    config.pipeline.health_interval = Duration::from_secs(5);
    Ok(config)
}

/// The first free port from `first` on; 0 lets the system choose.
fn free_port(first: u16) -> SocketAddr {
    let addr = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let free = (first..first.saturating_add(PORTS_TRIED)).find(|port| TcpListener::bind(addr(*port)).is_ok());
    addr(free.unwrap_or(0))
}

/// Ctrl-C or SIGTERM.
struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    fn new() -> Interrupt {
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            sender.send_replace(true);
        });
        Interrupt(receiver)
    }

    async fn wait(&mut self) {
        if self.0.wait_for(|interrupted| *interrupted).await.is_err() {
            // Signals cannot be watched here; the demo ends by its duration.
            std::future::pending::<()>().await;
        }
    }
}
