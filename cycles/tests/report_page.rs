//! The page in a real browser: headless Chromium (Debian's package `chromium`).
//!
//! Tests that need it are ignored, with the reason, if there is no Chromium.

#![expect(
    clippy::unwrap_used,
    reason = "this is test code, which clippy does not recognise here"
)]

mod synthetic;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cycles::{Outcome, Proof, Report, proof_page, report_page};
use trials::{Arguments, ignore_if, trials};

fn main() -> ExitCode {
    let mut all = trials![
        the_page_says_if_its_cycles_contradict_the_verdict,
        the_page_of_an_interrupted_run_does_not_blame_its_latencies,
        a_report_of_schema_1_is_judged_by_the_rules_of_today,
        the_page_shows_every_rule_and_every_resource_with_its_outcome,
        pages_of_synthetic_runs_can_be_written,
    ];
    let in_a_browser = trials![
        a_flat_run_has_a_mark_for_every_cycle_and_no_script_error,
        a_matrix_has_a_series_for_every_cell,
        hostile_strings_stay_text,
        the_page_of_a_proof_shows_each_part_and_holds_its_report,
        hostile_strings_of_a_proof_stay_text,
        a_run_without_cycles_has_a_page,
        a_page_is_drawn_in_a_light_and_a_dark_theme,
        a_page_is_drawn_on_a_narrow_screen,
        a_page_is_printed_on_several_sheets,
    ];
    let version = Command::new("chromium").arg("--version").output();
    let there = version.is_ok_and(|output| output.status.success());
    let obstacle = (!there).then_some("there is no chromium here (apt-get install chromium)");
    all.extend(ignore_if(obstacle, in_a_browser));
    trials::run(&Arguments::from_args(), all).exit_code()
}

/// The DOM of the report's page after its script has run.
fn rendered(report: &Report) -> String {
    rendered_page(&report_page(report))
}

fn rendered_page(content: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("report.html");
    std::fs::write(&page, content).unwrap();
    let output = directory.path().join("dom.html");
    let arguments = [
        "--dump-dom".to_owned(),
        format!("file://{}", page.display()),
    ];
    chromium(directory.path(), &arguments, &output);
    std::fs::read_to_string(output).unwrap()
}

/// Runs Chromium to its end, or fails at the deadline.
fn chromium(directory: &Path, arguments: &[String], output: &Path) {
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ];
    let mut child = Command::new("chromium")
        .args(flags)
        .arg(format!(
            "--user-data-dir={}",
            directory.join("profile").display()
        ))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(output).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "chromium ended with {status}");
            return;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("chromium did not render the page within 120 s");
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn count(dom: &str, part: &str) -> usize {
    dom.matches(part).count()
}

