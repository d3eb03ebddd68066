//! Sections 4.7 and 4.8: topic names and filters, shared subscriptions.

use anyhow::{Result, bail, ensure};

use crate::row::rows;
use crate::scene::{Scene, Stage};

rows! {
    // Wildcards.
    "4.7.1-1" "4.7.0-1" "wildcards are for filters: a topic name has none"
        => say r#"connect; > 32{"@/a+" 0001 <> 'x'}; closed 81,82,90"#;
    "4.7.1-2" "4.7.1-1" "`#` is the whole last level of a filter"
        => say r##"
            connect; > 82{0001 <> "#" 00 "@/#" 00 "@#" 00 "@/a#" 00 "#/@" 00 "@/#/b" 00 "@/##" 00}
            < 90{0001 <~> 00 00 5[8F 8F 8F 8F 8F] 4[80 80 80 80 80]}"##;
    "4.7.1-2" "4.7.1-1" "`#` matches its parent and everything below"
        => say r#"
            s: connect; s: subscribe 01 @/a/#; p: connect; p: publish 1 @/ab no; p: publish 1 @ no
            p: publish 1 @/a 1; p: publish 1 @/a/ 2; p: publish 1 @/a/b/c 3; p: publish 1 @/a// 4
            s: gets 1 @/a 1; s: gets 1 @/a/ 2; s: gets 1 @/a/b/c 3; s: gets 1 @/a// 4"#;
    "4.7.1-3" "4.7.1-2" "`+` is a whole level of a filter"
        => say r#"
            connect; > 82{0001 <> "+" 00 "+/@" 00 "@/+" 00 "@/+/b" 00 "@+" 00 "+@" 00 "@/a+/b" 00 "++" 00}
            < 90{0001 <~> 00 00 00 00 5[8F 8F 8F 8F] 4[80 80 80 80]}"#;
    "4.7.1-3" "4.7.1-2" "`+` matches one level, an empty one too"
        => say r#"
            s: connect; s: subscribe 01 @/+/b; p: connect
            p: publish 1 @/a/c no; p: publish 1 @/a/a/b no; p: publish 1 @/b no; p: publish 1 @/a/b/ no
            p: publish 1 @/a/b 1; p: publish 1 @//b 2; s: gets 1 @/a/b 1; s: gets 1 @//b 2"#;
    "4.7.1-3" "4.7.1-2" "`+/b` matches `/b`: the level before the slash is empty, but it is one"
        => say r#"s: connect; s: subscribe 01 +/@; p: connect; p: publish 1 @ no; p: publish 1 /@ x; s: gets 1 /@ x"#;

    // Topics that begin with `$`.
    "4.7.2-1" "4.7.2-1" "a filter that begins with a wildcard does not match a topic that begins with `$`"
        => alone r#"
            s: connect; s: subscribe 01 #; s: subscribe 01 +/x; s: subscribe 01 +/#; p: connect
            p: publish 1 $@/x no; p: publish 1 $ no; p: publish 1 a/x yes; s: gets 1 a/x yes
            p: publish 0 $@/x no; p: publish 0 a/x yes; s: gets 0 a/x yes"#;
    "4.7.2-1" "4.7.2-1" "… neither do retained messages come for it"
        => alone r#"
            p: connect; p: publish 1r $@/x no; p: publish 1r a/x yes
            s: connect; s: subscribe 01 #; s: gets 1r a/x yes; p: publish 1 a/y after; s: gets 1 a/y after"#;
    "4.7.2-1" "4.7.2-1" "a filter that begins with `$` does"
        => say r#"s: connect; s: subscribe 01 $@/#; p: connect; p: publish 1 $@/x yes; s: gets 1 $@/x yes"#;

    // Names and filters as such.
    "4.7.3-1" "4.7.3-1" "an empty topic name ends the connection"
        => say r#"connect; > 32{"" 0001 <> 'x'}; closed 81,82,90"#;
    "4.7.3-1" "4.7.3-1" "an empty filter is refused"
        => say r#"connect; > 82{0001 <> "" 00}; < 90{0001 <~> 5[8F] 4[80]}; quiet"#;
    "4.7.3-1" "4.7.3-1" "one character is enough, a slash too"
        => alone r#"
            s: connect; s: subscribe 01 /; s: subscribe 01 a; p: connect
            p: publish 1 / 1; s: gets 1 / 1; p: publish 1 a 2; s: gets 1 a 2"#;
    "4.7.3-2" "4.7.3-2" "U+0000 in a topic name"
        => say r#"connect; > 32{('@' 00) 0001 <> 'x'}; closed 81,82,90"#;
    "4.7.3-2" "4.7.3-2" "U+0000 in a topic filter"
        => say r#"connect; > 82{0001 <> ('@' 00) 00}; closed 81"#;
    "4.7.3-3" "4.7.3-3" "a topic has at most 65,535 bytes; one that is longer than the server takes is refused, not cut"
        => run long_topics;
    "4.7.3-4" "4.7.3-4" "topics are case-sensitive"
        => say r#"
            s: connect; s: subscribe 01 @/Case; p: connect; p: publish 1 @/case no; p: publish 1 @/CASE no
            p: publish 1 @/Case yes; s: gets 1 @/Case yes"#;
    "4.7.3-4" "4.7.3-4" "a slash in front or behind makes another topic"
        => say r#"
            s: connect; s: subscribe 01 @/a; p: connect; p: publish 1 @/a/ no; p: publish 1 /@/a no; p: publish 1 @//a no
            p: publish 1 @/a yes; s: gets 1 @/a yes"#;
    "4.7.3-4" "4.7.3-4" "characters that look alike are not the same: composed and decomposed"
        => say r#"
            s: connect; s: > 82{0001 <> ('@/' C3A9) 01}; s: < 90{0001 <~> 01}; p: connect
            p: > 32{('@/e' CC81) 0001 <> 'no'}; p: < 40{0001 ~}; p: > 32{('@/' C3A9) 0002 <> 'yes'}; p: < 40{0002 ~}
            s: < 32{('@/' C3A9) $a <> 'yes'}"#;
    "4.7.3-4" "4.7.3-4" "spaces and characters that are not assigned stay"
        => say r#"
            s: connect; s: > 82{0001 <> ('@/ x ' F48FBFBD) 01}; s: < 90{0001 <~> 01}; p: connect
            p: > 32{('@/x' F48FBFBD) 0001 <> 'no'}; p: < 40{0001 ~}; p: > 32{('@/ x ' F48FBFBD) 0002 <> 'yes'}; p: < 40{0002 ~}
            s: < 32{('@/ x ' F48FBFBD) $a <> 'yes'}"#;

    // Shared subscriptions.
    "-" "4.8.2-1" "a share name has at least one character"
        => say r#"connect; > 82{0001 <> "$share//@" 01}; < 90{0001 <~> 8F}; quiet"#;
    "-" "4.8.2-1" "a filter that begins with `$share/` and names a group is a shared subscription"
        => say r#"
            s: connect; s: subscribe 01 $share/g/@; p: connect; p: publish 1 @ x; s: gets 1 @ x"#;
    "-" "4.8.2-2" "a share name has no wildcards, and a filter follows it"
        => say r#"
            connect; > 82{0001 <> "$share/+/@" 01 "$share/g#/@" 01 "$share/g" 01 "$share/g/" 01 "$share/g/@/#/x" 01}
            < 90{0001 <~> 8F 8F 8F 8F 8F}; quiet"#;
    "-" "4.8.2-2" "a filter that only looks like one is none: `$shared`"
        => say r#"s: connect; s: subscribe 01 $shared/@; p: connect; p: publish 1 $shared/@ x; s: gets 1 $shared/@ x"#;
    "-" "4.8.2-3" "each member of a group gets messages at the QoS that it was granted"
        => say r#"
            s: connect; s: subscribe 00 $share/g/@; p: connect; p: publish 2 @ x; s: gets 0 @ x
            s: subscribe 01 $share/g/@; p: publish 2 @ y; s: gets 1 @ y; s: subscribe 02 $share/g/@
            p: publish 2 @ z; s: gets 2 @ z"#;
    "-" "4.8.2" "each message goes to one member of a group, and to every other subscription"
        => run one_member_each;
    "-" "4.8.2" "no retained messages come for a shared subscription"
        => say r#"
            p: connect; p: publish 1r @ kept; s: connect; s: subscribe 01 $share/g/@
            p: publish 1 @ new; s: gets 1 @ new"#;
    "-" "4.8.2" "UNSUBSCRIBE from a shared subscription leaves the group"
        => say r#"
            s: connect; s: subscribe 01 $share/g/@; s: > A2{0001 <> "$share/g/@"}; s: < B0{0001 <> 00}
            s: subscribe 01 @/fence; p: connect; p: publish 1 @ no; p: publish 1 @/fence x; s: gets 1 @/fence x"#;
    "-" "4.8.2-4" "a QoS 2 delivery to a member that is cut off is completed when it comes back"
        => say r#"
            a: resume 0; a: subscribe 02 $share/g/@; p: connect; p: publish 2 @ 1; a: < 34{"@" $a <> '1'}
            b: connect; b: subscribe 02 $share/g/@; a: drop
            a: resume 1; a: < 3C{"@" $a <> '1'}; a: > 50{$a}; a: < 62{$a}; a: > 70{$a}
            a: > A2{0001 <> "$share/g/@"}; a: < B0{0001 <> 00}; p: publish 2 @ 2; b: gets 2 @ 2"#;
    "-" "4.8.2-5" "a QoS 2 message whose member's session ends goes to no other member"
        => say r#"
            a: connect; a: subscribe 02 $share/g/@; p: connect; p: publish 2 @ 1; a: < 34{"@" $a <> '1'}
            b: connect; b: subscribe 02 $share/g/@; a: leave; p: publish 2 @ 2; b: gets 2 @ 2; b: quiet"#;
    "-" "4.8.2-6" "a message that a member refuses with PUBACK goes to no other member"
        => say r#"
            a: connect; a: subscribe 01 $share/g/@; p: connect; p: publish 1 @ 1; a: < 32{"@" $a <> '1'}
            b: connect; b: subscribe 01 $share/g/@; a: > 40{$a 80}; a: quiet
            a: > A2{0001 <> "$share/g/@"}; a: < B0{0001 <> 00}; p: publish 1 @ 2; b: gets 1 @ 2; b: quiet"#;
    "-" "4.8.2-6" "… nor one that it refuses with PUBREC"
        => say r#"
            a: connect; a: subscribe 02 $share/g/@; p: connect; p: publish 2 @ 1; a: < 34{"@" $a <> '1'}
            b: connect; b: subscribe 02 $share/g/@; a: > 50{$a 80}; a: quiet
            a: > A2{0001 <> "$share/g/@"}; a: < B0{0001 <> 00}; p: publish 2 @ 2; b: gets 2 @ 2; b: quiet"#;
}

