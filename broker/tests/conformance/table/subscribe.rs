//! Sections 3.8 to 3.11: SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK.

use anyhow::{Result, ensure};

use crate::row::rows;
use crate::scene::Stage;

rows! {
    // SUBSCRIBE.
    "3.8.1-1" "3.8.1-1" "the flags of SUBSCRIBE are 0010: 0000 is malformed"
        => say r#"connect; > 80{0001 <> "@" 00}; closed 81"#;
    "3.8.1-1" "3.8.1-1" "… and so is 0011"
        => say r#"connect; > 83{0001 <> "@" 00}; closed 81"#;
    "3.8.3-1" "3.8.3-1" "a topic filter that is not UTF-8 is malformed"
        => say r#"connect; > 82{0001 <> (C0AF) 00}; closed 81"#;
    "3.8.3-3" "3.8.3-2" "SUBSCRIBE has at least one filter"
        => say r#"connect; > 82{0001 <>}; closed 81,82"#;
    "3.8.3-3" "3.8.3-2" "a filter without its options is malformed"
        => say r#"connect; > 82{0001 <> "@"}; closed 81"#;
    "-" "3.8.3-3" "no local: a client does not get what it published itself"
        => say r#"
            c: connect; c: subscribe 06 @; p: connect
            c: publish 0 @ own; p: publish 0 @ 0; c: gets 0 @ 0
            c: publish 1 @ own; p: publish 1 @ 1; c: gets 1 @ 1
            c: publish 2 @ own; p: publish 2 @ 2; c: gets 2 @ 2"#;
    "-" "3.8.3-3" "… it is the client identifier that counts, not the connection"
        => say r#"
            c: resume 0; c: subscribe 05 @; c: publish 1 @ own; c: leave; c: resume 1
            p: connect; p: publish 1 @ other; c: gets 1 @ other"#;
    "-" "3.8.3-3" "without no local it does"
        => say r#"connect; subscribe 01 @; > 30{"@" <> 'own'}; gets 0 @ own"#;
    "-" "3.8.3-4" "no local on a shared subscription is a protocol error"
        => say r#"connect; > 82{0001 <> "$share/g/@" 05}; closed 82"#;
    "3.8.3-4" "3.8.3-5" "reserved bits of the options are malformed"
        => say r#"connect; > 82{0001 <> "@" 40}; closed 81"#;
    "3.8.3-4" "3.8.3-5" "… each of them"
        => say r#"connect; > 82{0001 <> "@" 81}; closed 81"#;
    "3.8.3-4" "-" "the bits that only MQTT 5 has are reserved"
        => say r#"connect; > 82{0001 <> "@" 04}; closed"#;
    "3.8.3-4" "4.13.1-1" "a subscription at QoS 3 ends the connection"
        => say r#"connect; > 82{0001 <> "@" 03}; closed 81,82"#;
    "-" "4.13.1-1" "retain handling 3 is a protocol error"
        => say r#"connect; > 82{0001 <> "@" 30}; closed 81,82"#;
    "-" "4.13.1-1" "a subscription identifier of 0 is a protocol error"
        => say r#"connect; > 82{0001 <0B 00> "@" 00}; closed 82"#;
    "-" "4.13.1-1" "two subscription identifiers are a protocol error"
        => say r#"connect; > 82{0001 <0B 01 0B 02> "@" 00}; closed 82"#;

    // What becomes of it.
    "3.8.4-1" "3.8.4-1" "SUBSCRIBE is answered with SUBACK"
        => say r#"connect; > 82{0001 <> "@" 00}; < 90{0001 <> 00}"#;
    "3.8.4-2" "3.8.4-2" "SUBACK has the packet identifier of its SUBSCRIBE, several at a time too"
        => say r#"
            connect; > 82{FFFF <> "@" 00} 82{0100 <> "@" 01} 82{0001 <> "@" 02}
            < 90{FFFF <> 00}; < 90{0100 <> 01}; < 90{0001 <> 02}"#;
    "3.8.4-3" "3.8.4-3" "the same filter again replaces the subscription"
        => say r#"
            s: connect; s: subscribe 02 @; s: subscribe 00 @; p: connect; p: publish 2 @ x; s: gets 0 @ x
            s: subscribe 01 @; p: publish 2 @ y; s: gets 1 @ y"#;
    "-" "3.8.4-3" "… its identifier and options too"
        => say r#"
            s: connect; s: > 82{0001 <0B 05> "@" 09}; s: < 90{0001 <~> 01}; s: > 82{0002 <0B 06> "@" 01}; s: < 90{0002 <~> 01}
            p: connect; p: publish 1r @ x; s: < 32{"@" $a <0B 06> 'x'}; s: > 40{$a}
            s: subscribe 21 @; p: publish 1 @ y; s: < 32{"@" $b <> 'y'}"#;
    "3.8.4-3" "3.8.4-4" "nothing is lost while a subscription is replaced, and retained messages come again"
        => run replaced_under_load;
    "3.8.4-4" "3.8.4-5" "several filters in one SUBSCRIBE do what several SUBSCRIBEs do"
        => say r#"
            p: connect; p: publish 1r @/b kept
            s: connect; s: > 82{0001 <> "@/a" 00 "@/b" 01 "@/a" 02}; s: < 90{0001 <> 00 01 02}; s: gets 1r @/b kept
            p: publish 2 @/a x; s: gets 2 @/a x; p: publish 2 @/b y; s: gets 1 @/b y"#;
    "3.8.4-4" "3.8.4-5" "a filter that is refused does not touch the others of its SUBSCRIBE"
        => say r#"
            s: connect; s: > 82{0001 <> "@/#/x" 01 "@/a" 01}; s: < 90{0001 <~> 5[8F] 4[80] 01}
            p: connect; p: publish 1 @/a x; s: gets 1 @/a x"#;
    "3.8.4-5" "3.8.4-6" "SUBACK has a code for each filter"
        => say r#"
            connect; > 82{0001 <> "@/1" 00 "@/1" 01 "@/denied" 00 "@/+" 02 "@/#" 02}
            < 90{0001 <~> 00 01 5[87] 4[80] 02 02}"#;
    "3.8.4-5" "3.8.4-7" "the code is the QoS that was granted, or a failure"
        => say r#"
            connect; > 82{0001 <> "@" 00}; < 90{0001 <~> 00}; > 82{0001 <> "@" 01}; < 90{0001 <~> 01}
            > 82{0001 <> "@" 02}; < 90{0001 <~> 02}; > 82{0001 <> "@/denied" 02}; < 90{0001 <~> 5[87] 4[80]}"#;
    "3.8.4-6" "3.8.4-8" "a message comes at the lower of its own QoS and the QoS that was granted"
        => run every_qos;
    "3.9.3-1" "3.9.3-1" "the codes are in the order of the filters"
        => say r#"
            connect; > 82{0001 <> "@/a" 02 "@/#/b" 00 "@/c" 00 "@/d" 01}
            < 90{0001 <~> 02 5[8F] 4[80] 00 01}"#;
    "3.9.3-2" "3.9.3-2" "a filter that is not valid is refused in SUBACK, in 3.1.1 with 0x80"
        => say r#"connect; > 82{0001 <> "@/a#" 01}; < 90{0001 <~> 5[8F] 4[80]}; quiet"#;
    "3.9.3-2" "3.9.3-2" "a filter that is not allowed is refused in SUBACK, in 3.1.1 with 0x80"
        => say r#"connect; > 82{0001 <> "@/denied" 01}; < 90{0001 <~> 5[87] 4[80]}; quiet"#;
    "-" "3.9.2-1" "no reason string that makes SUBACK too large"
        => say r#"connect <27 00000019>; > 82{0001 <> "@/a#" 01}; < 90{0001 <~> 8F}; lacks 1F"#;
    "-" "3.9.2-2" "no user property that makes SUBACK too large"
        => say r#"connect <27 00000019>; > 82{0001 <26 "k" "v"> "@/a#" 01}; < 90{0001 <~> 8F}; lacks 26"#;

    // UNSUBSCRIBE.
    "3.10.1-1" "3.10.1-1" "the flags of UNSUBSCRIBE are 0010: 0000 is malformed"
        => say r#"connect; > A0{0001 <> "@"}; closed 81"#;
    "3.10.3-1" "3.10.3-1" "a topic filter that is not UTF-8 is malformed"
        => say r#"connect; > A2{0001 <> (EDA080)}; closed 81"#;
    "3.10.3-2" "3.10.3-2" "UNSUBSCRIBE has at least one filter"
        => say r#"connect; > A2{0001 <>}; closed 81,82"#;
    "3.10.4-1" "3.10.4-1" "filters are compared character by character"
        => say r#"
            s: connect; s: subscribe 01 @/+; s: > A2{0001 <> "@/a"}; s: < B0{0001 <> 5[11]}
            s: > A2{0002 <> "@/#"}; s: < B0{0002 <> 5[11]}
            p: connect; p: publish 1 @/a x; s: gets 1 @/a x
            s: > A2{0003 <> "@/+"}; s: < B0{0003 <> 5[00]}
            s: subscribe 01 @/fence; p: publish 1 @/a y; p: publish 1 @/fence z; s: gets 1 @/fence z"#;
    "3.10.4-2" "3.10.4-2" "after UNSUBSCRIBE no message is added, live or from the log"
        => say r#"
            s: connect; s: subscribe 01 @/a; s: subscribe 01 @/fence; s: > A2{0001 <> "@/a"}; s: < B0{0001 <> 5[00]}
            p: connect; p: publish 1 @/a no; p: publish 1 @/fence 1; s: gets 1 @/fence 1
            p: publish 0 @/a no; p: publish 0 @/fence 0; s: gets 0 @/fence 0"#;
    "3.10.4-3" "3.10.4-3" "a delivery that was begun is completed after UNSUBSCRIBE"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}
            s: > A2{0001 <> "@"}; s: < B0{0001 <> 5[00]}; s: > 50{$a}; s: < 62{$a}; s: > 70{$a}; s: quiet"#;
    "3.10.4-3" "3.10.4-3" "… on the next connection too"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}
            s: > A2{0001 <> "@"}; s: < B0{0001 <> 5[00]}; s: drop; s: resume 1
            s: < 3C{"@" $a <> 'x'}; s: > 50{$a}; s: < 62{$a}; s: > 70{$a}; s: quiet"#;
    "3.10.4-4" "3.10.4-4" "UNSUBSCRIBE is answered with UNSUBACK"
        => say r#"connect; subscribe 00 @; > A2{0001 <> "@"}; < B0{0001 <> 5[00]}"#;
    "3.10.4-4" "3.10.4-5" "UNSUBACK has the packet identifier of its UNSUBSCRIBE"
        => say r#"connect; > A2{0102 <> "@"} A2{FFFF <> "@"}; < B0{0102 <> 5[11]}; < B0{FFFF <> 5[11]}"#;
    "3.10.4-5" "3.10.4-5" "… also where there was no subscription"
        => say r#"connect; > A2{0001 <> "@/none"}; < B0{0001 <> 5[11]}"#;
    "3.10.4-6" "3.10.4-6" "several filters in one UNSUBSCRIBE do what several UNSUBSCRIBEs do"
        => say r#"
            s: connect; s: subscribe 01 @/a; s: subscribe 01 @/b; s: subscribe 01 @/c
            s: > A2{0001 <> "@/a" "@/b" "@/a"}; s: < B0{0001 <> 5[00 00 11]}
            p: connect; p: publish 1 @/a x; p: publish 1 @/b x; p: publish 1 @/c y; s: gets 1 @/c y"#;
    "-" "3.11.2-1" "no reason string that makes UNSUBACK too large"
        => say r#"connect <27 00000019>; > A2{0001 <> "@"}; < B0{0001 <~> 11}; lacks 1F"#;
    "-" "3.11.2-2" "no user property that makes UNSUBACK too large"
        => say r#"connect <27 00000019>; > A2{0001 <26 "k" "v"> "@"}; < B0{0001 <~> 11}; lacks 26"#;
    "-" "3.11.3-1" "the codes of UNSUBACK are in the order of the filters"
        => say r#"
            connect; subscribe 00 @/a; subscribe 00 @/b
            > A2{0001 <> "@/x" "@/b" "@/y" "@/a"}; < B0{0001 <> 11 00 11 00}"#;
    "-" "3.11.3-2" "UNSUBACK says success or that there was no subscription"
        => say r#"connect; subscribe 00 @; > A2{0001 <> "@" "@"}; < B0{0001 <> 00 11}"#;
}

