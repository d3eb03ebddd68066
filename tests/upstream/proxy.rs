//! A network that fails: a TCP proxy that cuts all its connections after a number of bytes, holds them, or lets nobody through.
//!
//! A server that tells clients where it is, as Kafka's do, is made to tell the proxy's address: the port in what it says is replaced.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a held connection looks whether it is held no more.
const LOOK: Duration = Duration::from_millis(5);

/// A proxy; it ends with its connections when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    way: Mutex<Way>,
    cuts: AtomicUsize,
    accepted: AtomicUsize,
    is_held: AtomicBool,
    has_ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Way {
    /// Where to; nobody gets through without.
    server: Option<SocketAddr>,
    /// Both ends of all connections.
    streams: Vec<TcpStream>,
    /// How many bytes go through, in both directions together, until all connections are cut.
    left: Option<usize>,
    /// The bytes in what the server says that name it, and what stands in their place.
    rename: Option<(Vec<u8>, Vec<u8>)>,
}

impl Proxy {
    /// A proxy that lets nobody through yet.
    pub(crate) fn start() -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            way: Mutex::default(),
            cuts: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            is_held: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if serving.has_ended.load(Ordering::SeqCst) {
                    return;
                }
                serving.accepted.fetch_add(1, Ordering::SeqCst);
                // A server that is not there is seen as a connection that ends at once.
                let _ = serving.connect(client);
            }
        });
        Ok(Proxy { shared, address })
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads to `server` from now on; `is_named` says that it tells clients its own address.
    pub(crate) fn lead_to(&self, server: SocketAddr, is_named: bool) {
        let mut way = self.shared.way();
        way.server = Some(server);
        let bytes = |address: SocketAddr| {
            let mut bytes = address.ip().to_string().into_bytes();
            bytes.extend(i32::from(address.port()).to_be_bytes());
            bytes
        };
        way.rename = is_named.then(|| (bytes(server), bytes(self.address)));
    }

    /// Cuts all connections and lets nobody through until [`Proxy::lead_to`].
    pub(crate) fn close(&self) {
        let mut way = self.shared.way();
        way.server = None;
        way.cut();
    }

    /// Cuts all connections as soon as so many more bytes went through.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.shared.way().left = Some(bytes);
    }

    /// Lets nothing through although connections stay, or everything again.
    pub(crate) fn hold(&self, is_held: bool) {
        self.shared.is_held.store(is_held, Ordering::SeqCst);
    }

    /// How often connections were cut after a number of bytes.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// How many connections were opened.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::SeqCst);
        self.close();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Way {
    fn cut(&mut self) {
        for stream in self.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Shared>, client: TcpStream) -> std::io::Result<()> {
        let Some(address) = self.way().server else { return Ok(()) };
        let server = TcpStream::connect(address)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let mut way = self.way();
        // The server was stopped meanwhile.
        if way.server != Some(address) {
            return Ok(());
        }
        way.streams.extend([client.try_clone()?, server.try_clone()?]);
        let rename = way.rename.clone();
        drop(way);
        self.pump(client.try_clone()?, server.try_clone()?, None);
        self.pump(server, client, rename);
        Ok(())
    }

    fn pump(self: &Arc<Shared>, mut from: TcpStream, mut to: TcpStream, rename: Option<(Vec<u8>, Vec<u8>)>) {
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            let (mut chunk, mut kept) = (vec![0; 65_536], Vec::new());
            while let Ok(count @ 1..) = from.read(&mut chunk) {
                while shared.is_held.load(Ordering::SeqCst) && !shared.has_ended.load(Ordering::SeqCst) {
                    std::thread::sleep(LOOK);
                }
                kept.extend_from_slice(&chunk[..count]);
                let ready = rename.as_ref().map_or(kept.len(), |(name, other)| replace(&mut kept, name, other));
                let passed = shared.pass(ready);
                let written = to.write_all(&kept[..passed]);
                if passed < ready {
                    shared.cut();
                }
                kept.drain(..ready);
                if written.is_err() || passed < ready {
                    break;
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }

    /// How many of so many bytes go through before the cut.
    fn pass(&self, bytes: usize) -> usize {
        let mut way = self.way();
        let Some(left) = way.left else { return bytes };
        if bytes > left {
            return left;
        }
        way.left = Some(left - bytes);
        bytes
    }

    fn cut(&self) {
        let mut way = self.way();
        way.cut();
        if way.left.take().is_some() {
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Shortest beginning of a name that is held back at the end of what was read: fewer bytes may be anything.
const HELD_MIN: usize = 4;

/// Replaces `name` by `other`, which is as long, and returns how many bytes may go: the end may be the beginning of a name.
fn replace(bytes: &mut [u8], name: &[u8], other: &[u8]) -> usize {
    if name.len() != other.len() {
        return bytes.len();
    }
    let mut at = 0;
    while at + name.len() <= bytes.len() {
        if bytes[at..].starts_with(name) {
            bytes[at..at + name.len()].copy_from_slice(other);
            at += name.len();
        } else {
            at += 1;
        }
    }
    let begun = (HELD_MIN..name.len()).rev().find(|count| bytes.ends_with(&name[..*count]));
    bytes.len() - begun.unwrap_or(0)
}
