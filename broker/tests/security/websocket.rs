//! MQTT over WebSocket: what is served, and what pages and programs try.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use millwright_broker::codec::{Packet, Reason, Version, encode};
use millwright_broker::message::QoS;
use millwright_broker::{ClientCertificates, TlsListen, WebSocketListen, WebSocketRules};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::common::{Client, Gateway, Stream, connect};
use crate::pki::{Authority, TlsClient};

fn local() -> Option<SocketAddr> {
    Some(([127, 0, 0, 1], 0).into())
}

async fn start() -> Gateway {
    Gateway::with(|config| {
        let rules = WebSocketRules { origins: vec!["https://plant.example".into()], ..WebSocketRules::default() };
        config.websocket = Some(WebSocketListen { listen: local(), tls_listen: None, rules });
        config.limits.packet_bytes_max = 300_000;
    })
    .await
}

fn request(headers: &[(&'static str, &str)], path: &str) -> Request {
    let mut request = format!("ws://gw-1{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

fn mqtt() -> Request {
    request(&[("sec-websocket-protocol", "mqtt")], "/mqtt")
}

async fn open(addr: SocketAddr) -> WebSocketStream<TcpStream> {
    client_async(mqtt(), TcpStream::connect(addr).await.unwrap()).await.unwrap().0
}

/// A client that puts `frame_bytes` into each frame, whatever that is of a packet.
fn client<S: Stream + 'static>(mut socket: WebSocketStream<S>, version: Version, frame_bytes: usize) -> Client {
    let (near, far) = duplex(1 << 20);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(far);
        let mut bytes = vec![0; frame_bytes];
        loop {
            tokio::select! {
                count = read.read(&mut bytes) => match count {
                    Ok(count @ 1..) => socket.send(Message::binary(bytes[..count].to_vec())).await.unwrap(),
                    _ => return,
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => write.write_all(&bytes).await.unwrap(),
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    });
    Client::on(near, version)
}

// Packets arrive whole however they are cut into frames, in both versions and directions; pings of the frame layer do no harm.
#[tokio::test(flavor = "multi_thread")]
async fn messages_travel_in_frames() {
    let gateway = start().await;
    let addr = gateway.broker.addresses().websocket.unwrap();
    let large: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    for version in [Version::V311, Version::V5] {
        for frame_bytes in [1, 7, 64 * 1024] {
            let mut socket = open(addr).await;
            socket.send(Message::Ping("hello".into())).await.unwrap();
            let mut client = client(socket, version, frame_bytes);
            assert_eq!(client.introduce(connect(version, "ws")).await.reason, Reason::Success);
            assert_eq!(client.subscribe("t/#", QoS::AtLeastOnce).await, Reason::GrantedQoS1);
            let mut plain = Client::connect(gateway.addr(), Version::V5, "plain").await;
            plain.subscribe("u", QoS::AtLeastOnce).await;
            for payload in [&b"small"[..], &large] {
                plain.publish("t/x", QoS::AtLeastOnce, payload).await;
                assert_eq!(&*client.message().await.payload, payload);
            }
            let payload = if frame_bytes > 7 { &large[..] } else { b"small" };
            assert_eq!(client.publish("u", QoS::ExactlyOnce, payload).await, Reason::Success);
            assert_eq!(&*plain.message().await.payload, payload);
        }
    }
    gateway.assert_serves().await;
}

// WebSocket over TLS is both.
#[tokio::test(flavor = "multi_thread")]
async fn frames_travel_over_tls() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Off);
    let gateway = Gateway::with(|config| {
        config.tls = Some(TlsListen { listen: None, files });
        let rules = WebSocketRules::default();
        config.websocket = Some(WebSocketListen { listen: None, tls_listen: local(), rules });
    })
    .await;
    let addresses = gateway.broker.addresses();
    assert_eq!((addresses.tls, addresses.websocket), (None, None));
    let stream = TlsClient::new(&authority, None).shake(addresses.websocket_tls.unwrap()).await.unwrap();
    let socket = client_async(mqtt(), stream).await.unwrap().0;
    let mut client = client(socket, Version::V5, 4_096);
    assert_eq!(client.introduce(connect(Version::V5, "wss")).await.reason, Reason::Success);
    client.subscribe("t", QoS::AtLeastOnce).await;
    client.publish("t", QoS::AtMostOnce, &[7; 100_000]).await;
    assert_eq!(client.message().await.payload.len(), 100_000);
    gateway.assert_serves().await;
}

// Pages of other origins, other paths and other protocols are refused with a status that says so.
#[tokio::test(flavor = "multi_thread")]
async fn requests_outside_the_rules() {
    let gateway = start().await;
    let addr = gateway.broker.addresses().websocket.unwrap();
    let mqtt = ("sec-websocket-protocol", "mqtt");
    for (status, request) in [
        (404, request(&[mqtt], "/other")),
        (400, request(&[], "/mqtt")),
        (400, request(&[("sec-websocket-protocol", "chat, mqttv3.1")], "/mqtt")),
        (403, request(&[mqtt, ("origin", "https://evil.example")], "/mqtt")),
        (403, request(&[mqtt, ("origin", "http://gw-1")], "/mqtt")),
        (403, request(&[mqtt, ("origin", "null")], "/mqtt")),
        (101, request(&[mqtt, ("origin", "https://plant.example")], "/mqtt")),
        (101, request(&[("sec-websocket-protocol", "chat, mqtt")], "/mqtt")),
    ] {
        let stream = TcpStream::connect(addr).await.unwrap();
        let answered = match client_async(request.clone(), stream).await {
            Ok((_, response)) => response.status().as_u16(),
            Err(Error::Http(response)) => response.status().as_u16(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(answered, status, "{request:?}");
    }
    gateway.assert_serves().await;
}

// Text, oversized and unmasked frames, endless headers, other protocols and stalled handshakes end their own connection.
#[tokio::test(flavor = "multi_thread")]
async fn frames_and_requests_that_are_none() {
    let gateway = start().await;
    let addr = gateway.broker.addresses().websocket.unwrap();
    let mut socket = open(addr).await;
    socket.send(Message::text("hello")).await.unwrap();
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
    let mut socket = open(addr).await;
    // More than the largest packet in a message: refused before it is taken in.
    let _ = socket.send(Message::binary(vec![0; 4 << 20])).await;
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
    let mut endless = b"GET /mqtt HTTP/1.1\r\n".to_vec();
    endless.extend(b"x: y\r\n".repeat(100_000));
    let mut connect_packet = bytes::BytesMut::new();
    encode(&Packet::Connect(Box::new(connect(Version::V5, "c"))), Version::V5, &mut connect_packet);
    for bytes in
        [&endless[..], &connect_packet, b"POST /mqtt HTTP/1.1\r\n\r\n", b"GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    // A frame without a mask. [RFC 6455, 5.1]
    let mut raw = TcpStream::connect(addr).await.unwrap();
    let upgrade = "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                   Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    raw.write_all(upgrade.as_bytes()).await.unwrap();
    raw.write_all(&[0x82, 2, 0xC0, 0]).await.unwrap();
    let _ = raw.read_to_end(&mut Vec::new()).await;
    gateway.until("all are gone", |gateway| gateway.broker.stats().connections == 0).await;
    gateway.assert_serves().await;
}
