//! The HTTP listener: so many connections at a time, and none that is silent for long.
//!
//! Owns the accept loop and a task for each connection, in which its handshake happens too: a slow client slows nobody. A
//! connection on which the gateway has sent nothing for [`STILL_MAX`], nor worked for an answer, is cut off: clients that never send their headers, send
//! them byte by byte, do not read the answer, or keep a connection they do not use. What watches (SSE) is sent something more
//! often. Where all places are taken, silent connections give theirs up sooner, those of strangers first. Never ends because
//! an accept failed.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use millwright_broker::{Allowance, Network, Tls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::tls::Stream;
use crate::descriptors::HTTP_WAITING_MAX;

/// How long a connection may be without the gateway sending anything.
const STILL_MAX: Duration = Duration::from_secs(10);
/// Received bytes that are worth as much as sending: a model comes in at this many in [`STILL_MAX`], at least.
const PROGRESS_BYTES: usize = 16 * 1024;
/// How long the handshake of TLS may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// TLS handshakes per second of one network, after a burst of twice as many; more wait. Each takes about a millisecond of one core.
const HANDSHAKES_PER_S_MAX: u32 = 100;
/// Networks whose handshakes are counted; about 64 bytes each. When there are so many, those that rest are forgotten, then all.
const NETWORKS_MAX: usize = 4_096;
/// How long a request's headers may take.
const HEADERS_MAX: Duration = Duration::from_secs(10);
/// A request's headers, in bytes; and what is buffered of an answer.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Pause after a failed accept: no file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may be silent, while another waits for the place, on which nobody asks or a stranger does.
const IDLE_SILENT_MAX: Duration = Duration::from_millis(500);
/// How long one may be on which somebody known waits for an answer; who watches is sent something every 5 s.
const BUSY_SILENT_MAX: Duration = Duration::from_secs(6);
/// How often places are looked for while somebody waits.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Connections of one network that wait for a place; more are closed at once. Half of [`HTTP_WAITING_MAX`], so that no
/// network is all that waits.
const WAITING_PER_NETWORK_MAX: usize = HTTP_WAITING_MAX / 2;
/// How long connections may take to end when the gateway stops; those that watch never do.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// What the listener gives its connections.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) routes: Router,
    pub(super) connections_max: usize,
    pub(super) per_network_max: usize,
}

/// A connection as others see it; requests find it among their extensions.
#[derive(Debug)]
pub(crate) struct Guest {
    network: Network,
    began: Instant,
    /// When the gateway sent something last, or worked for it, in milliseconds since it began.
    sent_ms: AtomicU64,
    /// Requests that are being answered.
    asking: AtomicUsize,
    is_known: AtomicBool,
    is_leaving: AtomicBool,
    leave: Notify,
}

impl Guest {
    fn new(network: Network) -> Guest {
        Guest {
            network,
            began: Instant::now(),
            sent_ms: AtomicU64::new(0),
            asking: AtomicUsize::new(0),
            is_known: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            leave: Notify::new(),
        }
    }

    /// Where it comes from.
    pub(crate) fn network(&self) -> Network {
        self.network
    }

    /// Somebody who may come in asks on it.
    pub(crate) fn greet(&self) {
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// The gateway is at work for it, and will send something: so long it does not stand still.
    pub(crate) fn is_served(&self) {
        self.sent();
    }

    fn sent(&self) {
        let sent_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.sent_ms.store(sent_ms, Ordering::Relaxed);
    }

    /// How gladly its place is given to another; `None` if it is not.
    fn gives_way(&self) -> Option<(bool, Duration)> {
        let is_stranger = !self.is_known.load(Ordering::Relaxed);
        let is_idle = is_stranger || self.asking.load(Ordering::Relaxed) == 0;
        let silent = self.silent();
        let silent_max = if is_idle { IDLE_SILENT_MAX } else { BUSY_SILENT_MAX };
        let may_stay = silent < silent_max || self.is_leaving.load(Ordering::Relaxed);
        (!may_stay).then_some((is_stranger, silent))
    }

    fn silent(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.sent_ms.load(Ordering::Relaxed)))
    }

    fn ask_to_leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.leave.notify_one();
    }
}

