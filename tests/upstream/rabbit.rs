//! RabbitMQ from Debian: a node of its own for each server, on ports of its own, with what it keeps in the test's folder.
//!
//! The programs are called where the package has them: the wrappers in `/usr/bin` change the user. A node needs `epmd`, which is started
//! on a port of its own, so that no two nodes know each other.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::kind::{Flaw, Kind, Message, Missing, Server, Want};
use crate::process::{Process, free_address, program};
use crate::secrets::{PASSWORD, Secrets, USER};

/// Where Debian has the program.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// The longest wait for a node: it takes ten seconds alone, and a busy machine is slower.
const START: Duration = Duration::from_secs(180);
/// How often other ports are tried.
const PORT_TRIES: usize = 5;
/// How long a consumer is silent when it has had everything.
const SILENCE: Duration = Duration::from_millis(300);
/// The largest message that nodes take, bytes.
const SIZE_MAX: usize = 2_000_000;
/// Messages that a consumer has unacknowledged; streams want a number.
const PREFETCH: u16 = 1_000;

/// RabbitMQ with queues of one type.
pub(crate) struct Rabbit {
    /// `quorum`, `stream` or `classic`.
    queue_type: &'static str,
    name: &'static str,
}

pub(crate) static QUORUM: Rabbit = Rabbit { queue_type: "quorum", name: "amqp-quorum" };
pub(crate) static STREAM: Rabbit = Rabbit { queue_type: "stream", name: "amqp-stream" };
pub(crate) static CLASSIC: Rabbit = Rabbit { queue_type: "classic", name: "amqp-classic" };

/// Whether RabbitMQ is installed.
pub(crate) fn find() -> Result<(), Missing> {
    if Path::new(SERVER).is_file() && program("epmd").is_some() {
        return Ok(());
    }
    Err(Missing {
        reason: "RabbitMQ is not installed".to_owned(),
        remedy: "apt-get install rabbitmq-server, then stop what that has started".to_owned(),
    })
}

impl Kind for Rabbit {
    fn name(&self) -> &'static str {
        self.name
    }

    fn find(&self) -> Result<(), Missing> {
        find()
    }

    fn cannot(&self, scenario: &str) -> Option<&'static str> {
        let only = self.queue_type != "quorum" && !matches!(scenario, "order" | "cuts");
        only.then_some("the type of the queue makes no difference there")
    }

    fn size_max(&self) -> Option<usize> {
        Some(SIZE_MAX)
    }

    fn start(&self, dir: &Path, want: Want) -> anyhow::Result<Box<dyn Server>> {
        let node = if want.alone { Arc::new(Node::start(Some(dir))?) } else { Node::shared()? };
        let queue = format!("millwright-{}", unique());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let queue_type = self.queue_type;
        let server = RabbitServer {
            runtime,
            node,
            want,
            exchange: format!("exchange-of-{queue}"),
            queue,
            queue_type,
            consumer: None,
            received: Vec::new(),
        };
        if want.flaw != Some(Flaw::Target) {
            server.make_exchange()?;
        }
        Ok(Box::new(server))
    }
}

/// A running node.
pub(crate) struct Node {
    dir: PathBuf,
    _owner: Option<TempDir>,
    name: String,
    epmd_port: u16,
    ports: Mutex<Ports>,
    _epmd: Process,
    process: Mutex<Process>,
}

/// Where a node listens since its last start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) amqp: SocketAddr,
    pub(crate) amqps: SocketAddr,
    pub(crate) mqtt: SocketAddr,
}

impl Ports {
    fn free() -> anyhow::Result<Ports> {
        Ok(Ports { amqp: free_address()?, amqps: free_address()?, mqtt: free_address()? })
    }
}

impl Node {
    /// A node that scenarios share which do not stop it; it ends with the last of them.
    pub(crate) fn shared() -> anyhow::Result<Arc<Node>> {
        static SHARED: Mutex<Weak<Node>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = shared.upgrade() {
            return Ok(node);
        }
        let node = Arc::new(Node::start(None)?);
        *shared = Arc::downgrade(&node);
        Ok(node)
    }

