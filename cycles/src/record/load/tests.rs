//! Tests of loading: files that are missing, damaged, of another kind or hostile.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::record::Clock;

fn valid() -> Value {
    json!({
        "schema": 2,
        "clock": "virtual",
        "host": {"kvm": "virtual", "kernel": "6.1.0", "cpus": 2},
        "config": {"cycles": 2, "started_at": "2026-11-23T10:00:00Z"},
        "cycles": [cycle(1), cycle(2)],
        "flatness": {
            "slope_ms_per_cycle": 0.0, "ci95": [0.0, 0.0],
            "last_to_first_decile_ratio": 1.0, "flat": false, "reason": "too few cycles"
        }
    })
}

fn cycle(number: u32) -> Value {
    json!({
        "cycle": number, "suspend_ms": 2, "resume_ms": 5.5,
        "suspend_phases_ms": {"pause": 1, "unattributed": 1},
        "resume_phases_ms": {"spawn": 5, "unattributed": 0.5},
        "readiness": [{"local_port": 1_073_741_824, "outcome": "ok", "ms": 1.5}],
        "guest_open_vsocks": 2, "image_bytes_written": 4096
    })
}

fn parsed(value: &Value) -> Result<Report, LoadError> {
    parse(value.to_string().as_bytes(), Path::new("report.json"))
}

fn problem(value: &Value) -> Problem {
    match parsed(value) {
        Err(LoadError::Values { source, .. }) => source,
        other => panic!("not refused for its values: {other:?}"),
    }
}

#[test]
fn a_report_survives_being_written_and_read() {
    let report = parsed(&valid()).unwrap();
    assert_eq!(report.cycles.len(), 2);
    assert_eq!(report.host.details["kernel"], "6.1.0");
    let again = serde_json::to_vec(&report).unwrap();
    assert_eq!(parse(&again, Path::new("again")).unwrap(), report);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nonexistent/report.json")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/report.json"));
    assert!(error.hint().contains("report.json"));
}

#[test]
fn a_directory_is_refused_as_unreadable() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(
        load(directory.path()),
        Err(LoadError::Read { .. })
    ));
}

#[test]
fn a_file_larger_than_any_report_is_refused_without_reading_it_all() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MAX_REPORT_BYTES * 1000).unwrap();
    assert!(matches!(load(file.path()), Err(LoadError::TooLarge { .. })));
}

#[test]
fn a_truncated_report_is_not_json() {
    let text = valid().to_string();
    let error = parse(&text.as_bytes()[..text.len() / 2], Path::new("cut.json")).unwrap_err();
    assert!(matches!(error, LoadError::NotJson { .. }), "{error:?}");
}

#[test]
fn other_json_is_not_a_report() {
    for text in [
        "{}",
        "[1,2]",
        "3",
        r#"{"schema":"one"}"#,
        r#"{"schema":null}"#,
    ] {
        let error = parse(text.as_bytes(), Path::new("other.json")).unwrap_err();
        assert!(
            matches!(error, LoadError::NotAReport { .. }),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn a_newer_schema_is_named_even_if_everything_else_differs() {
    let error = parsed(&json!({"schema": 3, "runs": []})).unwrap_err();
    assert!(
        matches!(error, LoadError::OtherSchema { found: 3, .. }),
        "{error:?}"
    );
}

#[test]
fn a_report_of_schema_1_is_of_real_time() {
    let mut value = valid();
    value["schema"] = json!(1);
    value.as_object_mut().unwrap().remove("clock");
    assert_eq!(parsed(&value).unwrap().clock, Clock::Real);
    assert_eq!(parsed(&valid()).unwrap().clock, Clock::Virtual);
}

#[test]
fn a_missing_field_is_named() {
    let mut value = valid();
    value["cycles"][1]
        .as_object_mut()
        .unwrap()
        .remove("resume_ms");
    let error = parsed(&value).unwrap_err();
    let LoadError::Shape { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("resume_ms"), "{source}");
}

#[test]
fn a_negative_duration_is_refused_with_its_place() {
    let mut value = valid();
    value["cycles"][1]["resume_phases_ms"]["spawn"] = json!(-1);
    let found = problem(&value);
    assert_eq!(
        found.to_string(),
        "-1 is not a duration in milliseconds (spawn of cycle 2 of the run)"
    );
}

#[test]
fn a_number_beyond_all_floats_is_refused() {
    let text = valid().to_string().replacen("5.5", "1e999", 1);
    assert!(parse(text.as_bytes(), Path::new("big.json")).is_err());
    let text = valid().to_string().replacen("5.5", "1e300", 1);
    let error = parse(text.as_bytes(), Path::new("big.json")).unwrap_err();
    assert!(matches!(error, LoadError::Values { .. }), "{error:?}");
}

#[test]
fn cycles_out_of_order_are_refused() {
    let mut value = valid();
    value["cycles"][1]["cycle"] = json!(1);
    assert!(matches!(
        problem(&value),
        Problem::OutOfOrder {
            number: 1,
            before: 1,
            ..
        }
    ));
}

#[test]
fn more_cycles_than_the_statistics_take_are_refused() {
    let mut value = valid();
    let count = MAX_CYCLES + 1;
    value["cycles"] = (1..=count).map(cycle).collect();
    assert!(matches!(problem(&value), Problem::TooManyCycles { .. }));
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    let text = "[".repeat(200_000);
    assert!(parse(text.as_bytes(), Path::new("deep.json")).is_err());
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, Path::new("any"));
    }

    #[test]
    fn no_damage_to_a_report_causes_a_renderer_to_panic(
        offset in 0usize..600, replacement in "[-0-9a-z\"{}\\[\\],:.<>]{0,6}",
    ) {
        let text = valid().to_string();
        let start = offset % text.len();
        let end = (start + replacement.len()).min(text.len());
        let damaged = format!("{}{}{}", &text[..start], replacement, &text[end..]);
        if let Ok(report) = parse(damaged.as_bytes(), Path::new("damaged")) {
            crate::report_page(&report);
            crate::cycles_csv(&report);
            crate::tables_of(&report);
        }
    }
}
