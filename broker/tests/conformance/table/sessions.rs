//! Session state: what CONNECT does with it (3.1.2), how long it lives (4.1), what is sent again (4.4), what is added (4.5).

use anyhow::Result;

use crate::row::rows;
use crate::scene::Stage;
use crate::server;

rows! {
    "3.1.2-6" "3.1.2-4" "clean start discards the session: subscriptions, messages that wait, messages on their way"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 2 @ 1; s: < 34{"@" $a <> '1'}; s: leave
            p: publish 1 @ 2; s: connect; s: quiet; p: publish 1 @ 3; s: subscribe 02 @/fence
            p: publish 1 @/fence x; s: gets 1 @/fence x; s: leave; s: resume 0"#;
    "3.1.2-6" "3.1.2-4" "clean start discards what the client left half published: its identifier is new"
        => say r#"
            p: resume 0; p: > 34{"@" 0005 <> '1'}; p: < 50{0005 ~}; p: leave; s: connect; s: subscribe 02 @
            p: connect; p: > 3C{"@" 0005 <> '2'}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005 ~}; s: gets 2 @ 2"#;
    "3.1.2-4" "3.1.2-5" "a session that is there goes on: its subscriptions are"
        => say r#"
            s: resume 0; s: subscribe 01 @/a; s: subscribe 00 @/b; s: leave; s: resume 1; p: connect
            p: publish 1 @/a x; s: gets 1 @/a x; p: publish 0 @/b y; s: gets 0 @/b y"#;
    "3.1.2-4" "3.1.2-5" "… with their options and identifiers"
        => say r#"
            5| s: resume 0; 5| s: > 82{0001 <0B 07> "@" 0D}; 5| s: < 90{0001 <~> 01}; 5| s: leave; 5| s: resume 1
            4| s: resume 0; 4| s: subscribe 01 @; 4| s: leave; 4| s: resume 1
            5| s: publish 1 @ own
            p: connect; p: publish 2r @ x
            5| s: < 33{"@" $a <0B 07> 'x'}; 4| s: gets 1 @ x"#;
    "3.1.2-4" "3.1.2-6" "where there is no session, a new one is made"
        => say r#"s: resume 0; s: subscribe 01 @; p: connect; p: publish 1 @ x; s: gets 1 @ x; s: leave; s: resume 1"#;
    "3.1.2-4" "3.1.2-23" "a session outlives its connection, however that ended"
        => say r#"
            resume 0; subscribe 01 @; leave; resume 1; drop; resume 1; > D0{}; closed 82; resume 1
            p: connect; p: publish 1 @ x; gets 1 @ x"#;
    "-" "3.1.2-23" "… for as long as its expiry interval says, and DISCONNECT may lengthen it"
        => say r#"
            s: > 10{"MQTT" V 00 003C <11 00000001> "@-s"}; s: < 20{0000 <~>}; s: subscribe 01 @
            s: > E0{00 <11 0000003C>}; s: closed; wait 2000; s: resume 1"#;
    "3.1.2-4" "3.1.2-23" "a session outlives the server"
        => run session_outlives_the_server;
    "3.1.2-5" "4.5.0-1" "messages that match a subscription of an absent client are kept for it"
        => say r#"
            s: resume 0; s: subscribe 02 @/#; s: leave; p: connect
            p: publish 1 @/a 1; p: publish 2 @/b 2; p: publish 1 @/c 3
            s: resume 1; s: gets 1 @/a 1; s: gets 2 @/b 2; s: gets 1 @/c 3; s: quiet"#;
    "4.5.0-1" "4.5.0-1" "a message reaches every client with a matching subscription"
        => say r#"
            a: connect; a: subscribe 02 @/x; b: connect; b: subscribe 01 @/+; d: resume 0; d: subscribe 01 @/#; d: leave
            p: connect; p: publish 2 @/x m; a: gets 2 @/x m; b: gets 1 @/x m; d: resume 1; d: gets 1 @/x m"#;
    "4.5.0-1" "4.5.0-1" "a message that was acknowledged to its publisher is not lost when the server restarts"
        => run message_outlives_the_server;
    "3.1.2-7" "-" "retained messages stay when the session that published them ends"
        => say r#"
            p: connect; p: publish 1r @/a 1; p: leave; q: connect; q: publish 1r @/b 2; q: drop
            s: connect; s: subscribe 01 @/a; s: gets 1r @/a 1; s: subscribe 01 @/b; s: gets 1r @/b 2"#;

    // How long.
    "4.1.0-1" "4.1.0-1" "session state is kept for the whole session: QoS 2 identifiers, over several connections"
        => say r#"
            s: connect; s: subscribe 02 @
            p: resume 0; p: > 34{"@" 0005 <> '1'}; p: < 50{0005 ~}; p: drop; p: resume 1; p: drop; p: resume 1
            p: > 3C{"@" 0005 <> '1'}; p: < 50{0005 ~}; p: > 62{0005}; p: < 70{0005 ~}; s: gets 2 @ 1; s: quiet"#;
    "4.1.0-2" "4.1.0-1" "a session lasts as long as its connection, though its expiry interval is shorter"
        => say r#"
            s: > 10{"MQTT" V 02 003C <11 00000001> "@-s"}; s: < 20{0000 <~>}; s: subscribe 01 @; wait 2000
            p: connect; p: publish 1 @ x; s: gets 1 @ x"#;
    "3.1.2-6" "4.1.0-2" "a session without an expiry interval (3.1.1: a clean one) ends with its connection"
        => say r#"connect; subscribe 01 @; leave; resume 0; p: connect; p: publish 1 @ x; quiet"#;
    "-" "4.1.0-2" "a session ends when its expiry interval is over"
        => say r#"
            s: > 10{"MQTT" V 00 003C <11 00000001> "@-s"}; s: < 20{0000 <~>}; s: subscribe 01 @; s: leave
            p: connect; p: publish 1 @ old; wait 2500; s: resume 0; p: publish 1 @ new; s: quiet"#;
    "-" "4.1.0-2" "DISCONNECT may end a session with the connection"
        => say r#"resume 0; subscribe 01 @; > E0{00 <11 00000000>}; closed; resume 0"#;
    "-" "3.2.2.3.2" "a longer life than the server grants is cut, and the client told"
        => run longest_expiry;

    // What is sent again.
    "4.4.0-1" "4.4.0-1" "PUBLISH packets that are not acknowledged are sent again with their identifiers"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 1 @ 1; p: publish 2 @ 2
            s: < 32{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}; s: drop
            s: resume 1; s: < 3A{"@" $a <> '1'}; s: < 3C{"@" $b <> '2'}
            s: > 40{$a}; s: > 50{$b}; s: < 62{$b}; s: > 70{$b}; s: quiet; s: leave; s: resume 1; s: quiet"#;
    "4.4.0-1" "4.4.0-1" "PUBREL packets that are not acknowledged are sent again"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}; s: > 50{$a}; s: < 62{$a}
            s: drop; s: resume 1; s: < 62{$a}; s: > 70{$a}; s: quiet"#;
    "4.4.0-1" "4.4.0-1" "what was acknowledged is not sent again, though messages before it are"
        => say r#"
            s: resume 0; s: subscribe 01 @; p: connect; p: publish 1 @ 1; p: publish 1 @ 2; p: publish 1 @ 3
            s: < 32{"@" $a <> '1'}; s: < 32{"@" $b <> '2'}; s: < 32{"@" $d <> '3'}; s: > 40{$b}; s: quiet; s: drop
            s: resume 1; s: < 3A{"@" $a <> '1'}; s: < 3A{"@" $d <> '3'}; s: > 40{$a}; s: > 40{$d}; s: quiet"#;
    "-" "4.4.0-1" "nothing is sent again while the connection lasts"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: publish 1 @ 1; p: publish 2 @ 2
            s: < 32{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}; wait 1500; s: quiet
            s: > 50{$b}; s: < 62{$b}; s: quiet"#;
    "-" "4.4.0-2" "a message that was refused with PUBACK is not sent again"
        => say r#"
            s: resume 0; s: subscribe 01 @; p: connect; p: publish 1 @ x; s: < 32{"@" $a <> 'x'}; s: > 40{$a 80}
            s: quiet; s: leave; s: resume 1; s: quiet; p: publish 1 @ y; s: gets 1 @ y"#;
    "-" "4.4.0-2" "a message that was refused with PUBREC is not sent again"
        => say r#"
            s: resume 0; s: subscribe 02 @; p: connect; p: publish 2 @ x; s: < 34{"@" $a <> 'x'}; s: > 50{$a 97}
            s: quiet; s: leave; s: resume 1; s: quiet; p: publish 2 @ y; s: gets 2 @ y"#;
}

