//! Layouts, rows and faults of CSV files.

use std::io::Write;

use super::*;

fn read(text: &[u8]) -> Result<Table, String> {
    let reader = TableReader::new("f.csv".into(), Box::new(Cursor::new(text.to_vec()))).map_err(|e| e.to_string())?;
    Table::collect(Path::new("f.csv"), reader).map_err(|error| error.to_string())
}

/// The table in one line: channels, then each row with its seconds after the first.
fn show(text: &str) -> String {
    let table = read(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let names: Vec<&str> = table.channels.iter().map(ChannelName::as_str).collect();
    let mut shown = names.join(",");
    let start_us = table.times_us[0];
    for (index, (time_us, values)) in table.rows().enumerate() {
        let values: Vec<String> = values.iter().map(f32::to_string).collect();
        let label = table.labels.as_ref().map_or("", |labels| if labels[index] { "!" } else { "." });
        shown += &format!(" | {}{label} {}", (time_us - start_us) / 1_000_000, values.join(" "));
    }
    shown
}

// The layouts of the recordings that Millwright is measured on.
#[test]
fn known_layouts_are_recognised() {
    assert_eq!(
        show(
            "datetime;Acc;Volume Flow RateRMS;anomaly;changepoint\n2020-03-09 10:14:33;0.5;32.0;0.0;0.0\n\
              2020-03-09 10:14:35;0.6;31;1.0;1.0\n"
        ),
        "Acc,Volume Flow RateRMS | 0. 0.5 32 | 2! 0.6 31"
    );
    assert_eq!(
        show("timestamp,value\n2014-04-01 00:00:00,-21.04\n2014-04-01 00:05:00,-20.25\n"),
        "value | 0 -21.04 | 300 -20.25"
    );
    assert_eq!(show("a1,a2\n1,2\n3,4\n"), "a1,a2 | 0 1 2 | 1 3 4");
}

// Separators, decimal commas, missing headers, text columns and byte order marks are recognised.
#[test]
fn layouts_are_guessed() {
    assert_eq!(show("ts\tx\n1583748873\t1\n1583748874\t2\n"), "x | 0 1 | 1 2");
    assert_eq!(show("time;x;y\n2020-03-09 10:14:33;1,5;2,25\n"), "x,y | 0 1.5 2.25");
    assert_eq!(show("1,2\n3,4\n"), "column_1,column_2 | 0 1 2 | 1 3 4");
    assert_eq!(show("2020-03-09T10:14:33Z,5\n2020-03-09T10:14:34Z,6\n"), "column_2 | 0 5 | 1 6");
    assert_eq!(show("time,state,x\n1583748873,on,1\n1583748874,off,2\n"), "x | 0 1 | 1 2");
    assert_eq!(show("\u{feff}time,x\r\n1583748873,1\r\n\r\n1583748874,2"), "x | 0 1 | 1 2");
    assert_eq!(show("x\n1\n2\n"), "x | 0 1 | 1 2");
    assert_eq!(show("\"a;b\",\"c;d\"\n1,2\n"), "a;b,c;d | 0 1 2");
    assert_eq!(show("a/b,a/b,c+d\n1,2,3\n"), "a.b,column_2,c.d | 0 1 2 3");
    assert_eq!(show("x,y,\n1,2,\n"), "x,y,column_3 | 0 1 2 NaN");
    assert_eq!(show("TIME,Label,X\n1583748873,yes,1\n"), "X | 0! 1");
}

// Labels never become channels, also when a file has several kinds of them.
#[test]
fn labels_are_never_values() {
    let table = read(b"ts,x,label,anomaly,changepoint\n1583748873,1,0,1,0\n1583748874,2,1,0,1\n").unwrap();
    assert_eq!(table.channels.len(), 1);
    assert_eq!(table.values, [1.0, 2.0]);
    assert_eq!(table.labels, Some(vec![true, false]));
    assert_eq!(table.changepoints, Some(vec![false, true]));
}

// Empty and malformed cells are missing values, counted apart.
#[test]
fn missing_cells_are_counted() {
    let table = read(b"ts,x,y\n1583748873,,1\n1583748874,oops,2\n1583748875,NaN,1e99\n1583748876,1,2\n").unwrap();
    assert_eq!((table.missing, table.malformed), (4, 1));
    assert!(table.values[0].is_nan() && table.values[2].is_nan() && table.values[5].is_nan());
    assert_eq!(table.values[6..], [1.0, 2.0]);
}

// A fault names its file and line and what to do.
#[test]
fn faults_name_their_line() {
    let told = |text: &str| read(text.as_bytes()).unwrap_err();
    assert_eq!(
        told("ts,x\n1583748873,1\n\nyesterday,2\n"),
        "f.csv:4: `ts` is \"yesterday\", which is not a time; write `2020-03-09 10:14:33`, RFC 3339 or seconds since 1970"
    );
    assert_eq!(
        told("ts,x,y\n1583748873,1,1\n1583748873,2\n"),
        "f.csv:3: 2 cells, the header has 3; mend the line, or the separator, which seems to be `,`"
    );
    assert_eq!(
        told("x;anomaly\n1;0\n2;maybe\n"),
        "f.csv:3: `anomaly` is \"maybe\", which is not a label; write 0 or 1"
    );
    assert_eq!(told(""), "f.csv: has no rows; a table has a header and at least one row");
    assert_eq!(told("ts,x\n"), "f.csv: has no rows; a table has a header and at least one row");
    assert_eq!(
        told("a|b\nx|y\n"),
        "f.csv: no column holds numbers besides times and labels; check the separator, which seems to be `,`"
    );
    let names = |count: usize| (0..count).map(|n| format!("c{n}")).collect::<Vec<_>>().join(",");
    let row = |count: usize| vec!["1"; count].join(",");
    assert!(read(format!("{}\n{}\n", names(CHANNELS_MAX), row(CHANNELS_MAX)).as_bytes()).is_ok());
    let wide = format!("{}\n{}\n", names(CHANNELS_MAX + 1), row(CHANNELS_MAX + 1));
    assert_eq!(told(&wide), "f.csv: has 65 channels, at most 64 are allowed; split it by machine");
    let error = Table::read(Path::new("/nowhere/f.csv")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/f.csv: cannot be read: "), "{error}");
}

// A file larger than what is looked at is read whole, with the line numbers of its end.
#[test]
fn long_files_are_streamed() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "ts,x").unwrap();
    for n in 0..20_000 {
        writeln!(file, "{},{n}", 1_583_748_873 + n).unwrap();
    }
    file.flush().unwrap();
    let table = Table::read(file.path()).unwrap();
    assert_eq!((table.times_us.len(), table.values[19_999]), (20_000, 19_999.0));
    writeln!(file, "never,1").unwrap();
    file.flush().unwrap();
    let error = Table::read(file.path()).unwrap_err().to_string();
    assert!(error.contains(":20002: `ts` is \"never\""), "{error}");
}

