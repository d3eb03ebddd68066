//! Section 3.1: CONNECT, without the will.

use anyhow::{Result, ensure};
use millwright_broker::{Users, hash_password};

use crate::row::rows;
use crate::scene::{Stage, properties_of};
use crate::server;

rows! {
    // The first packet, and only the first.
    "3.1.0-1" "3.1.0-1" "a connection that begins with PINGREQ is closed"
        => say r#"> C0{}; closed"#;
    "3.1.0-1" "3.1.0-1" "a connection that begins with PUBLISH is closed, and nothing is published"
        => say r#"
            s: connect; s: subscribe 00 @
            > 30{"@" <> 'no'}; closed
            p: connect; p: publish 0 @ yes; s: gets 0 @ yes"#;
    "3.1.0-1" "3.1.0-1" "a connection that begins with SUBSCRIBE is closed"
        => say r#"> 82{0001 <> "@" 00}; closed"#;
    "3.1.0-1" "3.1.0-1" "a connection that begins with DISCONNECT is closed"
        => say r#"> E0{}; closed"#;
    "3.1.0-2" "3.1.0-2" "a second CONNECT is a protocol error"
        => say r#"connect; > 10{"MQTT" V 02 003C <> "@-c"}; closed 82"#;

    // Protocol name and version.
    "3.1.2-1" "3.1.2-1" "another protocol name is not served"
        => say r#"> 10{"MQTX" V 02 003C <> "@"}; closed"#;
    "3.1.2-1" "3.1.2-1" "the protocol name is case-sensitive"
        => say r#"> 10{"mqtt" V 02 003C <> "@"}; closed"#;
    "3.1.2-2" "3.1.2-2" "a version older than 3.1.1 is told so, and closed"
        => say r#"> 10{"MQTT" 03 02 003C "@"}; < 20{00 01}; closed"#;
    "3.1.2-2" "3.1.2-2" "MQTT 3.1 is told that it is not spoken, and closed"
        => say r#"> 10{"MQIsdp" 03 02 003C "@"}; < 20{00 01}; closed"#;
    "-" "3.1.2-2" "a version newer than 5 is told so, and closed"
        => say r#"> 10{"MQTT" 06 02 003C <> "@"}; refused 84 01"#;

    // Connect flags.
    "3.1.2-3" "3.1.2-3" "the reserved connect flag is 0"
        => say r#"> 10{"MQTT" V 03 003C <> "@"}; refused 81 --"#;
    "3.1.2-18" "3.1.2-16" "without the user name flag there is no user name"
        => say r#"> 10{"MQTT" V 02 003C <> "@" "user"}; refused 81 --"#;
    "3.1.2-19" "3.1.2-17" "with the user name flag there is a user name"
        => say r#"> 10{"MQTT" V 82 003C <> "@"}; refused 81 --"#;
    "3.1.2-20" "3.1.2-18" "without the password flag there is no password"
        => say r#"> 10{"MQTT" V 82 003C <> "@" "user" "password"}; refused 81 --"#;
    "3.1.2-21" "3.1.2-19" "with the password flag there is a password"
        => say r#"> 10{"MQTT" V C2 003C <> "@" "user"}; refused 81 --"#;
    "3.1.2-22" "-" "no password without a user name"
        => say r#"> 10{"MQTT" V 42 003C <> "@" "password"}; refused 81 --"#;

    // Keep alive.
    "3.1.2-24" "3.1.2-22" "a client that is silent for one and a half keep-alives is disconnected"
        => say r#"> 10{"MQTT" V 02 0001 <> "@"}; < 20{0000 <~>}; closed 8D"#;
    "3.1.2-24" "3.1.2-22" "… as if the network had failed: its will is published"
        => say r#"
            w: connect; w: subscribe 00 @/w
            > 10{"MQTT" V 06 0001 <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}
            w: gets 0 @/w gone; closed 8D"#;
    "3.1.2-24" "3.1.2-22" "PINGREQ keeps a client connected"
        => say r#"
            > 10{"MQTT" V 02 0002 <> "@"}; < 20{0000 <~>}
            wait 1200; quiet; wait 1200; quiet; wait 1200; quiet"#;
    "3.1.2-24" "3.1.2-22" "a keep-alive of 0 does not disconnect a silent client"
        => say r#"> 10{"MQTT" V 02 0000 <> "@"}; < 20{0000 <~>}; wait 2000; quiet"#;
    "-" "3.1.2-22" "the keep-alive that the server imposes is the one that counts"
        => run server_keep_alive;

    // What the client takes.
    "-" "3.1.2-24" "no PUBLISH larger than the client's maximum packet size"
        => say r#"
            s: connect <27 00000040>; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <> 'x'*100}; p: < 40{0001 ~}; p: publish 1 @ small
            s: gets 1 @ small"#;
    "-" "3.1.2-24" "no live PUBLISH larger than the client's maximum packet size"
        => say r#"
            s: connect <27 00000040>; s: subscribe 00 @; p: connect
            p: > 30{"@" <> 'x'*100}; p: publish 0 @ small; s: gets 0 @ small"#;
    "-" "3.1.2-24" "no CONNACK larger than the client's maximum packet size"
        => run connack_fits;
    "-" "3.1.2-24" "no SUBACK or UNSUBACK larger than the client's maximum packet size"
        => run acknowledgements_fit;
    "-" "3.1.2-25" "a message too large for the client counts as sent: it takes no place in the window"
        => say r#"
            s: connect <27 00000040 21 0001>; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <> 'x'*100}; p: < 40{0001 ~}; p: > 32{"@" 0001 <> 'x'*100}; p: < 40{0001 ~}
            p: publish 1 @ small; s: gets 1 @ small; p: publish 1 @ again; s: gets 1 @ again"#;
    "-" "3.1.2-26" "no topic alias above the client's maximum"
        => run aliases_within_maximum;
    "-" "3.1.2-27" "no topic alias if the client did not ask for any"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: publish 0 @ 1; s: < 30{"@" <> '1'}; p: publish 0 @ 2; s: < 30{"@" <> '2'}
            p: publish 1 @ 3; s: < 32{"@" $a <> '3'}"#;
    "-" "3.1.2-27" "no topic alias if the client's maximum is 0"
        => say r#"
            s: connect <22 0000>; s: subscribe 00 @; p: connect
            p: publish 0 @ 1; s: < 30{"@" <> '1'}; p: publish 0 @ 2; s: < 30{"@" <> '2'}"#;
    "-" "3.1.2-28" "no response information if the client does not ask for it"
        => say r#"a: connect <19 00>; a: lacks 1A; b: connect; b: lacks 1A"#;
    "-" "3.1.2-29" "no reason string and no user property on acknowledgements if the client does not want them"
        => say r#"
            connect <17 00>
            > 82{0001 <> "@/#/bad" 01}; < 90{0001 <~> 8F}; lacks 1F 26
            > A2{0002 <> "@"}; < B0{0002 <~> 11}; lacks 1F 26
            > 32{"@/denied" 0003 <> 'x'}; < 40{0003 87 ~}; lacks 1F 26
            > 34{"@/denied" 0004 <> 'x'}; < 50{0004 87 ~}; lacks 1F 26
            > 62{0005}; < 70{0005 92 ~}; lacks 1F 26
            > 50{0006}; < 62{0006 92 ~}; lacks 1F 26"#;
    "-" "4.13.1-1" "a receive maximum of 0 is a protocol error"
        => say r#"> 10{"MQTT" V 02 003C <21 0000> "@"}; refused 82 --"#;
    "-" "4.13.1-1" "a maximum packet size of 0 is a protocol error"
        => say r#"> 10{"MQTT" V 02 003C <27 00000000> "@"}; refused 82 --"#;
    "-" "4.13.1-1" "request problem information is 0 or 1"
        => say r#"> 10{"MQTT" V 02 003C <17 02> "@"}; refused 82 --"#;
    "-" "4.13.1-1" "request response information is 0 or 1"
        => say r#"> 10{"MQTT" V 02 003C <19 02> "@"}; refused 82 --"#;
    "-" "4.13.1-1" "authentication data without a method is a protocol error"
        => say r#"> 10{"MQTT" V 02 003C <16 ('data')> "@"}; refused 82 --"#;

    // The payload.
    "3.1.3-1" "3.1.3-1" "identifier, will, user name and password are read in this order"
        => run payload_order;
    "3.1.3-2" "3.1.3-2" "a session belongs to its client identifier and to no other"
        => say r#"
            a: resume 0; a: subscribe 01 @; a: leave; b: resume 0
            p: connect; p: publish 1 @ x; b: quiet; a: resume 1; a: gets 1 @ x"#;
    "3.1.3-3" "3.1.3-3" "a CONNECT without a client identifier is malformed"
        => say r#"> 10{"MQTT" V 02 003C <>}; refused 81 --"#;
    "3.1.3-4" "3.1.3-4" "a client identifier that is not UTF-8 is refused"
        => say r#"> 10{"MQTT" V 02 003C <> ('a' FF)}; refused 81 --"#;
    "3.1.3-5" "3.1.3-5" "digits and letters, 1 to 23 of them, are accepted as client identifier"
        => alone r#"
            a: > 10{"MQTT" V 02 003C <> "0123456789abcdefghijklm"}; a: < 20{0000 <~>}
            b: > 10{"MQTT" V 02 003C <> "nopqrstuvwxyzABCDEFGHIJ"}; b: < 20{0000 <~>}
            c: > 10{"MQTT" V 02 003C <> "KLMNOPQRSTUVWXYZ"}; c: < 20{0000 <~>}
            d: > 10{"MQTT" V 02 003C <> "0"}; d: < 20{0000 <~>}
            a: quiet; b: quiet; c: quiet; d: quiet"#;
    "3.1.3-6" "3.1.3-6" "clients without an identifier get one each: they do not push each other out"
        => say r#"
            a: > 10{"MQTT" V 02 003C <> ""}; a: < 20{0000 <~>}
            b: > 10{"MQTT" V 02 003C <> ""}; b: < 20{0000 <~>}
            a: quiet; b: quiet"#;
    "-" "3.1.3-7" "the identifier that was assigned is in CONNACK and is the client's"
        => run assigned_identifier;
    "3.1.3-8" "-" "no identifier, and a session to keep: refused with 0x02"
        => say r#"> 10{"MQTT" V 00 003C <> ""}; refused 85 02"#;
    "3.1.3-9" "3.1.3-8" "an identifier that the server rejects is refused as such, and the connection closed"
        => say r#"> 10{"MQTT" V 02 003C <> ('x'*600)}; refused 85 02"#;
    "3.1.3-11" "3.1.3-12" "a user name that is not UTF-8 is refused"
        => say r#"> 10{"MQTT" V 82 003C <> "@" (C0AF)}; refused 81 --"#;

    // What follows.
    "3.1.4-1" "3.1.4-1" "a CONNECT that goes on after its last field is malformed"
        => say r#"> 10{"MQTT" V 02 003C <> "@" 00}; refused 81 --"#;
    "3.1.4-1" "3.1.4-1" "a CONNECT that ends before its last field is malformed"
        => say r#"> 10{"MQTT" V 02 003C <> 0009 'short'}; refused 81 --"#;
    "-" "3.1.4-2" "a wrong password is refused, and the connection closed"
        => run wrong_password;
    "3.1.4-2" "3.1.4-3" "a client identifier that connects again takes over: the first connection is told and closed"
        => say r#"
            a: > 10{"MQTT" V 02 003C <> "@"}; a: < 20{0000 <~>}
            b: > 10{"MQTT" V 02 003C <> "@"}; b: < 20{0000 <~>}
            a: closed 8E; b: quiet"#;
    "3.1.4-2" "3.1.4-3" "… also with a session that goes on"
        => say r#"
            a: > 10{"MQTT" V 00 003C <11 0000003C> "@"}; a: < 20{0000 <~>}
            b: > 10{"MQTT" V 00 003C <11 0000003C> "@"}; b: < 20{0100 <~>}
            a: closed 8E; b: quiet"#;
    "3.1.4-3" "3.1.4-4" "clean start is done before CONNACK: nothing of the old session is left"
        => say r#"
            resume 0; subscribe 01 @; leave; connect
            p: connect; p: publish 1 @ old; subscribe 01 @; p: publish 1 @ new; gets 1 @ new"#;
    "3.1.4-4" "3.1.4-5" "a CONNECT that is in order is acknowledged with success"
        => say r#"> 10{"MQTT" V 02 003C <> "@"}; < 20{0000 <~>}"#;
    "3.1.4-5" "3.1.4-6" "what a client sends after a CONNECT that is refused is not processed"
        => say r#"
            w: connect; w: subscribe 01 @
            > 10{"MQTT" V 02 003C <> ('x'*600)} 32{"@" 0001 <> 'no'}; refused 85 02
            p: connect; p: publish 1 @ yes; w: gets 1 @ yes"#;
}

