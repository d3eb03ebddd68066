//! Sections 4.2, 4.3, 4.6 and 4.9: the transport, the QoS flows, the order of messages, flow control.

use anyhow::{Result, ensure};

use crate::row::rows;
use crate::scene::Stage;
use crate::server;

rows! {
    "7.1.1-1" "4.2.0-1" "the server speaks over a stream: where packets are cut does not matter"
        => run cut_anywhere;

    // QoS 0 and 1.
    "4.3.1-1" "4.3.1-1" "QoS 0: the server sends PUBLISH with QoS 0 and without DUP"
        => say r#"s: connect; s: subscribe 00 @; p: connect; p: publish 0 @ x; s: < 30{"@" <> 'x'}; p: publish 2 @ y; s: < 30{"@" <> 'y'}"#;
    "4.3.2-1" "4.3.2-1" "QoS 1: each new message gets an identifier that is not in use"
        => run identifiers_are_not_in_use;
    "4.3.2-1" "4.3.2-2" "QoS 1: the first PUBLISH has no DUP"
        => say r#"
            s: resume 0; s: subscribe 01 @; p: connect; p: publish 1 @ 1; s: < 32{"@" $a <> '1'}; s: > 40{$a}; s: leave
            p: publish 1 @ 2; s: resume 1; s: < 32{"@" $b <> '2'}"#;
    "4.3.2-1" "4.3.2-3" "QoS 1: a message counts as unacknowledged until its PUBACK"
        => say r#"
            s: resume 0; s: subscribe 01 @; p: connect; p: publish 1 @ x; s: < 32{"@" $a <> 'x'}; s: drop
            s: resume 1; s: < 3A{"@" $a <> 'x'}; s: drop; s: resume 1; s: < 3A{"@" $a <> 'x'}; s: > 40{$a}; s: quiet
            s: drop; s: resume 1; s: quiet"#;
    "4.3.2-2" "4.3.2-4" "QoS 1: PUBACK has the identifier of the PUBLISH, and the message is the server's"
        => say r#"
            s: resume 0; s: subscribe 01 @; s: leave; p: connect; p: > 32{"@" 7FFF <> 'x'}; p: < 40{7FFF ~}; p: drop
            s: resume 1; s: gets 1 @ x"#;
    "4.3.2-2" "4.3.2-5" "QoS 1: after PUBACK the same identifier is a new message, with DUP or without"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <> 'x'}; p: < 40{0001 ~}; p: > 3A{"@" 0001 <> 'x'}; p: < 40{0001 ~}
            p: > 32{"@" 0001 <> 'x'}; p: < 40{0001 ~}; s: gets 1 @ x; s: gets 1 @ x; s: gets 1 @ x; s: quiet"#;

    // QoS 2, the server sends.
    "4.3.3-1" "4.3.3-1" "QoS 2: each new message gets an identifier that is not in use"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: publish 2 @ 1; p: publish 2 @ 2; p: publish 1 @ 3
            s: < 34{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}; s: < 32{"@" $d <> '3'}; distinct a b d
            s: > 50{$a}; s: < 62{$a}; p: publish 2 @ 4; s: < 34{"@" $e <> '4'}; distinct a b d e"#;
    "4.3.3-1" "4.3.3-2" "QoS 2: the first PUBLISH has no DUP"
        => say r#"s: connect; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}"#;
    "4.3.3-1" "4.3.3-3" "QoS 2: PUBLISH counts as unacknowledged until its PUBREC"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}; s: drop
            s: resume 1; s: < 3C{"@" $a <> 'x'}; s: > 50{$a}; s: < 62{$a}; s: > 70{$a}; s: quiet"#;
    "4.3.3-1" "4.3.3-4" "QoS 2: PUBREC is answered with PUBREL of the same identifier, a second one too"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}
            s: > 50{$a}; s: < 62{$a}; s: > 50{$a}; s: < 62{$a}; s: > 70{$a}; s: quiet"#;
    "4.3.3-1" "4.3.3-5" "QoS 2: PUBREL counts as unacknowledged until its PUBCOMP"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}; s: > 50{$a}; s: < 62{$a}
            s: drop; s: resume 1; s: < 62{$a}; s: drop; s: resume 1; s: < 62{$a}; s: > 70{$a}; s: quiet
            s: drop; s: resume 1; s: quiet"#;
    "4.3.3-1" "4.3.3-6" "QoS 2: after PUBREL the PUBLISH is not sent again"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 2 @ 1; s: < 34{"@" $a <> '1'}; s: > 50{$a}; s: < 62{$a}
            s: leave; p: publish 1 @ 2; s: resume 1; s: < 62{$a}; s: > 70{$a}; s: gets 1 @ 2; s: quiet"#;
    "-" "4.3.3-7" "QoS 2: a message that was sent once does not expire"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: > 34{"@" 0001 <02 00000002> 'x'}; p: < 50{0001 ~}
            s: < 34{"@" $a <~> 'x'}; s: leave; wait 2500; s: resume 1; s: < 3C{"@" $a <~> 'x'}; s: > 50{$a}; s: < 62{$a}"#;

    // QoS 2, the server receives.
    "4.3.3-2" "4.3.3-8" "QoS 2: PUBREC has the identifier of the PUBLISH, and the message is the server's"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: > 34{"@" 7FFF <> 'x'}; p: < 50{7FFF ~}; p: > 62{7FFF}; p: < 70{7FFF ~}
            s: gets 2 @ x"#;
    "-" "4.3.3-9" "QoS 2: after a PUBREC with an error the identifier is free for a new message"
        => say r#"
            s: connect; s: subscribe 02 @/#; p: connect; p: > 34{"@/denied" 0005 <> 'no'}; p: < 50{0005 87 ~}
            p: > 34{"@/ok" 0005 <> 'yes'}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005}; s: gets 2 @/ok yes; s: quiet"#;
    "4.3.3-2" "4.3.3-10" "QoS 2: until PUBREL, a PUBLISH with the same identifier is acknowledged and not delivered again"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect
            p: > 34{"@" 0005 <> 'x'}; p: < 50{0005 ~}; p: > 3C{"@" 0005 <> 'x'}; p: < 50{0005 ~}
            p: > 3C{"@" 0005 <> 'x'}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005 ~}
            p: publish 2 @ y; s: gets 2 @ x; s: gets 2 @ y"#;
    "4.3.3-2" "4.3.3-10" "… also on the next connection of the session: exactly once"
        => say r#"
            s: connect; s: subscribe 02 @; p: resume 0; p: > 34{"@" 0005 <> 'x'}; p: < 50{0005 ~}; p: drop
            p: resume 1; p: > 3C{"@" 0005 <> 'x'}; p: < 50{0005 ~}; p: drop
            p: resume 1; p: > 62{0005}; p: < 70{0005 ~}; p: publish 2 @ y; s: gets 2 @ x; s: gets 2 @ y"#;
    "4.3.3-2" "4.3.3-10" "… also when the server was restarted in between"
        => run exactly_once_over_a_restart;
    "4.3.3-2" "4.3.3-10" "… also when the publisher did not wait for PUBREC"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: > 34{"@" 0005 <> 'x'} 3C{"@" 0005 <> 'x'}
            p: < 50{0005 ~}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005 ~}; p: publish 2 @ y; s: gets 2 @ x; s: gets 2 @ y"#;
    "4.3.3-2" "4.3.3-11" "QoS 2: PUBREL is answered with PUBCOMP of the same identifier, a second one too"
        => say r#"
            connect; > 34{"@" 0102 <> 'x'}; < 50{0102 ~}; > 62{0102}; < 70{0102}; > 62{0102}; < 70{0102 ~}; quiet"#;
    "4.3.3-2" "4.3.3-12" "QoS 2: after PUBCOMP the same identifier is a new message"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect
            p: > 34{"@" 0005 <> '1'}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005 ~}
            p: > 3C{"@" 0005 <> '2'}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005 ~}; s: gets 2 @ 1; s: gets 2 @ 2"#;
    "-" "4.3.3-13" "QoS 2: a message that expired is acknowledged to the end"
        => say r#"
            p: connect; p: > 34{"@" 0001 <02 00000001> 'x'}; p: < 50{0001 ~}; wait 1500
            p: > 3C{"@" 0001 <02 00000001> 'x'}; p: < 50{0001 ~}; p: > 62{0001}; p: < 70{0001}"#;

    // Order.
    "4.6.0-1" "4.6.0-1" "what is sent again is sent in its first order"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 1 @ 1; p: publish 2 @ 2; p: publish 1 @ 3; p: publish 2 @ 4
            s: < 32{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}; s: < 32{"@" $d <> '3'}; s: < 34{"@" $e <> '4'}; s: drop
            s: resume 1; s: < 3A{"@" $a <> '1'}; s: < 3C{"@" $b <> '2'}; s: < 3A{"@" $d <> '3'}; s: < 3C{"@" $e <> '4'}"#;
    "4.6.0-2" "4.6.0-2" "the server too sends PUBACKs in the order of the PUBLISHes, refused ones in their place"
        => say r#"
            connect; > 32{"@" 0009 <> '1'} 32{"@" 0003 <> '2'} 5[32{"@/denied" 0007 <> 'x'}] 32{"@" 0005 <> '3'}
            < 40{0009 ~}; < 40{0003 ~}
            5| < 40{0007 87 ~}
            < 40{0005 ~}"#;
    "4.6.0-3" "4.6.0-3" "the server too sends PUBRECs in the order of the PUBLISHes"
        => say r#"
            connect; > 34{"@" 0009 <> '1'} 34{"@" 0003 <> '2'} 34{"@" 0005 <> '3'}
            < 50{0009 ~}; < 50{0003 ~}; < 50{0005 ~}"#;
    "4.6.0-4" "4.6.0-4" "the server too sends PUBRELs in the order of the PUBRECs"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: publish 2 @ 1; p: publish 2 @ 2; p: publish 2 @ 3
            s: < 34{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}; s: < 34{"@" $d <> '3'}
            s: > 50{$b} 50{$d} 50{$a}; s: < 62{$b}; s: < 62{$d}; s: < 62{$a}"#;
    "4.6.0-6" "4.6.0-5" "messages of a client come in the order in which it published them"
        => run in_order;
    "4.6.0-5" "4.6.0-6" "every topic is an ordered one, also where messages waited in a session"
        => say r#"
            s: resume 0; s: subscribe 01 @/#; p: connect; p: publish 1 @/a 1; s: gets 1 @/a 1; s: leave
            p: publish 1 @/a 2; p: publish 1 @/b 3; p: publish 1 @/a 4; s: resume 1; p: publish 1 @/a 5
            s: gets 1 @/a 2; s: gets 1 @/b 3; s: gets 1 @/a 4; s: gets 1 @/a 5; s: quiet"#;

    // Flow control.
    "-" "4.9.0-1" "the send quota is not 0: with a receive maximum of 1 messages come"
        => say r#"s: connect <21 0001>; s: subscribe 01 @; p: connect; p: publish 1 @ x; s: gets 1 @ x; p: publish 1 @ y; s: gets 1 @ y"#;
    "-" "4.9.0-1" "… on a connection that resumes a session with more on its way than it takes"
        => say r#"
            s: resume 0 <21 000A>; s: subscribe 01 @; p: connect; p: publish 1 @ 1; p: publish 1 @ 2; p: publish 1 @ 3
            s: < 32{"@" $a <> '1'}; s: < 32{"@" $b <> '2'}; s: < 32{"@" $d <> '3'}; s: drop
            s: resume 1 <21 0001>; s: < 3A{"@" $a <> '1'}; s: quiet; s: > 40{$a}; s: < 3A{"@" $b <> '2'}; s: quiet
            s: > 40{$b}; s: < 3A{"@" $d <> '3'}; s: > 40{$d}; s: quiet"#;
    "-" "4.9.0-2" "each PUBLISH at QoS 1 and 2 uses the quota; at 0, none is sent; QoS 0 does not count"
        => say r#"
            s: connect <21 0002>; s: subscribe 02 @; w: connect; w: subscribe 02 @; p: connect
            p: publish 1 @ 1; p: publish 2 @ 2; p: publish 1 @ 3; w: gets 1 @ 1; w: gets 2 @ 2; w: gets 1 @ 3
            s: < 32{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}; p: publish 0 @ 0; s: < 30{"@" <> '0'}; s: quiet
            s: > 40{$a}; s: < 32{"@" $d <> '3'}"#;
    "-" "4.9.0-3" "with the quota used up, everything else is answered"
        => say r#"
            s: connect <21 0001>; s: subscribe 01 @; p: connect; p: publish 1 @ 1; p: publish 1 @ 2; s: < 32{"@" $a <> '1'}
            s: quiet; s: > 82{0001 <> "@/a" 01}; s: < 90{0001 <> 01}; s: > A2{0002 <> "@/a"}; s: < B0{0002 <> 00}
            s: > 34{"@/b" 0003 <> 'x'}; s: < 50{0003 ~}; s: > 62{0003}; s: < 70{0003}; s: > 32{"@/b" 0004 <> 'x'}; s: < 40{0004 ~}"#;
}

