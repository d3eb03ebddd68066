//! A device that publishes a simulated machine over MQTT.
//!
//! Owns the wall clock's pace, the connection's life and the order of a shutdown. The samples come from
//! [`crate::machine`], the frames and the offline buffer from [`crate::device`]. Never gives up on the broker, and
//! never waits for it: sampling goes on while it is away.
//!
//! Machine time does not depend on the wall clock: sample `k` is taken at `k · interval` machine seconds and carries
//! `start + k · interval` as its device time, however late the task got to it.

mod connection;

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use millwright_wire::EncodeError;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::device::{Counters, Device, Setup};
use crate::machine::{CHANNELS_MAX, Machine};
use connection::{Connection, Happened};

/// The most samples of a frame.
pub const SAMPLES_PER_FRAME_MAX: usize = 32;

/// Values of the frame being filled.
const VALUES: usize = SAMPLES_PER_FRAME_MAX * CHANNELS_MAX;

/// A frame of 32 samples of 10 channels has 1,280 bytes of values, two ids of at most 65 bytes, 10 names of at most
/// 33 bytes and 40 bytes of numbers: 1,780.
const FRAME_BYTES: usize = 2_048;

/// Frames that wait for the broker: at 10 samples a frame and a sample a second, 21 minutes of machine time in
/// 256 KiB.
pub const OFFLINE_FRAMES: usize = 128;

/// The first wait before another attempt to connect; each failure doubles it.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest wait before another attempt to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Samples taken in one go when the task is late: acknowledgements are handled in between.
const CATCH_UP_SAMPLES_MAX: u64 = 64;

/// The time that a DISCONNECT may take after everything is acknowledged.
const GOODBYE: Duration = Duration::from_millis(500);

/// A user of the broker.
#[derive(Clone)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What a device measures and where it sends it.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// The broker's host name or address.
    pub broker_host: String,
    /// The broker's port.
    pub broker_port: u16,
    /// The user to log in as, if the broker asks for one.
    pub credentials: Option<Credentials>,
    /// The asset: the last level of the topic `mw/v1/telemetry/<asset>`.
    pub asset: String,
    /// The machine, with the faults it will have.
    pub machine: Machine,
    /// Drawn at random at each boot: see [`random_boot_id`].
    pub boot_id: u32,
    /// Machine time between two samples, in whole microseconds up to 71 minutes.
    pub sample_interval: Duration,
    /// Machine seconds per second of the wall clock.
    pub speed: f64,
    /// Samples of a frame, 1 to [`SAMPLES_PER_FRAME_MAX`].
    pub samples_per_frame: usize,
    /// Device time of the first sample, in microseconds since 1970-01-01 UTC.
    pub start_us: i64,
    /// Stops by itself after so many samples.
    pub samples_max: Option<u64>,
    /// How long the device may take at the end to have everything acknowledged, by the wall clock.
    pub drain: Duration,
}

impl DeviceConfig {
    /// A device that samples once per machine second, in real time, one sample a frame, from device time 0.
    #[must_use]
    pub fn new(broker_host: &str, broker_port: u16, asset: &str, machine: Machine) -> DeviceConfig {
        DeviceConfig {
            broker_host: broker_host.to_owned(),
            broker_port,
            credentials: None,
            asset: asset.to_owned(),
            machine,
            boot_id: random_boot_id(),
            sample_interval: Duration::from_secs(1),
            speed: 1.0,
            samples_per_frame: 1,
            start_us: 0,
            samples_max: None,
            drain: Duration::from_secs(5),
        }
    }
}

/// A boot id as a device draws it. Without a source of randomness it comes from the clock.
#[must_use]
pub fn random_boot_id() -> u32 {
    getrandom::u32().unwrap_or_else(|_| {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since_1970.map_or(0, |elapsed| elapsed.subsec_nanos())
    })
}

