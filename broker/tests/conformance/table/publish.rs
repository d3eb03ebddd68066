//! Section 3.3: PUBLISH. Which of its properties travel, and how, is in [`super::properties`].

use anyhow::{Result, ensure};

use crate::row::rows;
use crate::scene::{Stage, properties_of};

rows! {
    // DUP and QoS.
    "3.3.1-1" "3.3.1-1" "what is sent again has DUP set"
        => say r#"
            s: resume 0; s: subscribe 01 @; p: connect; p: publish 1 @ x
            s: < 32{"@" $a <> 'x'}; s: drop; s: resume 1; s: < 3A{"@" $a <> 'x'}; s: > 40{$a}; s: quiet"#;
    "3.3.1-2" "3.3.1-2" "PUBLISH at QoS 0 with DUP is malformed"
        => say r#"connect; > 38{"@" <> 'x'}; closed 81"#;
    "3.3.1-2" "3.3.1-2" "a message that is delivered at QoS 0 has no DUP, though it came at QoS 1 with DUP"
        => say r#"
            s: connect; s: subscribe 00 @; p: connect
            p: > 3A{"@" 0001 <> 'x'}; p: < 40{0001 ~}; s: < 30{"@" <> 'x'}"#;
    "3.3.1-3" "3.3.1-3" "DUP of the publisher is not passed on"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect
            p: > 3A{"@" 0001 <> 'x'}; p: < 40{0001 ~}; s: gets 1 @ x
            p: > 3C{"@" 0002 <> 'y'}; p: < 50{0002 ~}; p: > 62{0002}; p: < 70{0002 ~}; s: gets 2 @ y"#;
    "3.3.1-4" "3.3.1-4" "QoS 3 is malformed"
        => say r#"connect; > 36{"@" 0001 <> 'x'}; closed 81"#;

    // RETAIN, on the way in.
    "3.3.1-5" "3.3.1-5" "a retained message is kept with its QoS, and replaces the one before"
        => say r#"
            p: connect; p: publish 1r @ old; p: publish 2r @ new
            s: connect; s: subscribe 02 @; s: gets 2r @ new"#;
    "3.3.1-5" "3.3.1-5" "… through a QoS 0 publish as well"
        => say r#"
            p: connect; p: publish 2r @ old; p: publish 0r @ new; p: publish 1 @/fence x
            s: connect; s: subscribe 02 @; s: gets 0r @ new"#;
    "3.3.1-7" "3.3.1-5" "a retained QoS 0 message displaces the retained message before it"
        => say r#"
            p: connect; p: publish 1r @ old; p: publish 0r @ new; p: publish 1 @/fence x
            s: connect; s: subscribe 01 @; s: < 31{"@" <~> 'new'}"#;
    "3.3.1-10" "3.3.1-6" "an empty retained message removes the one before, and reaches subscribers as a message"
        => say r#"
            p: connect; p: publish 1r @ kept; w: connect; w: subscribe 01 @; w: gets 1r @ kept
            p: publish 1r @; w: gets 1 @
            s: connect; s: subscribe 01 @; p: publish 1 @ after; s: gets 1 @ after"#;
    "3.3.1-10" "3.3.1-6" "… at QoS 0 as well"
        => say r#"
            p: connect; p: publish 1r @ kept; p: publish 0r @; p: publish 1 @/fence x
            s: connect; s: subscribe 01 @; p: publish 1 @ after; s: gets 1 @ after"#;
    "3.3.1-11" "3.3.1-7" "an empty retained message is not kept"
        => say r#"
            p: connect; p: publish 1r @
            s: connect; s: subscribe 01 @; p: publish 1 @ after; s: gets 1 @ after"#;
    "3.3.1-12" "3.3.1-8" "a message without RETAIN is not kept, and leaves the retained one alone"
        => say r#"
            p: connect; p: publish 1r @/a kept; p: publish 1 @/a passing; p: publish 1 @/a; p: publish 1 @/b passing
            s: connect; s: subscribe 01 @/a; s: gets 1r @/a kept
            s: subscribe 01 @/b; p: publish 1 @/b after; s: gets 1 @/b after"#;

    // RETAIN, on the way out.
    "3.3.1-6" "3.3.1-9" "a new subscription gets the last retained message of each topic that it matches"
        => run all_retained;
    "3.3.1-6" "3.3.1-9" "a subscription that is made again gets them again"
        => say r#"
            p: connect; p: publish 1r @ kept
            s: connect; s: subscribe 01 @; s: gets 1r @ kept; s: subscribe 01 @; s: gets 1r @ kept"#;
    "3.3.1-8" "-" "a message that comes for a new subscription has RETAIN set"
        => say r#"p: connect; p: publish 2r @ kept; s: connect; s: subscribe 00 @; s: < 31{"@" 'kept'}"#;
    "-" "3.3.1-10" "retain handling 1: retained messages for a new subscription, none for one that exists"
        => say r#"
            p: connect; p: publish 1r @ kept
            s: connect; s: subscribe 11 @; s: gets 1r @ kept
            s: subscribe 11 @; s: subscribe 12 @; p: publish 1 @ after; s: gets 1 @ after"#;
    "-" "3.3.1-10" "retain handling 1: the subscription of a session that goes on exists"
        => say r#"
            p: connect; p: publish 1r @ kept; s: resume 0; s: subscribe 11 @; s: gets 1r @ kept; s: leave
            s: resume 1; s: subscribe 11 @; p: publish 1 @ after; s: gets 1 @ after"#;
    "-" "3.3.1-11" "retain handling 2: no retained messages"
        => say r#"
            p: connect; p: publish 1r @ kept
            s: connect; s: subscribe 21 @; p: publish 1 @ after; s: gets 1 @ after"#;
    "3.3.1-9" "3.3.1-12" "without retain as published, RETAIN is 0 for an established subscription"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect; p: publish 1r @ x; s: gets 1 @ x
            p: publish 0r @ y; s: gets 0 @ y"#;
    "-" "3.3.1-13" "with retain as published, RETAIN is as the publisher set it"
        => say r#"
            s: connect; s: subscribe 09 @; p: connect
            p: publish 1r @ 1; s: gets 1r @ 1; p: publish 1 @ 2; s: gets 1 @ 2
            p: publish 0r @ 3; s: gets 0r @ 3; p: publish 0 @ 4; s: gets 0 @ 4"#;
    "-" "3.3.1-13" "… also for messages that waited in the session"
        => say r#"
            s: resume 0; s: subscribe 09 @; s: leave; p: connect; p: publish 1r @ 1; p: publish 1 @ 2
            s: resume 1; s: gets 1r @ 1; s: gets 1 @ 2"#;

    // The topic.
    "3.3.2-1" "3.3.2-1" "the topic name is a UTF-8 string"
        => say r#"connect; > 32{(FF FE) 0001 <> 'x'}; closed 81"#;
    "3.3.2-1" "3.3.2-1" "a PUBLISH without a topic name is malformed"
        => say r#"connect; > 30{}; closed 81"#;
    "3.3.2-2" "3.3.2-2" "a topic name with `#` ends the connection"
        => say r#"connect; > 32{"@/#" 0001 <> 'x'}; closed 81,82,90"#;
    "3.3.2-2" "3.3.2-2" "a topic name with `+` ends the connection"
        => say r#"connect; > 30{"@/+/b" <> 'x'}; closed 81,82,90"#;
    "3.3.2-3" "3.3.2-3" "the topic name of a message that is delivered is the one it was published to"
        => say r#"
            s: connect; s: subscribe 01 @/+/b/#; p: connect
            p: publish 1 @/a/b/c/d x; p: publish 1 @/a/c y; p: publish 1 @/a/b z
            s: gets 1 @/a/b/c/d x; s: gets 1 @/a/b z"#;
    "3.3.3" "3.3.3" "the payload is passed on as it is, live, from the log and retained: any bytes, many, none"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: > 30{"@" <> 00 FF C328 'x'*70000 00}; s: < 30{"@" <> 00 FF C328 'x'*70000 00}
            p: > 32{"@" 0001 <> 00 FF C328 'x'*70000 00}; p: < 40{0001 ~}; s: < 32{"@" $a <> 00 FF C328 'x'*70000 00}
            p: publish 1 @; s: gets 1 @
            p: > 33{"@/r" 0001 <> 00 FF C328}; p: < 40{0001 ~}; s: subscribe 01 @/r; s: < 33{"@/r" $b <> 00 FF C328}"#;

    // Acknowledgements and overlaps.
    "3.3.4-1" "3.3.4-1" "QoS 0 is not answered, QoS 1 by PUBACK, QoS 2 by PUBREC"
        => say r#"
            connect; > 30{"@" <> 'x'}; quiet; > 32{"@" 0001 <> 'x'}; < 40{0001 ~}
            > 34{"@" 0002 <> 'x'}; < 50{0002 ~}; > 62{0002}; < 70{0002 ~}"#;
    "3.3.5-1" "3.3.4-2" "overlapping subscriptions: the message comes at the highest QoS of those that match"
        => say r#"
            s: connect; s: subscribe 00 @/#; s: subscribe 02 @/+; s: subscribe 01 @/a; p: connect
            p: publish 2 @/a x; s: gets 2 @/a x; p: publish 1 @/a y; s: gets 1 @/a y"#;
    "3.3.5-2" "-" "a publish that is not allowed is acknowledged or ends the connection; nobody gets it"
        => say r#"
            s: connect; s: subscribe 01 @/#; > 32{"@/denied" 0001 <> 'no'}; closed
            p: connect; p: publish 1 @/allowed yes; s: gets 1 @/allowed yes"#;
    "-" "3.3.4-3" "overlapping subscriptions: the identifiers of those that have one come with the message"
        => say r#"
            s: connect; s: > 82{0001 <0B 07> "@/#" 01}; s: < 90{0001 <~> 01}
            s: subscribe 01 @/a; p: connect; p: publish 1 @/a x; s: < 32{"@/a" $a <0B 07> 'x'}"#;
    "-" "3.3.4-4" "one copy carries the identifiers of all subscriptions that match"
        => run all_identifiers;
    "-" "3.3.4-4" "an identifier of four bytes comes back as it was"
        => say r#"
            s: connect; s: > 82{0001 <0B FFFFFF7F> "@" 01}; s: < 90{0001 <~> 01}
            p: connect; p: publish 1 @ x; s: < 32{"@" $a <0B FFFFFF7F> 'x'}
            p: publish 0 @ y; s: < 30{"@" <0B FFFFFF7F> 'y'}"#;
    "-" "3.3.4-4" "a retained message carries the identifier of the subscription that it is sent for"
        => say r#"
            p: connect; p: publish 1r @ kept; s: connect; s: > 82{0001 <0B 09> "@" 01}; s: < 90{0001 <~> 01}
            s: < 33{"@" $a <0B 09> 'kept'}"#;
    "-" "3.3.4-6" "a client's PUBLISH has no subscription identifier"
        => say r#"connect; > 30{"@" <0B 01> 'x'}; closed 82"#;

    // Flow control.
    "-" "3.3.4-9" "no more messages on their way than the client's receive maximum"
        => say r#"
            s: connect <21 0002>; s: subscribe 02 @; w: connect; w: subscribe 01 @; p: connect
            p: publish 1 @ 1; p: publish 2 @ 2; p: publish 1 @ 3
            s: < 32{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}
            w: gets 1 @ 1; w: gets 1 @ 2; w: gets 1 @ 3; s: quiet
            s: > 50{$b}; s: < 62{$b ~}; s: quiet; s: > 70{$b}; s: < 32{"@" $c <> '3'}"#;
    "-" "3.3.4-9" "… a PUBREC with an error makes room"
        => say r#"
            s: connect <21 0001>; s: subscribe 02 @; p: connect; p: publish 2 @ 1; p: publish 2 @ 2
            s: < 34{"@" $a <> '1'}; s: quiet; s: > 50{$a 80}; s: < 34{"@" $b <> '2'}"#;
    "-" "3.3.4-10" "other packets do not wait for room in the window"
        => say r#"
            s: connect <21 0001>; s: subscribe 01 @; p: connect; p: publish 1 @ 1; p: publish 1 @ 2
            s: < 32{"@" $a <> '1'}; s: quiet; s: subscribe 00 @/other
            s: > 32{"@/third" 0001 <> 'x'}; s: < 40{0001 ~}
            p: publish 0 @/other live; s: gets 0 @/other live; s: > A2{0003 <> "@/other"}; s: < B0{0003 <> 00}"#;
}

