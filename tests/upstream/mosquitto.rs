//! Mosquitto, in both versions of MQTT; with a subscriber that is there before the gateway is.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::wait_for;
use rumqttc::v5;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rustix::process::Signal;

use crate::kind::{Flaw, Kind, Message, Missing, Server, Want};
use crate::process::{Process, free_address, program};
use crate::secrets::{PASSWORD, USER};

/// The subscriber's name.
const READER: &str = "reader";
/// Pause of the subscriber before the next attempt to connect.
const PAUSE: Duration = Duration::from_millis(50);
/// The largest packet that the subscriber takes, bytes.
const PACKET_BYTES_MAX: u32 = 1 << 20;

/// Mosquitto, spoken to by the gateway in one of the versions.
pub(crate) struct Mosquitto {
    v5: bool,
}

pub(crate) static V5: Mosquitto = Mosquitto { v5: true };
pub(crate) static V311: Mosquitto = Mosquitto { v5: false };

impl Kind for Mosquitto {
    fn name(&self) -> &'static str {
        if self.v5 { "mqtt-5" } else { "mqtt-3.1.1" }
    }

    fn find(&self) -> Result<(), Missing> {
        if program("mosquitto").is_some() && program("mosquitto_passwd").is_some() {
            return Ok(());
        }
        Err(Missing {
            reason: "mosquitto is not installed".to_owned(),
            remedy: "apt-get install mosquitto, then stop what that has started".to_owned(),
        })
    }

    fn cannot(&self, scenario: &str) -> Option<&'static str> {
        match (self.v5, scenario) {
            (false, "gzip") => Some("MQTT 3.1.1 has nowhere to say that a payload is packed"),
            (false, "target") => Some("MQTT 3.1.1 has no answer for a publish that is not allowed"),
            (false, "crash") => Some("the version makes no difference there"),
            _ => None,
        }
    }

    fn brings_down(&self) -> bool {
        true
    }

    fn start(&self, dir: &Path, want: Want) -> anyhow::Result<Box<dyn Server>> {
        Ok(Box::new(MosquittoServer::start(dir, self.v5, want)?))
    }
}

/// A running mosquitto.
pub(crate) struct MosquittoServer {
    dir: PathBuf,
    v5: bool,
    want: Want,
    process: Process,
    plain: SocketAddr,
    secure: SocketAddr,
    reader: Reader,
    received: Vec<Message>,
}

impl MosquittoServer {
    /// Starts one with what it keeps below `dir`, and a subscriber to everything.
    pub(crate) fn start(dir: &Path, v5: bool, want: Want) -> anyhow::Result<MosquittoServer> {
        let dir = dir.join("mosquitto");
        std::fs::create_dir_all(&dir)?;
        let (plain, secure) = (free_address()?, free_address()?);
        let file = |name: &str| dir.join(name).display().to_string();
        // Nothing is kept back from the subscriber and nothing is dropped; root must not change its user.
        let mut config = format!(
            "user root\nallow_anonymous false\npassword_file {}\nacl_file {}\npersistence true\npersistence_location {}/\n\
             max_inflight_messages 0\nmax_queued_messages 0\nlistener {} 127.0.0.1\n",
            file("users"),
            file("rules"),
            dir.display(),
            plain.port()
        );
        if let Some(secrets) = want.tls {
            config.push_str(&format!(
                "listener {} 127.0.0.1\ncertfile {}\nkeyfile {}\n",
                secure.port(),
                secrets.file("server.crt").display(),
                secrets.file("server.key").display()
            ));
        }
        std::fs::write(dir.join("mosquitto.conf"), config)?;
        for (more, name) in [(&["-c"] as &[&str], USER), (&[], READER)] {
            let program = program("mosquitto_passwd").context("mosquitto_passwd is installed")?;
            let made = Command::new(program).args(more).args(["-b", &file("users"), name, PASSWORD]).output()?;
            ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        write_rules(&dir, want.flaw != Some(Flaw::Target))?;
        let process = launch(&dir, plain)?;
        let reader = Reader::start(plain)?;
        Ok(MosquittoServer { dir, v5, want, process, plain, secure, reader, received: Vec::new() })
    }
}

/// Who may publish: the gateway, or nobody.
fn write_rules(dir: &Path, may_publish: bool) -> anyhow::Result<()> {
    let gateway = if may_publish { "readwrite" } else { "read" };
    Ok(std::fs::write(
        dir.join("rules"),
        format!("user {USER}\ntopic {gateway} #\nuser {READER}\ntopic readwrite #\n"),
    )?)
}

fn launch(dir: &Path, address: SocketAddr) -> anyhow::Result<Process> {
    let program = program("mosquitto").context("mosquitto is installed")?;
    let config = dir.join("mosquitto.conf");
    let mut process = Process::start(dir, "mosquitto", &[program.as_os_str(), "-c".as_ref(), config.as_os_str()], [])?;
    let listens = wait_for("mosquitto to listen", || {
        (TcpStream::connect(address).is_ok() || !process.is_running()).then_some(())
    });
    listens.with_context(|| process.log())?;
    ensure!(process.is_running(), "mosquitto has ended: {}", process.log());
    Ok(process)
}

impl Server for MosquittoServer {
    fn address(&self) -> SocketAddr {
        if self.want.tls.is_some() { self.secure } else { self.plain }
    }

