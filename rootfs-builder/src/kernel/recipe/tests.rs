use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn files_below(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            files_below(&entry.path(), &format!("{name}/"), found);
        } else {
            found.insert(name);
        }
    }
}

fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("build");
    fs::write(&path, text).expect("written");
    (folder, path)
}

#[test]
fn every_fragment_of_the_repository_is_carried() {
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel");
    let mut there = BTreeSet::from(["build".to_owned(), "apt".to_owned()]);
    files_below(&kernel.join("config"), "config/", &mut there);
    assert_eq!(there, FILES.iter().map(|(name, _)| (*name).to_owned()).collect());
    for series in SERIES {
        assert!(there.iter().any(|name| name.starts_with(&format!("config/{series}/"))), "{series}");
    }
}

#[test]
fn no_option_is_asked_for_twice_and_each_line_says_something() {
    for series in SERIES {
        let mut seen = BTreeSet::new();
        for (name, text) in FILES.iter().filter(|(name, _)| name.starts_with("config/")) {
            let of_series = SERIES.iter().find(|series| name.starts_with(&format!("config/{series}/")));
            if of_series.is_some_and(|of| *of != series) {
                continue;
            }
            assert!(text.starts_with("# "), "{name} does not open with what it is for");
            for line in text.lines().filter(|line| !line.is_empty()) {
                let off = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"));
                let option =
                    off.or_else(|| line.split_once('=').map(|(option, _)| option)).filter(|_| line.contains("CONFIG_"));
                match option.filter(|option| option.starts_with("CONFIG_")) {
                    Some(option) => assert!(seen.insert(option), "{name}: {option} for {series} twice"),
                    None => assert!(line.starts_with("# "), "{name}: `{line}`"),
                }
            }
        }
        assert!(seen.len() > 300);
    }
}

#[test]
fn the_script_is_listened_to_and_its_last_line_is_the_folder() {
    let (folder, path) = script("echo one >&2; echo two \"$@\" >&2; echo noise; dirname \"$0\"");
    let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = Arc::clone(&lines);
    let report = Box::new(move |line: &str, _, _| heard.lock().expect("a lock").push(line.to_owned()));
    let watch = Watch::new(Arc::default(), report);
    assert_eq!(run(&path, &["--series", "6.12"], &watch).expect("a folder"), folder.path());
    assert_eq!(*lines.lock().expect("a lock"), ["one", "two --series 6.12"]);
}

#[test]
fn a_script_that_fails_is_quoted_and_one_without_an_answer_is_named() {
    for (text, input, part) in [
        ("echo 'error: no gcc' >&2; exit 2", true, "no gcc"),
        ("echo 'error: no room' >&2; exit 1", false, "no room"),
        ("exit 3", false, "exit status: 3"),
        ("echo nowhere", false, "`nowhere`"),
    ] {
        let error = run(&script(text).1, &[], &Watch::unattended()).expect_err(part);
        assert!(error.is_input() == input && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn an_interrupted_script_has_removed_what_it_made_when_we_return() {
    let (folder, path) = script(
        "cd \"$(dirname \"$0\")\"; trap 'rm work; exit 130' TERM; touch work; echo started >&2; while :; do read -rt 1 <> <(:); done",
    );
    let cancelled = Arc::new(AtomicBool::new(false));
    let on_start = Arc::clone(&cancelled);
    let report = Box::new(move |line: &str, _, _| on_start.store(line == "started", Ordering::Relaxed));
    let error = run(&path, &[], &Watch::new(cancelled, report)).expect_err("interrupted");
    assert!(matches!(error, RecipeError::Interrupted(_)), "{error}");
    assert!(!folder.path().join("work").exists());
}