/// Why a device cannot start: a mistake in its configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// The frames would not be valid, or too large.
    #[error("the device cannot make frames: {0}")]
    Frame(#[from] EncodeError),
    /// The interval is zero, too long or not in whole microseconds.
    #[error("a sample interval of {0:?} is not between 1 µs and 4294 s in whole microseconds")]
    Interval(Duration),
    /// The speed is not a positive number.
    #[error("a speed of {0} machine seconds per second is not a positive number")]
    Speed(f64),
}

/// What a device did in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceReport {
    /// Samples and frames.
    pub counters: Counters,
    /// Times that the broker accepted a connection.
    pub connections: u64,
    /// Frames that were not acknowledged when the device had to stop.
    pub unacknowledged: usize,
}

/// Runs a device until `shutdown` completes or [`DeviceConfig::samples_max`] samples are taken, then has its buffer
/// acknowledged within [`DeviceConfig::drain`] and disconnects. A broker that is away is waited for, at most 5 s
/// between attempts, while sampling goes on.
///
/// # Errors
/// [`DeviceError`] for a configuration that cannot work, at once.
pub async fn run_device(config: DeviceConfig, shutdown: impl Future<Output = ()>) -> Result<DeviceReport, DeviceError> {
    let pace = Pace::new(&config)?;
    let names: Vec<&str> = config.machine.channels().iter().map(|channel| channel.name).collect();
    let setup = Setup {
        asset: &config.asset,
        device: &config.asset,
        channels: &names,
        boot_id: config.boot_id,
        interval_us: pace.interval_us,
        samples_per_frame: config.samples_per_frame,
    };
    let mut driver = Driver {
        device: boot(setup)?,
        machine: config.machine.clone(),
        pace,
        topic: format!("mw/v1/telemetry/{}", config.asset),
        link: Link::Waiting { until: Instant::now() },
        backoff: BACKOFF_MIN,
        connections: 0,
        config: &config,
    };
    driver.run(shutdown).await;
    driver.drain().await;
    Ok(driver.report())
}

type Node<'a> = Device<'a, VALUES, FRAME_BYTES, OFFLINE_FRAMES>;

/// The offline buffer is too large for the stack of a task.
fn boot(setup: Setup<'_>) -> Result<Box<Node<'_>>, EncodeError> {
    Device::new(setup).map(Box::new)
}

/// When samples are due, by machine time, device time and the wall clock.
#[derive(Debug)]
struct Pace {
    interval_us: u32,
    speed: f64,
    start_us: i64,
    samples_max: u64,
    /// Samples taken.
    taken: u64,
    began: Instant,
}

impl Pace {
    fn new(config: &DeviceConfig) -> Result<Pace, DeviceError> {
        let interval = config.sample_interval;
        let interval_us = u32::try_from(interval.as_micros()).ok().filter(|us| *us > 0);
        let whole = interval.subsec_nanos().is_multiple_of(1_000);
        let interval_us = interval_us.filter(|_| whole).ok_or(DeviceError::Interval(interval))?;
        if !(config.speed.is_finite() && config.speed > 0.0) {
            return Err(DeviceError::Speed(config.speed));
        }
        Ok(Pace {
            interval_us,
            speed: config.speed,
            start_us: config.start_us,
            samples_max: config.samples_max.unwrap_or(u64::MAX),
            taken: 0,
            began: Instant::now(),
        })
    }

    fn elapsed_us(&self) -> u64 {
        self.taken.saturating_mul(u64::from(self.interval_us))
    }

    /// Machine time of the next sample.
    fn machine_s(&self) -> f64 {
        self.elapsed_us() as f64 / 1e6
    }

    /// Device time of the next sample.
    fn device_us(&self) -> i64 {
        self.start_us.saturating_add_unsigned(self.elapsed_us())
    }

    /// When the next sample is due; one that is due beyond the clock's range never is.
    fn due(&self) -> Instant {
        let wall = Duration::try_from_secs_f64(self.machine_s() / self.speed).unwrap_or(Duration::MAX);
        const YEAR: Duration = Duration::from_secs(365 * 86_400);
        self.began.checked_add(wall).unwrap_or_else(|| Instant::now() + YEAR)
    }

    fn is_over(&self) -> bool {
        self.taken >= self.samples_max
    }
}

enum Link {
    /// Not connected; tries again at this time.
    Waiting { until: Instant },
    /// Connecting.
    Opening(Connection),
    /// The broker accepted the connection.
    Open(Connection),
}

struct Driver<'a> {
    config: &'a DeviceConfig,
    device: Box<Node<'a>>,
    machine: Machine,
    pace: Pace,
    topic: String,
    link: Link,
    backoff: Duration,
    connections: u64,
}