    fn upstream(&self, dir: &Path) -> anyhow::Result<String> {
        let wrong = self.want.flaw == Some(Flaw::Password);
        std::fs::write(dir.join("password"), if wrong { "wrong horse\n" } else { PASSWORD })?;
        let version = if self.v5 { "5" } else { "3.1.1" };
        let mut keys = format!(
            "kind = \"mqtt\"\nversion = \"{version}\"\nprefix = \"site-7/\"\nuser = \"{USER}\"\npassword_file = \"password\"\n"
        );
        if let Some(secrets) = self.want.tls {
            keys.push_str(&format!("tls = true\ntls_ca = \"{}\"\n", secrets.file("ca.crt").display()));
        }
        Ok(keys)
    }

    /// Always as an operator does: what mosquitto has acknowledged is in its memory alone until it ends in order.
    fn stop(&mut self, _at_once: bool) -> anyhow::Result<()> {
        self.process.terminate()
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.dir, self.plain)?;
        Ok(())
    }

    fn repair(&mut self, dir: &Path) -> anyhow::Result<()> {
        match self.want.flaw {
            Some(Flaw::Password) => Ok(std::fs::write(dir.join("password"), PASSWORD)?),
            Some(Flaw::Target) => {
                write_rules(&self.dir, true)?;
                self.process.signal(Signal::HUP)
            }
            None => Ok(()),
        }
    }

    fn received(&mut self) -> anyhow::Result<&[Message]> {
        for publish in self.reader.take() {
            self.received.push(message(&publish, self.v5)?);
        }
        Ok(&self.received)
    }
}

fn message(publish: &Publish, has_headers: bool) -> anyhow::Result<Message> {
    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
    let topic = topic.strip_prefix("site-7/").with_context(|| format!("no prefix before {topic}"))?.to_owned();
    if !has_headers {
        return Ok(Message::bare(topic, publish.payload.to_vec()));
    }
    let properties = publish.properties.as_ref().map(|properties| properties.user_properties.as_slice());
    let header = |name: &str| properties?.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let message = Message::read(header, &publish.payload)?;
    ensure!(message.topic == topic, "a message of {} came on {topic}", message.topic);
    Ok(message)
}

/// A subscriber to everything on a thread of its own, which comes back when the server does.
#[derive(Debug)]
pub(crate) struct Reader {
    kept: Arc<Kept>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Kept {
    messages: Mutex<Vec<Publish>>,
    is_subscribed: AtomicBool,
    is_over: AtomicBool,
}

impl Reader {
    /// Subscribes, and waits until that is confirmed.
    fn start(address: SocketAddr) -> anyhow::Result<Reader> {
        let kept = Arc::new(Kept::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(&kept);
        let thread = std::thread::spawn(move || runtime.block_on(read(address, &shared)));
        let reader = Reader { kept, thread: Some(thread) };
        wait_for("the subscriber", || reader.kept.is_subscribed.load(Ordering::SeqCst).then_some(()))?;
        Ok(reader)
    }

    /// What has come since the last time.
    fn take(&self) -> Vec<Publish> {
        std::mem::take(&mut *self.kept.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.kept.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn read(address: SocketAddr, kept: &Kept) {
    let mut options = v5::MqttOptions::new(READER, address.ip().to_string(), address.port());
    options
        .set_credentials(READER, PASSWORD)
        .set_clean_start(false)
        .set_session_expiry_interval(Some(3_600))
        .set_max_packet_size(Some(PACKET_BYTES_MAX));
    let (client, mut events) = v5::AsyncClient::new(options, 10);
    while !kept.is_over.load(Ordering::SeqCst) {
        // It looks now and then whether it is over.
        let Ok(event) = tokio::time::timeout(PAUSE, events.poll()).await else { continue };
        match event {
            Ok(v5::Event::Incoming(Packet::ConnAck(_))) => {
                let _ = client.try_subscribe("#", v5::mqttbytes::QoS::AtLeastOnce);
            }
            Ok(v5::Event::Incoming(Packet::SubAck(_))) => kept.is_subscribed.store(true, Ordering::SeqCst),
            Ok(v5::Event::Incoming(Packet::Publish(publish))) => {
                kept.messages.lock().unwrap_or_else(PoisonError::into_inner).push(publish);
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
