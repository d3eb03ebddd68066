//! Every key is read, written and refused by name.

use proptest::prelude::*;

use super::*;

fn good() -> Vec<(String, String)> {
    let pairs = [
        (KEY_CONTRACT, "1"),
        (KEY_NAME, "pump-a"),
        (KEY_VERSION, "7"),
        (KEY_CHANNELS, r#"[{"name": "flow", "unit": "l/min", "normal": 32.5}, {"name": "pressure"}]"#),
        (KEY_SAMPLES, "20"),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn with(key: &str, value: &str) -> Vec<(String, String)> {
    let mut entries = good();
    entries.retain(|(k, _)| k != key);
    entries.push((key.to_owned(), value.to_owned()));
    entries
}

/// The key that an error about `key` = `value` names.
fn refused(key: &str, value: &str) -> String {
    match Contract::from_metadata(&with(key, value)) {
        Err(ContractError::Invalid { key, .. } | ContractError::Missing { key, .. }) => key.to_owned(),
        other => panic!("{key} = {value}: {other:?}"),
    }
}

#[test]
fn the_least_is_enough_and_reads_back() {
    // The five required keys make a contract with the defaults, and what it writes reads back as itself.
    let contract = Contract::from_metadata(&good()).unwrap();
    assert_eq!((contract.version, contract.samples, contract.window_len()), (7, 20, 40));
    assert_eq!(contract.input, InputKind::Window);
    assert_eq!(contract.channels[0].normal, Some(32.5));
    assert_eq!(contract.channel_index("pressure"), Some(1));
    assert_eq!(Contract::from_metadata(&contract.to_metadata()).unwrap(), contract);
}

#[test]
fn every_key_reads_back() {
    // Features, interval, provenance and golden vectors survive being written.
    let mut entries = good();
    for (key, value) in [
        (KEY_INPUT, "features"),
        (KEY_FEATURES, r#"["mean", "band:10-50"]"#),
        (KEY_INTERVAL_MS, "0.125"),
        (KEY_CREATED, "2025-01-31"),
        (KEY_TRAINED_FROM, "line 3"),
        (KEY_ROWS, "400"),
        (KEY_GOLDEN, r#"[{"row": [1, 2], "score": 0.5, "contribution": [0.2, 0.05]}]"#),
    ] {
        entries.push((key.to_owned(), value.to_owned()));
    }
    let contract = Contract::from_metadata(&entries).unwrap();
    assert_eq!(contract.interval_ms, Some(0.125));
    assert_eq!(contract.golden[0].values(2), [1.0, 2.0, 1.0, 2.0]);
    assert_eq!(Contract::from_metadata(&contract.to_metadata()).unwrap(), contract);
}

#[test]
fn a_foreign_model_is_told_what_it_needs() {
    // Metadata of others only: the error names the keys to add.
    let error = Contract::from_metadata(&[("author".to_owned(), "x".to_owned())]).unwrap_err();
    assert_eq!(error, ContractError::Absent);
    assert!(error.to_string().contains("millwright.channels"));
}

#[test]
fn each_required_key_is_missed_by_name() {
    // Leaving out any of the five names it.
    for (key, _) in good() {
        let entries: Vec<_> = good().into_iter().filter(|(k, _)| *k != key).collect();
        let error = Contract::from_metadata(&entries).unwrap_err();
        assert!(matches!(&error, ContractError::Missing { key: missing, .. } if *missing == key), "{error}");
    }
}

#[test]
fn wrong_values_are_refused_by_key() {
    // Each bad value is refused, and the error names its key and what was found.
    for (key, value) in [
        (KEY_CONTRACT, "0"),
        (KEY_CONTRACT, "one"),
        (KEY_NAME, ""),
        (KEY_NAME, "../etc"),
        (KEY_NAME, "a/b"),
        (KEY_VERSION, "0"),
        (KEY_VERSION, "-1"),
        (KEY_CHANNELS, "[]"),
        (KEY_CHANNELS, "flow"),
        (KEY_CHANNELS, r#"[{"name": "a"}, {"name": "a"}]"#),
        (KEY_CHANNELS, r#"[{"name": " "}]"#),
        (KEY_CHANNELS, r#"[{"name": "a", "normal": 1e39}]"#),
        (KEY_SAMPLES, "0"),
        (KEY_SAMPLES, "65537"),
        (KEY_SAMPLES, "1e3"),
        (KEY_INTERVAL_MS, "0"),
        (KEY_INTERVAL_MS, "NaN"),
        (KEY_INPUT, "image"),
        (KEY_OUTPUT, "image"),
        (KEY_ROWS, "many"),
        (KEY_GOLDEN, r#"[{"row": [1], "score": 0.5}]"#),
        (KEY_GOLDEN, r#"[{"score": 0.5}]"#),
        (KEY_GOLDEN, r#"[{"row": [1, 2], "window": [], "score": 0.5}]"#),
    ] {
        assert_eq!(refused(key, value), key);
    }
    let error = Contract::from_metadata(&with(KEY_SAMPLES, "65537")).unwrap_err().to_string();
    assert!(error.contains("`65537`") && error.contains("1 to 65536"), "{error}");
    assert_eq!(Contract::from_metadata(&with(KEY_CONTRACT, "2")), Err(ContractError::TooNew { found: 2 }));
    assert!(Contract::from_metadata(&with(KEY_SAMPLES, "65536")).is_ok());
}

/// An output kind with the keys that it needs.
fn kind(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut all = good();
    all.extend(entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    all
}

const RECONSTRUCTION: [(&str, &str); 3] =
    [(KEY_OUTPUT, "reconstruction"), (KEY_SCALE, "[0.8, 0.05]"), (KEY_THRESHOLD, "3.5")];
const FORECAST: [(&str, &str); 4] =
    [(KEY_OUTPUT, "forecast"), (KEY_SCALE, "[0.8, 0.05]"), (KEY_THRESHOLD, "3.5"), (KEY_HORIZON, "19")];
const PROBABILITY: [(&str, &str); 4] = [
    (KEY_OUTPUT, "probability"),
    (KEY_CLASSES, r#"["ok", "bearing"]"#),
    (KEY_NORMAL_CLASS, "ok"),
    (KEY_THRESHOLD, "0.7"),
];
const REGRESSION: [(&str, &str); 4] =
    [(KEY_OUTPUT, "regression"), (KEY_UNIT, "h"), (KEY_HEALTHY, "1000"), (KEY_ALARM_BELOW, "24.5")];

#[test]
fn every_output_kind_reads_back() {
    // Each kind with all its keys survives being written, and says in one line what it is.
    for (entries, line) in [
        (&RECONSTRUCTION[..], "reconstruction, alarm at 3.5 standard deviations"),
        (&FORECAST, "forecast of 19 rows, alarm at 3.5 standard deviations"),
        (&PROBABILITY, "probability of ok, bearing; `ok` is normal, alarm when the others reach 0.7"),
        (&REGRESSION, "regression in h, alarm below 24.5, healthy 1000"),
        (&[(KEY_OUTPUT, "score")], "score"),
    ] {
        let contract = Contract::from_metadata(&kind(entries)).unwrap();
        assert_eq!(contract.output.to_string(), line);
        assert_eq!(contract.output.word(), entries[0].1);
        assert_eq!(Contract::from_metadata(&contract.to_metadata()).unwrap(), contract);
    }
    let above = kind(&[(KEY_OUTPUT, "regression"), (KEY_HEALTHY, "-1"), (KEY_ALARM_ABOVE, "0")]);
    let contract = Contract::from_metadata(&above).unwrap();
    assert_eq!(Contract::from_metadata(&contract.to_metadata()).unwrap(), contract);
}

#[test]
fn output_kinds_have_defaults() {
    // One row ahead, and one class more likely than all others together.
    let forecast = Contract::from_metadata(&kind(&FORECAST[..3])).unwrap();
    assert_eq!(forecast.output.horizon(), 1);
    let probability = Contract::from_metadata(&kind(&PROBABILITY[..3])).unwrap();
    assert!(matches!(probability.output, OutputKind::Probability(Classes { threshold: 0.5, normal: 0, .. })));
}

#[test]
fn each_key_of_an_output_kind_is_missed_by_name() {
    // Leaving out any key that a kind needs names it.
    let mut kinds = vec![&RECONSTRUCTION[..], &FORECAST[..3], &PROBABILITY[..3]];
    let regression = [REGRESSION[0], REGRESSION[2], REGRESSION[3]];
    kinds.push(&regression);
    for entries in kinds {
        for (left_out, _) in &entries[1..] {
            let rest: Vec<_> = entries.iter().copied().filter(|(key, _)| key != left_out).collect();
            let error = Contract::from_metadata(&kind(&rest)).unwrap_err();
            assert!(matches!(&error, ContractError::Missing { key, .. } if key == left_out), "{left_out}: {error}");
        }
    }
}

#[test]
fn wrong_values_of_output_kinds_are_refused_by_key() {
    // Each bad value is refused by its key, the boundaries included.
    for (entries, key, value) in [
        (&RECONSTRUCTION[..], KEY_SCALE, "[0.8]"),
        (&RECONSTRUCTION, KEY_SCALE, "[0.8, 0]"),
        (&RECONSTRUCTION, KEY_SCALE, "[0.8, 1e-60]"),
        (&RECONSTRUCTION, KEY_SCALE, "[0.8, 1e60]"),
        (&RECONSTRUCTION, KEY_SCALE, "0.8"),
        (&RECONSTRUCTION, KEY_THRESHOLD, "0"),
        (&RECONSTRUCTION, KEY_THRESHOLD, "inf"),
        (&FORECAST, KEY_HORIZON, "0"),
        (&FORECAST, KEY_HORIZON, "20"),
        (&FORECAST, KEY_HORIZON, "-1"),
        (&PROBABILITY, KEY_CLASSES, r#"["ok"]"#),
        (&PROBABILITY, KEY_CLASSES, r#"["ok", "ok"]"#),
        (&PROBABILITY, KEY_CLASSES, r#"["ok", ""]"#),
        (&PROBABILITY, KEY_CLASSES, "ok, bearing"),
        (&PROBABILITY, KEY_NORMAL_CLASS, "healthy"),
        (&PROBABILITY, KEY_THRESHOLD, "0"),
        (&PROBABILITY, KEY_THRESHOLD, "1.1"),
        (&PROBABILITY, KEY_THRESHOLD, "NaN"),
        (&REGRESSION, KEY_HEALTHY, "good"),
        (&REGRESSION, KEY_HEALTHY, "NaN"),
        (&REGRESSION, KEY_ALARM_BELOW, "-inf"),
        (&REGRESSION, KEY_ALARM_BELOW, "1000"),
        (&REGRESSION, KEY_ALARM_ABOVE, "2000"),
        (&REGRESSION, KEY_UNIT, " "),
    ] {
        let mut entries = kind(entries);
        entries.retain(|(k, _)| k != key);
        entries.push((key.to_owned(), value.to_owned()));
        let error = Contract::from_metadata(&entries).unwrap_err();
        assert!(
            matches!(&error, ContractError::Invalid { key: named, .. } if *named == key),
            "{key} = {value}: {error}"
        );
    }
}

#[test]
fn residuals_do_not_go_with_features() {
    // A reconstruction of computed features has no window to be compared with.
    for entries in [&RECONSTRUCTION[..], &FORECAST] {
        let mut entries = kind(entries);
        entries.push((KEY_INPUT.to_owned(), "features".to_owned()));
        entries.push((KEY_FEATURES.to_owned(), r#"["mean"]"#.to_owned()));
        let error = Contract::from_metadata(&entries).unwrap_err();
        assert!(matches!(error, ContractError::Invalid { key: KEY_OUTPUT, .. }), "{error}");
    }
}

#[test]
fn spectral_features_need_an_interval() {
    // A band in hertz without a sampling interval has no meaning.
    let mut entries = with(KEY_INPUT, "features");
    entries.push((KEY_FEATURES.to_owned(), r#"["centroid"]"#.to_owned()));
    let error = Contract::from_metadata(&entries).unwrap_err();
    assert!(matches!(error, ContractError::Missing { key: KEY_INTERVAL_MS, .. }));
}

#[test]
fn a_key_twice_is_refused() {
    // Which of two values holds would be a guess.
    let mut entries = good();
    entries.push((KEY_NAME.to_owned(), "pump-b".to_owned()));
    assert_eq!(Contract::from_metadata(&entries), Err(ContractError::Duplicate { key: KEY_NAME.to_owned() }));
}

proptest! {
    #[test]
    fn parsing_never_panics(values in proptest::collection::vec(".{0,40}", 5), key in 0_usize..22, output in 0_usize..5) {
        // Whatever text a key holds, the answer is a contract or an error.
        let keys = [KEY_CONTRACT, KEY_NAME, KEY_VERSION, KEY_CHANNELS, KEY_SAMPLES, KEY_INTERVAL_MS, KEY_INPUT, KEY_FEATURES,
            KEY_OUTPUT, KEY_CREATED, KEY_TRAINED_FROM, KEY_ROWS, KEY_GOLDEN, KEY_SCALE, KEY_THRESHOLD, KEY_HORIZON, KEY_CLASSES,
            KEY_NORMAL_CLASS, KEY_HEALTHY, KEY_ALARM_BELOW, KEY_ALARM_ABOVE, KEY_UNIT];
        let kinds: [&[(&str, &str)]; 5] = [&[], &RECONSTRUCTION, &FORECAST, &PROBABILITY, &REGRESSION];
        for value in values {
            let mut entries = kind(kinds[output]);
            entries.retain(|(k, _)| k != keys[key]);
            entries.push((keys[key].to_owned(), value));
            let _ = Contract::from_metadata(&entries);
        }
    }

    #[test]
    fn channel_json_never_panics(name in ".{0,10}", normal in any::<f64>(), extra in "[\\[\\]{}\",:0-9a-z]{0,30}") {
        // JSON around the right shape either parses to finite normals or is an error.
        let text = format!(r#"[{{"name": {}, "normal": {normal}}}{extra}]"#, serde_json::Value::from(name));
        if let Ok(contract) = Contract::from_metadata(&with(KEY_CHANNELS, &text)) {
            prop_assert!(contract.channels.iter().all(|c| c.normal.is_none_or(f32::is_finite)));
        }
    }

    #[test]
    fn names_are_safe_to_use(name in "\\PC{0,80}") {
        // What passes as a name is one topic level and one plain file name.
        if let Ok(name) = ModelName::parse(&name) {
            prop_assert!(!name.contains(['/', '\\', '+', '#', '\0']) && !name.starts_with('.') && name.len() <= NAME_BYTES_MAX);
        }
    }
}
