//! Sections 3.12 to 3.15, 4.12 and 4.13: PINGREQ, DISCONNECT, AUTH, and how errors end a connection.

use anyhow::Result;

use crate::row::rows;
use crate::scene::Stage;
use crate::server;

rows! {
    "3.12.4-1" "3.12.4-1" "PINGREQ is answered with PINGRESP"
        => say r#"connect; > C0{}; < D0{}; > C000C000; < D0{}; < D0{}"#;

    // DISCONNECT.
    "-" "3.14.0-1" "no DISCONNECT before CONNACK"
        => say r#"a: > C0{}; a: closed; b: > 10{"MQTT" V 03 003C <> "@"}; b: refused 81 --"#;
    "3.14.1-1" "3.14.1-1" "reserved flags of DISCONNECT are malformed"
        => say r#"connect; > E1{}; closed 81"#;
    "3.14.1-1" "3.14.1-1" "… so the will is published"
        => say r#"
            w: connect; w: subscribe 01 @/w
            > 10{"MQTT" V 0E 003C <> "@" <> "@/w" ('gone')}; < 20{0000 <~>}; > E2{}; closed 81; w: gets 1 @/w gone"#;
    "-" "3.14.2-1" "the server says why it closes: malformed packet, protocol error, taken over, topic alias invalid"
        => say r#"
            a: connect; a: > C1{}; a: closed 81; b: connect; b: > D0{}; b: closed 82
            d: connect; d: > 30{"@" <23 FFFF> 'x'}; d: closed 94
            e: > 10{"MQTT" V 02 003C <> "@-f"}; e: < 20{0000 <~>}; f: connect; e: closed 8E"#;
    "-" "3.14.2-1" "the server says that it shuts down"
        => run shutdown;
    "-" "3.14.2-1" "DISCONNECT with a reason that it does not have is malformed"
        => say r#"connect; > E0{01}; closed 81,82"#;
    "-" "3.14.2-2" "the server's DISCONNECT has no session expiry interval"
        => say r#"
            resume 0; > D0{}; < E0{82 ~}; lacks 11; closed
            a: resume 0; b: > 10{"MQTT" V 00 003C <11 00000010> "@-a"}; b: < 20{0100 <~>}; a: < E0{8E ~}; a: lacks 11"#;
    "-" "3.14.2-3" "no reason string that makes DISCONNECT too large"
        => say r#"connect <27 00000019>; > D0{}; < E0{82 ~}; lacks 1F"#;
    "-" "3.14.2-4" "no user property that makes DISCONNECT too large"
        => say r#"connect <27 00000019>; > D0{}; < E0{82 ~}; lacks 26"#;
    "-" "3.14.4-1" "after DISCONNECT the server sends nothing more"
        => say r#"connect; > D0{} C0{} 32{"@" 0001 <> 'x'} C0{}; closed 82"#;
    "-" "3.14.4-2" "after DISCONNECT the server closes the connection"
        => say r#"connect; > C1{}; < E0{81 ~}; closed"#;
    "3.14.4-3" "3.14.4-3" "after DISCONNECT with reason 0 the will is dropped"
        => say r#"
            w: connect; w: subscribe 01 @/#
            > 10{"MQTT" V 0E 003C <> "@-c" <> "@/w" ('gone')}; < 20{0000 <~>}; leave; connect
            p: connect; p: publish 1 @/after x; w: gets 1 @/after x"#;
    "-" "4.13.1-1" "a session that ends with its connection cannot be given a longer life in DISCONNECT"
        => say r#"connect; > E0{00 <11 0000003C>}; closed 82"#;
    "-" "4.13.1-1" "a property that DISCONNECT cannot have is malformed"
        => say r#"connect; > E0{00 <21 0001>}; closed 81,82"#;

    // AUTH.
    "-" "3.15.1-1" "reserved flags of AUTH are malformed"
        => say r#"connect; > F1{00 <15 "SCRAM">}; closed 81"#;
    "-" "4.12.0-1" "an authentication method that the server does not have is refused, and the connection closed"
        => say r#"> 10{"MQTT" V 02 003C <15 "SCRAM-SHA-1" 16 ('x')> "@"}; refused 8C --"#;
    "-" "4.12.0-7" "a client that named no method and sends AUTH has broken the protocol"
        => say r#"connect; > F0{19 <15 "SCRAM-SHA-1">}; closed 82"#;
    "2.2.2-2" "-" "AUTH is a reserved packet type"
        => say r#"connect; > F0{}; closed"#;

    // Errors.
    "4.8.0-1" "4.13.1-1" "a packet that only a server sends ends the connection: CONNACK"
        => say r#"connect; > 20{0000 <>}; closed 81,82"#;
    "4.8.0-1" "4.13.1-1" "… SUBACK"
        => say r#"connect; > 90{0001 <> 00}; closed 81,82"#;
    "4.8.0-1" "4.13.1-1" "… UNSUBACK"
        => say r#"connect; > B0{0001 <> 5[00]}; closed 81,82"#;
    "4.8.0-1" "4.13.1-1" "… PINGRESP"
        => say r#"connect; > D0{}; closed 81,82"#;
    "4.8.0-1" "4.13.1-1" "an acknowledgement without a packet identifier is malformed"
        => say r#"connect; > 40{00}; closed 81"#;
    "4.8.0-1" "4.13.1-1" "an error of one client does not touch another"
        => say r#"
            a: connect; a: subscribe 01 @; b: connect; b: > 00 00; b: closed 81
            a: quiet; p: connect; p: publish 1 @ x; a: gets 1 @ x"#;
    "-" "4.13.1-1" "more publishes on their way than the server's receive maximum"
        => run over_receive_maximum;
    "-" "4.13.2-1" "a refusal and a DISCONNECT with an error end the connection"
        => say r#"
            a: > 10{"MQTT" V 02 003C <> ('x'*600)}; a: < 20{00 85 <~>}; a: closed
            b: connect; b: > D0{}; b: < E0{82 ~}; b: closed; d: connect; d: > E0{80}; d: closed"#;
}

async fn shutdown(stage: Stage) -> Result<()> {
    let gateway = server::start().await;
    let mut scene = stage.on(gateway.addr()).scene();
    scene.play("connect").await?;
    gateway.stop().await;
    scene.play("closed 8B").await
}

/// The server announces a receive maximum of [`server::RECEIVE_MAX`]; QoS 2 publishes count until PUBCOMP.
async fn over_receive_maximum(stage: Stage) -> Result<()> {
    let mut scene = stage.scene();
    scene.play("connect; has 21").await?;
    for id in 1..=server::RECEIVE_MAX {
        scene.play(&format!(r#"> 34{{"@" {id:04X} <> 'x'}}; < 50{{{id:04X} ~}}"#)).await?;
    }
    scene.play(r#"quiet; > 34{"@" 0FFF <> 'x'}; closed 93"#).await
}
