//! MQTT over WebSocket [MQTT-6]: the HTTP handshake, and binary frames as a stream of bytes.
//!
//! A browser may be led to any address by any page, so a request that names the page's origin is served only if the page
//! comes from this host, by its address, or from one of the allowed origins: a host's name may have been made to lead here
//! by the page's owner. Memory of a connection: buffers of a few KiB, and one
//! incoming message of at most the largest packet.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

/// Bytes of one outgoing frame, at most.
const FRAME_BYTES_MAX: usize = 32 * 1024;

const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Frames that wait for the socket: one, its header, and the answers to pings.
const WRITE_BUFFER_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// A message may hold several packets, or parts of them; beyond the largest packet it gains nothing.
const MESSAGE_EXTRA_BYTES: usize = 16 * 1024;

/// The name of the protocol. [MQTT-6.0.0-3], [MQTT-6.0.0-4]
const SUBPROTOCOL: &str = "mqtt";

/// What a WebSocket request must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocketRules {
    /// The path of the resource.
    pub path: String,
    /// Pages, by origin (`https://host:port`), that may connect besides those of this host; `*` is every page.
    pub origins: Vec<String>,
}

impl Default for WebSocketRules {
    fn default() -> WebSocketRules {
        WebSocketRules { path: "/mqtt".to_owned(), origins: Vec::new() }
    }
}

impl WebSocketRules {
    fn check(&self, request: &Request) -> Result<(), (StatusCode, &'static str)> {
        let headers = request.headers();
        if request.uri().path() != self.path {
            return Err((StatusCode::NOT_FOUND, "MQTT is served at the path that [broker.websocket] names"));
        }
        if !self.allows_origin(headers) {
            return Err((StatusCode::FORBIDDEN, "this page's origin is not in `origins` of [broker.websocket]"));
        }
        let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
        let speaks_mqtt = offered.flat_map(|value| value.split(',')).any(|name| name.trim() == SUBPROTOCOL);
        match speaks_mqtt {
            true => Ok(()),
            false => Err((StatusCode::BAD_REQUEST, "the subprotocol `mqtt` was not offered [MQTT-6.0.0-3]")),
        }
    }

    /// Programs name no origin.
    fn allows_origin(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let Ok(origin) = origin.to_str() else { return false };
        if self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin)) {
            return true;
        }
        // A page of this host, whatever its port: the dashboard has another one.
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(host_of);
        let origin_host = origin.split_once("://").map(|(_, authority)| host_of(authority));
        host.is_some() && host == origin_host && host.is_some_and(is_address)
    }
}

/// A host without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether nobody else can make the host lead here.
fn is_address(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || bare.parse::<IpAddr>().is_ok()
}

/// The bytes of MQTT in a WebSocket's binary frames.
#[derive(Debug)]
pub(crate) struct WebSocket<S> {
    stream: WebSocketStream<S>,
    /// What of a message was not read yet.
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Answers the handshake.
    ///
    /// # Errors
    /// The request is not one that the rules allow, or the connection broke.
    pub(crate) async fn accept(stream: S, rules: &WebSocketRules, packet_bytes_max: usize) -> io::Result<WebSocket<S>> {
        let message_bytes_max = packet_bytes_max + MESSAGE_EXTRA_BYTES;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        #[expect(clippy::result_large_err, reason = "the shape is the library's")]
        let answer = |request: &Request, mut response: Response| match rules.check(request) {
            Ok(()) => {
                response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
                Ok(response)
            }
            Err((status, reason)) => {
                let mut refusal = ErrorResponse::new(Some(format!("{reason}\n")));
                *refusal.status_mut() = status;
                Err(refusal)
            }
        };
        let stream = accept_hdr_async_with_config(stream, answer, Some(config)).await.map_err(broken)?;
        Ok(WebSocket { stream, unread: Bytes::new() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        while socket.unread.is_empty() {
            match ready!(Pin::new(&mut socket.stream).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => socket.unread = bytes,
                // [MQTT-6.0.0-1]
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let bytes = socket.unread.len().min(buffer.remaining());
        buffer.put_slice(socket.unread.get(..bytes).unwrap_or_default());
        socket.unread.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        // One frame at a time waits for the socket: who writes is held back as by the socket itself.
        ready!(Pin::new(&mut socket.stream).poll_flush(cx)).map_err(broken)?;
        let frame = bytes.get(..FRAME_BYTES_MAX).unwrap_or(bytes);
        let message = Message::Binary(Bytes::copy_from_slice(frame));
        Pin::new(&mut socket.stream).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(frame.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx).map_err(broken)
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn allows(origins: &[&str], origin: &str, host: &str) -> bool {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let rules = WebSocketRules { origins, ..WebSocketRules::default() };
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        rules.allows_origin(&headers)
    }

    // Only pages of this host by its address, whatever the port, and allowed ones may connect.
    #[test]
    fn pages_of_others_are_refused() {
        assert!(allows(&[], "http://192.0.2.7:8080", "192.0.2.7:9001"));
        assert!(allows(&[], "http://[::1]:8080", "[::1]:9001"));
        assert!(allows(&[], "http://localhost:8080", "localhost:9001"));
        assert!(allows(&["https://plant.example"], "https://plant.example", "gw-1:9001"));
        assert!(allows(&["*"], "https://anywhere.example", "gw-1:9001"));
        for origin in ["https://evil.example", "null", "http://192.0.2.8", "http://[::2]:9001", "192.0.2.7", ""] {
            assert!(!allows(&["https://plant.example"], origin, "192.0.2.7:9001"), "{origin}");
            assert!(!allows(&[], origin, "[::1]:9001"), "{origin}");
        }
        // A name that its owner has made to lead here.
        assert!(!allows(&[], "http://evil.example", "evil.example:9001"));
    }
}
