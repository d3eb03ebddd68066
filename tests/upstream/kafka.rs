//! Kafka: librdkafka's mock cluster, which is quick and keeps nothing, and tansu, a Kafka-compatible broker that keeps its messages in SQLite.
//!
//! The mock plays what needs no stop of the server, no certificate and no password; tansu plays all of it, where it is.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::wait_for;
use rskafka::client::partition::{OffsetAt, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use tokio::runtime::Runtime;

use crate::kind::{Flaw, Kind, Message, Missing, Server, Want};
use crate::process::{self, Process, free_address, program};
use crate::terminator::Terminator;

/// Bytes of one answer of a broker, and how long it waits for more, milliseconds.
const FETCH_BYTES: i32 = 4 << 20;
const FETCH_WAIT_MS: i32 = 100;
/// How long a read goes on while there is more; and the longest wait for it: a broker that does not answer is an error, not the end of
/// the run.
const READ: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(40);

/// Which server plays Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Mock,
    Tansu,
}

/// Kafka, played by one of the servers, written to by one of the clients.
pub(crate) struct Kafka {
    name: &'static str,
    engine: Engine,
    idempotent: bool,
}

pub(crate) static MOCK: Kafka = Kafka { name: "kafka-mock", engine: Engine::Mock, idempotent: false };
pub(crate) static TANSU: Kafka = Kafka { name: "kafka-tansu", engine: Engine::Tansu, idempotent: false };
pub(crate) static IDEMPOTENT: Kafka = Kafka { name: "kafka_idempotent", engine: Engine::Mock, idempotent: true };

impl Kind for Kafka {
    fn name(&self) -> &'static str {
        self.name
    }

    fn find(&self) -> Result<(), Missing> {
        if self.idempotent && !millwright::upstream::sink::HAS_IDEMPOTENT_PRODUCER {
            return Err(Missing {
                reason: "the program is built without librdkafka's producer".to_owned(),
                remedy: "cargo test --workspace --features millwright/upstream-kafka-idempotent --test upstream \
                         kafka_idempotent"
                    .to_owned(),
            });
        }
        match self.engine {
            Engine::Mock => python().map(drop),
            Engine::Tansu => tansu().map(drop),
        }
    }

    fn is_optional(&self) -> bool {
        self.idempotent || self.engine == Engine::Tansu
    }

    fn cannot(&self, scenario: &str) -> Option<&'static str> {
        match (self.engine, scenario) {
            (Engine::Mock, "restarts") => Some("the mock cluster keeps nothing over a stop; tansu plays it"),
            (Engine::Mock, "alerts" | "rate") => {
                Some("the mock's topics have four partitions, without an order; tansu plays it")
            }
            (Engine::Mock, "password" | "tls") => Some("the mock cluster has neither passwords nor certificates"),
            (Engine::Tansu, "password") => Some("tansu makes users by its own means alone"),
            _ => None,
        }
    }

    fn start(&self, dir: &Path, want: Want) -> anyhow::Result<Box<dyn Server>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let dir = dir.join("kafka");
        std::fs::create_dir_all(&dir)?;
        let (process, address, front) = launch(self.engine, &dir, want)?;
        let server = KafkaServer {
            runtime,
            engine: self.engine,
            idempotent: self.idempotent,
            dir,
            want,
            process,
            address,
            front,
            next: HashMap::new(),
            received: Vec::new(),
        };
        if self.engine == Engine::Mock && want.flaw != Some(Flaw::Target) {
            server.create_topics()?;
        }
        Ok(Box::new(server))
    }
}

/// Python with librdkafka.
fn python() -> Result<PathBuf, Missing> {
    process::python("confluent_kafka", "confluent-kafka")
}

fn tansu() -> Result<PathBuf, Missing> {
    let asked = std::env::var_os("MILLWRIGHT_TANSU").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
    let built = cache.map(|cache| cache.join("millwright/tansu/bin/tansu"));
    asked.or_else(|| program("tansu")).or(built).filter(|file| file.is_file()).ok_or_else(|| Missing {
        reason: "tansu is not built; the mock cluster plays Kafka instead, but for the stops of the server".to_owned(),
        remedy: "cargo install tansu --version 0.6.0 --locked --features libsql --root ~/.cache/millwright/tansu"
            .to_owned(),
    })
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream/mock.py")
}

fn missing(missing: Missing) -> anyhow::Error {
    anyhow::anyhow!("{}", missing.reason)
}

/// Starts a server, and waits until it listens.
fn launch(engine: Engine, dir: &Path, want: Want) -> anyhow::Result<(Process, SocketAddr, Option<Terminator>)> {
    match engine {
        Engine::Mock => {
            let (python, script) = (python().map_err(missing)?, script());
            let process =
                Process::start(dir, "mock", &[python.as_os_str(), script.as_os_str(), OsStr::new("serve")], [])?;
            let address = wait_for("the mock cluster to serve", || {
                process.log().lines().find_map(|line| line.strip_prefix("serving ")?.parse().ok())
            });
            let address = address.with_context(|| process.log())?;
            Ok((process, address, None))
        }
        Engine::Tansu => {
            let (program, address) = (tansu().map_err(missing)?, free_address()?);
            // Version 0.6.0 takes a certificate or a key, never both: TLS is spoken in front of it.
            let front = want.tls.map(|secrets| Terminator::start(secrets, address)).transpose()?;
            let told = front.as_ref().map_or(address, Terminator::address);
            let (url, told_url) = (format!("tcp://{address}"), format!("tcp://{told}"));
            // It takes the path from the folder in which it runs.
            let storage = "sqlite://tansu.db".to_owned();
            let mut arguments = vec!["broker".to_owned(), "--listener-url".to_owned(), url];
            arguments.extend([
                "--advertised-listener-url".to_owned(),
                told_url,
                "--storage-engine".to_owned(),
                storage,
            ]);
            let mut command = vec![program.as_os_str()];
            command.extend(arguments.iter().map(OsStr::new));
            let mut process = Process::start(dir, "tansu", &command, [("RUST_LOG", "warn".to_owned())])?;
            let listens = wait_for("tansu to listen", || {
                (TcpStream::connect(address).is_ok() || !process.is_running()).then_some(())
            });
            listens
                .and_then(|()| {
                    ensure!(process.is_running(), "it has ended");
                    Ok(())
                })
                .with_context(|| process.log())?;
            Ok((process, told, front))
        }
    }
}

