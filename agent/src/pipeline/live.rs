//! The live feed: new rows of machines that somebody looks at, and news of alerts.
//!
//! Owns the set of watched machines and the two channels. Nothing is built for a machine that nobody watches. Who is too slow
//! loses the oldest batches and is told so by its receiver; the fold never waits. Bounds: [`WATCHED_MAX`] machines,
//! [`BATCHES_MAX`] batches, one for each machine every [`LIVE_EVERY`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::broadcast;

use super::asset::Asset;
use super::engine::Engine;
use crate::ids::{AssetId, ChannelName};

/// Machines watched at once: sixteen dashboards with four charts each, if no two show the same.
pub const WATCHED_MAX: usize = 64;
/// Batches kept for slow readers: four of each watched machine, about 100 bytes a row.
const BATCHES_MAX: usize = 256;
/// News kept for slow readers.
const NEWS_MAX: usize = 256;
/// Rows of a machine are sent together that came within this time: five redraws a second look smooth.
pub const LIVE_EVERY: Duration = Duration::from_millis(200);

/// Rows of one machine, oldest first. Times are device times, UTC microseconds.
#[derive(Debug, Serialize)]
pub struct LiveBatch {
    /// Which.
    pub asset: AssetId,
    /// Of each row.
    pub times_us: Vec<i64>,
    /// Each with one value a row; null where unknown.
    pub channels: Vec<LiveChannel>,
    /// Of each row; null where there is none.
    pub scores: Vec<f32>,
    #[serde(skip)]
    json: OnceLock<Arc<str>>,
}

/// The values of one channel.
#[derive(Debug, Serialize)]
pub struct LiveChannel {
    /// Its name.
    pub name: ChannelName,
    /// One for each row.
    pub values: Vec<f32>,
}

impl LiveBatch {
    /// The newest `rows` rows that an asset has in memory.
    pub fn newest(asset: &Asset, rows: usize) -> LiveBatch {
        let rows: Vec<_> = asset.history.newest(rows).collect();
        let column = |index: usize| rows.iter().map(|row| row.values.get(index).copied().unwrap_or(f32::NAN)).collect();
        let channels = asset.history.channels().iter().enumerate();
        LiveBatch {
            asset: asset.id.clone(),
            times_us: rows.iter().map(|row| row.time_us).collect(),
            channels: channels
                .map(|(index, channel)| LiveChannel { name: channel.name.clone(), values: column(index) })
                .collect(),
            scores: rows.iter().map(|row| row.score).collect(),
            json: OnceLock::new(),
        }
    }

    /// As JSON, written once however many read it.
    pub fn json(&self) -> Arc<str> {
        // Names and numbers always serialise; what is not finite becomes null.
        Arc::clone(self.json.get_or_init(|| serde_json::to_string(self).unwrap_or_default().into()))
    }
}

/// Something happened to an alert; the casebook says what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertNews {
    /// Its number.
    pub number: u64,
    /// Of which machine.
    pub asset: String,
}

/// Too many machines are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{WATCHED_MAX} machines are watched live already, and that is the limit: close another view first")]
pub struct WatchedTooMany;

/// What is shared between the pipeline and those who look.
#[derive(Debug)]
pub struct LiveFeed {
    watched: Mutex<HashMap<AssetId, usize>>,
    /// Changes with the set.
    generation: AtomicU64,
    rows: broadcast::Sender<Arc<LiveBatch>>,
    news: broadcast::Sender<AlertNews>,
}

/// Somebody looks at these machines, until it is dropped.
#[derive(Debug)]
pub struct Watching {
    feed: Arc<LiveFeed>,
    assets: Vec<AssetId>,
}

impl LiveFeed {
    /// Nobody looks.
    pub fn new() -> Arc<LiveFeed> {
        Arc::new(LiveFeed {
            watched: Mutex::default(),
            generation: AtomicU64::new(0),
            rows: broadcast::channel(BATCHES_MAX).0,
            news: broadcast::channel(NEWS_MAX).0,
        })
    }

