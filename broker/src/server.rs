//! The broker as a whole: the accept loop, what connections share, start and shutdown.
//!
//! Owns the listening sockets and the tasks: one per connection, and the accept loop that joins them all. Shutdown order:
//! stop accepting; every connection gets DISCONNECT 0x8B, hands its publishes and its will to the log, and ends. The log
//! is its owner's to close, afterwards.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::admission::Admission;
use crate::auth::{AllowAll, Authenticator, Authorize, Users};
use crate::clock;
use crate::connection;
use crate::keeper;
use crate::limits::Limits;
use crate::live::Live;
use crate::log::{Append, AppendError, Log, Offset};
use crate::memory::Memory;
use crate::message::{Message, QoS};
use crate::pulse::Pulse;
use crate::registry::Registry;
use crate::shares::Shares;
use crate::stats::{BrokerStats, Counters, count};
use crate::sys;
use crate::topic::TopicFilter;
use crate::transport::Layers;
use crate::transport::tls::{Tls, TlsError, TlsFiles, TlsState};
use crate::transport::websocket::WebSocketRules;

/// How long connections may take to end at shutdown.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// Pause after a failed accept: no file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Set in the numbers of stored sessions, which stay the same over restarts; the others are counted from 1.
pub(crate) const STORED_NUMBER: u32 = 1 << 31;

/// How to run a broker.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where to listen for MQTT over TCP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where to listen for MQTT over TLS.
    pub tls: Option<TlsListen>,
    /// Where to listen for MQTT over WebSocket.
    pub websocket: Option<WebSocketListen>,
    /// Who may connect; `None` lets everyone in.
    pub users: Option<Users>,
    /// Lets clients in that bring neither a user name nor a certificate, also where there are users.
    pub allow_anonymous: bool,
    /// Topics that are logged even at QoS 0.
    pub telemetry: Vec<TopicFilter>,
    /// What clients may do.
    pub authorize: Arc<dyn Authorize>,
    /// What clients may take.
    pub limits: Limits,
    /// How often statistics are published below `$SYS/broker/`; zero is never.
    pub sys_interval: Duration,
}

/// A listener for TLS.
#[derive(Debug, Clone)]
pub struct TlsListen {
    /// Where; `None` if the files are for WebSocket alone.
    pub listen: Option<SocketAddr>,
    /// Certificates and keys.
    pub files: TlsFiles,
}

/// Listeners for WebSocket.
#[derive(Debug, Clone)]
pub struct WebSocketListen {
    /// Where, without encryption.
    pub listen: Option<SocketAddr>,
    /// Where, over TLS, with the files of [`BrokerConfig::tls`].
    pub tls_listen: Option<SocketAddr>,
    /// What requests must be like.
    pub rules: WebSocketRules,
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        BrokerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            tls: None,
            websocket: None,
            users: None,
            allow_anonymous: false,
            telemetry: Vec::new(),
            authorize: Arc::new(AllowAll),
            limits: Limits::default(),
            sys_interval: Duration::from_secs(10),
        }
    }
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("{address} is in use by another process; stop it, or configure another port")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refused.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) limits: Arc<Limits>,
    pub(crate) authorize: Arc<dyn Authorize>,
    pub(crate) authenticator: Authenticator,
    pub(crate) telemetry: Vec<TopicFilter>,
    pub(crate) log: Log,
    pub(crate) live: Live,
    pub(crate) shares: Shares,
    pub(crate) registry: Arc<Registry>,
    pub(crate) counters: Counters,
    pub(crate) memory: Arc<Memory>,
    /// Subscriptions of all connected clients.
    pub(crate) subscriptions: AtomicUsize,
    numbers: AtomicU32,
}

impl Hub {
    pub(crate) fn stats(&self) -> BrokerStats {
        let (buffered_bytes, buffered_bytes_max) = self.memory.figures();
        BrokerStats {
            buffered_bytes,
            buffered_bytes_max,
            held_back: self.memory.held_back(),
            clients: self.registry.len() as u64,
            fan_out_dropped: self.live.dropped(),
            ..self.counters.read()
        }
    }

    /// Fans messages out live; true if the publisher should wait for [`Live::room`].
    pub(crate) fn publish_live(&self, messages: Vec<Message>) -> bool {
        self.shares.give_live(&self.live, &messages);
        self.live.publish(messages)
    }

    /// Publishes for the gateway itself at QoS 0; retained in memory if the message asks for it.
    pub(crate) fn publish_volatile(&self, mut message: Message) {
        message.qos = QoS::AtMostOnce;
        message.origin = 0;
        if message.retain
            && let Err(error) = self.log.retained().set_volatile(message.clone())
        {
            tracing::warn!(topic = %message.topic, %error, "a volatile message is not retained");
        }
        self.publish_live(vec![message]);
    }

