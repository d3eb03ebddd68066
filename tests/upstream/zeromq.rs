//! ZeroMQ, with a consumer in Python: it connects to the gateway, through the proxy for messages and directly for acknowledgements.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::kind::{Kind, Message, Missing, Server, Want};
use crate::process::{self, Process, free_address};

/// ZeroMQ.
pub(crate) struct Zeromq;

impl Kind for Zeromq {
    fn name(&self) -> &'static str {
        "zeromq"
    }

    fn find(&self) -> Result<(), Missing> {
        process::python("zmq", "pyzmq").map(drop)
    }

    fn cannot(&self, scenario: &str) -> Option<&'static str> {
        match scenario {
            "password" | "tls" => {
                Some("it is for programs of the same machine: it has neither passwords nor certificates")
            }
            "target" => Some("there is nothing that could be missing but a consumer"),
            _ => None,
        }
    }

    fn start(&self, dir: &Path, _want: Want) -> anyhow::Result<Box<dyn Server>> {
        let dir = dir.join("consumer");
        std::fs::create_dir_all(&dir)?;
        Ok(Box::new(Consumer {
            dir,
            gateway: free_address()?,
            acknowledgements: free_address()?,
            messages: None,
            process: None,
            runs: 0,
            read: 0,
            received: Vec::new(),
        }))
    }
}

struct Consumer {
    dir: PathBuf,
    /// Where the gateway listens.
    gateway: SocketAddr,
    acknowledgements: SocketAddr,
    /// Where the consumer connects to for messages.
    messages: Option<SocketAddr>,
    process: Option<Process>,
    /// Each run keeps its messages in a file of its own.
    runs: usize,
    /// Bytes that were read of the file of this run.
    read: usize,
    received: Vec<Message>,
}

impl Consumer {
    fn file(&self) -> PathBuf {
        self.dir.join(format!("messages-{}", self.runs))
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let python = process::python("zmq", "pyzmq").map_err(|missing| anyhow::anyhow!(missing.reason))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream/consumer.py");
        let messages = format!("tcp://{}", self.messages.context("the way is known")?);
        let (acknowledgements, file) = (format!("tcp://{}", self.acknowledgements), self.file());
        let command =
            [python.as_os_str(), script.as_os_str(), messages.as_ref(), acknowledgements.as_ref(), file.as_os_str()];
        self.process = Some(Process::start(&self.dir, "consumer", &command, [])?);
        Ok(())
    }
}

impl Server for Consumer {
    fn address(&self) -> SocketAddr {
        self.gateway
    }

    fn come_through(&mut self, proxy: SocketAddr) -> anyhow::Result<SocketAddr> {
        self.messages = Some(proxy);
        self.launch()?;
        Ok(self.gateway)
    }

    fn upstream(&self, _dir: &Path) -> anyhow::Result<String> {
        Ok(format!("kind = \"zeromq\"\nack_address = \"{}\"\n", self.acknowledgements))
    }

    fn stop(&mut self, at_once: bool) -> anyhow::Result<()> {
        let mut process = self.process.take().context("the consumer runs")?;
        if at_once {
            process.kill()
        } else {
            process.terminate()?
        }
        self.received()?;
        (self.runs, self.read) = (self.runs + 1, 0);
        Ok(())
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        self.launch()
    }

    fn repair(&mut self, _dir: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    fn received(&mut self) -> anyhow::Result<&[Message]> {
        let bytes = std::fs::read(self.file()).unwrap_or_default();
        self.read += read(bytes.get(self.read..).unwrap_or_default(), &mut self.received)?;
        Ok(&self.received)
    }
}

/// Takes messages from what a consumer has kept; returns how many bytes they are. The last one may not be whole yet.
fn read(bytes: &[u8], messages: &mut Vec<Message>) -> anyhow::Result<usize> {
    let mut rest = bytes;
    while let Some((frames, behind)) = frames(rest) {
        rest = behind;
        let text = |index: usize| frames.get(index).map(|frame| String::from_utf8_lossy(frame).into_owned());
        let header = |name: &str| match name {
            "millwright-id" => text(0),
            "millwright-topic" => text(1),
            "millwright-content" => text(2),
            "millwright-received-us" => text(3),
            _ => text(4).filter(|encoding| !encoding.is_empty()),
        };
        messages.push(Message::read(header, frames.get(5).context("a message has six frames")?)?);
    }
    Ok(bytes.len() - rest.len())
}

/// Six frames with their lengths before them, and what is behind them.
fn frames(mut rest: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut frames = Vec::new();
    for _ in 0..6 {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        frames.push(behind.get(..length)?);
        rest = behind.get(length..)?;
    }
    Some((frames, rest))
}
