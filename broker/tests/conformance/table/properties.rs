//! Section 3.3.2.3: the properties of PUBLISH. Only MQTT 5 has them.

use anyhow::{Context, Result, ensure};

use crate::row::rows;
use crate::scene::{Stage, properties_of};

rows! {
    // What travels with the message.
    "-" "3.3.2-4" "the payload format indicator is passed on, live and from the log"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <01 01> 'x'}; p: < 40{0001 ~}; s: < 32{"@" $a <01 01> 'x'}
            p: > 30{"@" <01 01> 'y'}; s: < 30{"@" <01 01> 'y'}; p: > 30{"@" <01 00> 'z'}; s: < 30{"@" <01 00> 'z'}"#;
    "-" "4.13.1-1" "a payload format indicator that is neither 0 nor 1"
        => say r#"connect; > 30{"@" <01 02> 'x'}; closed 81,82"#;
    "-" "3.3.2-13" "a response topic that is not UTF-8 is malformed"
        => say r#"connect; > 30{"@" <08 (C328)> 'x'}; closed 81"#;
    "-" "3.3.2-14" "a response topic has no wildcards"
        => say r#"connect; > 30{"@" <08 "a/#"> 'x'}; closed 81,82"#;
    "-" "3.3.2-14" "… neither has that of a will"
        => say r#"> 10{"MQTT" V 06 003C <> "@" <08 "a/+"> "@/w" ('gone')}; refused 82 --"#;
    "-" "3.3.2-15" "the response topic is passed on unaltered"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <08 "@/answer/ä"> 'x'}; p: < 40{0001 ~}; s: < 32{"@" $a <08 "@/answer/ä"> 'x'}"#;
    "-" "3.3.2-16" "the correlation data is passed on unaltered, whatever bytes it has"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <09 (00 FF C3 28)> 'x'}; p: < 40{0001 ~}; s: < 32{"@" $a <09 (00 FF C3 28)> 'x'}"#;
    "-" "3.3.2-17" "all user properties are passed on unaltered, repeated keys and empty values too"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <26 "k" "v" 26 "k" "v" 26 "" ""> 'x'}; p: < 40{0001 ~}
            s: < 32{"@" $a <26 "k" "v" 26 "k" "v" 26 "" ""> 'x'}"#;
    "-" "3.3.2-18" "user properties keep their order, other properties between them or not"
        => say r#"
            s: connect; s: subscribe 00 @; r: connect; r: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <26 "z" "1" 03 "t" 26 "a" "2" 01 01 26 "m" "3"> 'x'}; p: < 40{0001 ~}
            s: < 30{"@" <26 "z" "1" 26 "a" "2" 26 "m" "3" 01 01 03 "t"> 'x'}
            r: < 32{"@" $a <26 "z" "1" 26 "a" "2" 26 "m" "3" 01 01 03 "t"> 'x'}"#;
    "-" "3.3.2-18" "… in retained messages too"
        => say r#"
            p: connect; p: > 33{"@" 0001 <26 "z" "1" 26 "a" "2"> 'x'}; p: < 40{0001 ~}
            s: connect; s: subscribe 01 @; s: < 33{"@" $a <26 "z" "1" 26 "a" "2"> 'x'}"#;
    "-" "3.3.2-19" "a content type that is not UTF-8 is malformed"
        => say r#"connect; > 30{"@" <03 (EDA080)> 'x'}; closed 81"#;
    "-" "3.3.2-20" "the content type is passed on unaltered"
        => say r#"
            s: connect; s: subscribe 01 @; p: connect
            p: > 32{"@" 0001 <03 "text/plain,charset=utf-8"> 'x'}; p: < 40{0001 ~}
            s: < 32{"@" $a <03 "text/plain,charset=utf-8"> 'x'}"#;

    // Expiry.
    "-" "3.3.2-5" "a retained message whose time is over is not delivered"
        => say r#"
            p: connect; p: > 33{"@" 0001 <02 00000001> 'old'}; p: < 40{0001 ~}; wait 1200
            s: connect; s: subscribe 01 @; p: publish 1 @ new; s: gets 1 @ new"#;
    "-" "3.3.2-5" "a message that waits in a session longer than its time is not delivered"
        => say r#"
            s: resume 0; s: subscribe 01 @; s: leave
            p: connect; p: > 32{"@" 0001 <02 00000001> 'old'}; p: < 40{0001 ~}; wait 1200
            p: publish 1 @ new; s: resume 1; s: gets 1 @ new"#;
    "-" "3.3.2-5" "a message that waits for room in the window longer than its time is not delivered"
        => say r#"
            s: connect <21 0001>; s: subscribe 01 @; p: connect; p: publish 1 @ first
            p: > 32{"@" 0001 <02 00000001> 'old'}; p: < 40{0001 ~}; p: publish 1 @ new
            s: < 32{"@" $a <> 'first'}; wait 1200; s: > 40{$a}; s: gets 1 @ new"#;
    "-" "3.3.2-6" "a message that waited is delivered with the time that is left to it"
        => run time_that_is_left;

    // Topic aliases.
    "-" "3.3.2-7" "an alias of the connection before is unknown to the server"
        => say r#"
            p: resume 0; p: > 32{"@" 0001 <23 0001> 'x'}; p: < 40{0001 ~}; p: > 32{"" 0002 <23 0001> 'y'}; p: < 40{0002 ~}
            p: leave; p: resume 1; p: > 32{"" 0003 <23 0001> 'z'}; p: closed 82,94"#;
    "-" "3.3.2-7" "the server gives its aliases anew on each connection"
        => say r#"
            s: resume 0 <22 0005>; s: subscribe 01 @; p: connect
            p: publish 1 @ 1; s: < 32{"@" $a <~> '1'}; s: > 40{$a}; s: leave
            p: publish 1 @ 2; s: resume 1 <22 0005>; s: < 32{"@" $b <~> '2'}"#;
    "-" "3.3.2-8" "topic alias 0 is refused"
        => say r#"connect; > 30{"@" <23 0000> 'x'}; closed 81,82,94"#;
    "-" "4.13.1-1" "a topic alias above the server's maximum is refused"
        => say r#"connect; > 30{"@" <23 FFFF> 'x'}; closed 94"#;
    "-" "4.13.1-1" "neither a topic nor an alias"
        => say r#"connect; > 30{"" <> 'x'}; closed 82"#;
    "-" "4.13.1-1" "an alias that was never given a topic"
        => say r#"connect; > 30{"" <23 0003> 'x'}; closed 82,94"#;
    "-" "3.3.2-11" "aliases of the server stay within the client's maximum, and mean what they meant"
        => run aliases_of_the_server;
    "-" "3.3.2-12" "the server accepts every alias up to the maximum that it announced"
        => run all_aliases;
    "-" "3.3.2-12" "an alias can be given another topic"
        => say r#"
            s: connect; s: subscribe 01 @/#; p: connect
            p: > 32{"@/a" 0001 <23 0001> '1'}; p: < 40{0001 ~}; s: gets 1 @/a 1
            p: > 32{"@/b" 0002 <23 0001> '2'}; p: < 40{0002 ~}; s: gets 1 @/b 2
            p: > 32{"" 0003 <23 0001> '3'}; p: < 40{0003 ~}; s: gets 1 @/b 3"#;
}

