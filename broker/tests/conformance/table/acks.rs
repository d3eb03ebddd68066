//! Sections 3.4 to 3.7: PUBACK, PUBREC, PUBREL, PUBCOMP. The flows themselves are in [`super::delivery`].

use crate::row::rows;

rows! {
    "-" "3.4.2-1" "PUBACK says success, or why not"
        => say r#"
            connect; > 32{"@" 0001 <> 'x'}; < 40{0001 ~}
            > 32{"@/denied" 0002 <> 'x'}; < 40{0002 87 ~}; quiet"#;
    "-" "3.4.2-1" "PUBACK with a reason that it does not have is malformed"
        => say r#"connect; > 40{0001 01}; closed 81,82"#;
    "-" "3.4.2-1" "a payload that is not the UTF-8 it claims to be, if it is refused, is refused as such"
        => say r#"connect; > 32{"@" 0001 <01 01> FF}; < 40{0001 99 ~}; quiet"#;
    "-" "3.5.2-1" "PUBREC says success, or why not"
        => say r#"
            connect; > 34{"@" 0001 <> 'x'}; < 50{0001 ~}; > 62{0001}; < 70{0001 ~}
            > 34{"@/denied" 0002 <> 'x'}; < 50{0002 87 ~}; quiet"#;
    "-" "3.5.2-1" "PUBREC with a reason that it does not have is malformed"
        => say r#"connect; > 50{0001 92}; closed 81,82"#;
    "3.6.1-1" "3.6.1-1" "the flags of PUBREL are 0010: 0000 is malformed"
        => say r#"connect; > 34{"@" 0001 <> 'x'}; < 50{0001 ~}; > 60{0001}; closed 81"#;
    "3.6.1-1" "3.6.1-1" "… and so is 1010"
        => say r#"connect; > 34{"@" 0001 <> 'x'}; < 50{0001 ~}; > 6A{0001}; closed 81"#;
    "-" "3.6.2-1" "PUBREL says success, or that the identifier is unknown"
        => say r#"
            connect; subscribe 02 @; p: connect; p: publish 2 @ x
            < 34{"@" $a <> 'x'}; > 50{$a}; < 62{$a}; > 70{$a}; > 50{0FFF}; < 62{0FFF 92 ~}; quiet"#;
    "-" "3.6.2-1" "PUBREL with a reason that it does not have is malformed"
        => say r#"connect; > 62{0001 80}; closed 81,82"#;
    "-" "3.7.2-1" "PUBCOMP says success, or that the identifier is unknown"
        => say r#"
            connect; > 34{"@" 0001 <> 'x'}; < 50{0001 ~}; > 62{0001}; < 70{0001}
            > 62{0FFF}; < 70{0FFF 92 ~}; quiet"#;
    "-" "3.7.2-1" "PUBCOMP with a reason that it does not have is malformed"
        => say r#"connect; > 70{0001 97}; closed 81,82"#;

    // Nothing that explains a reason makes a packet larger than the client takes.
    "-" "3.4.2-2" "no reason string that makes PUBACK too large"
        => say r#"connect <27 00000019>; > 32{"@/denied" 0001 <> 'x'}; < 40{0001 87 ~}; lacks 1F"#;
    "-" "3.4.2-3" "no user property that makes PUBACK too large"
        => say r#"connect <27 00000019>; > 32{"@/denied" 0001 <> 'x'}; < 40{0001 87 ~}; lacks 26"#;
    "-" "3.5.2-2" "no reason string that makes PUBREC too large"
        => say r#"connect <27 00000019>; > 34{"@/denied" 0001 <> 'x'}; < 50{0001 87 ~}; lacks 1F"#;
    "-" "3.5.2-3" "no user property that makes PUBREC too large"
        => say r#"connect <27 00000019>; > 34{"@/denied" 0001 <> 'x'}; < 50{0001 87 ~}; lacks 26"#;
    "-" "3.6.2-2" "no reason string that makes PUBREL too large"
        => say r#"connect <27 00000019>; > 50{0009}; < 62{0009 92 ~}; lacks 1F"#;
    "-" "3.6.2-3" "no user property that makes PUBREL too large"
        => say r#"connect <27 00000019>; > 50{0009}; < 62{0009 92 ~}; lacks 26"#;
    "-" "3.7.2-2" "no reason string that makes PUBCOMP too large"
        => say r#"connect <27 00000019>; > 62{0009}; < 70{0009 92 ~}; lacks 1F"#;
    "-" "3.7.2-3" "no user property that makes PUBCOMP too large"
        => say r#"connect <27 00000019>; > 62{0009}; < 70{0009 92 ~}; lacks 26"#;
}