    /// A node that keeps what it has below `dir`, or in a folder of its own.
    pub(crate) fn start(dir: Option<&Path>) -> anyhow::Result<Node> {
        let owner = if dir.is_none() { Some(tempfile::tempdir()?) } else { None };
        let base = dir.or(owner.as_ref().map(TempDir::path)).context("a folder")?;
        let dir = base.join("rabbit");
        std::fs::create_dir_all(&dir)?;
        let epmd_port = free_address()?.port();
        let epmd = program("epmd").context("epmd is installed")?;
        let port = epmd_port.to_string();
        let command = [epmd.as_os_str(), "-address".as_ref(), "127.0.0.1".as_ref(), "-port".as_ref(), port.as_ref()];
        let epmd = Process::start(&dir, "epmd", &command, [("HOME", dir.display().to_string())])?;
        let name = format!("millwright-{}@localhost", unique());
        let (ports, process) = come_up(&dir, &name, epmd_port)?;
        Ok(Node {
            dir,
            _owner: owner,
            name,
            epmd_port,
            ports: Mutex::new(ports),
            _epmd: epmd,
            process: Mutex::new(process),
        })
    }

    /// Where it listens.
    pub(crate) fn ports(&self) -> Ports {
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops it, at once or as an operator does.
    pub(crate) fn stop(&self, at_once: bool) -> anyhow::Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if at_once {
            process.kill();
            return Ok(());
        }
        process.terminate()
    }

    /// Starts it with what it has kept.
    pub(crate) fn start_again(&self) -> anyhow::Result<()> {
        let (ports, process) = come_up(&self.dir, &self.name, self.epmd_port)?;
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner) = ports;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }
}