/// The connections that have places, and those that wait for one.
struct Places {
    connections_max: usize,
    per_network_max: usize,
    guests: HashMap<Id, Arc<Guest>>,
    waiting: VecDeque<(TcpStream, Network)>,
    /// `None` without TLS.
    handshakes: Option<Handshakes>,
}

impl Places {
    /// Whether another may be accepted.
    fn may_wait(&self) -> bool {
        self.waiting.len() < HTTP_WAITING_MAX
    }

    /// Has a connection wait, unless too many of its network do.
    fn wait(&mut self, stream: TcpStream, network: Network) {
        let own = self.waiting.iter().filter(|(_, waiting)| *waiting == network).count();
        if own < WAITING_PER_NETWORK_MAX {
            self.waiting.push_back((stream, network));
        }
    }

    /// The first that waits and has a place now.
    fn next(&mut self) -> Option<(TcpStream, Network)> {
        if self.guests.len() >= self.connections_max {
            return None;
        }
        let now = std::time::Instant::now();
        for at in 0..self.waiting.len() {
            let network = self.waiting.get(at)?.1;
            let has_share = self.of(network).count() >= self.per_network_max;
            if !has_share && self.handshakes.as_mut().is_none_or(|handshakes| handshakes.take(network, now)) {
                return self.waiting.remove(at);
            }
        }
        None
    }

    /// Has the most silent make room for those that wait: for each one, of its own network if that has its share.
    fn make_room(&self) {
        let left = |guest: &&Arc<Guest>| guest.is_leaving.load(Ordering::Relaxed);
        let free = self.connections_max.saturating_sub(self.guests.len()) + self.guests.values().filter(left).count();
        for (n, (_, network)) in self.waiting.iter().enumerate() {
            let before = self.waiting.iter().take(n).filter(|(_, other)| other == network).count();
            let own = self.of(*network).filter(|guest| !left(guest)).count();
            if own + before >= self.per_network_max {
                ask_to_leave(self.of(*network));
            } else if n >= free {
                ask_to_leave(self.guests.values());
            }
        }
    }

    fn of(&self, network: Network) -> impl Iterator<Item = &Arc<Guest>> {
        self.guests.values().filter(move |guest| guest.network == network)
    }
}

/// How fast networks shake hands.
#[derive(Default)]
struct Handshakes(HashMap<Network, Allowance>);

impl Handshakes {
    /// Whether one more may begin.
    fn take(&mut self, network: Network, now: std::time::Instant) -> bool {
        if self.0.len() >= NETWORKS_MAX {
            self.0.retain(|_, allowance| !allowance.is_full(now));
        }
        if self.0.len() >= NETWORKS_MAX {
            self.0.clear();
        }
        self.0.entry(network).or_insert_with(|| Allowance::new(HANDSHAKES_PER_S_MAX, now)).take(now)
    }
}

/// Ends the most silent of some connections; strangers before others.
fn ask_to_leave<'a>(guests: impl Iterator<Item = &'a Arc<Guest>>) {
    let silent = guests.filter_map(|guest| Some((guest.gives_way()?, guest)));
    if let Some((_, guest)) = silent.max_by_key(|(how, _)| *how) {
        guest.ask_to_leave();
    }
}

