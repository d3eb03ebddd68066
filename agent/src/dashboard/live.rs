//! What happens, as it happens: server-sent events on `/api/v1/live`.
//!
//! Owns the hub, one task that looks at the gateway once a second and makes each event once, as bytes that all streams share, and the
//! streams, [`STREAMS_MAX`] at most. A stream holds nothing: it takes from a ring of the newest [`EVENTS_MAX`] events, and one that is so
//! slow that the ring has gone past it gets the event `reset` and goes on with the newest: its client asks for everything again. So a
//! slow client costs what a fast one does, and nobody waits for it. While nobody listens the hub makes nothing.
//!
//! Events: `plant` (what changed since the last), `alert`, `models`, `rows` (of the assets that were asked for), `reset`. A comment every
//! [`HEARTBEAT`] shows both ends that the other is there.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::Site;
use super::api::plant::{AssetSummary, Counts, GatewayStrip, Plant};
use super::error::ApiError;

/// Streams at a time: the connections that HTTP may have, but for those of requests.
pub(crate) const STREAMS_MAX: usize = 200;
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
    events: broadcast::Sender<Bytes>,
    places: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Live {
    /// A hub that nobody listens to yet; its streams end at `stop`.
    pub(crate) fn new(stop: watch::Receiver<bool>) -> Live {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Live { events, places: Arc::new(Semaphore::new(STREAMS_MAX)), stop }
    }

    /// A stream of all that happens from now on; one that `resumes` is told to ask for everything again first.
    ///
    /// # Errors
    /// 503 when there are too many.
    pub(crate) fn stream(&self, resumes: bool) -> Result<Response, ApiError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too-many-streams",
                format!("{STREAMS_MAX} live views are open, and no more are served"),
                "close some, or read /api/v1/plant now and then",
            )
            .retry_after_s(RENEW.as_secs())
        })?;
        let hello = if resumes { [HELLO, RESET].concat() } else { HELLO.to_vec() };
        let reader = Reader {
            hello: Some(Bytes::from(hello)),
            events: self.events.subscribe(),
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

/// One stream.
struct Reader {
    hello: Option<Bytes>,
    events: broadcast::Receiver<Bytes>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(hello) = self.hello.take() {
            return Some(hello);
        }
        tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => None,
            event = self.events.recv() => match event {
                Ok(event) => Some(event),
                Err(RecvError::Lagged(_)) => {
                    self.events = self.events.resubscribe();
                    Some(Bytes::from_static(RESET))
                }
                Err(RecvError::Closed) => None,
            }
        }
    }
}

/// `GET /live`.
pub(super) async fn listen(State(site): State<Arc<Site>>, headers: HeaderMap) -> Result<Response, ApiError> {
    site.api.live.stream(headers.contains_key("last-event-id"))
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
    let mut hub =
        Hub { site: Arc::clone(&site), id: 0, told: HashMap::new(), renewed: None, beat: Instant::now(), models: None };
    let mut models = site.status.models.clone();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            _ = tick.tick() => {}
        }
        if site.api.live.events.receiver_count() == 0 {
            // Who comes asks for everything first.
            hub.told.clear();
            hub.renewed = None;
            continue;
        }
        hub.look();
        if models.has_changed().unwrap_or(false) {
            models.mark_unchanged();
            hub.tell_models();
        }
        hub.beat();
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
