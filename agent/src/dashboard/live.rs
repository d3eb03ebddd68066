//! What happens, as it happens: server-sent events on `/api/v1/live`.
//!
//! Owns the hub, one task that looks at the gateway once a second and makes each event once, as bytes that all streams share, and the
//! streams, [`STREAMS_MAX`] at most. A stream holds nothing: it takes from a ring of the newest [`EVENTS_MAX`] events, and one that is so
//! slow that the ring has gone past it gets the event `reset` and goes on with the newest: its client asks for everything again. So a
//! slow client costs what a fast one does, and nobody waits for it. While nobody listens the hub makes nothing.
//!
//! Rows of the at most [`ASSETS_MAX`] assets that a stream asks for come straight from the pipeline's feed, which makes them only while
//! somebody looks.
//!
//! Events: `plant` (what changed since the last), `alert`, `models`, `rows` (of the assets that were asked for), `reset`. A comment every
//! [`HEARTBEAT`] shows both ends that the other is there.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::Site;
use super::api::ask::Query;
use super::api::plant::{AssetSummary, Counts, GatewayStrip, Plant};
use super::auth::Stay;
use super::error::ApiError;
use crate::ids::AssetId;
use crate::pipeline::live::{LiveBatch, LiveFeed, Watching};

/// Streams at a time: the connections that HTTP may have, but for those of requests.
pub(crate) const STREAMS_MAX: usize = 200;
/// Assets whose rows one stream may ask for.
const ASSETS_MAX: usize = 4;
/// Events that are kept for streams that are behind: a plant of 200 assets changes once a second, so four minutes, or 256 alerts at once.
const EVENTS_MAX: usize = 256;
/// How often the plant is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often a stream without news shows that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often what is always changing (rates, times) is told although nothing else is new.
const RENEW: Duration = Duration::from_secs(10);
/// How often figures of models that are watched are told.
const MODELS: Duration = Duration::from_secs(5);

/// What streams begin with: how soon a browser comes back.
const HELLO: &[u8] = b"retry: 2000\n\n";
const BEAT: &[u8] = b": here\n\n";
const RESET: &[u8] = b"event: reset\ndata: {}\n\n";

/// The hub as the routes see it.
pub(crate) struct Live {
    feed: Arc<LiveFeed>,
    events: broadcast::Sender<Bytes>,
    places: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Live {
    /// A hub that nobody listens to yet; its streams end at `stop`.
    pub(crate) fn new(feed: Arc<LiveFeed>, stop: watch::Receiver<bool>) -> Live {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Live { feed, events, places: Arc::new(Semaphore::new(STREAMS_MAX)), stop }
    }

    /// A stream of all that happens from now on, with the rows of some assets; one that `resumes` is told to ask for everything again
    /// first.
    ///
    /// # Errors
    /// 503 when there are too many, or too many assets are watched.
    fn stream(
        &self,
        assets: Vec<AssetId>,
        stay: impl Future<Output = ()> + Send + 'static,
        resumes: bool,
    ) -> Result<Response, ApiError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            too_many("too-many-streams", format!("{STREAMS_MAX} live views are open, and no more are served"))
        })?;
        let rows = match assets.is_empty() {
            true => None,
            false => {
                let batches = self.feed.rows();
                let watching = self.feed.watch(assets.clone());
                let watching = watching.map_err(|error| too_many("too-many-assets", error.to_string()))?;
                Some(Rows { assets, batches, _watching: watching })
            }
        };
        let hello = if resumes { [HELLO, RESET].concat() } else { HELLO.to_vec() };
        let reader = Reader {
            hello: Some(Bytes::from(hello)),
            events: self.events.subscribe(),
            rows,
            stay: Box::pin(stay),
            stop: self.stop.clone(),
            _place: place,
        };
        let body = stream::unfold(reader, |mut reader| async move {
            let bytes = reader.next().await?;
            Some((Ok::<Bytes, Infallible>(bytes), reader))
        });
        let mut response = Response::new(Body::from_stream(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        Ok(response)
    }

    fn send(&self, event: Bytes) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

fn too_many(code: &'static str, text: String) -> ApiError {
    let remedy = "close some, or read /api/v1/plant now and then";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, text, remedy).retry_after_s(RENEW.as_secs())
}

