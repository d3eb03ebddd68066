//! The broker as a whole: the accept loop, what connections share, start and shutdown.
//!
//! Owns the listening socket and the tasks: one per connection, and the accept loop that joins them all. Shutdown order:
//! stop accepting; every connection gets DISCONNECT 0x8B, hands its publishes and its will to the log, and ends. The log
//! is its owner's to close, afterwards.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::auth::{AllowAll, Authenticator, Authorize, Users};
use crate::clock;
use crate::connection;
use crate::keeper;
use crate::limits::Limits;
use crate::live::Live;
use crate::log::{Append, AppendError, Log, Offset};
use crate::message::{Message, QoS};
use crate::registry::Registry;
use crate::shares::Shares;
use crate::stats::{BrokerStats, Counters, count};
use crate::sys;
use crate::topic::TopicFilter;

/// How long connections may take to end at shutdown.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// Pause after a failed accept: no file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may be silent while others wait for its place.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// How long an evicted connection may take to go.
const EVICTION_MAX: Duration = Duration::from_secs(2);

/// Set in the numbers of stored sessions, which stay the same over restarts; the others are counted from 1.
pub(crate) const STORED_NUMBER: u32 = 1 << 31;

/// How to run a broker.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who may connect; `None` lets everyone in.
    pub users: Option<Users>,
    /// Topics that are logged even at QoS 0.
    pub telemetry: Vec<TopicFilter>,
    /// What clients may do.
    pub authorize: Arc<dyn Authorize>,
    /// What clients may take.
    pub limits: Limits,
    /// How often statistics are published below `$SYS/broker/`; zero is never.
    pub sys_interval: Duration,
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        BrokerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            users: None,
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
    numbers: AtomicU32,
}

impl Hub {
    pub(crate) fn stats(&self) -> BrokerStats {
        BrokerStats {
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
    local_addr: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    keeper: JoinHandle<()>,
    sys: JoinHandle<()>,
}

impl Broker {
    /// Listens and serves. The log must outlive the broker: close it after [`Broker::shutdown`].
    ///
    /// # Errors
    /// [`BindError`] if the address cannot be listened on.
    pub async fn bind(config: BrokerConfig, log: Log) -> Result<Broker, BindError> {
        let address = config.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => BindError::InUse { address },
            _ => BindError::Listen { address, source },
        })?;
        let local_addr = listener.local_addr().map_err(|source| BindError::Listen { address, source })?;
        let hub = Arc::new(Hub {
            limits: Arc::new(config.limits),
            authorize: config.authorize,
            authenticator: Authenticator::new(config.users),
            telemetry: config.telemetry,
            shares: Shares::new(log.sessions().take_shared()),
            log,
            live: Live::default(),
            registry: Arc::default(),
            counters: Counters::default(),
            numbers: AtomicU32::new(1),
        });
        let stop = watch::Sender::new(false);
        let accepting = tokio::spawn(accept(Arc::clone(&hub), listener, stop.subscribe()));
        let keeper = tokio::spawn(keeper::run(Arc::clone(&hub), stop.subscribe()));
        let sys = tokio::spawn(sys::run(Arc::clone(&hub), config.sys_interval, stop.subscribe()));
        Ok(Broker { hub, local_addr, stop, accepting, keeper, sys })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// A handle for the gateway's own publications.
    pub fn publisher(&self) -> Publisher {
        Publisher { hub: Arc::clone(&self.hub) }
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
        let _ = self.keeper.await;
        let _ = self.sys.await;
    }
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
async fn accept(hub: Arc<Hub>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(hub.limits.connections_max));
    let mut strangers = Strangers::new(hub.limits.connecting_max);
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            count(&hub.counters.turned_away, 1);
            continue;
        };
        let stranger = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            stranger = strangers.admit(&hub.counters) => stranger,
        };
        count(&hub.counters.accepted, 1);
        prepare(&stream);
        let (hub, stop) = (Arc::clone(&hub), stop.clone());
        connections.spawn(async move {
            // On the heap, so that the task's own frame stays small.
            Box::pin(connection::serve(hub, stream, peer, stranger, stop)).await;
            drop(place);
        });
    }
    drop(listener);
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

/// A connection that has not been accepted.
#[derive(Debug)]
pub(crate) struct Stranger {
    _permit: OwnedSemaphorePermit,
    /// Resolves when its place is needed by others.
    pub(crate) evicted: oneshot::Receiver<()>,
}

/// The connections that have not been accepted, oldest first. Silent ones must not keep others out.
struct Strangers {
    places: Arc<Semaphore>,
    evict: VecDeque<(Instant, oneshot::Sender<()>)>,
}

impl Strangers {
    fn new(places: usize) -> Strangers {
        Strangers { places: Arc::new(Semaphore::new(places)), evict: VecDeque::new() }
    }

    /// Waits for a place; makes one if the oldest had its time.
    async fn admit(&mut self, counters: &Counters) -> Stranger {
        self.evict.retain(|(_, evict)| !evict.is_closed());
        // One at a time: an evicted connection takes a moment to go.
        let mut next = Instant::now();
        let permit = loop {
            let oldest_until = self.evict.front().map(|(since, _)| next.max(*since + SILENT_MAX));
            tokio::select! {
                biased;
                Ok(permit) = Arc::clone(&self.places).acquire_owned() => break permit,
                () = until(oldest_until) => {
                    next = Instant::now() + EVICTION_MAX;
                    if let Some((_, evict)) = self.evict.pop_front()
                        && evict.send(()).is_ok()
                    {
                        count(&counters.turned_away, 1);
                    }
                }
            }
        };
        let (evict, evicted) = oneshot::channel();
        self.evict.push_back((Instant::now(), evict));
        Stranger { _permit: permit, evicted }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
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