/// A conversation byte by byte, and the same in one write.
async fn cut_anywhere(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    let said = r#"10{"MQTT" V 02 003C <> "@"} 82{0001 <> "@/t" 01} 32{"@/t" 0002 <> 'x'*200} C0{}"#;
    let bytes = scene.bytes(said)?;
    for size in [1, 7, bytes.len()] {
        scene.play("open").await?;
        for piece in bytes.chunks(size) {
            scene.peer("c").await?.send(piece).await;
            tokio::task::yield_now().await;
        }
        scene.play(r#"< 20{0000 <~>}"#).await?;
        // PUBACK, the message, SUBACK and PINGRESP are independent of each other.
        let mut kinds = Vec::new();
        for _ in 0..4 {
            kinds.push(scene.peer("c").await?.packet().await?.kind());
        }
        kinds.sort_unstable();
        ensure!(kinds == [3, 4, 9, 13], "packets of the kinds {kinds:?} came");
    }
    Ok(())
}

/// One message stays unacknowledged while 300 others come and go: none takes its identifier.
async fn identifiers_are_not_in_use(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play(r#"s: connect; s: subscribe 01 @; p: connect; p: publish 1 @ x; s: < 32{"@" $a <> 'x'}"#).await?;
    for _ in 0..300 {
        scene.play("p: publish 1 @ y; s: gets 1 @ y").await?;
        scene.play("distinct a !").await?;
    }
    Ok(())
}

async fn exactly_once_over_a_restart(stage: Stage) -> Result<()> {
    let gateway = server::start().await;
    let script = r#"
        s: resume 0; s: subscribe 02 @; s: leave; p: resume 0; p: > 34{"@" 0005 <> 'x'}; p: < 50{0005 ~}"#;
    stage.on(gateway.addr()).play(script).await?;
    let gateway = server::restart(gateway).await;
    let script = r#"
        p: resume 1; p: > 3C{"@" 0005 <> 'x'}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005 ~}; p: publish 2 @ y
        s: resume 1; s: gets 2 @ x; s: gets 2 @ y; s: quiet"#;
    let played = stage.on(gateway.addr()).play(script).await;
    gateway.stop().await;
    played
}

/// Two hundred numbered messages at each QoS, as fast as they go.
async fn in_order(stage: Stage) -> Result<()> {
    const MESSAGES: u8 = 200;
    let mut scene = stage.scene();
    scene.play("s: connect; s: subscribe 01 @; p: connect").await?;
    for qos in [0, 1] {
        let mut bytes = Vec::new();
        for number in 0..MESSAGES {
            let id = if qos == 1 { format!("01{number:02X}") } else { String::new() };
            bytes.extend(scene.bytes(&format!(r#"3{}{{"@" {id} <> {number:02X}}}"#, qos * 2))?);
        }
        // MQTT 5 clients keep to the receive maximum: eight at a time.
        let each = bytes.len() / usize::from(MESSAGES);
        for (turn, piece) in bytes.chunks(each * 8).enumerate() {
            scene.peer("p").await?.send(piece).await;
            for offset in 0..piece.len() / each {
                let expected = (turn * 8 + offset) as u8;
                let packet = scene.peer("s").await?.packet().await?;
                ensure!(packet.body.last() == Some(&expected), "message {expected} was to come");
                if qos == 1 {
                    let at = 2 + stage.name.len();
                    scene.peer("s").await?.send(&[0x40, 2, packet.body[at], packet.body[at + 1]]).await;
                    scene.play(&format!("p: < 40{{01{expected:02X} ~}}")).await?;
                }
            }
        }
    }
    Ok(())
}