/// One stream.
struct Reader {
    hello: Option<Bytes>,
    events: broadcast::Receiver<Bytes>,
    rows: Option<Rows>,
    /// Ends with the session of who listens.
    stay: Pin<Box<dyn Future<Output = ()> + Send>>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

/// The rows of the assets that a stream asked for.
struct Rows {
    assets: Vec<AssetId>,
    batches: broadcast::Receiver<Arc<LiveBatch>>,
    _watching: Watching,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(hello) = self.hello.take() {
            return Some(hello);
        }
        let next = tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => return None,
            () = &mut self.stay => return None,
            event = self.events.recv() => event,
            rows = next_rows(self.rows.as_mut()) => rows,
        };
        match next {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(_)) => {
                self.events = self.events.resubscribe();
                if let Some(rows) = &mut self.rows {
                    rows.batches = rows.batches.resubscribe();
                }
                Some(Bytes::from_static(RESET))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// The next rows of the assets that were asked for; never, if none were.
async fn next_rows(rows: Option<&mut Rows>) -> Result<Bytes, RecvError> {
    let Some(rows) = rows else { return std::future::pending().await };
    loop {
        let batch = rows.batches.recv().await?;
        if rows.assets.contains(&batch.asset) {
            return Ok(Bytes::from(format!("event: rows\ndata: {}\n\n", batch.json())));
        }
    }
}

/// Whose rows are wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LiveQuery {
    #[serde(default)]
    assets: Option<String>,
}

/// `GET /live`.
pub(super) async fn listen(
    State(site): State<Arc<Site>>,
    stay: Stay,
    Query(asked): Query<LiveQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wrong = |message: String| {
        ApiError::new(StatusCode::BAD_REQUEST, "bad-query", message, "name at most 4 assets, separated by commas")
    };
    let names = asked.assets.as_deref().unwrap_or_default().split(',').filter(|name| !name.is_empty());
    let assets: Result<Vec<AssetId>, _> = names.take(ASSETS_MAX + 1).map(AssetId::parse).collect();
    let assets = assets.map_err(|error| wrong(error.to_string()))?;
    if assets.len() > ASSETS_MAX {
        return Err(wrong(format!("more than {ASSETS_MAX} assets are asked for")));
    }
    site.api.live.stream(assets, stay.over(), headers.contains_key("last-event-id"))
}

/// What is told of the plant.
#[derive(Serialize)]
struct PlantEvent<'a> {
    gateway: &'a GatewayStrip,
    counts: &'a Counts,
    changed: Vec<&'a AssetSummary>,
}

