//! The socket of a connection: reading and writing together, in one task.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::transport::Transport;

/// Room that is made for a read: little for a quiet client, more for one that fills it.
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 64 * 1024;

/// An output buffer that grew beyond this is given back when it is empty.
const OUTPUT_KEPT_BYTES: usize = 128 * 1024;

/// What the socket did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Bytes were read or written.
    Moved,
    /// The client closed its end.
    Closed,
}

#[derive(Debug)]
pub(super) struct Io {
    stream: Transport,
    /// The layers below may hold bytes that they have taken and not sent.
    flushed: bool,
    read_bytes: usize,
    /// Since when there is output that the client does not take.
    stalled_since: Option<Instant>,
}

impl Io {
    pub(super) fn new(stream: Transport) -> Io {
        Io { stream, flushed: true, read_bytes: READ_BYTES_MIN, stalled_since: None }
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Writes what is to be written and, if `reads`, reads what is there; waits until something moves. May be dropped
    /// and called again at any time.
    pub(super) async fn progress(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        reads: bool,
    ) -> std::io::Result<Progress> {
        // Messages in the log's tail are slices of read buffers and keep them whole: one is used up before another is made,
        // or a client that sends little at a time would keep a buffer for every message.
        if reads && input.capacity() - input.len() < self.read_bytes / 4 {
            input.reserve(self.read_bytes);
        }
        poll_fn(|cx| {
            let wrote = self.poll_write(cx, output)?;
            if reads {
                let room = input.capacity() - input.len();
                let read = pin!(self.stream.read_buf(input)).poll(cx)?;
                match read {
                    Poll::Ready(0) => return Poll::Ready(Ok(Progress::Closed)),
                    Poll::Ready(bytes) => {
                        self.adapt(bytes, room);
                        return Poll::Ready(Ok(Progress::Moved));
                    }
                    Poll::Pending => {}
                }
            }
            if wrote { Poll::Ready(Ok(Progress::Moved)) } else { Poll::Pending }
        })
        .await
    }

    fn adapt(&mut self, bytes: usize, room: usize) {
        if bytes == room && room >= self.read_bytes / 2 {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        } else if bytes < room / 4 {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
        }
    }

    /// True if bytes were written.
    fn poll_write(&mut self, cx: &mut Context<'_>, output: &mut BytesMut) -> std::io::Result<bool> {
        let mut wrote = false;
        while !output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, output)? {
                Poll::Ready(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(bytes) => {
                    output.advance(bytes);
                    wrote = true;
                    self.flushed = false;
                }
                Poll::Pending => break,
            }
        }
        if !self.flushed {
            self.flushed = Pin::new(&mut self.stream).poll_flush(cx)?.is_ready();
        }
        if output.is_empty() && self.flushed {
            self.stalled_since = None;
        }
        if output.is_empty() && output.capacity() > OUTPUT_KEPT_BYTES {
            *output = BytesMut::new();
        }
        if !(output.is_empty() && self.flushed) && (wrote || self.stalled_since.is_none()) {
            self.stalled_since = Some(Instant::now());
        }
        Ok(wrote)
    }

    /// Writes the rest and closes this end; waits a little for the other end, so that closing with unread input does not
    /// destroy what was just sent.
    pub(super) async fn close(&mut self, output: &mut BytesMut, flush: Duration, linger: Duration) {
        let flushed = timeout(flush, async {
            self.stream.write_all_buf(output).await?;
            self.stream.shutdown().await
        });
        if !matches!(flushed.await, Ok(Ok(()))) {
            return;
        }
        let mut unread = [0_u8; 1024];
        let drain = async { while self.stream.read(&mut unread).await.is_ok_and(|bytes| bytes > 0) {} };
        // Nobody needs what comes now.
        let _ = timeout(linger, drain).await;
    }
}
