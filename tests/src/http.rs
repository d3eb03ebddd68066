//! A small HTTP client of its own: requests as they are written, answers with their headers, and streams of events.
//!
//! A connection serves one request, so that nothing is kept between two.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::PATIENCE;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A client of one gateway, with the headers that it always sends.
#[derive(Debug, Clone)]
pub struct Http {
    addr: SocketAddr,
    headers: Vec<(String, String)>,
}

impl Http {
    /// A client that sends no header of its own.
    pub fn new(addr: SocketAddr) -> Http {
        Http { addr, headers: Vec::new() }
    }

    /// A client that may change something: it has asked for the token that this takes.
    ///
    /// # Errors
    /// The gateway does not answer.
    pub fn with_token(addr: SocketAddr) -> anyhow::Result<Http> {
        let session = Http::new(addr).get("/api/v1/session")?.json();
        let token = session["csrf"].as_str().context("the session has a token")?.to_owned();
        Ok(Http::new(addr).with("X-CSRF-Token", &token))
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Http {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// GET.
    ///
    /// # Errors
    /// The gateway does not answer.
    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send("GET", path, None, b"")
    }

    /// A request with a JSON body.
    ///
    /// # Errors
    /// The gateway does not answer.
    pub fn json(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(method, path, Some("application/json"), body.to_string().as_bytes())
    }

    /// A request with any body.
    ///
    /// # Errors
    /// The gateway does not answer.
    pub fn send(&self, method: &str, path: &str, kind: Option<&str>, body: &[u8]) -> anyhow::Result<Answer> {
        let mut stream = self.open(method, path, kind, body)?;
        let (status, headers) = head(&mut stream)?;
        let mut answer = Answer { status, headers, body: Vec::new() };
        match answer.header("transfer-encoding") {
            Some("chunked") => while chunk(&mut stream, &mut answer.body)? {},
            _ => match answer.header("content-length").map(str::parse::<usize>) {
                Some(Ok(bytes)) => {
                    answer.body.resize(bytes, 0);
                    stream.read_exact(&mut answer.body)?;
                }
                _ => drop(stream.read_to_end(&mut answer.body)?),
            },
        }
        Ok(answer)
    }

    /// Listens to a stream of events.
    ///
    /// # Errors
    /// The gateway does not serve it.
    pub fn events(&self, path: &str) -> anyhow::Result<Events> {
        let mut stream = self.open("GET", path, None, b"")?;
        let (status, headers) = head(&mut stream)?;
        anyhow::ensure!(status == 200, "{status} {headers:?}");
        Ok(Events { stream, arrived: Vec::new() })
    }

    fn open(&self, method: &str, path: &str, kind: Option<&str>, body: &[u8]) -> anyhow::Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(self.addr)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.addr);
        for (name, value) in &self.headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(kind) = kind {
            request.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes())?;
        // Who is refused before the body is read may see the connection close under it.
        let _ = stream.write_all(body);
        Ok(BufReader::new(stream))
    }
}

fn head(stream: &mut BufReader<TcpStream>) -> anyhow::Result<(u16, Vec<(String, String)>)> {
    let line = line(stream)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("not an answer: {line}"))?;
    let mut headers = Vec::new();
    loop {
        let line = self::line(stream)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut line = String::new();
    anyhow::ensure!(stream.read_line(&mut line)? > 0, "the gateway closed the connection");
    Ok(line.trim_end().to_owned())
}

/// Appends the next chunk; false at the end.
fn chunk(stream: &mut BufReader<TcpStream>, into: &mut Vec<u8>) -> anyhow::Result<bool> {
    let size = line(stream)?;
    let size = usize::from_str_radix(&size, 16).with_context(|| format!("not the size of a chunk: {size}"))?;
    let begin = into.len();
    into.resize(begin + size, 0);
    stream.read_exact(into.get_mut(begin..).unwrap_or_default())?;
    line(stream)?;
    Ok(size > 0)
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: Value,
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    stream: BufReader<TcpStream>,
    arrived: Vec<u8>,
}

impl Events {
    /// How long to wait for the next event.
    ///
    /// # Errors
    /// The socket does not take it.
    pub fn set_patience(&self, patience: Duration) -> std::io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(patience))
    }

    /// Waits for the next event; comments are passed over.
    ///
    /// # Errors
    /// The stream ends, or nothing comes.
    pub fn next_event(&mut self) -> anyhow::Result<Event> {
        loop {
            while let Some(end) = self.arrived.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.arrived.drain(..end + 2).collect();
                let text = String::from_utf8(block)?;
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
                if let (Some(name), Some(data)) = (field("event: "), field("data: ")) {
                    return Ok(Event { name: name.to_owned(), data: serde_json::from_str(data)? });
                }
            }
            anyhow::ensure!(chunk(&mut self.stream, &mut self.arrived)?, "the stream has ended");
        }
    }

    /// Waits for an event with a name, for which `wanted` holds.
    ///
    /// # Errors
    /// The stream ends, or nothing comes.
    pub fn wait_for(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            anyhow::ensure!(Instant::now() < deadline, "gave up waiting for an event `{name}`");
            let event = self.next_event()?;
            if event.name == name && wanted(&event.data) {
                return Ok(event.data);
            }
        }
    }
}