    /// A session left a group for good.
    pub(crate) fn left(&self, filter: &TopicFilter, counted: bool) {
        if counted {
            self.shares.count_stored(filter, self.log.head(), false);
        } else {
            self.shares.tidy(filter);
        }
    }

    /// A number for a session; 0 is the gateway's own.
    pub(crate) fn next_number(&self) -> u32 {
        loop {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed) & !STORED_NUMBER;
            if number != 0 {
                return number;
            }
        }
    }
}

/// A running broker. Dropped without [`Broker::shutdown`], it stops without a word to its clients.
#[derive(Debug)]
pub struct Broker {
    hub: Arc<Hub>,
    addresses: Addresses,
    tls: Option<Arc<Tls>>,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    pulse: Pulse,
    watching: Option<JoinHandle<()>>,
    keeper: JoinHandle<()>,
    sys: JoinHandle<()>,
}

impl Broker {
    /// Listens and serves. The log must outlive the broker: close it after [`Broker::shutdown`].
    ///
    /// # Errors
    /// [`BindError`] if the address cannot be listened on.
    pub async fn bind(config: BrokerConfig, log: Log) -> Result<Broker, BindError> {
        let tls = config.tls.as_ref().map(|tls| Tls::load(tls.files.clone()).map(Arc::new)).transpose()?;
        let (doors, addresses) = open_doors(&config, tls.as_ref()).await?;
        let hub = Arc::new(Hub {
            memory: Arc::new(Memory::new(&config.limits)),
            limits: Arc::new(config.limits),
            authorize: config.authorize,
            authenticator: Authenticator::new(config.users, config.allow_anonymous),
            telemetry: config.telemetry,
            shares: Shares::new(log.sessions().take_shared()),
            log,
            live: Live::default(),
            registry: Arc::default(),
            counters: Counters::default(),
            subscriptions: AtomicUsize::new(0),
            numbers: AtomicU32::new(1),
        });
        let stop = watch::Sender::new(false);
        let pulse = Pulse::default();
        let accepting = tokio::spawn(accept(Arc::clone(&hub), doors, pulse.clone(), stop.subscribe()));
        let keeper = tokio::spawn(keeper::run(Arc::clone(&hub), stop.subscribe()));
        let sys = tokio::spawn(sys::run(Arc::clone(&hub), config.sys_interval, stop.subscribe()));
        let watching = tls.clone().map(|tls| tokio::spawn(tls.watch(stop.subscribe())));
        Ok(Broker { hub, addresses, tls, stop, accepting, pulse, watching, keeper, sys })
    }

    /// Where it listens for MQTT over TCP.
    pub fn local_addr(&self) -> SocketAddr {
        self.addresses.tcp
    }

    /// All addresses where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Reads the certificates again, now; connections that are open stay as they are. Without TLS there is nothing to do.
    pub fn reload_certificates(&self) {
        if let Some(tls) = &self.tls {
            tls.renew();
        }
    }

    /// How TLS stands; `None` if there is none.
    pub fn tls_state(&self) -> Option<TlsState> {
        self.tls.as_ref().map(|tls| tls.state())
    }

    /// Tells how TLS stands whenever it is asked, also by who does not own the broker.
    pub fn tls_view(&self) -> impl Fn() -> Option<TlsState> + Send + Sync + 'static {
        let tls = self.tls.clone();
        move || tls.as_ref().map(|tls| tls.state())
    }

    /// A handle for the gateway's own publications.
    pub fn publisher(&self) -> Publisher {
        Publisher { hub: Arc::clone(&self.hub) }
    }

    /// Whether connections are accepted.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Figures.
    pub fn stats(&self) -> BrokerStats {
        self.hub.stats()
    }

    /// Stops accepting, disconnects every client (0x8B in MQTT 5), and joins all tasks.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // What ended by panic needs no stopping.
        let _ = self.accepting.await;
        if let Some(watching) = self.watching {
            let _ = watching.await;
        }
        let _ = self.keeper.await;
        let _ = self.sys.await;
    }
}

/// Where a broker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// MQTT over TCP.
    pub tcp: SocketAddr,
    /// MQTT over TLS.
    pub tls: Option<SocketAddr>,
    /// MQTT over WebSocket.
    pub websocket: Option<SocketAddr>,
    /// MQTT over WebSocket over TLS.
    pub websocket_tls: Option<SocketAddr>,
}

/// A listening socket and what is spoken on it.
struct Door {
    listener: TcpListener,
    layers: Layers,
}