/// A hundred seconds, of which between one and twenty pass.
async fn time_that_is_left(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    let script = r#"
        p: connect; p: > 33{"@" 0001 <02 00000064> 'kept'}; p: < 40{0001 ~}; wait 1100
        s: connect; s: subscribe 01 @; s: gets 1r @ kept"#;
    scene.play(script).await?;
    let found = properties_of(&scene.peer("s").await?.last)?;
    let left = found.iter().find(|(id, _)| *id == 2).context("no message expiry interval")?.1.clone();
    ensure!((80..100).contains(&left[3]) && left[..3] == [0, 0, 0], "{left:?} seconds are left of 100");
    Ok(())
}

/// Follows the aliases as a client does.
async fn aliases_of_the_server(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play("s: connect <22 0003>; s: subscribe 01 @/#; p: connect").await?;
    let mut topics = std::collections::HashMap::new();
    for round in 0..30_u8 {
        let topic = format!("{}/{}", stage.name, round % 5);
        scene.play(&format!("p: publish {} @/{} x", round % 2, round % 5)).await?;
        let packet = scene.peer("s").await?.packet().await?;
        let length = usize::from(u16::from_be_bytes([packet.body[0], packet.body[1]]));
        let mut named = String::from_utf8(packet.body[2..2 + length].to_vec())?;
        if let Some((_, value)) = properties_of(&packet)?.into_iter().find(|(id, _)| *id == 0x23) {
            ensure!((1..=3).contains(&u16::from_be_bytes([value[0], value[1]])), "alias {value:?} of at most 3");
            if named.is_empty() {
                named = topics.get(&value).cloned().context("an alias that was not given")?;
            } else {
                topics.insert(value, named.clone());
            }
        }
        ensure!(named == topic, "`{named}` in place of `{topic}`");
    }
    Ok(())
}

/// The first and the last alias are used, and all between.
async fn all_aliases(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play("s: connect; s: subscribe 01 @/#; p: connect").await?;
    let found = properties_of(&scene.peer("p").await?.last)?;
    let max = found.iter().find(|(id, _)| *id == 0x22).map_or(0, |(_, max)| u16::from_be_bytes([max[0], max[1]]));
    for alias in 1..=max {
        scene.play(&format!(r#"p: > 32{{"@/{alias}" 0001 <23 {alias:04X}> 'x'}}; p: < 40{{0001 ~}}"#)).await?;
        scene.play(&format!("s: gets 1 @/{alias} x")).await?;
    }
    for alias in 1..=max {
        scene.play(&format!(r#"p: > 32{{"" 0001 <23 {alias:04X}> 'y'}}; p: < 40{{0001 ~}}"#)).await?;
        scene.play(&format!("s: gets 1 @/{alias} y")).await?;
    }
    Ok(())
}