/// Each QoS to each QoS.
async fn every_qos(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play("s: connect; p: connect").await?;
    for granted in 0..3 {
        scene.play(&format!("s: subscribe 0{granted} @")).await?;
        for published in 0..3 {
            let lower = granted.min(published);
            scene.play(&format!("p: publish {published} @ x; s: gets {lower} @ x")).await?;
        }
    }
    Ok(())
}

/// A hundred numbered messages while the subscription is replaced ten times: each comes once, in order, and the retained
/// message comes for each SUBSCRIBE.
async fn replaced_under_load(stage: Stage) -> Result<()> {
    const MESSAGES: u8 = 100;
    const SUBSCRIBES: usize = 10;
    let mut scene = stage.scene();
    scene
        .play("p: connect; p: publish 1r @/kept kept; s: connect; s: subscribe 01 @/#; s: gets 1r @/kept kept")
        .await?;
    let publisher = tokio::spawn({
        let mut scene = stage.scene();
        async move {
            scene.play("q: connect").await?;
            for number in 0..MESSAGES {
                let packet = format!(r#"q: > 32{{"@/n" 0001 <> {number:02X}}}; q: < 40{{0001 ~}}"#);
                scene.play(&packet).await?;
            }
            anyhow::Ok(())
        }
    });
    let (mut next, mut kept, mut granted) = (0, 0, 0);
    for id in 0..SUBSCRIBES {
        scene.play(&format!(r#"s: > 82{{01{id:02X} <> "@/#" 0{}}}"#, id % 2 + 1)).await?;
        // A few messages between two SUBSCRIBEs.
        while granted <= id || kept <= id || usize::from(next) < id * 8 {
            let packet = scene.peer("s").await?.packet().await?;
            take(&mut scene, &packet, (&mut next, &mut kept, &mut granted)).await?;
        }
    }
    while next < MESSAGES {
        let packet = scene.peer("s").await?.packet().await?;
        take(&mut scene, &packet, (&mut next, &mut kept, &mut granted)).await?;
    }
    ensure!((kept, granted) == (SUBSCRIBES, SUBSCRIBES), "{kept} retained messages and {granted} SUBACKs");
    publisher.await?
}

/// Counts a SUBACK, a retained message or the next numbered message, and acknowledges it.
async fn take(
    scene: &mut crate::scene::Scene,
    packet: &crate::peer::Packet,
    (next, kept, granted): (&mut u8, &mut usize, &mut usize),
) -> Result<()> {
    if packet.kind() == 9 {
        *granted += 1;
        return Ok(());
    }
    ensure!(packet.kind() == 3 && packet.first & 6 == 2, "a message at QoS 1 was to come");
    let length = usize::from(u16::from_be_bytes([packet.body[0], packet.body[1]]));
    let id = [packet.body[2 + length], packet.body[3 + length]];
    scene.peer("s").await?.send(&[0x40, 2, id[0], id[1]]).await;
    if packet.first & 1 == 1 {
        *kept += 1;
    } else {
        let number = packet.body.last().copied().unwrap_or_default();
        ensure!(number == *next, "message {number} came in place of {next}");
        *next += 1;
    }
    Ok(())
}
