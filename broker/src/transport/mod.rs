//! From an accepted socket to a stream of MQTT bytes: TCP, TLS, WebSocket, WebSocket over TLS.
//!
//! Handshakes happen in the connection's own task, so that none holds up another or the accept loop. Their time counts
//! towards the deadline of CONNECT.

pub(crate) mod tls;
pub(crate) mod websocket;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use tls::Tls;
use websocket::{WebSocket, WebSocketRules};

/// What is spoken on a listener below MQTT.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layers {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) websocket: Option<Arc<WebSocketRules>>,
}

/// A connection that speaks MQTT from now on.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: Transport,
    /// The name in the client's certificate, if it showed one.
    pub(crate) certificate: Option<Box<str>>,
}

/// The stream of bytes of a connection.
#[derive(Debug)]
pub(crate) enum Transport {
    Direct(Socket),
    // Larger by far, and rarer.
    WebSocket(Box<WebSocket<Socket>>),
}

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Makes the handshakes that a listener asks for.
///
/// # Errors
/// The client does not keep to them, or has a certificate without a name.
pub(crate) async fn open(stream: TcpStream, layers: &Layers, packet_bytes_max: usize) -> io::Result<Opened> {
    let (socket, certificate) = match &layers.tls {
        None => (Socket::Tcp(stream), None),
        Some(tls) => {
            let stream = tls.acceptor().accept(stream).await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let name = shown.map(|certificate| tls::name_in(certificate).ok_or_else(nameless)).transpose()?;
            (Socket::Tls(Box::new(stream)), name)
        }
    };
    let stream = match &layers.websocket {
        None => Transport::Direct(socket),
        Some(rules) => Transport::WebSocket(Box::new(WebSocket::accept(socket, rules, packet_bytes_max).await?)),
    };
    Ok(Opened { stream, certificate })
}

fn nameless() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the client's certificate has no common name and no DNS name")
}

/// Calls the method of whichever stream it is.
macro_rules! each {
    ($this:expr, $kind:ident, $($variant:ident)|+, $stream:ident => $call:expr) => {
        match $this.get_mut() { $($kind::$variant($stream) => $call,)+ }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, Socket, Tcp | Tls, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, Socket, Tcp | Tls, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, Socket, Tcp | Tls, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, Socket, Tcp | Tls, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, Transport, Direct | WebSocket, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, Transport, Direct | WebSocket, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, Transport, Direct | WebSocket, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, Transport, Direct | WebSocket, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
