//! User names and passwords, and whose a client identifier is.

use millwright_broker::codec::{Connect, Reason, Version};
use millwright_broker::message::QoS;
use millwright_broker::{Users, hash_password};

use crate::common::{Client, Gateway, connect};
use crate::pki::login;

const PASSWORD: &str = "correct horse";

async fn start() -> Gateway {
    Gateway::with(|config| {
        let mut users = Users::new();
        let hash = hash_password(PASSWORD.as_bytes()).unwrap();
        users.insert("ann", &hash).unwrap();
        users.insert("bob", &hash).unwrap();
        config.users = Some(users);
    })
    .await
}

async fn answer(gateway: &Gateway, wish: Connect) -> Reason {
    Client::connect_with(gateway.addr(), wish).await.1.reason
}

// Nobody comes in without a user name and its password.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused() {
    let gateway = start().await;
    let nameless = Connect { username: None, ..login(Version::V5, "c", "", PASSWORD) };
    for wish in [
        connect(Version::V5, "c"),
        nameless,
        Connect { password: None, ..login(Version::V5, "c", "ann", "") },
        login(Version::V5, "c", "ann", ""),
        login(Version::V5, "c", "ann", "wrong"),
        login(Version::V5, "c", "Ann", PASSWORD),
        login(Version::V5, "c", "eve", PASSWORD),
        login(Version::V5, "c", "", PASSWORD),
    ] {
        assert_eq!(answer(&gateway, wish.clone()).await, Reason::BadUserNameOrPassword, "{wish:?}");
    }
    let known = login(Version::V311, "c", "ann", "wrong");
    assert_eq!(answer(&gateway, known).await, Reason::BadUserNameOrPassword);
    assert_eq!(answer(&gateway, login(Version::V5, "c", "ann", PASSWORD)).await, Reason::Success);
    assert_eq!(gateway.broker.stats().logins_wrong, 9);
}

// Who guesses is held back: after some wrong passwords even the right one is not looked at for a while, and who is connected
// notices nothing.
#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_down() {
    let gateway = start().await;
    let (mut client, _) = Client::connect_with(gateway.addr(), login(Version::V5, "c", "bob", PASSWORD)).await;
    let mut wrong = 0;
    while answer(&gateway, login(Version::V5, "g", "ann", "guess")).await == Reason::BadUserNameOrPassword {
        wrong += 1;
        assert!(wrong < 1_000, "guessing goes on");
    }
    assert_eq!(answer(&gateway, login(Version::V5, "g", "ann", PASSWORD)).await, Reason::ConnectionRateExceeded);
    client.publish("t", QoS::AtLeastOnce, b"x").await;
    // It is forgiven with time.
    let mut tried = 0;
    while answer(&gateway, login(Version::V5, "g", "ann", PASSWORD)).await != Reason::Success {
        tried += 1;
        assert!(tried < 1_000, "never forgiven");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

// Another user cannot take a client identifier over, neither the connection nor the session that waits for its client, nor end
// it with a clean start.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_belong_to_their_users() {
    let gateway = start().await;
    for version in [Version::V311, Version::V5] {
        let expiry = millwright_broker::codec::Property::SessionExpiryInterval(600);
        let properties = if version == Version::V5 { vec![expiry] } else { Vec::new() };
        let of = |user: &str, clean_start| Connect {
            clean_start,
            properties: properties.clone(),
            ..login(version, "press", user, PASSWORD)
        };
        let (mut client, _) = Client::connect_with(gateway.addr(), of("ann", false)).await;
        client.subscribe("secret", QoS::AtLeastOnce).await;
        for clean_start in [false, true] {
            assert_eq!(answer(&gateway, of("bob", clean_start)).await, Reason::NotAuthorized);
        }
        client.assert_quiet().await;
        drop(client);
        gateway.until("she is gone", |gateway| gateway.broker.stats().connections == 0).await;
        let (mut publisher, _) = Client::connect_with(gateway.addr(), login(version, "p", "bob", PASSWORD)).await;
        publisher.publish("secret", QoS::AtLeastOnce, b"for ann").await;
        for clean_start in [false, true] {
            assert_eq!(answer(&gateway, of("bob", clean_start)).await, Reason::NotAuthorized);
        }
        let (mut client, connack) = Client::connect_with(gateway.addr(), of("ann", false)).await;
        assert!(connack.session_present);
        assert_eq!(&*client.message().await.payload, b"for ann");
        // Her own takeover works, and ends the session for the next version.
        let (_, connack) = Client::connect_with(gateway.addr(), login(version, "press", "ann", PASSWORD)).await;
        assert_eq!((connack.reason, connack.session_present), (Reason::Success, false));
        client.closed().await;
        drop(publisher);
        gateway.until("all are gone", |gateway| gateway.broker.stats().connections == 0).await;
    }
}
