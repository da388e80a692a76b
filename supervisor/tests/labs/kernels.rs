//! `labyard kernel`: the store's kernels from the command line. The builder is a fake.

use super::host::{Host, Running, until};
use rustix::process::Signal;
use serde_json::{Value, json};

const OURS: &str = "6.12.1-0123456789ab";

fn document(text: &str) -> Value {
    serde_json::from_str(text).expect("one document")
}

#[test]
fn kernels_are_built_added_listed_and_removed() {
    let host = Host::new();
    let (stdout, stderr) = host.expect(0, &["kernel", "build", "--series", "6.1"]);
    assert_eq!(stdout, "6.1.3-labyard-built added\n");
    assert!(stderr.contains("objects compiled: 1"), "{stderr}");
    let (stdout, _) = host.expect(0, &["kernel", "build", "--series", "6.1", "--json"]);
    assert_eq!((&document(&stdout)["id"], &document(&stdout)["cached"]), (&json!("6.1.3-labyard-built"), &json!(true)));
    host.expect(0, &["kernel", "add", "folder"]);
    host.expect(0, &["kernel", "add", "--image", "vmlinuz", "--modules", "modules"]);
    let (stdout, _) = host.expect(0, &["kernel", "ls"]);
    let rows: Vec<Vec<_>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["6.12", "6.12.1", "tuned", "?", OURS, "*"], "{stdout}");
    assert_eq!(rows[2], ["6.12", "6.12.2", "stock", "64", "MiB", "6.12.2-added"]);
    assert_eq!(rows[3][2..5], ["tuned", "64", "MiB"]);
    let (stdout, _) = host.expect(0, &["kernel", "ls", "--json"]);
    assert_eq!(document(&stdout)["default"], OURS);
    let (stdout, _) = host.expect(0, &["kernel", "rm", "6.12.2-added", "6.1.3-labyard-built", "--json"]);
    assert_eq!(document(&stdout)["removed"], json!(["6.12.2-added", "6.1.3-labyard-built"]));
    let (_, stderr) = host.expect(2, &["kernel", "rm", "6.12.2-added"]);
    assert!(stderr.contains("`6.12.2-added`: not in the store; there is: 6.12.1"), "{stderr}");
}

#[test]
fn a_kernel_that_a_lab_uses_stays() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let (_, stderr) = host.expect(2, &["kernel", "rm", OURS]);
    assert_eq!(stderr, format!("error: kernel {OURS}: lab `lab` uses it; end that first with `labyard down lab`\n"));
    host.expect(0, &["down", "lab"]);
    host.expect(0, &["kernel", "rm", OURS]);
    let (_, stderr) = host.expect(2, &["up", &host.manifest("lab", &["web"])]);
    assert!(stderr.contains("there is: none") && stderr.contains("labyard kernel build"), "{stderr}");
}

#[test]
fn what_the_builder_refuses_is_one_error_and_an_interrupted_build_leaves_nobody() {
    let host = Host::new();
    let (_, stderr) = host.expect(2, &["kernel", "add", "/folder/bad"]);
    let errors: Vec<_> = stderr.lines().filter(|line| line.contains("error: ")).collect();
    assert_eq!(errors, ["error: kernel /folder/bad: it is neither an ELF image nor a bzImage"]);
    for arguments in
        [&["kernel", "add"][..], &["kernel", "add", "x", "--image", "y"], &["kernel", "build", "--series", "5.10"]]
    {
        host.expect(2, arguments);
    }
    let build = Running::start(&mut host.command(&["kernel", "build"]));
    until("the builder runs", || host.processes().len() == 2);
    build.signal(Signal::INT);
    let (code, stderr) = build.end();
    assert!(code == Some(130) && stderr.ends_with("error: interrupted\n"), "{code:?} {stderr}");
    until("every process is gone", || host.processes().is_empty());
}

#[test]
fn a_machine_with_less_memory_than_its_kernel_needs_is_refused_before_anything_is_made() {
    let host = Host::new();
    host.expect(0, &["kernel", "add", "folder"]);
    let lab = host.manifest("lab", &["web"]);
    let text = std::fs::read_to_string(&lab).expect("a manifest");
    let with = text.replace("\"name\":\"web\"", "\"name\":\"web\",\"kernel\":\"6.12-stock\"");
    std::fs::write(&lab, with).expect("writing");
    let (_, stderr) = host.expect(2, &["up", &lab]);
    assert_eq!(
        stderr,
        "error: machines[0].resources.ramSize: 32 MiB are too few for kernel 6.12.2-added: give `web` 64 MiB or more\n"
    );
    host.assert_clean();
}

#[test]
fn a_kernel_that_lacks_what_an_image_needs_is_refused_before_it_boots() {
    let host = Host::new();
    let lab = host.manifest("lab", &["web"]);
    let text = std::fs::read_to_string(&lab).expect("a manifest").replace("\"debian\"", "\"needy\"");
    std::fs::write(&lab, &text).expect("writing");
    let (_, stderr) = host.expect(2, &["up", &lab]);
    // The manifest's line is shown behind it.
    let error = stderr.lines().find(|line| line.starts_with("error: ")).expect("an error");
    assert!(
        error.contains("machines[0].drives[0].source: image needy needs what kernel 6.12.1-0123456789ab has not: "),
        "{error}"
    );
    assert!(
        error
            .contains("version >=6.1, <6.2; CONFIG_NUMA (its configuration is not known); module overlay (its modules"),
        "{error}"
    );
    assert!(error.ends_with("add it again"), "{error}");

    // One that has all of it is named, and one that has been noted and lacks some is not.
    host.expect(0, &["kernel", "add", "folder"]);
    let with = text.replace("\"name\":\"web\"", "\"name\":\"web\",\"kernel\":\"6.12-stock\"").replace("32MiB", "64MiB");
    std::fs::write(&lab, &with).expect("writing");
    let (_, stderr) = host.expect(2, &["up", &lab]);
    let error = stderr.lines().find(|line| line.starts_with("error: ")).expect("an error");
    assert!(
        error.contains("machines[0].kernel: image needy needs what kernel 6.12.2-added has not: version"),
        "{error}"
    );
    assert!(
        error.ends_with("no kernel of the store has all of it; see `labyard kernel add` and `labyard kernel build`"),
        "{error}"
    );
    host.expect(0, &["kernel", "build", "--series", "6.1"]);
    let (_, stderr) = host.expect(2, &["up", &lab]);
    assert!(stderr.contains("these kernels of the store have all of it: 6.1.3-labyard-built\n"), "{stderr}");
    host.assert_clean();
    std::fs::write(&lab, with.replace("6.12-stock", "6.1")).expect("writing");
    host.expect(0, &["up", &lab]);
    host.expect(0, &["down", "lab"]);
}
