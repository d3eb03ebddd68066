//! rumqttc, a client of others, in both versions.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Gateway, PATIENCE};
use rumqttc::v5;
use tokio::time::timeout;

// rumqttc speaks 3.1.1: what it publishes at each QoS comes back, and its publishes are acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_v311() {
    let gateway = Gateway::start().await;
    let mut options = rumqttc::MqttOptions::new("plc", "127.0.0.1", gateway.addr().port());
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = rumqttc::AsyncClient::new(options, 10);
    client.subscribe("plant/#", rumqttc::QoS::ExactlyOnce).await.unwrap();
    let (mut got, mut acked) = (Vec::new(), 0);
    let round_trip = async {
        while got.len() < 3 || acked < 2 {
            match events.poll().await.unwrap() {
                rumqttc::Event::Incoming(rumqttc::Packet::SubAck(_)) => {
                    for (number, qos) in
                        [rumqttc::QoS::AtMostOnce, rumqttc::QoS::AtLeastOnce, rumqttc::QoS::ExactlyOnce]
                            .into_iter()
                            .enumerate()
                    {
                        client.publish(format!("plant/{number}"), qos, false, vec![number as u8]).await.unwrap();
                    }
                }
                rumqttc::Event::Incoming(rumqttc::Packet::Publish(publish)) => got.push(publish.payload[0]),
                rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_) | rumqttc::Packet::PubComp(_)) => acked += 1,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, round_trip).await.expect("the round trip did not finish");
    got.sort();
    assert_eq!(got, [0, 1, 2]);
    client.disconnect().await.unwrap();
}

// rumqttc speaks MQTT 5: user properties come back with the message.
#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_v5() {
    let gateway = Gateway::start().await;
    let mut options = v5::MqttOptions::new("plc", "127.0.0.1", gateway.addr().port());
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = v5::AsyncClient::new(options, 10);
    client.subscribe("plant/#", v5::mqttbytes::QoS::AtLeastOnce).await.unwrap();
    let user = vec![("unit".to_owned(), "mm/s".to_owned())];
    let properties = v5::mqttbytes::v5::PublishProperties { user_properties: user.clone(), ..Default::default() };
    let round_trip = async {
        loop {
            match events.poll().await.unwrap() {
                v5::Event::Incoming(v5::mqttbytes::v5::Packet::SubAck(_)) => {
                    let qos = v5::mqttbytes::QoS::AtLeastOnce;
                    client.publish_with_properties("plant/1", qos, false, "7.1", properties.clone()).await.unwrap();
                }
                v5::Event::Incoming(v5::mqttbytes::v5::Packet::Publish(publish)) => return publish,
                _ => {}
            }
        }
    };
    let got = timeout(PATIENCE, round_trip).await.expect("the round trip did not finish");
    assert_eq!((got.payload.as_ref(), got.properties.unwrap().user_properties), (&b"7.1"[..], user));
}