impl Door {
    async fn open(address: SocketAddr, layers: Layers) -> Result<(Door, SocketAddr), BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => BindError::InUse { address },
            _ => BindError::Listen { address, source },
        })?;
        let local_addr = listener.local_addr().map_err(|source| BindError::Listen { address, source })?;
        Ok((Door { listener, layers }, local_addr))
    }
}

async fn open_doors(config: &BrokerConfig, tls: Option<&Arc<Tls>>) -> Result<(Vec<Door>, Addresses), BindError> {
    let secure = tls.cloned();
    let websocket = config.websocket.as_ref().map(|websocket| Arc::new(websocket.rules.clone()));
    let on_tls = config.tls.as_ref().and_then(|tls| tls.listen);
    let on_websocket = config.websocket.as_ref().and_then(|websocket| websocket.listen);
    let on_both = config.websocket.as_ref().and_then(|websocket| websocket.tls_listen).filter(|_| secure.is_some());
    let wanted = [
        (Some(config.listen), Layers::default()),
        (on_tls, Layers { tls: secure.clone(), websocket: None }),
        (on_websocket, Layers { tls: None, websocket: websocket.clone() }),
        (on_both, Layers { tls: secure, websocket }),
    ];
    let mut doors = Vec::new();
    let mut addresses = [None; 4];
    for ((address, layers), local) in wanted.into_iter().zip(&mut addresses) {
        let Some(address) = address else { continue };
        let (door, local_addr) = Door::open(address, layers).await?;
        doors.push(door);
        *local = Some(local_addr);
    }
    let [tcp, tls, websocket, websocket_tls] = addresses;
    // The first is always wanted.
    let tcp = tcp.unwrap_or(config.listen);
    Ok((doors, Addresses { tcp, tls, websocket, websocket_tls }))
}

/// Publishes for the gateway itself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    hub: Arc<Hub>,
}

impl Publisher {
    /// Publishes durably: resolves when the message, and its retained row if it asks for one, are on disk and live
    /// subscribers were served. Gives its offset. Waits while the log is full.
    ///
    /// # Errors
    /// An [`AppendError`]; nothing was published then.
    pub async fn publish(&self, mut message: Message) -> Result<Offset, AppendError> {
        message.qos = message.qos.max(QoS::AtLeastOnce);
        message.origin = 0;
        let append = Append { message: message.clone(), log: true, received_us: clock::now_us() };
        let offset = self.hub.log.append(vec![append]).await?;
        self.hub.publish_live(vec![message]);
        Ok(offset)
    }

    /// Figures of the broker it publishes to.
    pub fn stats(&self) -> BrokerStats {
        self.hub.stats()
    }

    /// Publishes at QoS 0 to whoever is connected; retained in memory if the message asks for it. Never waits.
    pub fn publish_volatile(&self, message: Message) {
        self.hub.publish_volatile(message);
    }
}

/// Accepts until told to stop, then waits for the connections to end.
async fn accept(hub: Arc<Hub>, doors: Vec<Door>, pulse: Pulse, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut admission = Admission::new(&hub.limits);
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                report(ended);
                continue;
            }
            accepted = pulse.while_waiting(accept_any(&doors)) => accepted,
        };
        let (stream, peer, layers) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                count(&hub.counters.accepts_failed, 1);
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let accepted_at = Instant::now();
        let Some(entry) = admission.enter(peer.ip(), layers.tls.is_some(), accepted_at) else {
            count(&hub.counters.turned_away, 1);
            continue;
        };
        let stranger = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            stranger = pulse.while_waiting(admission.make_room(&hub.counters)) => stranger,
        };
        count(&hub.counters.accepted, 1);
        prepare(&stream);
        let newcomer = connection::Newcomer { stream, layers: layers.clone(), peer, accepted_at, stranger };
        let (hub, stop) = (Arc::clone(&hub), stop.clone());
        connections.spawn(async move {
            // On the heap, so that the task's own frame stays small.
            Box::pin(connection::serve(hub, newcomer, stop)).await;
            drop(entry);
        });
    }
    drop(doors);
    let all = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(SHUTDOWN_MAX, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections did not end in time and are cut off");
        connections.shutdown().await;
    }
}

/// The next connection at any of the doors.
async fn accept_any(doors: &[Door]) -> std::io::Result<(TcpStream, SocketAddr, &Layers)> {
    poll_fn(|cx| {
        for door in doors {
            if let Poll::Ready(accepted) = door.listener.poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, peer)| (stream, peer, &door.layers)));
            }
        }
        Poll::Pending
    })
    .await
}

fn prepare(stream: &TcpStream) {
    // An acknowledgement must not wait for the client's next segment.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked; the others go on");
    }
}