/// Starts a node and waits until it lets a client in. A port that was free a moment ago may be taken by then: others are tried.
fn come_up(dir: &Path, name: &str, epmd_port: u16) -> anyhow::Result<(Ports, Process)> {
    let mut tries = 0;
    loop {
        let ports = Ports::free()?;
        let mut process = launch(dir, name, epmd_port, ports)?;
        match wait_ready(ports.amqp, &mut process) {
            Ok(()) => return Ok((ports, process)),
            Err(error) if tries < PORT_TRIES && error.to_string().contains("eaddrinuse") => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

fn wait_ready(address: SocketAddr, process: &mut Process) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deadline = std::time::Instant::now() + START;
    loop {
        // Nobody listens until it is nearly there.
        if std::net::TcpStream::connect(address).is_ok() && runtime.block_on(connect(address)).is_ok() {
            return Ok(());
        }
        let is_late = std::time::Instant::now() > deadline;
        ensure!(process.is_running() && !is_late, "RabbitMQ does not come up:\n{}", process.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Names of nodes and queues that no other test of this machine has.
fn unique() -> String {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static MADE: AtomicUsize = AtomicUsize::new(0);
    format!("{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

fn launch(dir: &Path, name: &str, epmd_port: u16, ports: Ports) -> anyhow::Result<Process> {
    let secrets = Secrets::get()?;
    let file = |name: &str| secrets.file(name).display().to_string();
    std::fs::write(
        dir.join("rabbitmq.conf"),
        format!(
            "listeners.tcp.1 = {}\nlisteners.ssl.1 = {}\nmqtt.listeners.tcp.1 = {}\nssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\nssl_options.keyfile = {}\nssl_options.verify = verify_none\n\
             default_user = {USER}\ndefault_pass = {PASSWORD}\nloopback_users = none\nlog.console = true\n\
             log.console.level = warning\nlog.file = false\nvm_memory_high_watermark.relative = 0.2\n\
             disk_free_limit.absolute = 50MB\nmax_message_size = {SIZE_MAX}\nmqtt.allow_anonymous = false\nmqtt.exchange = amq.topic\n",
            ports.amqp,
            ports.amqps,
            ports.mqtt,
            file("ca.crt"),
            file("server.crt"),
            file("server.key")
        ),
    )?;
    std::fs::write(dir.join("enabled_plugins"), "[rabbitmq_mqtt].\n")?;
    let path = |name: &str| dir.join(name).display().to_string();
    let environment = [
        ("HOME", path("")),
        ("RABBITMQ_NODENAME", name.to_owned()),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_NODE_PORT", ports.amqp.port().to_string()),
        ("RABBITMQ_DIST_PORT", free_address()?.port().to_string()),
        ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
        ("RABBITMQ_CONF_ENV_FILE", path("no-such-file")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
        ("RABBITMQ_MNESIA_BASE", path("mnesia")),
        ("RABBITMQ_LOG_BASE", path("log")),
        ("RABBITMQ_PID_FILE", path("rabbit-node.pid")),
        ("ERL_EPMD_PORT", epmd_port.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        // Threads that wait for work must not spin: the machine has other things to do.
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}".to_owned(),
        ),
    ];
    Process::start(dir, "rabbit", &[OsStr::new(SERVER)], environment)
}

/// Connects as the tests' user.
pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Connection> {
    let user = (USER, PASSWORD.replace(' ', "%20"));
    let uri = format!("amqp://{}:{}@{address}/%2f", user.0, user.1);
    Ok(Connection::connect(&uri, ConnectionProperties::default()).await?)
}

struct RabbitServer {
    /// Dropped first: what consumes must not outlive the node.
    runtime: Runtime,
    node: Arc<Node>,
    want: Want,
    queue: String,
    exchange: String,
    queue_type: &'static str,
    consumer: Option<(Connection, Channel, Consumer)>,
    received: Vec<Message>,
}

impl RabbitServer {
    /// An exchange of its own, so that scenarios on one node do not get each other's messages.
    fn make_exchange(&self) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let connection = connect(self.node.ports().amqp).await?;
            let channel = connection.create_channel().await?;
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let name = self.exchange.as_str().into();
            channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await?;
            Ok(())
        })
    }
}

impl Server for RabbitServer {
    fn address(&self) -> SocketAddr {
        let ports = self.node.ports();
        if self.want.tls.is_some() { ports.amqps } else { ports.amqp }
    }

    fn upstream(&self, dir: &Path) -> anyhow::Result<String> {
        let wrong = self.want.flaw == Some(Flaw::Password);
        std::fs::write(dir.join("password"), if wrong { "wrong horse\n" } else { PASSWORD })?;
        let mut keys = format!(
            "kind = \"amqp\"\nexchange = \"{}\"\nqueue = \"{}\"\nqueue_type = \"{}\"\nuser = \"{USER}\"\n\
             password_file = \"password\"\n",
            self.exchange, self.queue, self.queue_type
        );
        if let Some(secrets) = self.want.tls {
            keys.push_str(&format!("tls = true\ntls_ca = \"{}\"\n", secrets.file("ca.crt").display()));
        }
        Ok(keys)
    }

    fn log(&self) -> String {
        self.node.process.lock().unwrap_or_else(PoisonError::into_inner).log()
    }

    fn stop(&mut self, at_once: bool) -> anyhow::Result<()> {
        self.consumer = None;
        self.node.stop(at_once)
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        self.node.start_again()
    }

    fn repair(&mut self, dir: &Path) -> anyhow::Result<()> {
        match self.want.flaw {
            Some(Flaw::Password) => Ok(std::fs::write(dir.join("password"), PASSWORD)?),
            Some(Flaw::Target) => self.make_exchange(),
            None => Ok(()),
        }
    }

    fn received(&mut self) -> anyhow::Result<&[Message]> {
        let RabbitServer { runtime, node, queue, consumer, received, queue_type, .. } = self;
        runtime.block_on(async {
            if consumer.is_none() {
                *consumer = consume(node.ports().amqp, queue, queue_type).await?;
            }
            // The gateway has not made the queue yet.
            let Some((_, _, deliveries)) = consumer.as_mut() else { return Ok(()) };
            while let Ok(delivery) = tokio::time::timeout(SILENCE, deliveries.next()).await {
                let delivery = delivery.context("the consumer has ended")??;
                received.push(message(&delivery)?);
                delivery.ack(BasicAckOptions::default()).await?;
            }
            anyhow::Ok(())
        })?;
        Ok(received)
    }
}

async fn consume(
    address: SocketAddr,
    queue: &str,
    queue_type: &str,
) -> anyhow::Result<Option<(Connection, Channel, Consumer)>> {
    let connection = connect(address).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    if queue_type == "stream" {
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    }
    let options = BasicConsumeOptions::default();
    match channel.basic_consume(queue.into(), "reader".into(), options, arguments).await {
        Ok(consumer) => Ok(Some((connection, channel, consumer))),
        // The queue is not there, or being made: RabbitMQ calls that an internal error. It is asked again.
        Err(_) => Ok(None),
    }
}

fn message(delivery: &lapin::message::Delivery) -> anyhow::Result<Message> {
    let properties = &delivery.properties;
    let headers = properties.headers().clone().unwrap_or_default();
    let header = |name: &str| {
        if name == "content-encoding" {
            return properties.content_encoding().as_ref().map(ToString::to_string);
        }
        headers.inner().get(name).and_then(|value| match value {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            _ => None,
        })
    };
    let message = Message::read(header, &delivery.data)?;
    let id = properties.message_id().as_ref().map(ToString::to_string);
    ensure!(id.as_deref() == Some(message.id.as_str()), "the message's own identifier is {id:?}, not {}", message.id);
    ensure!(*properties.delivery_mode() == Some(2), "{} is not persistent", message.id);
    Ok(message)
}
