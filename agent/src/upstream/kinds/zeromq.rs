//! ZeroMQ, for a program on the same machine: PUSH, with an acknowledgement of the consumer's own.
//!
//! ZeroMQ itself tells nobody whether a message arrived. So each carries its identifier, and counts as delivered when a consumer has
//! sent that back on a second socket. When a consumer comes or goes, or acknowledges nothing for the upstream's `timeout_s`, both sockets
//! are closed and opened again: a connection that is gone is seen late, and what went into its queue would be overtaken.
//! Owns both sockets. Bounds: [`UNACKNOWLEDGED_MAX`] messages on their way.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use zeromq::{PullSocket, PushSocket, Socket, SocketEvent, SocketRecv, SocketSend, ZmqError, ZmqMessage};

use super::super::record::Record;
use super::super::sink::{Confirmed, Sink, SinkError};
use super::progress::Progress;
use crate::config::UpstreamConfig;

/// Messages sent and not yet acknowledged.
const UNACKNOWLEDGED_MAX: usize = 1_000;
/// What is left of the timeout to say that no consumer came.
const SAY: Duration = Duration::from_millis(100);
/// How long the first consumer waits for others: clients look for a socket that was closed every 100 ms.
const OTHERS: Duration = Duration::from_millis(300);

struct Zeromq {
    push: PushSocket,
    pull: PullSocket,
    /// Who comes and goes on each.
    on_push: BoxStream<'static, SocketEvent>,
    on_pull: BoxStream<'static, SocketEvent>,
}

impl Drop for Zeromq {
    fn drop(&mut self) {
        // The library closes the connections of the other one by itself.
        self.pull.backend().shutdown();
    }
}

/// Binds both sockets, and waits for a consumer to connect to them.
pub(in super::super) async fn connect(config: &UpstreamConfig, ack_address: &str) -> Result<Box<dyn Sink>, SinkError> {
    let (mut push, mut pull) = (PushSocket::new(), PullSocket::new());
    let (on_push, on_pull) = (push.monitor().boxed(), pull.monitor().boxed());
    let mut sink = Zeromq { push, pull, on_push, on_pull };
    let told = |address: &str, error: ZmqError| SinkError::while_(&format!("listening on {address}"), error);
    sink.push.bind(&format!("tcp://{}", config.address)).await.map_err(|error| told(&config.address, error))?;
    sink.pull.bind(&format!("tcp://{ack_address}")).await.map_err(|error| told(ack_address, error))?;
    let both = async { tokio::join!(accepted(&mut sink.on_push), accepted(&mut sink.on_pull)) };
    if tokio::time::timeout(config.timeout.saturating_sub(SAY), both).await.is_err() {
        let (takes, acknowledges) = (&config.address, ack_address);
        let what = format!("no consumer is connected to {takes} and {acknowledges}");
        return Err(SinkError::Lost(what));
    }
    while tokio::time::timeout(OTHERS, accepted(&mut sink.on_push)).await.is_ok() {}
    Ok(Box::new(sink))
}

/// Resolves when a consumer has connected.
async fn accepted(events: &mut BoxStream<'static, SocketEvent>) {
    while let Some(event) = events.next().await {
        if matches!(event, SocketEvent::Accepted(..)) {
            return;
        }
    }
}

/// Resolves when a consumer has come or gone.
async fn changed(events: &mut BoxStream<'static, SocketEvent>) -> SinkError {
    while let Some(event) = events.next().await {
        match event {
            SocketEvent::Accepted(..) => return SinkError::Lost("a consumer has come, or come back".to_owned()),
            SocketEvent::Disconnected(_) => return gone(),
            _ => {}
        }
    }
    gone()
}

fn gone() -> SinkError {
    SinkError::Lost("a consumer has gone".to_owned())
}

#[async_trait]
impl Sink for Zeromq {
    async fn deliver(&mut self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError> {
        let progress = Progress::new(records.len());
        // Identifiers to places in the delivery.
        let mut sent: HashMap<&str, usize> = HashMap::new();
        let (mut next, mut done) = (0, 0);
        while done < records.len() {
            while let Some(record) = records.get(next).filter(|_| sent.len() < UNACKNOWLEDGED_MAX) {
                self.send(record).await?;
                sent.insert(&record.id, next);
                next += 1;
            }
            for frame in self.acknowledgement().await?.iter() {
                // One that was sent before the last connection ended may come again.
                let place = std::str::from_utf8(frame).ok().and_then(|id| sent.remove(id));
                done = place.map_or(done, |place| progress.done([place]));
            }
            confirmed.set(done);
        }
        Ok(())
    }

    async fn ended(&mut self) -> SinkError {
        loop {
            if let Err(error) = self.acknowledgement().await {
                return error;
            }
        }
    }
}

impl Zeromq {
    /// Sends one message. The queue of a connection holds more than are ever unacknowledged, so that it does not wait.
    async fn send(&mut self, record: &Record) -> Result<(), SinkError> {
        let frames = vec![
            Bytes::copy_from_slice(record.id.as_bytes()),
            Bytes::copy_from_slice(record.topic.as_str().as_bytes()),
            Bytes::from_static(record.content.word().as_bytes()),
            Bytes::from(record.received_us.to_string()),
            Bytes::from_static(record.encoding().unwrap_or_default().as_bytes()),
            record.payload.clone(),
        ];
        let message =
            ZmqMessage::try_from(frames).map_err(|_| SinkError::Lost("a message has no frames".to_owned()))?;
        match self.push.send(message).await {
            Ok(()) => Ok(()),
            Err(ZmqError::ReturnToSender { .. } | ZmqError::BufferFull(_)) => Err(gone()),
            Err(error) => Err(SinkError::while_("sending", error)),
        }
    }

    /// The next message of a consumer.
    async fn acknowledgement(&mut self) -> Result<ZmqMessage, SinkError> {
        tokio::select! {
            biased;
            error = changed(&mut self.on_push) => Err(error),
            error = changed(&mut self.on_pull) => Err(error),
            received = self.pull.recv() => {
                received.map_err(|error| SinkError::while_("waiting for acknowledgements", error))
            }
        }
    }
}