/// Starts a server again on what the first one left.
async fn session_outlives_the_server(stage: Stage) -> Result<()> {
    let gateway = server::start().await;
    stage.on(gateway.addr()).play("s: resume 0; s: subscribe 02 @; s: leave; t: resume 0; t: subscribe 01 @").await?;
    let gateway = server::restart(gateway).await;
    let script = r#"
        p: connect; p: publish 2 @ x; s: resume 1; s: gets 2 @ x; t: resume 1; t: gets 1 @ x"#;
    let played = stage.on(gateway.addr()).play(script).await;
    gateway.stop().await;
    played
}

async fn message_outlives_the_server(stage: Stage) -> Result<()> {
    let gateway = server::start().await;
    let mut scene = stage.on(gateway.addr()).scene();
    scene.play(r#"s: resume 0; s: subscribe 02 @; s: leave; p: connect; p: publish 1 @ 1; p: publish 2 @ 2"#).await?;
    let gateway = server::restart(gateway).await;
    let script = "s: resume 1; s: gets 1 @ 1; s: gets 2 @ 2; s: quiet";
    let played = stage.on(gateway.addr()).play(script).await;
    gateway.stop().await;
    played
}

/// The most that can be asked for is forever; a server that grants less says so.
async fn longest_expiry(stage: Stage) -> Result<()> {
    stage.play(r#"> 10{"MQTT" V 00 003C <11 FFFFFFFF> "@"}; < 20{0000 <~>}; has 11"#).await
}
