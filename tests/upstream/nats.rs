//! NATS JetStream, with its own server.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::ConnectOptions;
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, StorageType};
use harness::wait_for;
use tokio::runtime::Runtime;

use crate::kind::{Flaw, Kind, Message, Missing, Server, Want};
use crate::process::{Process, free_address, program};
use crate::secrets::{PASSWORD, USER};

const STREAM: &str = "PLANT";
/// The longest wait for a read.
const READ: Duration = Duration::from_secs(30);

/// NATS.
pub(crate) struct Nats;

impl Kind for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn find(&self) -> Result<(), Missing> {
        if program("nats-server").is_some() {
            return Ok(());
        }
        Err(Missing {
            reason: "nats-server is not installed".to_owned(),
            remedy: "apt-get install nats-server, then stop what that has started".to_owned(),
        })
    }

    fn cannot(&self, _scenario: &str) -> Option<&'static str> {
        None
    }

    fn start(&self, dir: &Path, want: Want) -> anyhow::Result<Box<dyn Server>> {
        let dir = dir.join("nats");
        std::fs::create_dir_all(&dir)?;
        let address = free_address()?;
        let mut config = format!(
            "listen: \"{address}\"\nauthorization {{ user: \"{USER}\", password: \"{PASSWORD}\" }}\n\
             jetstream {{ store_dir: \"{}\" }}\n",
            dir.display()
        );
        if let Some(secrets) = want.tls {
            let file = |name: &str| secrets.file(name).display().to_string();
            config.push_str(&format!(
                "tls {{ cert_file: \"{}\", key_file: \"{}\" }}\n",
                file("server.crt"),
                file("server.key")
            ));
        }
        std::fs::write(dir.join("nats.conf"), config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let process = launch(&dir, address)?;
        Ok(Box::new(NatsServer { runtime, dir, want, process, address, next: 1, received: Vec::new() }))
    }
}

/// Starts the server, and waits until it listens.
fn launch(dir: &Path, address: SocketAddr) -> anyhow::Result<Process> {
    let program = program("nats-server").context("nats-server is installed")?;
    let config = dir.join("nats.conf");
    let command = [program.as_os_str(), "-c".as_ref(), config.as_os_str()];
    let mut process = Process::start(dir, "nats", &command, [])?;
    let listens = wait_for("nats-server to listen", || {
        (TcpStream::connect(address).is_ok() || !process.is_running()).then_some(())
    });
    listens.with_context(|| process.log())?;
    ensure!(process.is_running(), "nats-server has ended: {}", process.log());
    Ok(process)
}

struct NatsServer {
    runtime: Runtime,
    dir: PathBuf,
    want: Want,
    process: Process,
    address: SocketAddr,
    /// The number in the stream where reading goes on.
    next: u64,
    received: Vec<Message>,
}

async fn connect(address: SocketAddr, want: Want) -> anyhow::Result<jetstream::Context> {
    let mut options = ConnectOptions::new().user_and_password(USER.to_owned(), PASSWORD.to_owned());
    if let Some(secrets) = want.tls {
        options = options.require_tls(true).tls_client_config((*secrets.client()?).clone());
    }
    let scheme = if want.tls.is_some() { "tls" } else { "nats" };
    Ok(jetstream::new(options.connect(format!("{scheme}://{address}")).await?))
}

impl Server for NatsServer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn upstream(&self, dir: &Path) -> anyhow::Result<String> {
        let wrong = self.want.flaw == Some(Flaw::Password);
        std::fs::write(dir.join("password"), if wrong { "wrong horse\n" } else { PASSWORD })?;
        let mut keys = format!("kind = \"nats\"\nuser = \"{USER}\"\npassword_file = \"password\"\n");
        if self.want.flaw != Some(Flaw::Target) {
            keys.push_str(&format!("stream = \"{STREAM}\"\n"));
        }
        if let Some(secrets) = self.want.tls {
            keys.push_str(&format!("tls = true\ntls_ca = \"{}\"\n", secrets.file("ca.crt").display()));
        }
        Ok(keys)
    }

    fn stop(&mut self, at_once: bool) -> anyhow::Result<()> {
        if at_once {
            self.process.kill();
            return Ok(());
        }
        self.process.terminate()
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.dir, self.address)?;
        Ok(())
    }

    fn repair(&mut self, dir: &Path) -> anyhow::Result<()> {
        match self.want.flaw {
            Some(Flaw::Password) => Ok(std::fs::write(dir.join("password"), PASSWORD)?),
            Some(Flaw::Target) => self.runtime.block_on(async {
                let config = Config {
                    name: STREAM.to_owned(),
                    subjects: vec!["millwright.>".to_owned()],
                    storage: StorageType::File,
                    ..Config::default()
                };
                connect(self.address, self.want).await?.create_stream(config).await?;
                Ok(())
            }),
            None => Ok(()),
        }
    }

    fn received(&mut self) -> anyhow::Result<&[Message]> {
        let NatsServer { runtime, address, want, next, received, .. } = self;
        let read = read(*address, *want, next, received);
        runtime.block_on(async { tokio::time::timeout(READ, read).await }).context("the server does not answer")??;
        Ok(received)
    }
}

/// Reads on in the stream; before the gateway has made it there is nothing.
async fn read(address: SocketAddr, want: Want, next: &mut u64, received: &mut Vec<Message>) -> anyhow::Result<()> {
    let Ok(mut stream) = connect(address, want).await?.get_stream(STREAM).await else { return Ok(()) };
    let last = stream.info().await?.state.last_sequence;
    while *next <= last {
        let raw = stream.get_raw_message(*next).await?;
        *next += 1;
        let header = |name: &str| raw.headers.get(name).map(|value| value.as_str().to_owned());
        let message = Message::read(header, &raw.payload)?;
        let id = header("Nats-Msg-Id").context("a message has no Nats-Msg-Id")?;
        ensure!(id == message.id, "the server's identifier is {id}, ours {}", message.id);
        let subject = format!("millwright.{}", message.topic.replace('/', ".").replace(' ', "_"));
        ensure!(raw.subject.as_str() == subject, "{} came on {}", message.topic, raw.subject);
        received.push(message);
    }
    Ok(())
}
