//! Section 3.2: CONNACK.

use anyhow::Result;
use millwright_broker::{Users, hash_password};

use crate::row::rows;
use crate::scene::Stage;
use crate::server;

rows! {
    "3.2.0-1" "3.2.0-1" "CONNACK comes before anything else, though the client did not wait for it"
        => say r#"
            > 10{"MQTT" V 02 003C <> "@"} C000 82{0001 <> "@" 00} 32{"@/other" 0002 <> 'x'}
            < 20{0000 <~>}; < D0{}"#;
    "3.2.0-1" "3.2.0-1" "CONNACK comes before the messages that waited for the client"
        => say r#"
            resume 0; subscribe 01 @; leave; p: connect; p: publish 1 @ x; resume 1; gets 1 @ x"#;
    "-" "3.2.0-2" "a second CONNECT is not answered with a second CONNACK"
        => say r#"connect; > 10{"MQTT" V 02 003C <> "@-other"}; closed 82"#;
    "-" "3.2.2-1" "the reserved acknowledge flags are 0"
        => say r#"a: > 10{"MQTT" V 02 003C <> "@"}; a: < 20{00 00 <~>}; b: > 10{"MQTT" V 00 003C <> "@-b"}; b: < 20{00 00 <~>}"#;
    "3.2.2-1" "3.2.2-2" "clean start: success and no session present, though there was one"
        => say r#"resume 0; subscribe 01 @; leave; connect"#;
    "3.2.2-2" "3.2.2-3" "a stored session is announced"
        => say r#"resume 0; leave; resume 1; drop; resume 1"#;
    "3.2.2-3" "3.2.2-3" "no session is announced where there is none"
        => say r#"resume 0; leave; connect; leave; resume 0"#;
    "3.2.2-4" "3.2.2-6" "a refusal announces no session, though one is stored"
        => run refusal_with_a_session;
    "3.2.2-5" "3.2.2-7" "after a refusal the connection is closed"
        => say r#"> 10{"MQTT" V 02 003C <> ('x'*600)}; refused 85 02"#;
    "-" "3.2.2-8" "refusals carry the reason that the standard has for them"
        => say r#"
            a: > 10{"MQTT" V 03 003C <> "@"}; a: refused 81 --
            b: > 10{"MQTT" V 02 003C <21 0000> "@"}; b: refused 82 --
            c: > 10{"MQTT" 06 02 003C <> "@"}; c: refused 84 01
            d: > 10{"MQTT" V 02 003C <> ('x'*600)}; d: refused 85 02
            e: > 10{"MQTT" V 06 003C <> "@" <> "@/+" ('w')}; e: refused 90 --
            f: > 10{"MQTT" V 02 003C <15 "SCRAM-SHA-1"> "@"}; f: refused 8C --"#;
    "-" "3.2.2-8" "a will that the client may not publish is refused as not authorized"
        => say r#"> 10{"MQTT" V 06 003C <> "@" <> "@/denied" ('w')}; refused 87 05"#;
    "3.2.2-6" "-" "where no return code fits, the connection is closed without CONNACK"
        => say r#"> 10{"MQTT" V 03 003C <> "@"}; refused 81 --"#;
    "-" "3.2.2-16" "a client without an identifier is told the one it got, each time another"
        => say r#"
            a: > 10{"MQTT" V 02 003C <> ""}; a: < 20{0000 <~>}; a: has 12
            b: > 10{"MQTT" V 00 003C <> ""}; b: < 20{0000 <~>}; b: has 12; a: quiet"#;
    "-" "3.2.2-19" "no reason string that makes a refusal larger than the client takes"
        => say r#"> 10{"MQTT" V 02 003C <27 00000010> ('x'*600)}; < 20{00 85 <~>}; lacks 1F; closed"#;
    "-" "3.2.2-20" "no user property that makes a refusal larger than the client takes"
        => say r#"> 10{"MQTT" V 02 003C <27 00000010> ('x'*600)}; < 20{00 85 <~>}; lacks 26; closed"#;
    "-" "3.2.2-22" "where the server names no keep-alive, the client's is the one that counts"
        => say r#"> 10{"MQTT" V 02 0002 <> "@"}; < 20{0000 <~>}; lacks 13; wait 1000; quiet; closed 8D"#;
    "-" "4.12.0-6" "no authentication method in CONNACK for a client that named none"
        => say r#"connect; lacks 15 16"#;
}

async fn refusal_with_a_session(stage: Stage) -> Result<()> {
    let mut users = Users::new();
    users.insert("plc", &hash_password(b"right")?)?;
    let gateway = server::with(|config| config.users = Some(users)).await;
    let script = r#"
        > 10{"MQTT" V C0 003C <11 0000003C> "@" "plc" ('right')}; < 20{0000 <~>}; subscribe 01 @; leave
        > 10{"MQTT" V C0 003C <11 0000003C> "@" "plc" ('wrong')}; refused 86 04
        > 10{"MQTT" V C0 003C <11 0000003C> "@" "plc" ('right')}; < 20{0100 <~>}"#;
    let played = stage.on(gateway.addr()).play(script).await;
    gateway.stop().await;
    played
}