/// The hub's task: looks, tells what changed, until the stop. Jobs end with it.
pub(super) async fn run(site: Arc<Site>, mut stop: watch::Receiver<bool>) {
    let mut hub = Hub::new(Arc::clone(&site));
    let mut models = site.status.models.clone();
    let mut news = site.api.feed.news();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopped = pin!(async move {
        // An error means that the owner is gone, which is a reason to stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    loop {
        tokio::select! {
            () = &mut stopped => break,
            told = news.recv() => match told {
                Ok(told) => hub.tell_alert(told.number).await,
                Err(RecvError::Lagged(_)) => site.api.live.send(Bytes::from_static(RESET)),
                // The feed is the site's own.
                Err(RecvError::Closed) => break,
            },
            _ = tick.tick() => {
                if hub.is_alone() {
                    // Who comes asks for everything first.
                    hub.forget();
                    continue;
                }
                hub.look();
                if models.has_changed().unwrap_or(false) {
                    models.mark_unchanged();
                    hub.tell_models();
                }
                hub.beat();
            }
        }
    }
    site.api.jobs.cancel();
}

struct Hub {
    site: Arc<Site>,
    id: u64,
    /// What was last told of each asset; bounded by the number of assets.
    told: HashMap<String, Seen>,
    renewed: Option<Instant>,
    beat: Instant,
    /// When models were last told, and how many versions stood where.
    models: Option<(Instant, u64)>,
}

/// What of an asset is worth an event.
#[derive(PartialEq)]
struct Seen(String);

impl Hub {
    fn new(site: Arc<Site>) -> Hub {
        Hub { site, id: 0, told: HashMap::new(), renewed: None, beat: Instant::now(), models: None }
    }

    /// Whether nobody listens.
    fn is_alone(&self) -> bool {
        self.site.api.live.events.receiver_count() == 0
    }

    fn forget(&mut self) {
        self.told.clear();
        self.renewed = None;
    }

    /// Something happened to an alert: it is told as the casebook has it now.
    async fn tell_alert(&mut self, number: u64) {
        if self.is_alone() {
            return;
        }
        // Not at the desk: there is one hub, and it must not be turned away where many dashboards ask.
        let casebook = self.site.api.casebook.clone();
        let bytes = match tokio::task::spawn_blocking(move || casebook.alert(number)).await {
            Ok(Ok(Some(alert))) => self.event("alert", &alert),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => {
                tracing::error!(%error, number, "an alert is not told live: it cannot be read");
                None
            }
            Err(error) => {
                tracing::error!(%error, number, "an alert is not told live");
                None
            }
        };
        self.send(bytes);
    }

    fn look(&mut self) {
        let plant = Plant::now(&self.site);
        let renew = self.renewed.is_none_or(|renewed| renewed.elapsed() >= RENEW);
        let mut changed = Vec::new();
        for asset in &plant.assets {
            let seen = Seen(asset.fingerprint());
            if renew || self.told.get(&asset.asset) != Some(&seen) {
                changed.push(asset);
                self.told.insert(asset.asset.clone(), seen);
            }
        }
        if renew {
            self.renewed = Some(Instant::now());
        }
        if renew || !changed.is_empty() {
            let event = PlantEvent { gateway: &plant.gateway, counts: &plant.counts, changed };
            let bytes = self.event("plant", &event);
            self.send(bytes);
        }
    }

    /// Figures of a model in shadow change every second: they are told now and then, what becomes of a version at once.
    fn tell_models(&mut self) {
        let steps = self.site.status.models.borrow().audit.first().map_or(0, |row| row.number.cast_unsigned());
        let due = self.models.is_none_or(|(at, before)| before != steps || at.elapsed() >= MODELS);
        if due {
            self.models = Some((Instant::now(), steps));
            let bytes = self.event("models", &serde_json::json!({}));
            self.send(bytes);
        }
    }

    fn beat(&mut self) {
        if self.beat.elapsed() >= HEARTBEAT {
            self.beat = Instant::now();
            self.site.api.live.send(Bytes::from_static(BEAT));
        }
    }

    fn send(&mut self, event: Option<Bytes>) {
        if let Some(event) = event {
            self.site.api.live.send(event);
        }
    }

    /// One event as it goes over the wire. JSON of one line has no line breaks in it.
    fn event(&mut self, name: &str, data: &impl Serialize) -> Option<Bytes> {
        self.id += 1;
        let data = serde_json::to_string(data).ok()?;
        Some(Bytes::from(format!("id: {}\nevent: {name}\ndata: {data}\n\n", self.id)))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::BodyDataStream;
    use futures_util::StreamExt;

    use super::*;

    fn live() -> (Live, watch::Sender<bool>) {
        let (stop, stopped) = watch::channel(false);
        (Live::new(LiveFeed::new(), stopped), stop)
    }

    fn open(live: &Live) -> BodyDataStream {
        let response = live.stream(Vec::new(), std::future::pending(), false);
        response.unwrap_or_else(|_| Response::new(Body::empty())).into_body().into_data_stream()
    }

    async fn next(stream: &mut BodyDataStream) -> Option<Bytes> {
        stream.next().await?.ok()
    }

    // A stream that is behind by as many events as are kept gets them all; by one more it is told to begin again, and goes on with
    // what comes then. Another that keeps up gets every event.
    #[tokio::test]
    async fn a_slow_stream_begins_again() {
        let (live, _stop) = live();
        let (mut slow, mut slower, mut fast) = (open(&live), open(&live), open(&live));
        for stream in [&mut slow, &mut slower, &mut fast] {
            assert_eq!(next(stream).await.as_deref(), Some(HELLO));
        }
        let event = |n: usize| Bytes::from(format!("{n}"));
        for n in 0..EVENTS_MAX {
            live.send(event(n));
            assert_eq!(next(&mut fast).await, Some(event(n)));
        }
        for n in 0..EVENTS_MAX {
            assert_eq!(next(&mut slow).await, Some(event(n)));
        }
        live.send(event(EVENTS_MAX));
        assert_eq!(next(&mut slower).await.as_deref(), Some(RESET));
        live.send(event(EVENTS_MAX + 1));
        assert_eq!(next(&mut slower).await, Some(event(EVENTS_MAX + 1)));
        assert_eq!(next(&mut fast).await, Some(event(EVENTS_MAX)));
    }

    // Exactly as many streams as may be are served; one that ends makes room, and all end at the stop.
    #[tokio::test]
    async fn streams_are_bounded() {
        let (live, stop) = live();
        let mut streams: Vec<_> = (0..STREAMS_MAX).map(|_| open(&live)).collect();
        assert!(live.stream(Vec::new(), std::future::pending(), false).is_err());
        drop(streams.pop());
        let mut last = open(&live);
        assert!(next(&mut last).await.is_some());
        stop.send_replace(true);
        assert_eq!(next(&mut last).await, None);
    }
}
