//! The HTTP listener: so many connections at a time, and none that is silent for long.
//!
//! Owns the accept loop and a task for each connection, in which its handshake happens too: a slow client slows nobody. A
//! connection on which the gateway has sent nothing for [`STILL_MAX`] is cut off: clients that never send their headers, send
//! them byte by byte, do not read the answer, or keep a connection they do not use. What watches (SSE) is sent something more
//! often. Where all places are taken, silent connections give theirs up sooner, those of strangers first. Never ends because
//! an accept failed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use millwright_broker::{Network, Tls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::tls::Stream;

/// How long a connection may be without the gateway sending anything.
const STILL_MAX: Duration = Duration::from_secs(10);
/// Received bytes that are worth as much as sending: a model comes in at this many in [`STILL_MAX`], at least.
const PROGRESS_BYTES: usize = 16 * 1024;
/// How long the handshake of TLS may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a request's headers may take.
const HEADERS_MAX: Duration = Duration::from_secs(10);
/// A request's headers, in bytes; and what is buffered of an answer.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Pause after a failed accept: no file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a stranger may be silent while another waits for the place.
const STRANGER_SILENT_MAX: Duration = Duration::from_millis(500);
/// How long somebody who is known may be; who watches is sent something every 5 s.
const KNOWN_SILENT_MAX: Duration = Duration::from_secs(6);
/// How often a place is looked for while somebody waits.
const LOOK_EVERY: Duration = Duration::from_millis(20);
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
    /// When the gateway sent something last, in milliseconds since it began.
    sent_ms: AtomicU64,
    is_known: AtomicBool,
    leave: Notify,
}

impl Guest {
    fn new(peer: SocketAddr) -> Guest {
        let (sent_ms, is_known, leave) = (AtomicU64::new(0), AtomicBool::new(false), Notify::new());
        Guest { network: Network::from(peer.ip()), began: Instant::now(), sent_ms, is_known, leave }
    }

    /// Where it comes from.
    pub(crate) fn network(&self) -> Network {
        self.network
    }

    /// Somebody who may come in asks on it.
    pub(crate) fn greet(&self) {
        self.is_known.store(true, Ordering::Relaxed);
    }

    fn sent(&self) {
        let sent_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.sent_ms.store(sent_ms, Ordering::Relaxed);
    }

    /// Whether its place may be given to another, and how gladly.
    fn is_silent(&self) -> Option<(bool, Duration)> {
        let is_stranger = !self.is_known.load(Ordering::Relaxed);
        let silent = self.began.elapsed().saturating_sub(Duration::from_millis(self.sent_ms.load(Ordering::Relaxed)));
        let silent_max = if is_stranger { STRANGER_SILENT_MAX } else { KNOWN_SILENT_MAX };
        (silent >= silent_max).then_some((is_stranger, silent))
    }
}

/// The connections that have places.
struct Places {
    connections_max: usize,
    per_network_max: usize,
    guests: HashMap<Id, Arc<Guest>>,
}

impl Places {
    /// Whether `network` may have one more; the most silent of its own leaves for it, if there is no other way.
    fn admits(&self, network: Network) -> bool {
        let own = || self.guests.values().filter(|guest| guest.network == network);
        own().count() < self.per_network_max || ask_to_leave(own())
    }

    fn are_taken(&self) -> bool {
        self.guests.len() >= self.connections_max
    }

    fn make_room(&self) {
        ask_to_leave(self.guests.values());
    }
}

/// Ends the most silent of some connections; strangers before others.
fn ask_to_leave<'a>(guests: impl Iterator<Item = &'a Arc<Guest>>) -> bool {
    let silent = guests.filter_map(|guest| Some((guest.is_silent()?, guest)));
    match silent.max_by_key(|(how, _)| *how) {
        Some((_, guest)) => {
            guest.leave.notify_one();
            true
        }
        None => false,
    }
}

/// Accepts until `stop`, then gives the connections [`DRAIN_MAX`] to end.
pub(super) async fn run(door: Door, mut stop: watch::Receiver<bool>) {
    let Door { listener, tls, routes, connections_max, per_network_max } = door;
    let mut places = Places { connections_max, per_network_max, guests: HashMap::new() };
    let mut connections = JoinSet::new();
    // The next one, while there is no place for it.
    let mut waiting: Option<(TcpStream, SocketAddr)> = None;
    loop {
        if !places.are_taken()
            && let Some((stream, peer)) = waiting.take()
        {
            let guest = Arc::new(Guest::new(peer));
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
            (stream, peer) = accept(&listener), if waiting.is_none() => {
                if places.admits(Network::from(peer.ip())) {
                    waiting = Some((stream, peer));
                }
            }
            () = sleep(LOOK_EVERY), if waiting.is_some() => places.make_room(),
        }
    }
    drop((listener, waiting));
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
    type Response = Response;
    type Error = Infallible;
    type Future = TowerToHyperServiceFuture<Router, Request<Body>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&self.guest));
        self.routes.call(request)
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