fn assert_script_ran(dom: &str) {
    assert!(!dom.contains("data-script-error"), "a script failed");
    assert!(
        dom.contains(r#"data-ready="true""#),
        "the script did not finish"
    );
}

fn a_flat_run_has_a_mark_for_every_cycle_and_no_script_error() {
    let report = synthetic::flat_report(300);
    let dom = rendered(&report);
    assert_script_ran(&dom);
    assert_eq!(count(&dom, r#"class="mark resume"#), 300);
    assert_eq!(count(&dom, r#"class="mark suspend"#), 300);
    assert_eq!(count(&dom, r#"<g class="bar">"#), 300);
    assert_eq!(count(&dom, r#"class="phase "#), 10 + 7);
    assert_eq!(count(&dom, r#"class="trend""#), 1);
    assert!(dom.contains("resume latency stayed flat"));
    assert!(
        dom.contains(r#"aria-valuetext="cycle 300, resume"#),
        "the slider shows no cycle"
    );
}

fn a_matrix_has_a_series_for_every_cell() {
    let report = synthetic::full_report();
    let cells = report.matrix.as_ref().unwrap().cells.len();
    let dom = rendered(&report);
    assert_script_ran(&dom);
    let resources = 14;
    assert_eq!(count(&dom, r#"<li class="cell "#), cells + resources);
    assert_eq!(count(&dom, r#"class="series""#), cells + resources);
    assert_eq!(count(&dom, r#"class="attempts-series""#), cells);
    assert_eq!(
        count(&dom, "rising, as expected"),
        2,
        "once on the card, once in the table"
    );
    assert!(dom.contains("Firecracker"));
}

fn hostile_strings_stay_text() {
    let attack = r#"</script><script>document.title='owned'</script><img src=x onerror="document.title='owned'">"#;
    let report = synthetic::hostile_report(attack);
    let dom = rendered(&report);
    assert_script_ran(&dom);
    assert!(
        dom.contains("<title>Resume latency: "),
        "a string of the report was executed"
    );
    assert_eq!(count(&dom, "<img"), 0);
    assert_eq!(
        count(&dom, "<script"),
        2,
        "only the page's own data and script"
    );
}

fn the_page_of_a_proof_shows_each_part_and_holds_its_report() {
    let mut proof = synthetic::proof();
    let page = proof_page(&proof);
    let dom = rendered_page(&page);
    assert!(dom.contains("The proof holds"));
    assert!(dom.contains("kvm_intel on a Haswell that Bochs emulates"));
    assert!(dom.contains("2 kept, 0 broken, 1 not tried"));
    assert!(dom.contains("left out: no KVM"));
    assert_eq!(count(&dom, "<iframe"), 2);
    // The machine-readable proof is in the page, whole.
    let (_, data) = page.split_once(r#"id="proof">"#).unwrap();
    let (data, _) = data.split_once("</script>").unwrap();
    let read: Proof = serde_json::from_str(data).unwrap();
    assert_eq!(read.parts.len(), 3);
    // The document in a frame is the report's own page, with a script that runs.
    let (_, frame) = page.split_once(r#"srcdoc=""#).unwrap();
    let (frame, _) = frame.split_once('"').unwrap();
    let inner = frame.replace("&quot;", "\"").replace("&amp;", "&");
    assert_script_ran(&rendered_page(&inner));

    proof.parts[0].promises[0].outcome = cycles::PromiseOutcome::Broken;
    assert!(proof_page(&proof).contains("The proof does not hold"));
}

fn hostile_strings_of_a_proof_stay_text() {
    let attack = r#""></iframe></script><script>document.title='owned'</script><img src=x>"#;
    let mut proof = synthetic::proof();
    proof.version = attack.to_owned();
    proof.machine.insert(attack.to_owned(), attack.to_owned());
    let part = &mut proof.parts[0];
    part.report = Some(synthetic::hostile_report(attack));
    for text in [&mut part.name, &mut part.kvm, &mut part.promises[0].name] {
        attack.clone_into(text);
    }
    part.promises[0].message = Some(attack.to_owned());
    part.errors.push(attack.to_owned());
    proof.parts[2].left_out = Some(attack.to_owned());
    let dom = rendered_page(&proof_page(&proof));
    assert!(dom.contains("<title>mctl: proof</title>"));
    // Of frames, the DOM shows the attribute, in which `<` may stand as it is.
    let (outside, _) = dom.split_once("srcdoc=").unwrap();
    assert_eq!(count(outside, "<img") + count(outside, "<script"), 0);
    assert_eq!(count(&dom, "<iframe title="), 2);
}

fn a_run_without_cycles_has_a_page() {
    let dom = rendered(&synthetic::flat_report(0));
    assert_script_ran(&dom);
    assert!(dom.contains("Too few cycles for a verdict"));
}

fn the_page_says_if_its_cycles_contradict_the_verdict() {
    let mut report = synthetic::rising_report(300);
    report.flatness.outcome = Outcome::Flat;
    let page = report_page(&report);
    assert!(page.contains("does not follow from its cycles"));
}

fn the_page_of_an_interrupted_run_does_not_blame_its_latencies() {
    let mut report = synthetic::flat_report(300);
    report.mark_undecided("interrupted after 300 of 1000 cycles");
    let page = report_page(&report);
    assert!(page.contains("The run does not count"));
    assert!(page.contains("Interrupted after 300 of 1000 cycles"));
    assert!(!page.contains("Resume latency rises"));
    assert!(!page.contains("does not follow from its cycles"));
}

fn a_report_of_schema_1_is_judged_by_the_rules_of_today() {
    let mut json = serde_json::to_value(synthetic::rising_report(300)).unwrap();
    json["schema"] = 1.into();
    json.as_object_mut().unwrap().remove("clock");
    json["flatness"] = serde_json::json!({
        "slope_ms_per_cycle": 9.0, "ci95": [8.0, 10.0], "last_to_first_decile_ratio": 5.0,
        "flat": true, "reason": "both rules hold",
    });
    let mut report = cycles::parse(json.to_string().as_bytes(), Path::new("old.json")).unwrap();
    assert_eq!(report.flatness.outcome, Outcome::Flat);
    let page = report_page(&report);
    assert!(page.contains("Resume latency rises") && page.contains("real time"));
    assert!(!page.contains("does not follow from its cycles"));
    report.bring_up_to_date();
    assert_eq!(report.flatness.outcome, Outcome::Rising);
}

fn the_page_shows_every_rule_and_every_resource_with_its_outcome() {
    let page = report_page(&synthetic::flat_report(300));
    assert_eq!(count(&page, r#"<div class="interval""#), 4);
    assert_eq!(count(&page, r#"<div class="sparkline">"#), 14);
    assert_eq!(count(&page, r#"<li class="cell holds""#), 14);
    assert!(page.contains("smallest that would have been found in 9 of 10"));
    assert!(page.contains("at that rate over 10,000 cycles"));
    let leaking = report_page(&synthetic::rising_report(300));
    assert_eq!(count(&leaking, r#"<li class="cell broken""#), 1);
    assert!(leaking.contains("Guest vsocks established goes from"));
}

/// The folder for pictures that people can look at: `CYCLES_PAGES=dir`, or a temporary one.
fn pictures() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let folder =
        std::env::var_os("CYCLES_PAGES").map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    (scratch, folder)
}

/// Lets Chromium write `file` from the full page, with further arguments, and reads it.
fn written_by_chromium(file: &str, arguments: &[&str]) -> Vec<u8> {
    let (_scratch, folder) = pictures();
    let own = tempfile::tempdir().unwrap();
    let page = own.path().join("report.html");
    std::fs::write(&page, report_page(&synthetic::full_report())).unwrap();
    let result = folder.join(file);
    let option = if file.ends_with(".pdf") {
        "print-to-pdf"
    } else {
        "screenshot"
    };
    let mut all: Vec<String> = arguments.iter().map(|&one| one.to_owned()).collect();
    all.push(format!("--{option}={}", result.display()));
    all.push(format!("file://{}", page.display()));
    chromium(own.path(), &all, &own.path().join("output"));
    std::fs::read(result).unwrap()
}

/// Width and height in a PNG's header.
fn size_of_png(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |offset: usize| u32::from_be_bytes(png[offset..offset + 4].try_into().unwrap());
    (number(16), number(20))
}

const WINDOW: &str = "--window-size=1200,6000";

fn a_page_is_drawn_in_a_light_and_a_dark_theme() {
    let light = written_by_chromium("light.png", &[WINDOW]);
    let dark = written_by_chromium("dark.png", &[WINDOW, DARK]);
    for png in [&light, &dark] {
        assert_eq!(size_of_png(png), (1200, 6000));
        // A page of one colour is only some kilobytes.
        assert!(png.len() > 100_000, "{} bytes show little", png.len());
    }
    assert_ne!(light, dark, "the dark theme is the light one");
}

/// 0 is dark.
const DARK: &str = "--blink-settings=preferredColorScheme=0";

fn a_page_is_drawn_on_a_narrow_screen() {
    let png = written_by_chromium("narrow.png", &["--window-size=500,8000"]);
    assert_eq!(size_of_png(&png), (500, 8000));
    assert!(png.len() > 100_000, "{} bytes show little", png.len());
}

fn a_page_is_printed_on_several_sheets() {
    let pdf = written_by_chromium("print.pdf", &["--no-pdf-header-footer"]);
    assert!(pdf.starts_with(b"%PDF-"), "no PDF");
    let text = String::from_utf8_lossy(&pdf);
    let sheets = text.matches("/Type /Page\n").count();
    assert!((2..40).contains(&sheets), "{sheets} sheets");
}

/// Writes pages for people to look at: `CYCLES_PAGES=dir cargo test -p cycles --test report_page`.
fn pages_of_synthetic_runs_can_be_written() {
    let reports = [
        ("full", synthetic::full_report()),
        ("rising", synthetic::rising_report(300)),
        ("short", synthetic::flat_report(12)),
        ("thousand", synthetic::flat_report(1000)),
    ];
    let (_scratch, directory) = pictures();
    let proof = directory.join("proof.html");
    std::fs::write(&proof, proof_page(&synthetic::proof())).unwrap();
    for (name, report) in reports {
        let path = directory.join(format!("{name}.html"));
        std::fs::write(&path, report_page(&report)).unwrap();
        // The report behind a page must load again.
        let json = serde_json::to_vec(&report).unwrap();
        assert_eq!(
            cycles::parse(&json, &path).unwrap().cycles.len(),
            report.cycles.len()
        );
    }
}
