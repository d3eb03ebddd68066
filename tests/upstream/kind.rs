//! What an upstream's kind is to these tests: a server that is started, stopped and asked what it received.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use crate::secrets::Secrets;

/// Why a server is not there, and how to get it.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

/// What is wrong at first in the scenario of repairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The gateway has the wrong password.
    Password,
    /// What it is to publish to is not there: an exchange, a topic, a stream.
    Target,
}

/// What a scenario wants of a server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Want {
    /// It is stopped and started: no other scenario may share it.
    pub(crate) alone: bool,
    /// The gateway is to come over TLS.
    pub(crate) tls: Option<&'static Secrets>,
    /// What is wrong at first.
    pub(crate) flaw: Option<Flaw>,
}

/// A message as a consumer gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// From the header `millwright-id`, and so on; all empty where the protocol has no headers.
    pub(crate) id: String,
    pub(crate) topic: String,
    pub(crate) content: String,
    pub(crate) received_us: String,
    pub(crate) encoding: Option<String>,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// A message of a protocol without headers.
    pub(crate) fn bare(topic: String, payload: Vec<u8>) -> Message {
        let none = String::new;
        Message { id: none(), topic, content: none(), received_us: none(), encoding: None, payload }
    }

    /// A message from its headers; a payload that says it is packed is unpacked.
    ///
    /// # Errors
    /// A header is missing, or the payload is not what it says.
    pub(crate) fn read(header: impl Fn(&str) -> Option<String>, payload: &[u8]) -> anyhow::Result<Message> {
        let needed = |name: &str| header(name).with_context(|| format!("a message has no header {name}"));
        let encoding = header("content-encoding");
        let payload = match encoding.as_deref() {
            None => payload.to_vec(),
            Some("gzip") => {
                let mut unpacked = Vec::new();
                flate2::read::GzDecoder::new(payload).read_to_end(&mut unpacked)?;
                unpacked
            }
            Some(other) => anyhow::bail!("a message is packed with \"{other}\""),
        };
        Ok(Message {
            id: needed("millwright-id")?,
            topic: needed("millwright-topic")?,
            content: needed("millwright-content")?,
            received_us: needed("millwright-received-us")?,
            encoding,
            payload,
        })
    }
}

/// A kind of upstream, with a server for it.
pub(crate) trait Kind: Sync {
    /// Its name in the names of tests.
    fn name(&self) -> &'static str;

    /// Whether there is a server.
    ///
    /// # Errors
    /// It is not installed.
    fn find(&self) -> Result<(), Missing>;

    /// Whether it may be missing also where all are required, because another one plays most of it.
    fn is_optional(&self) -> bool {
        false
    }

    /// Why a scenario is not played with it; `None` if it is.
    fn cannot(&self, scenario: &str) -> Option<&'static str>;

    /// The largest message that its server takes, bytes, where that is less than a gateway may take.
    fn size_max(&self) -> Option<usize> {
        None
    }

    /// Whether models and commands come down from it.
    fn brings_down(&self) -> bool {
        false
    }

    /// Starts a server, or shares one, with what it keeps below `dir`.
    ///
    /// # Errors
    /// It does not come up.
    fn start(&self, dir: &Path, want: Want) -> anyhow::Result<Box<dyn Server>>;
}

/// A running server.
pub(crate) trait Server: Send {
    /// Where it listens for what the gateway speaks; may be another after a start.
    fn address(&self) -> SocketAddr;

    /// The gateway's `address` with `proxy` between it and the server. One that comes to the gateway comes through the proxy instead.
    ///
    /// # Errors
    /// It does not start.
    fn come_through(&mut self, proxy: SocketAddr) -> anyhow::Result<SocketAddr> {
        Ok(proxy)
    }

    /// Whether it tells clients its own address, which the proxy has to replace by its own.
    fn names_itself(&self) -> bool {
        false
    }

    /// The keys of `[[upstream]]` behind name and address; files they name are written to `dir`.
    ///
    /// # Errors
    /// A file cannot be written.
    fn upstream(&self, dir: &Path) -> anyhow::Result<String>;

    /// The end of what it has logged, for who looks into a failure.
    fn log(&self) -> String {
        String::new()
    }

    /// Stops it: at once, as if its power was cut, or as an operator does.
    ///
    /// # Errors
    /// It does not stop.
    fn stop(&mut self, at_once: bool) -> anyhow::Result<()>;

    /// Starts it again with what it has kept.
    ///
    /// # Errors
    /// It does not come up.
    fn start_again(&mut self) -> anyhow::Result<()>;

    /// Puts right what [`Want::flaw`] asked for; files it names are in `dir`.
    ///
    /// # Errors
    /// That is not possible.
    fn repair(&mut self, dir: &Path) -> anyhow::Result<()>;

    /// All messages that arrived since the beginning, in the order in which a consumer gets them.
    ///
    /// # Errors
    /// They cannot be read, as when the server is stopped.
    fn received(&mut self) -> anyhow::Result<&[Message]>;
}