impl Driver<'_> {
    /// Samples and publishes until told to stop.
    async fn run(&mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        while !self.pace.is_over() {
            tokio::select! {
                () = &mut shutdown => break,
                () = sleep_until(self.pace.due()) => self.take_samples(),
                () = self.step_link() => {}
            }
            self.publish();
        }
        if let Err(error) = self.device.flush() {
            warn!(asset = %self.config.asset, %error, "the last samples could not be put into a frame");
        }
    }

    /// Takes the samples that are due by now, at most [`CATCH_UP_SAMPLES_MAX`].
    fn take_samples(&mut self) {
        let now = Instant::now();
        for _ in 0..CATCH_UP_SAMPLES_MAX {
            if self.pace.is_over() || self.pace.due() > now {
                break;
            }
            let row = self.machine.sample(self.pace.machine_s());
            if let Err(error) = self.device.push(&row, self.pace.device_us()) {
                warn!(asset = %self.config.asset, %error, "samples could not be put into a frame");
            }
            self.pace.taken += 1;
        }
    }

    /// Gives the connection as many frames as may be under way.
    fn publish(&mut self) {
        let Link::Open(connection) = &mut self.link else { return };
        while let Some(frame) = self.device.poll_publish() {
            if !connection.publish(&self.topic, frame.sequence, frame.bytes) {
                // The connection's own error follows, and everything is published again on the next.
                break;
            }
        }
    }

    /// Has the buffer acknowledged before the deadline, then says goodbye.
    async fn drain(&mut self) {
        let deadline = Instant::now() + self.config.drain;
        self.publish();
        while !self.device.is_drained() {
            if timeout_at(deadline, self.step_link()).await.is_err() {
                break;
            }
            self.publish();
        }
        let Link::Open(connection) = &mut self.link else { return };
        if connection.disconnect() {
            let goodbye =
                async { while !matches!(connection.next().await, Happened::Disconnecting | Happened::Ended(_)) {} };
            // A broker that does not even read is left without a goodbye.
            let _ = timeout_at(Instant::now() + GOODBYE, goodbye).await;
        }
    }

    /// Waits until something happens to the connection, and does what follows from it. Dropping this future loses
    /// nothing.
    async fn step_link(&mut self) {
        let happened = match &mut self.link {
            Link::Waiting { until } => {
                sleep_until(*until).await;
                self.link = Link::Opening(Connection::open(self.config));
                return;
            }
            Link::Opening(connection) | Link::Open(connection) => connection.next().await,
        };
        match happened {
            Happened::Connected => self.connected(),
            Happened::Acknowledged(sequence) => {
                self.device.acknowledged(sequence);
            }
            Happened::Disconnecting => {}
            Happened::Ended(reason) => {
                debug!(asset = %self.config.asset, %reason, retry_ms = self.backoff.as_millis(), "not connected");
                self.device.disconnected();
                self.link = Link::Waiting { until: Instant::now() + self.backoff };
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
            }
        }
    }

    fn connected(&mut self) {
        self.connections += 1;
        self.backoff = BACKOFF_MIN;
        info!(asset = %self.config.asset, waiting = self.device.waiting(), "connected");
        self.link = match std::mem::replace(&mut self.link, Link::Waiting { until: Instant::now() }) {
            Link::Opening(connection) => Link::Open(connection),
            other => other,
        };
    }

    fn report(&self) -> DeviceReport {
        DeviceReport {
            counters: self.device.counters(),
            connections: self.connections,
            unacknowledged: self.device.waiting(),
        }
    }
}