    /// Looks at some machines from now on. Rows of all watched machines come through [`LiveFeed::rows`]: take yours.
    ///
    /// # Errors
    /// Too many are watched; none of these is then.
    pub fn watch(self: &Arc<LiveFeed>, assets: Vec<AssetId>) -> Result<Watching, WatchedTooMany> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let new = assets.iter().filter(|asset| !watched.contains_key(*asset)).count();
        if watched.len() + new > WATCHED_MAX {
            return Err(WatchedTooMany);
        }
        for asset in &assets {
            *watched.entry(asset.clone()).or_default() += 1;
        }
        self.generation.fetch_add(1, Ordering::Release);
        Ok(Watching { feed: Arc::clone(self), assets })
    }

    /// Rows of watched machines from now on.
    pub fn rows(&self) -> broadcast::Receiver<Arc<LiveBatch>> {
        self.rows.subscribe()
    }

    /// News of alerts of all machines from now on; each is stored when it is told.
    pub fn news(&self) -> broadcast::Receiver<AlertNews> {
        self.news.subscribe()
    }

    /// Tells that something happened to an alert.
    pub fn tell(&self, news: AlertNews) {
        // Without anybody who looks there is nobody to tell.
        let _ = self.news.send(news);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watched = self.feed.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for asset in &self.assets {
            if let Some(viewers) = watched.get_mut(asset) {
                *viewers = viewers.saturating_sub(1);
                if *viewers == 0 {
                    watched.remove(asset);
                }
            }
        }
        self.feed.generation.fetch_add(1, Ordering::Release);
    }
}

/// The pipeline's end of the feed.
#[derive(Debug)]
pub struct LiveSender {
    feed: Arc<LiveFeed>,
    generation: u64,
    /// Watched machines, and how many rows each had pushed when the last batch was sent.
    following: HashMap<AssetId, u64>,
    sent: Instant,
}

impl LiveSender {
    /// Sends to `feed`.
    pub fn new(feed: Arc<LiveFeed>) -> LiveSender {
        LiveSender { feed, generation: 0, following: HashMap::new(), sent: Instant::now() }
    }

    /// The feed.
    pub fn feed(&self) -> &LiveFeed {
        &self.feed
    }

    /// Whether anybody looks: then rows should not wait long.
    pub fn is_watched(&self) -> bool {
        !self.following.is_empty()
    }

    /// Sends what is new of watched machines, if it is time. Between two batches of the fold, so that every row has its score.
    pub fn send_if_due(&mut self, engine: &Engine) {
        let generation = self.feed.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.follow(engine);
        }
        if self.following.is_empty() || self.sent.elapsed() < LIVE_EVERY {
            return;
        }
        self.sent = Instant::now();
        for (id, sent) in &mut self.following {
            let Some(asset) = engine.asset(id) else { continue };
            let pushed = asset.history.pushed();
            let new = usize::try_from(pushed.saturating_sub(*sent)).unwrap_or(usize::MAX);
            *sent = pushed;
            if new > 0 {
                // Without anybody who reads there is nobody to tell.
                let _ = self.feed.rows.send(Arc::new(LiveBatch::newest(asset, new)));
            }
        }
    }

    fn follow(&mut self, engine: &Engine) {
        let watched = self.feed.watched.lock().unwrap_or_else(PoisonError::into_inner);
        self.following.retain(|asset, _| watched.contains_key(asset));
        for asset in watched.keys().filter(|asset| !self.following.contains_key(*asset)).cloned().collect::<Vec<_>>() {
            let pushed = engine.asset(&asset).map_or(0, |asset| asset.history.pushed());
            self.following.insert(asset, pushed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asset(n: usize) -> AssetId {
        AssetId::parse(&format!("a{n}")).unwrap()
    }

    // Exactly WATCHED_MAX machines can be watched; one that others watch already can always be; what is dropped makes room.
    #[test]
    fn watched_machines_are_bounded() {
        let feed = LiveFeed::new();
        let all: Vec<_> = (0..WATCHED_MAX).map(asset).collect();
        let watching = feed.watch(all).unwrap();
        assert_eq!(feed.watch(vec![asset(WATCHED_MAX)]).err(), Some(WatchedTooMany));
        let again = feed.watch(vec![asset(0)]).unwrap();
        drop(watching);
        assert_eq!(feed.watched.lock().unwrap().len(), 1);
        drop(again);
        assert!(feed.watch(vec![asset(WATCHED_MAX)]).is_ok());
    }
}
