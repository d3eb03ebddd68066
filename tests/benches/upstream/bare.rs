//! The peers: a bare loop of the client library that the gateway uses, with the same messages, as many on their way, and nothing else.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use rskafka::record::Record;

use crate::{PAYLOAD_BYTES, rabbit};

/// As many as the gateway has on their way.
const UNCONFIRMED: usize = 2_000;
/// As many as the gateway delivers at a time.
const BATCH: usize = 1_000;

fn headers(number: usize) -> [(&'static str, String); 4] {
    [
        ("millwright-id", format!("gw/12345678/{number}")),
        ("millwright-topic", "bench/backlog".to_owned()),
        ("millwright-content", "other".to_owned()),
        ("millwright-received-us", "1700000000000000".to_owned()),
    ]
}

/// Publishes to an exchange of RabbitMQ with confirms; returns how long it took.
pub(crate) async fn amqp(address: SocketAddr, exchange: &str, messages: usize) -> anyhow::Result<Duration> {
    let connection = rabbit::connect(address).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let payload = vec![7; PAYLOAD_BYTES];
    let mut unconfirmed = VecDeque::new();
    let begun = Instant::now();
    for number in 0..messages {
        let mut table = FieldTable::default();
        for (name, value) in headers(number) {
            table.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(format!("gw/12345678/{number}").into())
            .with_headers(table);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published = channel.basic_publish(exchange.into(), "bench.backlog".into(), options, &payload, properties);
        unconfirmed.push_back(published.await?);
        if unconfirmed.len() >= UNCONFIRMED {
            let oldest = unconfirmed.pop_front().context("a confirm")?;
            ensure!(oldest.await? == Confirmation::Ack(None), "not confirmed");
        }
    }
    for confirm in unconfirmed {
        ensure!(confirm.await? == Confirmation::Ack(None), "not confirmed");
    }
    let took = begun.elapsed();
    connection.close(200, "done".into()).await?;
    Ok(took)
}

/// Writes batches to the first partition of a topic of Kafka; returns how long it took.
pub(crate) async fn kafka(address: SocketAddr, topic: &str, messages: usize) -> anyhow::Result<Duration> {
    let client = ClientBuilder::new(vec![address.to_string()]).build().await?;
    let partition = client.partition_client(topic, 0, UnknownTopicHandling::Retry).await?;
    let begun = Instant::now();
    for first in (0..messages).step_by(BATCH) {
        let record = |number: usize| Record {
            key: Some(b"bench/backlog".to_vec()),
            value: Some(vec![7; PAYLOAD_BYTES]),
            headers: headers(number).into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect(),
            timestamp: rskafka::chrono::DateTime::default(),
        };
        let batch = (first..messages.min(first + BATCH)).map(record).collect();
        partition.produce(batch, Compression::NoCompression).await?;
    }
    Ok(begun.elapsed())
}
