//! The little language of the table: steps of one or several clients, one after the other.
//!
//! A step is `client: verb …`; without a client it is that of `c`. `5|` or `4|` before it keeps it to MQTT 5 or 3.1.1.
//! Steps are separated by `;` or by lines. Packets are written as [`crate::wire`] says.
//!
//! | step | means |
//! |---|---|
//! | `open` | a TCP connection, no CONNECT yet (every other step that needs one opens it by itself) |
//! | `> bytes`, `< packet` | sends; expects the next packet to be this one |
//! | `connect <…>` | CONNECT with clean start and these properties on a new connection; expects success, no session present |
//! | `resume 0 <…>`, `resume 1 <…>` | CONNECT to a session that outlives the connection; expects Session Present 0 or 1 |
//! | `subscribe 01 filter` | with these options; expects the SUBACK to grant it |
//! | `publish 1 topic text` | at QoS 0, 1 or 2, with `r` retained (`1r`); goes through the whole acknowledgement |
//! | `gets 1 topic text` | expects the next packet to be this message, at this QoS, with RETAIN only after `1r`; acknowledges it |
//! | `quiet` | PINGREQ; expects PINGRESP and nothing before it |
//! | `closed 81` | expects the server to close: in MQTT 5 after DISCONNECT with this (or, `81,82`, one of these) reason; in 3.1.1, and without a reason, without a word |
//! | `refused 85 02` | expects CONNACK with this reason in MQTT 5, this return code in 3.1.1 (`--`: no CONNACK), then the end |
//! | `leave`, `drop` | DISCONNECT and the server's close; cuts the connection without a word |
//! | `has 12 13`, `lacks 1A` | the last packet has, does not have, these properties |
//! | `distinct a b` | the packet identifiers `$a` and `$b` differ |
//! | `wait 1500` | milliseconds, for what only time brings about |

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millwright_broker::codec::Version;

use crate::peer::{Packet, Peer, Transcript};
use crate::wire::{self, Env, Ids};

/// What a row runs in: a server, a version, and names of its own.
#[derive(Clone)]
pub struct Stage {
    pub addr: SocketAddr,
    pub version: Version,
    /// Begins every topic and client identifier of the row.
    pub name: String,
    pub transcript: Transcript,
}

impl Stage {
    pub fn v5(&self) -> bool {
        self.version == Version::V5
    }

    /// The same row with another server.
    pub fn on(&self, addr: SocketAddr) -> Stage {
        Stage { addr, ..self.clone() }
    }

    pub fn scene(&self) -> Scene {
        Scene { stage: self.clone(), peers: HashMap::new(), ids: Ids::new() }
    }

    pub async fn play(&self, script: &str) -> Result<()> {
        self.scene().play(script).await
    }
}

pub struct Scene {
    pub stage: Stage,
    peers: HashMap<String, Peer>,
    ids: Ids,
}