proptest::proptest! {
    // No bytes panic, and a table that is read is whole.
    #[test]
    fn any_bytes_are_read(text in "([a-z]{1,4}|[0-9.]{1,5}|;|,|\t|\n|\"|anomaly|ts|2020-03-09 10:14:33|\\PC){0,60}") {
        if let Ok(table) = read(text.as_bytes()) {
            proptest::prop_assert_eq!(table.values.len(), table.times_us.len() * table.channels.len());
            if let Some(labels) = &table.labels {
                proptest::prop_assert_eq!(labels.len(), table.times_us.len());
            }
        }
    }
}

// Every recording of the SKAB benchmark is read whole: one row per line, no missing value, labels where there are any.
#[test]
fn skab_is_read() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let candidates = [here.join("../../shared/data"), here.join("../../../shared/data")];
    let named = std::env::var_os("MILLWRIGHT_DATA").map(PathBuf::from);
    let Some(data) = named.into_iter().chain(candidates).find(|data| data.join("skab").is_dir()) else {
        eprintln!("skipped: no SKAB recordings; set MILLWRIGHT_DATA to the folder that holds skab/");
        return;
    };
    let mut files = 0;
    for folder in ["valve1", "anomaly-free"] {
        for entry in std::fs::read_dir(data.join("skab").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let table = Table::read(&path).unwrap_or_else(|error| panic!("{error}"));
            let lines = std::fs::read_to_string(&path).unwrap().lines().filter(|line| !line.is_empty()).count();
            assert_eq!(table.times_us.len(), lines - 1, "{}", path.display());
            assert_eq!((table.channels.len(), table.missing), (8, 0), "{}", path.display());
            assert_eq!(table.channels[7].as_str(), "Volume Flow RateRMS");
            let anomalies = table.labels.as_ref().map(|labels| labels.iter().filter(|label| **label).count());
            assert_eq!(anomalies.is_some(), folder == "valve1");
            assert!(anomalies.is_none_or(|count| count > 0), "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 17, "{files}");
}
