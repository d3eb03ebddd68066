//! Sections 3.1.2.5 to 3.1.2.7, 3.1.3.2 to 3.1.3.4: the will.

use anyhow::{Result, ensure};

use crate::row::rows;
use crate::scene::{Stage, properties_of};

rows! {
    // Flags and fields.
    "3.1.2-9" "3.1.2-9" "with the will flag there are a will topic and a will message"
        => say r#"> 10{"MQTT" V 06 003C <> "@"}; refused 81 --"#;
    "3.1.2-9" "3.1.2-9" "a will topic without a will message is malformed"
        => say r#"> 10{"MQTT" V 06 003C <> "@" <> "@/w"}; refused 81 --"#;
    "3.1.2-9" "3.1.2-9" "the will is published at the will QoS"
        => say r#"
            w: connect; w: subscribe 02 @/w
            > 10{"MQTT" V 16 003C <> "@" <> "@/w" ('two')}; < 20{0000 <~>}; drop; w: gets 2 @/w two
            > 10{"MQTT" V 0E 003C <> "@" <> "@/w" ('one')}; < 20{0000 <~>}; drop; w: gets 1 @/w one
            > 10{"MQTT" V 06 003C <> "@" <> "@/w" ('none')}; < 20{0000 <~>}; drop; w: gets 0 @/w none"#;
    "3.1.2-11" "-" "without the will flag there are no will topic and no will message"
        => say r#"> 10{"MQTT" V 02 003C <> "@" <> "@/w" ('gone')}; refused 81 --"#;
    "3.1.2-13" "3.1.2-11" "without the will flag the will QoS is 0"
        => say r#"> 10{"MQTT" V 0A 003C <> "@"}; refused 81 --"#;
    "3.1.2-14" "3.1.2-12" "the will QoS is not 3"
        => say r#"> 10{"MQTT" V 1E 003C <> "@" <> "@/w" ('gone')}; refused 81 --"#;
    "3.1.2-15" "3.1.2-13" "without the will flag, will retain is 0"
        => say r#"> 10{"MQTT" V 22 003C <> "@"}; refused 81 --"#;
    "3.1.3-10" "3.1.3-11" "a will topic that is not UTF-8 is refused"
        => say r#"> 10{"MQTT" V 06 003C <> "@" <> ('w' C328) ('gone')}; refused 81 --"#;
    "4.7.1-1" "4.7.0-1" "a will topic has no wildcards"
        => say r#"> 10{"MQTT" V 06 003C <> "@" <> "@/#" ('gone')}; refused 90 --"#;

    // When it is published.
    "3.1.2-8" "3.1.2-7" "the will is kept, and published when the connection breaks"
        => say r#"
            w: connect; w: subscribe 00 @/w
            > 10{"MQTT" V 06 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}; quiet
            p: connect; p: publish 0 @/w before; w: gets 0 @/w before
            drop; w: gets 0 @/w gone"#;
    "3.1.2-8" "3.1.2-8" "the will is published when the server closes for an error of the client"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}
            > D0{}; closed 82; w: gets 1 @/w gone"#;
    "3.1.2-8" "3.1.2-8" "the will is published when another connection takes over"
        => say r#"
            w: connect; w: subscribe 01 @/w
            a: > 10{"MQTT" V 0E 003C <> "@" <> "@/w" ('gone')}; a: < 20{0000 <~>}
            b: > 10{"MQTT" V 02 003C <> "@"}; b: < 20{0000 <~>}
            a: closed 8E; w: gets 1 @/w gone"#;
    "-" "3.1.2-8" "DISCONNECT with reason 0x04 publishes the will"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}
            > E0{04}; closed; w: gets 1 @/w gone"#;
    "-" "3.1.2-8" "DISCONNECT with an error publishes the will"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}
            > E0{80}; closed; w: gets 1 @/w gone"#;
    "-" "3.1.2-8" "the will waits for its delay, and comes then"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <11 0000003C> "@" <18 00000002> "@/w" ('gone')}; < 20{0000 <~>}
            > E0{04}; closed; p: connect; p: publish 1 @/w meanwhile
            w: gets 1 @/w meanwhile; w: gets 1 @/w gone"#;
    "-" "3.1.2-8" "a session that ends before the delay is over publishes the will as it ends"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <11 00000001> "@" <18 00000E10> "@/w" ('gone')}; < 20{0000 <~>}
            > E0{04}; closed; w: gets 1 @/w gone"#;
    "-" "3.1.2-8" "without a session that outlives the connection the delay does not count"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <> "@" <18 00000E10> "@/w" ('gone')}; < 20{0000 <~>}
            drop; w: gets 1 @/w gone"#;
    "-" "3.1.2-8" "a clean start ends the session, so the will is published before its delay is over"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <11 0000003C> "@-c" <18 00000E10> "@/w" ('gone')}; < 20{0000 <~>}
            > E0{04}; closed; connect; w: gets 1 @/w gone"#;
    "-" "3.1.3-9" "a client that comes back before the delay is over keeps its will from being published"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <11 0000003C> "@-c" <18 00000002> "@/w" ('gone')}; < 20{0000 <~>}
            > E0{04}; closed; resume 1; wait 2500
            p: connect; p: publish 1 @/w after; w: gets 1 @/w after"#;
    "3.1.2-10" "3.1.2-10" "a will that was published is gone: it is not published again"
        => say r#"
            w: connect; w: subscribe 01 @/#
            > 10{"MQTT" V 0C 003C <11 0000003C> "@-c" <> "@/w" ('gone')}; < 20{0000 <~>}
            drop; w: gets 1 @/w gone
            resume 1; drop; resume 1
            p: connect; p: publish 1 @/after x; w: gets 1 @/after x"#;
    "3.1.2-10" "3.1.2-10" "DISCONNECT removes the will from the session"
        => say r#"
            w: connect; w: subscribe 01 @/#
            > 10{"MQTT" V 0C 003C <11 0000003C> "@-c" <> "@/w" ('gone')}; < 20{0000 <~>}; leave
            resume 1; drop; resume 1
            p: connect; p: publish 1 @/after x; w: gets 1 @/after x"#;
    "3.1.2-12" "-" "without the will flag nothing is published when the connection breaks"
        => say r#"
            w: connect; w: subscribe 01 @/#; connect; drop; connect
            p: connect; p: publish 1 @/after x; w: gets 1 @/after x"#;

    // How it is published.
    "3.1.2-16" "3.1.2-14" "without will retain the will is not retained"
        => say r#"
            w: connect; w: subscribe 01 @/#
            > 10{"MQTT" V 0E 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}; drop; w: gets 1 @/w gone
            late: connect; late: subscribe 01 @/#
            p: connect; p: publish 1 @/after x; late: gets 1 @/after x"#;
    "3.1.2-17" "3.1.2-15" "with will retain the will is retained"
        => say r#"
            w: connect; w: subscribe 01 @/#
            > 10{"MQTT" V 2E 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}; drop; w: gets 1 @/w gone
            late: connect; late: subscribe 01 @/#; late: gets 1r @/w gone"#;
    "3.1.2-17" "3.1.2-15" "… also at QoS 0"
        => say r#"
            w: connect; w: subscribe 00 @/#
            > 10{"MQTT" V 26 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}; drop; w: gets 0 @/w gone
            late: connect; late: subscribe 01 @/#; late: gets 0r @/w gone"#;
    "-" "3.1.3-10" "the will's user properties keep their order, and its other properties come with it"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <> "@" <26 "b" "1" 01 01 26 "a" "2" 03 "text" 26 "b" "0" 08 "@/r" 09 ('id')> "@/w" ('gone')}; < 20{0000 <~>}
            drop; w: < 32{"@/w" $a <26 "b" "1" 26 "a" "2" 26 "b" "0" 01 01 03 "text" 08 "@/r" 09 ('id')> 'gone'}"#;
    "-" "3.1.3-9" "the will delay stays with the server: subscribers are not told"
        => run will_delay_is_not_sent;
}

async fn will_delay_is_not_sent(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene
        .play(
            r#"w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <> "@" <18 00000001 02 00000E10> "@/w" ('gone')}; < 20{0000 <~>}; drop
            w: gets 1 @/w gone"#,
        )
        .await?;
    // `gets` acknowledged the message, which was the last packet that came.
    let found = properties_of(&scene.peer("w").await?.last)?;
    ensure!(found.iter().map(|(id, _)| *id).eq([0x02]), "the will came with {found:?}");
    Ok(())
}