impl Scene {
    /// Plays the steps of a script.
    pub async fn play(&mut self, script: &str) -> Result<()> {
        for step in script.split([';', '\n']).map(str::trim).filter(|step| !step.is_empty()) {
            let step = match step.split_once('|') {
                Some(("5", rest)) if self.stage.v5() => rest.trim(),
                Some(("4", rest)) if !self.stage.v5() => rest.trim(),
                Some(("4" | "5", _)) => continue,
                _ => step,
            };
            self.step(step).await.with_context(|| format!("at `{step}`"))?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &str) -> Result<()> {
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (name, step) = match step.split_once(':') {
            Some((name, rest)) if is_name(name) => (name, rest.trim()),
            _ => ("c", step),
        };
        let (verb, rest) = step.split_once(char::is_whitespace).unwrap_or((step, ""));
        let rest = rest.trim();
        match verb {
            "open" => self.open(name).await,
            ">" => {
                let bytes = self.bytes(rest)?;
                self.peer(name).await?.send(&bytes).await;
                Ok(())
            }
            "<" => self.expect(name, rest).await,
            "connect" => {
                self.open(name).await?;
                let connect =
                    format!("10{{\"MQTT\" V 02 003C {} \"@-{name}\"}}", if rest.is_empty() { "<>" } else { rest });
                self.step_bytes(name, &connect).await?;
                self.expect(name, "20{00 00 <~>}").await
            }
            "resume" => self.resume(name, rest).await,
            "subscribe" => self.subscribe(name, rest).await,
            "publish" => self.publish(name, rest).await,
            "gets" => self.gets(name, rest).await,
            "quiet" => {
                self.step_bytes(name, "C000").await?;
                self.expect(name, "D0{}").await
            }
            "closed" => self.closed(name, rest).await,
            "refused" => self.refused(name, rest).await,
            "leave" => {
                self.step_bytes(name, "E000").await?;
                self.closed(name, "").await
            }
            "drop" => {
                self.stage.transcript.note(format!("{name} cuts the connection"));
                self.peers.remove(name);
                Ok(())
            }
            "has" | "lacks" => self.last_has(name, rest, verb == "has").await,
            "distinct" => {
                let mut ids: Vec<_> =
                    rest.chars().filter(|letter| *letter != ' ').map(|id| self.ids.get(&id)).collect();
                let count = ids.len();
                ids.sort();
                ids.dedup();
                ensure!(
                    ids.len() == count && !ids.contains(&None),
                    "packet identifiers are used twice: {:?}",
                    self.ids
                );
                Ok(())
            }
            "wait" => {
                tokio::time::sleep(Duration::from_millis(rest.parse()?)).await;
                Ok(())
            }
            _ => bail!("there is no step `{verb}`"),
        }
    }

    pub fn bytes(&self, text: &str) -> Result<Vec<u8>> {
        wire::bytes(text, &Env { version: self.stage.version, name: &self.stage.name }, &self.ids)
    }

    async fn open(&mut self, name: &str) -> Result<()> {
        let Stage { addr, version, transcript, .. } = self.stage.clone();
        // The old connection, if there is one, is cut first.
        self.peers.remove(name);
        self.peers.insert(name.to_owned(), Peer::open(addr, name, version, transcript).await?);
        Ok(())
    }

    pub async fn peer(&mut self, name: &str) -> Result<&mut Peer> {
        if !self.peers.contains_key(name) {
            self.open(name).await?;
        }
        self.peers.get_mut(name).context("just opened")
    }

    async fn step_bytes(&mut self, name: &str, text: &str) -> Result<()> {
        let bytes = self.bytes(text)?;
        self.peer(name).await?.send(&bytes).await;
        Ok(())
    }

    async fn expect(&mut self, name: &str, text: &str) -> Result<()> {
        let pattern = wire::pattern(text, &Env { version: self.stage.version, name: &self.stage.name })?;
        let packet = self.peer(name).await?.packet().await?;
        ensure!(pattern.matches(packet.first, &packet.body, &mut self.ids), "what came is not `{text}`");
        Ok(())
    }

    async fn resume(&mut self, name: &str, rest: &str) -> Result<()> {
        let (present, properties) = rest.split_once(' ').unwrap_or((rest, "<>"));
        // A minute is enough for every row, and any server grants it.
        let properties = properties.replacen('<', "<11 0000003C ", 1);
        self.open(name).await?;
        self.step_bytes(name, &format!("10{{\"MQTT\" V 00 003C {properties} \"@-{name}\"}}")).await?;
        self.expect(name, &format!("20{{0{present} 00 <~>}}")).await
    }

    async fn subscribe(&mut self, name: &str, rest: &str) -> Result<()> {
        let (options, filter) = rest.split_once(' ').context("subscribe options filter")?;
        let granted = u8::from_str_radix(options, 16)? & 3;
        self.step_bytes(name, &format!("82{{00F1 <> \"{filter}\" {options}}}")).await?;
        self.expect(name, &format!("90{{00F1 <~> {granted:02X}}}")).await
    }

    async fn publish(&mut self, name: &str, rest: &str) -> Result<()> {
        let (qos, retain, topic, text) = message(rest)?;
        let id = if qos > 0 { "00F2" } else { "" };
        let first = 0x30 | qos << 1 | u8::from(retain);
        self.step_bytes(name, &format!("{first:02X}{{\"{topic}\" {id} <> '{text}'}}")).await?;
        match qos {
            0 => return Ok(()),
            1 => self.expect(name, "40{00F2 ~}").await?,
            _ => self.expect(name, "50{00F2 ~}").await?,
        }
        let success = |packet: &Packet| packet.body.get(2).is_none_or(|code| *code < 0x80);
        ensure!(success(&self.peer(name).await?.last), "the publish was refused");
        if qos == 2 {
            self.step_bytes(name, "62{00F2}").await?;
            self.expect(name, "70{00F2}").await?;
        }
        Ok(())
    }

    async fn gets(&mut self, name: &str, rest: &str) -> Result<()> {
        let (qos, retain, topic, text) = message(rest)?;
        let first = 0x30 | qos << 1 | u8::from(retain);
        self.ids.remove(&'!');
        let id = if qos > 0 { "$!" } else { "" };
        self.expect(name, &format!("{first:02X}{{\"{topic}\" {id} <~> '{text}'}}")).await?;
        match qos {
            0 => Ok(()),
            1 => self.step_bytes(name, "40{$!}").await,
            _ => {
                self.step_bytes(name, "50{$!}").await?;
                // The next messages may come before PUBREL.
                let message = self.peer(name).await?.last.clone();
                let pubrel = self.peer(name).await?.packet_of(6).await?;
                ensure!(self.ids.get(&'!').is_some_and(|id| pubrel.body == id), "PUBREL of another message came");
                self.peer(name).await?.last = message;
                self.step_bytes(name, "70{$!}").await
            }
        }
    }

    async fn closed(&mut self, name: &str, codes: &str) -> Result<()> {
        let v5 = self.stage.v5();
        let peer = self.peer(name).await?;
        if v5 && !codes.is_empty() {
            let packet = peer.packet().await?;
            let code = packet.body.first().copied().unwrap_or(0);
            let expected: Vec<u8> =
                codes.split(',').map(|code| u8::from_str_radix(code, 16)).collect::<Result<_, _>>()?;
            ensure!(packet.first == 0xE0 && expected.contains(&code), "what came is not DISCONNECT {codes}");
        }
        let after = peer.next().await?;
        ensure!(after.is_none(), "something came where the connection was to be closed");
        self.peers.remove(name);
        Ok(())
    }

    async fn refused(&mut self, name: &str, codes: &str) -> Result<()> {
        let (new, old) = codes.split_once(' ').context("refused needs two codes")?;
        match (self.stage.v5(), old) {
            (true, _) => self.expect(name, &format!("20{{00 {new} <~>}}")).await?,
            (false, "--") => {}
            (false, old) => self.expect(name, &format!("20{{00 {old}}}")).await?,
        }
        self.closed(name, "").await
    }

    async fn last_has(&mut self, name: &str, ids: &str, wanted: bool) -> Result<()> {
        let found = properties_of(&self.peer(name).await?.last)?;
        for id in ids.split_whitespace() {
            let id = u8::from_str_radix(id, 16)?;
            let there = found.iter().any(|(found, _)| *found == id);
            ensure!(there == wanted, "property {id:02X} {}", if there { "is there" } else { "is missing" });
        }
        Ok(())
    }
}

/// `1r topic text`: QoS, RETAIN, topic and payload; the payload may be missing.
fn message(text: &str) -> Result<(u8, bool, &str, &str)> {
    let mut words = text.splitn(3, ' ');
    let how = words.next().context("how")?;
    let retain = how.ends_with('r');
    let qos = how.trim_end_matches('r').parse()?;
    Ok((qos, retain, words.next().context("a topic is missing")?, words.next().unwrap_or_default()))
}

/// The properties of an MQTT 5 packet from the server.
pub fn properties_of(packet: &Packet) -> Result<Vec<(u8, Vec<u8>)>> {
    let body = &packet.body[..];
    let at = match packet.kind() {
        2 => Some(2),
        3 => {
            let topic = body.first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)));
            topic.map(|topic| 2 + topic + if packet.first & 6 == 0 { 0 } else { 2 })
        }
        4..=7 => Some(3).filter(|at| body.len() > *at),
        9 | 11 => Some(2),
        14 => Some(1).filter(|at| body.len() > *at),
        _ => None,
    };
    let Some(rest) = at.and_then(|at| body.get(at..)) else { return Ok(Vec::new()) };
    let (section, _) = wire::split_section(rest).context("no property section where one must be")?;
    let found = wire::properties(section).context("a property section that is not one")?;
    Ok(found.into_iter().map(|(id, value)| (id, value.to_vec())).collect())
}
