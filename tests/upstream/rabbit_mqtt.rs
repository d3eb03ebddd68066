//! RabbitMQ's MQTT plugin: the gateway speaks MQTT 3.1.1, a consumer reads a quorum queue over AMQP.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::runtime::Runtime;

use crate::kind::{Flaw, Kind, Message, Missing, Server, Want};
use crate::rabbit::{self, Node};
use crate::secrets::{PASSWORD, USER};

/// How long a consumer is silent when it has had everything.
const SILENCE: Duration = Duration::from_millis(300);

/// RabbitMQ over MQTT.
pub(crate) struct RabbitMqtt;

impl Kind for RabbitMqtt {
    fn name(&self) -> &'static str {
        "mqtt-rabbit"
    }

    fn find(&self) -> Result<(), Missing> {
        rabbit::find()
    }

    fn cannot(&self, scenario: &str) -> Option<&'static str> {
        let only = !matches!(scenario, "order" | "cuts" | "restarts" | "password");
        only.then_some("the server makes no difference there")
    }

    fn start(&self, dir: &Path, want: Want) -> anyhow::Result<Box<dyn Server>> {
        let node = if want.alone { Arc::new(Node::start(Some(dir))?) } else { Node::shared()? };
        // The exchange is the same for all: scenarios have prefixes of their own.
        let site = format!("site-{}", dir.file_name().unwrap_or_default().to_string_lossy().replace('.', "_"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = RabbitMqttServer { runtime, node, want, site, consumer: None, received: Vec::new() };
        server.make_queue()?;
        Ok(Box::new(server))
    }
}

struct RabbitMqttServer {
    /// Dropped first: what consumes must not outlive the node.
    runtime: Runtime,
    node: Arc<Node>,
    want: Want,
    site: String,
    consumer: Option<(Connection, Channel, Consumer)>,
    received: Vec<Message>,
}

impl RabbitMqttServer {
    /// A queue for everything of the site: the plugin acknowledges what no queue takes, and forgets it.
    fn make_queue(&self) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let connection = rabbit::connect(self.node.ports().amqp).await?;
            let channel = connection.create_channel().await?;
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            let (queue, key) = (self.site.as_str().into(), format!("{}.#", self.site));
            channel.queue_declare(self.site.as_str().into(), options, arguments).await?;
            let options = QueueBindOptions::default();
            channel.queue_bind(queue, "amq.topic".into(), key.into(), options, FieldTable::default()).await?;
            Ok(())
        })
    }
}

impl Server for RabbitMqttServer {
    fn address(&self) -> SocketAddr {
        self.node.ports().mqtt
    }

    fn upstream(&self, dir: &Path) -> anyhow::Result<String> {
        let wrong = self.want.flaw == Some(Flaw::Password);
        std::fs::write(dir.join("password"), if wrong { "wrong horse\n" } else { PASSWORD })?;
        Ok(format!(
            "kind = \"mqtt\"\nversion = \"3.1.1\"\nprefix = \"{0}/\"\nclient_id = \"{0}\"\nuser = \"{USER}\"\n\
             password_file = \"password\"\n",
            self.site
        ))
    }

    fn stop(&mut self, at_once: bool) -> anyhow::Result<()> {
        self.consumer = None;
        self.node.stop(at_once)
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        self.node.start_again()
    }

    fn repair(&mut self, dir: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(dir.join("password"), PASSWORD)?)
    }

    fn received(&mut self) -> anyhow::Result<&[Message]> {
        let RabbitMqttServer { runtime, node, site, consumer, received, .. } = self;
        runtime.block_on(async {
            if consumer.is_none() {
                let connection = rabbit::connect(node.ports().amqp).await?;
                let channel = connection.create_channel().await?;
                let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
                let queue = channel.basic_consume(site.as_str().into(), "reader".into(), options, arguments);
                *consumer = Some((connection, channel.clone(), queue.await?));
            }
            let (_, _, deliveries) = consumer.as_mut().context("a consumer")?;
            while let Ok(delivery) = tokio::time::timeout(SILENCE, deliveries.next()).await {
                let delivery = delivery.context("the consumer has ended")??;
                let topic = delivery.routing_key.as_str().replace('.', "/");
                let topic = topic.strip_prefix(&format!("{site}/")).context("the site is before each topic")?;
                received.push(Message::bare(topic.to_owned(), delivery.data.clone()));
                delivery.ack(BasicAckOptions::default()).await?;
            }
            anyhow::Ok(())
        })?;
        Ok(received)
    }
}