/// A client that asks for none is given the server's keep-alive, and is held to it.
async fn server_keep_alive(stage: Stage) -> Result<()> {
    let gateway = server::with(|config| config.limits.keep_alive_max_s = 1).await;
    let script = r#"> 10{"MQTT" V 02 0000 <> "@"}; < 20{0000 <~>}; has 13; closed 8D"#;
    let played = stage.on(gateway.addr()).play(script).await;
    gateway.stop().await;
    played
}

/// Whatever comes for a client that takes 12 bytes, none of it is larger.
async fn connack_fits(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play(r#"> 10{"MQTT" V 02 003C <27 0000000C> "@"} C000"#).await?;
    let peer = scene.peer("c").await?;
    while let Some(packet) = peer.next().await? {
        ensure!(packet.len <= 12, "{} bytes were sent to a client that takes 12", packet.len);
        if packet.kind() == 13 {
            break;
        }
    }
    Ok(())
}

/// Forty filters are answered with more than 40 bytes; a client that takes less is not sent that.
async fn acknowledgements_fit(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    for (first, filter) in [("82", r#""@" 00 "#), ("A2", r#""@" "#)] {
        scene.play("connect <27 00000028>").await?;
        scene.play(&format!("> {first}{{0001 <> {}}} C000", filter.repeat(40))).await?;
        let peer = scene.peer("c").await?;
        while let Some(packet) = peer.next().await? {
            ensure!(packet.len <= 40, "{} bytes were sent to a client that takes 40", packet.len);
            if packet.kind() == 13 {
                break;
            }
        }
    }
    Ok(())
}

/// Five topics, twice each, for a client that takes two aliases.
async fn aliases_within_maximum(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play("s: connect <22 0002>; s: subscribe 01 @/#; p: connect").await?;
    for topic in 0..10 {
        let qos = topic % 2;
        scene.play(&format!("p: publish {qos} @/{} x", topic % 5)).await?;
        let packet = scene.peer("s").await?.packet().await?;
        for (id, value) in properties_of(&packet)? {
            ensure!(id != 0x23 || (1..=2).contains(&u16::from_be_bytes([value[0], value[1]])), "alias {value:?}");
        }
    }
    Ok(())
}

/// A server that knows one user.
async fn with_user(change: impl FnOnce(&mut millwright_broker::BrokerConfig)) -> Result<crate::common::Gateway> {
    let mut users = Users::new();
    users.insert("plc", &hash_password(b"right")?)?;
    Ok(server::with(|config| {
        config.users = Some(users);
        change(config);
    })
    .await)
}

async fn payload_order(stage: Stage) -> Result<()> {
    let gateway = with_user(|_| {}).await?;
    let script = r#"
        w: > 10{"MQTT" V C2 003C <> "@w" "plc" ('right')}; w: < 20{0000 <~>}; w: subscribe 00 @/w
        > 10{"MQTT" V C6 003C <> "@" <> "@/w" ('gone') "plc" ('right')}; < 20{0000 <~>}
        drop; w: gets 0 @/w gone"#;
    let played = stage.on(gateway.addr()).play(script).await;
    gateway.stop().await;
    played
}

async fn wrong_password(stage: Stage) -> Result<()> {
    let gateway = with_user(|_| {}).await?;
    let script = r#"
        a: > 10{"MQTT" V C2 003C <> "@" "plc" ('wrong')}; a: refused 86 04
        b: > 10{"MQTT" V 02 003C <> "@"}; b: refused 86 04"#;
    let played = stage.on(gateway.addr()).play(script).await;
    gateway.stop().await;
    played
}

/// Two clients without an identifier get different ones, and whoever connects with one of them takes over.
async fn assigned_identifier(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        scene.play(&format!(r#"{name}: > 10{{"MQTT" V 02 003C <> ""}}; {name}: < 20{{0000 <~>}}"#)).await?;
        let found = properties_of(&scene.peer(name).await?.last)?;
        let id = found.into_iter().find(|(id, _)| *id == 0x12).map(|(_, value)| value);
        ids.push(String::from_utf8(id.unwrap_or_default().split_off(2))?);
    }
    ensure!(!ids[0].is_empty() && ids[0] != ids[1], "the identifiers {ids:?}");
    scene.play(&format!(r#"d: > 10{{"MQTT" V 02 003C <> "{}"}}; d: < 20{{0000 <~>}}"#, ids[0])).await?;
    scene.play("a: closed 8E; b: quiet; d: quiet").await
}