/// The length that the protocol allows has no byte for more; a server that takes less says so.
async fn long_topics(stage: Stage) -> Result<()> {
    stage
        .play(
            r#"
            s: connect; s: > 82{0001 <> ('@/' 'x'*900) 01}; s: < 90{0001 <~> 01}; p: connect
            p: > 32{('@/' 'x'*900) 0001 <> 'x'}; p: < 40{0001 ~}; s: < 32{('@/' 'x'*900) $a <> 'x'}
            s: > 82{0002 <> ('x'*65535) 01}; s: < 90{0002 <~> 5[8F] 4[80]}
            p: > 32{('x'*65535) 0002 <> 'x'}; p: closed 90"#,
        )
        .await
}

/// Thirty messages, three members of one group, one of another, one subscriber that is in none.
async fn one_member_each(stage: Stage) -> Result<()> {
    const MESSAGES: u8 = 30;
    let mut scene = stage.scene();
    for member in ["a", "b", "d"] {
        scene.play(&format!("{member}: connect; {member}: subscribe 01 $share/g/@/#")).await?;
    }
    scene.play("e: connect; e: subscribe 01 $share/h/@/#; f: connect; f: subscribe 01 @/+; p: connect").await?;
    for number in 10..10 + MESSAGES {
        scene.play(&format!("p: publish 1 @/n {number}; e: gets 1 @/n {number}; f: gets 1 @/n {number}")).await?;
    }
    let mut got = Vec::new();
    while got.len() < usize::from(MESSAGES) {
        for member in ["a", "b", "d"] {
            until_pingresp(&mut scene, member, &mut got).await?;
        }
    }
    scene.play("a: quiet; b: quiet; d: quiet").await?;
    got.sort_unstable();
    let expected: Vec<Vec<u8>> = (10..10 + MESSAGES).map(|number| number.to_string().into_bytes()).collect();
    ensure!(got == expected, "{} messages came for {MESSAGES}", got.len());
    Ok(())
}

/// Collects the payloads that come until PINGRESP, and acknowledges them.
async fn until_pingresp(scene: &mut Scene, member: &str, got: &mut Vec<Vec<u8>>) -> Result<()> {
    let peer = scene.peer(member).await?;
    peer.send(&[0xC0, 0]).await;
    loop {
        let packet = peer.packet().await?;
        match packet.kind() {
            3 => {
                let length = usize::from(u16::from_be_bytes([packet.body[0], packet.body[1]]));
                got.push(packet.body[packet.body.len() - 2..].to_vec());
                peer.send(&[0x40, 2, packet.body[2 + length], packet.body[3 + length]]).await;
            }
            13 => return Ok(()),
            kind => bail!("a packet of the kind {kind} came"),
        }
    }
}
