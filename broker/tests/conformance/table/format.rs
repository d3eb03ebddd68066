//! Chapters 1 and 2: strings, lengths, fixed headers, packet identifiers, properties.

use crate::row::rows;

rows! {
    // Strings.
    "1.5.3-1" "1.5.4-1" "a topic name that is not well-formed UTF-8 ends the connection"
        => say r#"connect; > 30{('a' C328) <> 'x'}; closed 81"#;
    "1.5.3-1" "1.5.4-1" "a topic name with a surrogate ends the connection"
        => say r#"connect; > 30{('a' EDA080) <> 'x'}; closed 81"#;
    "1.5.3-1" "1.5.4-1" "a topic name with an overlong encoding ends the connection"
        => say r#"connect; > 30{('a' C1A1) <> 'x'}; closed 81"#;
    "1.5.3-1" "1.5.4-1" "a topic filter with a surrogate ends the connection"
        => say r#"connect; > 82{0001 <> (EDBFBF) 00}; closed 81"#;
    "1.5.3-1" "1.5.4-1" "a client identifier with a surrogate is refused"
        => say r#"> 10{"MQTT" V 02 003C <> (EDA080)}; refused 81 --"#;
    "-" "1.5.4-1" "a string in a property that is not UTF-8 ends the connection"
        => say r#"connect; > 30{"@" <03 (EDA080)> 'x'}; closed 81"#;
    "1.5.3-2" "1.5.4-2" "U+0000 in a topic name ends the connection"
        => say r#"connect; > 30{('a' 00 'b') <> 'x'}; closed 81"#;
    "1.5.3-2" "1.5.4-2" "U+0000 in a topic filter ends the connection"
        => say r#"connect; > 82{0001 <> ('a' 00) 00}; closed 81"#;
    "1.5.3-2" "1.5.4-2" "U+0000 in a client identifier is refused"
        => say r#"> 10{"MQTT" V 02 003C <> ('a' 00)}; refused 81 --"#;
    "1.5.3-2" "1.5.4-2" "U+0000 in a user name is refused"
        => say r#"> 10{"MQTT" V 82 003C <> "@" ('a' 00)}; refused 81 --"#;
    "-" "1.5.4-2" "U+0000 in a property ends the connection"
        => say r#"connect; > 30{"@" <03 (00)> 'x'}; closed 81"#;
    "1.5.3-3" "1.5.4-3" "U+FEFF at the start of a topic is part of the topic, and is passed on"
        => say r#"
            s: connect; s: > 82{0001 <> (EFBBBF '@') 01}; s: < 90{0001 <> 01}
            p: connect; p: publish 1 @ plain
            p: > 32{(EFBBBF '@') 0002 <> 'marked'}; p: < 40{0002 ~}
            s: < 32{(EFBBBF '@') $a <> 'marked'}"#;
    "-" "1.5.7-1" "the key of a user property must be a proper string"
        => say r#"connect; > 30{"@" <26 (C3) "v"> 'x'}; closed 81"#;
    "-" "1.5.7-1" "the value of a user property must be a proper string"
        => say r#"connect; > 82{0001 <26 "k" ('a' 00)> "@" 00}; closed 81"#;

    // Lengths.
    "-" "1.5.5-1" "a Remaining Length of more bytes than it needs is malformed"
        => say r#"connect; > C0 80 00; closed 81"#;
    "-" "1.5.5-1" "a property length of more bytes than it needs is malformed"
        => say r#"connect; > 30{"@" 80 00 'x'}; closed 81"#;
    "-" "1.5.5-1" "the lengths that the server sends have the fewest bytes, on both sides of each step"
        => say r#"
            s: connect; s: subscribe 00 @; p: connect
            p: > 30{"@" <> 'x'*100}; s: < 30{"@" <> 'x'*100}
            p: > 30{"@" <26 "k" ('v'*130)> 'x'}; s: < 30{"@" <26 "k" ('v'*130)> 'x'}
            p: > 30{"@" <> 'x'*16400}; s: < 30{"@" <> 'x'*16400}"#;
    "4.8.0-1" "4.13.1-1" "a Remaining Length of five bytes is malformed"
        => say r#"connect; > C0 80 80 80 80 01; closed 81"#;
    "4.8.0-1" "4.13.1-1" "a packet that ends before its fields do is malformed"
        => say r#"connect; > 82{0001 <> 0009 'short'}; closed 81"#;
    "4.8.0-1" "4.13.1-1" "PINGREQ with a body is malformed"
        => say r#"connect; > C0{00}; closed 81"#;
    "4.8.0-1" "4.13.1-1" "packet type 0 is reserved"
        => say r#"connect; > 00{}; closed 81"#;
    "-" "4.13.1-1" "a packet larger than the server announced ends the connection"
        => say r#"connect; > 30 FF FF FF 7F; closed 95"#;

    // Fixed headers.
    "2.2.2-2" "2.1.3-1" "reserved flags of CONNECT"
        => say r#"> 11{"MQTT" V 02 003C <> "@"}; closed"#;
    "2.2.2-2" "2.1.3-1" "reserved flags of PUBACK"
        => say r#"connect; > 41{0001}; closed 81"#;
    "2.2.2-2" "2.1.3-1" "reserved flags of PUBREC"
        => say r#"connect; > 52{0001}; closed 81"#;
    "2.2.2-2" "2.1.3-1" "reserved flags of PUBCOMP"
        => say r#"connect; > 72{0001}; closed 81"#;
    "2.2.2-2" "2.1.3-1" "reserved flags of PINGREQ"
        => say r#"connect; > C8{}; closed 81"#;
    "2.2.2-1" "2.1.3-1" "the server sets the reserved flags of its own packets as the standard lists them"
        => say r#"
            c: connect; c: subscribe 02 @; c: quiet
            p: connect; p: > 34{"@" 0001 <> 'x'}; p: < 50{0001 ~}; p: > 62{0001}; p: < 70{0001 ~}
            p: publish 1 @/other x
            c: gets 2 @ x
            c: > A2{0002 <> "@"}; c: < B0{0002 ~}"#;

    // Packet identifiers.
    "2.3.1-5" "2.2.1-2" "a QoS 0 message has no packet identifier"
        => say r#"s: connect; s: subscribe 00 @; p: connect; p: publish 0 @ x; s: < 30{"@" <> 'x'}"#;
    "2.3.1-1" "2.2.1-3" "SUBSCRIBE with packet identifier 0 ends the connection"
        => say r#"connect; > 82{0000 <> "@" 00}; closed 81,82"#;
    "2.3.1-1" "2.2.1-3" "UNSUBSCRIBE with packet identifier 0 ends the connection"
        => say r#"connect; > A2{0000 <> "@"}; closed 81,82"#;
    "2.3.1-1" "2.2.1-3" "PUBLISH at QoS 1 with packet identifier 0 ends the connection"
        => say r#"connect; > 32{"@" 0000 <> 'x'}; closed 81,82"#;
    "2.3.1-1" "2.2.1-3" "PUBLISH at QoS 2 with packet identifier 0 ends the connection"
        => say r#"connect; > 34{"@" 0000 <> 'x'}; closed 81,82"#;
    "2.3.1-4" "2.2.1-4" "the server gives each message on its way another packet identifier, never 0"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect
            p: publish 1 @ 1; p: publish 2 @ 2; p: publish 1 @ 3
            s: < 32{"@" $a <> '1'}; s: < 34{"@" $b <> '2'}; s: < 32{"@" $c <> '3'}; distinct a b c
            s: > 40{$a}; s: > 40{$c}; s: quiet"#;
    "2.3.1-6" "2.2.1-5" "PUBACK, PUBREC and PUBCOMP carry the identifier of the PUBLISH"
        => say r#"
            connect; > 32{"@" 0102 <> 'x'}; < 40{0102 ~}
            > 34{"@" FFFF <> 'x'}; < 50{FFFF ~}; > 62{FFFF}; < 70{FFFF ~}"#;
    "2.3.1-6" "2.2.1-5" "PUBREL carries the identifier of the PUBLISH"
        => say r#"
            s: connect; s: subscribe 02 @; p: connect; p: publish 2 @ x
            s: < 34{"@" $a <> 'x'}; s: > 50{$a}; s: < 62{$a ~}; s: > 70{$a}"#;
    "2.3.1-7" "2.2.1-6" "SUBACK and UNSUBACK carry the identifier of what they answer"
        => say r#"connect; > 82{0A0B <> "@" 00}; < 90{0A0B <> 00}; > A2{FFFE <> "@"}; < B0{FFFE <> 5[00]}"#;

    // Properties.
    "-" "2.2.2-1" "a packet without properties has a property length of 0"
        => say r#"s: connect; s: subscribe 01 @; s: lacks 1F 26; p: connect; p: publish 1 @ x; s: < 32{"@" $a <> 'x'}"#;
    "-" "4.13.1-1" "a property that its packet cannot have is malformed"
        => say r#"connect; > 30{"@" <11 0000003C> 'x'}; closed 81"#;
    "-" "4.13.1-1" "a property that may occur once occurs twice"
        => say r#"connect; > 30{"@" <01 00 01 00> 'x'}; closed 82"#;
    "-" "4.13.1-1" "an unknown property is malformed"
        => say r#"connect; > 30{"@" <7F 00> 'x'}; closed 81"#;
    "-" "4.13.1-1" "properties that end in the middle of one are malformed"
        => say r#"connect; > 30{"@" <02 0000> 'x'}; closed 81"#;
}
