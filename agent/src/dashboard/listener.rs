//! The HTTP listener: so many connections at a time, and none that is silent for long.
//!
//! Every request is a GET that is answered at once, so one rule is enough: a connection on which the gateway has sent nothing
//! for [`STILL_MAX`] is cut off. That ends clients that never send their headers, send them byte by byte, do not read the
//! answer, or keep a connection they do not use. Never ends because an accept failed.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use crate::descriptors::HTTP_CONNECTIONS_MAX;

/// How long a connection may be without the gateway sending anything.
const STILL_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept: no file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener with a bound.
pub(super) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, places: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)) }
    }
}

impl Listener for Bounded {
    type Io = Watched;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Watched, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let still = Box::pin(sleep(STILL_MAX));
                    return (Watched { stream, still, _place: place }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection; trying again");
                    drop(place);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is cut off when it stands still.
pub(super) struct Watched {
    stream: TcpStream,
    still: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Watched {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.still.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(wrote, Poll::Ready(Ok(_))) {
            self.still.as_mut().reset(Instant::now() + STILL_MAX);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