struct KafkaServer {
    runtime: Runtime,
    engine: Engine,
    idempotent: bool,
    dir: PathBuf,
    want: Want,
    process: Process,
    address: SocketAddr,
    /// What clients connect to over TLS.
    front: Option<Terminator>,
    /// Where reading goes on, by topic and partition.
    next: HashMap<(String, i32), i64>,
    received: Vec<Message>,
}

impl KafkaServer {
    /// Makes the topics that the gateway cannot make on the mock cluster, or may not.
    fn create_topics(&self) -> anyhow::Result<()> {
        let names =
            ["telemetry", "alert", "event", "other", "health", "status"].map(|content| format!("plant.{content}"));
        if self.engine == Engine::Tansu {
            return self.runtime.block_on(async {
                let controller = client(self.address).await?.controller_client()?;
                controller.create_topic("plant", 1, 1, 10_000).await?;
                Ok(())
            });
        }
        let python = python().map_err(missing)?;
        let mut command = Command::new(python);
        let output = command.arg(script()).arg("create").arg(self.address.to_string()).args(names).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Server for KafkaServer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn names_itself(&self) -> bool {
        // Over TLS nothing can be replaced: clients find past the proxy.
        self.want.tls.is_none()
    }

    fn upstream(&self, _dir: &Path) -> anyhow::Result<String> {
        let mut keys = "kind = \"kafka\"\n".to_owned();
        match self.engine {
            Engine::Mock => keys.push_str("topic = \"plant.{content}\"\npartitions = 0\n"),
            Engine::Tansu => {
                let partitions = u8::from(self.want.flaw != Some(Flaw::Target));
                keys.push_str(&format!("topic = \"plant\"\npartitions = {partitions}\n"));
            }
        }
        if self.idempotent {
            keys.push_str("idempotent = true\n");
        }
        if let Some(secrets) = self.want.tls {
            keys.push_str(&format!("tls = true\ntls_ca = \"{}\"\n", secrets.file("ca.crt").display()));
        }
        Ok(keys)
    }

    fn log(&self) -> String {
        self.process.log()
    }

    fn stop(&mut self, at_once: bool) -> anyhow::Result<()> {
        if at_once {
            self.process.kill();
            return Ok(());
        }
        self.process.terminate()
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        (self.process, self.address, self.front) = launch(self.engine, &self.dir, self.want)?;
        Ok(())
    }

    fn repair(&mut self, _dir: &Path) -> anyhow::Result<()> {
        self.create_topics()
    }

    fn received(&mut self) -> anyhow::Result<&[Message]> {
        let KafkaServer { runtime, address, next, received, want, process, .. } = self;
        let read = read(*address, *want, next, received);
        runtime
            .block_on(async { tokio::time::timeout(ANSWER, read).await })
            .with_context(|| format!("the broker does not answer\n{}", process.log()))??;
        Ok(received)
    }
}

async fn client(address: SocketAddr) -> anyhow::Result<Client> {
    Ok(ClientBuilder::new(vec![address.to_string()]).build().await?)
}

/// Reads on in all partitions of all topics.
async fn read(
    address: SocketAddr,
    want: Want,
    next: &mut HashMap<(String, i32), i64>,
    received: &mut Vec<Message>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let client = match want.tls {
        None => client(address).await?,
        Some(secrets) => {
            let builder = ClientBuilder::new(vec![address.to_string()]);
            builder.tls_config(secrets.client()?).build().await?
        }
    };
    for topic in client.list_topics().await?.into_iter().filter(|topic| topic.name.starts_with("plant")) {
        for number in topic.partitions {
            let partition = client.partition_client(&topic.name, number, UnknownTopicHandling::Retry).await?;
            let end = partition.get_offset(OffsetAt::Latest).await?;
            let at = next.entry((topic.name.clone(), number)).or_default();
            while *at < end && begun.elapsed() < READ {
                let (records, _) = partition.fetch_records(*at, 1..FETCH_BYTES, FETCH_WAIT_MS).await?;
                for record in records {
                    *at = record.offset + 1;
                    received.push(message(&record.record)?);
                }
            }
        }
    }
    Ok(())
}

fn message(record: &rskafka::record::Record) -> anyhow::Result<Message> {
    let header = |name: &str| record.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let message = Message::read(header, record.value.as_deref().unwrap_or_default())?;
    let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
    // What a message is about stands in the fourth level of the gateway's own topics.
    let about = message.topic.split('/').nth(3).filter(|_| message.content != "other");
    let expected = about.unwrap_or(&message.topic);
    ensure!(key == expected, "the key is {key}, not {expected}");
    Ok(message)
}