/// Accepts until `stop`, then gives the connections [`DRAIN_MAX`] to end.
pub(super) async fn run(door: Door, mut stop: watch::Receiver<bool>) {
    let Door { listener, tls, routes, connections_max, per_network_max } = door;
    let mut places = Places {
        connections_max,
        per_network_max,
        guests: HashMap::new(),
        waiting: VecDeque::new(),
        handshakes: tls.is_some().then(Handshakes::default),
    };
    let mut connections = JoinSet::new();
    loop {
        while let Some((stream, network)) = places.next() {
            let guest = Arc::new(Guest::new(network));
            let task = serve(stream, Arc::clone(&guest), tls.clone(), routes.clone(), stop.clone());
            // On the heap, so that the task's own frame stays small.
            let task = connections.spawn(Box::pin(task));
            places.guests.insert(task.id(), guest);
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(ended) = connections.join_next_with_id(), if !connections.is_empty() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => {
                        tracing::error!(%error, "an HTTP connection ended badly");
                        error.id()
                    }
                };
                places.guests.remove(&id);
            }
            (stream, peer) = accept(&listener), if places.may_wait() => places.wait(stream, Network::from(peer.ip())),
            () = sleep(LOOK_EVERY), if !places.waiting.is_empty() => places.make_room(),
        }
    }
    drop((listener, places));
    let all = async { while connections.join_next().await.is_some() {} };
    // Those that are left end with the set.
    let _ = timeout(DRAIN_MAX, all).await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, until it ends, stands still or has to leave.
async fn serve(
    socket: TcpStream,
    guest: Arc<Guest>,
    tls: Option<Arc<Tls>>,
    routes: Router,
    mut stop: watch::Receiver<bool>,
) {
    // What is sent is small and waited for.
    let _ = socket.set_nodelay(true);
    let socket = Watched::new(socket, Arc::clone(&guest));
    let work = async {
        let Ok(opened) = timeout(HANDSHAKE_MAX, Stream::open(socket, tls.as_deref())).await else { return };
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, network = %guest.network, "no TLS with an HTTP client"),
        };
        let requests = Requests { routes: TowerToHyperService::new(routes), guest: Arc::clone(&guest) };
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_MAX)
                .max_buf_size(BUFFER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), requests)
        );
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = stop.wait_for(|stop| *stop) => {}
        }
        connection.as_mut().graceful_shutdown();
        // Whatever ended it, it is over.
        let _ = connection.await;
    };
    tokio::select! {
        () = work => {}
        () = guest.leave.notified() => {}
    }
}

/// The routes, told on which connection a request came.
struct Requests {
    routes: TowerToHyperService<Router>,
    guest: Arc<Guest>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Counted>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let asking = Asking::begin(Arc::clone(&self.guest));
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&self.guest));
        let answer = self.routes.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Counted { body, _asking: asking })) })
    }
}

/// A request that is being answered; it has been when this is dropped.
struct Asking(Arc<Guest>);

impl Asking {
    fn begin(guest: Arc<Guest>) -> Asking {
        guest.asking.fetch_add(1, Ordering::Relaxed);
        Asking(guest)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer.
struct Counted {
    body: Body,
    _asking: Asking,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that fails when it stands still.
struct Watched {
    stream: TcpStream,
    guest: Arc<Guest>,
    still: Pin<Box<Sleep>>,
    /// Since `still` began.
    read_bytes: usize,
}

impl Watched {
    fn new(stream: TcpStream, guest: Arc<Guest>) -> Watched {
        Watched { stream, guest, still: Box::pin(sleep(STILL_MAX)), read_bytes: 0 }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.still.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        let left = STILL_MAX.saturating_sub(self.guest.silent());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Something was made for it meanwhile.
        self.still.as_mut().reset(Instant::now() + left);
        match self.still.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn goes_on(&mut self) {
        self.still.as_mut().reset(Instant::now() + STILL_MAX);
        self.read_bytes = 0;
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        self.read_bytes = self.read_bytes.saturating_add(into.filled().len().saturating_sub(before));
        if self.read_bytes >= PROGRESS_BYTES {
            self.goes_on();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(wrote, Poll::Ready(Ok(_))) {
            self.guest.sent();
            self.goes_on();
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