/// One retained message for each topic, in any order.
async fn all_retained(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play("p: connect").await?;
    for topic in 0..20 {
        scene.play(&format!("p: publish 1r @/{topic}/x old; p: publish 1r @/{topic}/x new")).await?;
    }
    scene.play("p: publish 1r @/none/y other; s: connect; s: subscribe 01 @/+/x").await?;
    let mut topics = Vec::new();
    for _ in 0..20 {
        let packet = scene.peer("s").await?.packet().await?;
        ensure!(packet.first == 0x33, "not a retained PUBLISH at QoS 1");
        let length = usize::from(u16::from_be_bytes([packet.body[0], packet.body[1]]));
        ensure!(packet.body.ends_with(b"new"), "not the last message of its topic");
        topics.push(packet.body[2..2 + length].to_vec());
        let id = packet.body[2 + length..4 + length].to_vec();
        scene.peer("s").await?.send(&[0x40, 2, id[0], id[1]]).await;
    }
    topics.sort();
    topics.dedup();
    ensure!(topics.len() == 20, "only {} of 20 topics came", topics.len());
    scene.play("s: quiet").await
}

/// The identifiers may come in any order.
async fn all_identifiers(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play("s: connect").await?;
    for (id, filter) in [("01", "@/#"), ("8001", "@/+"), ("03", "@/a"), ("04", "@/b")] {
        scene.play(&format!(r#"s: > 82{{0001 <0B {id}> "{filter}" 01}}; s: < 90{{0001 <~> 01}}"#)).await?;
    }
    scene.play("p: connect; p: publish 1 @/a x; s: gets 1 @/a x").await?;
    let mut found = properties_of(&scene.peer("s").await?.last)?;
    found.sort();
    let expected = [(0x0B, vec![1]), (0x0B, vec![3]), (0x0B, vec![0x80, 1])];
    ensure!(found == expected, "the identifiers {found:?}");
    Ok(())
}
