//! `labyard manifest`: checked, shown and compared without anything being made.

use super::host::Host;
use serde_json::Value;

#[test]
fn a_manifest_is_checked_shown_and_compared() {
    let host = Host::new();
    let file = host.manifest("lab", &["web", "db"]);
    assert!(host.expect(0, &["manifest", "validate", &file]).0.ends_with("lab.yaml: keeps every rule\n"));
    let (stdout, _) = host.expect(0, &["manifest", "show", &file]);
    assert!(stdout.contains("address: \"172.16.0.3/24\"") && stdout.contains("gateway: \"172.16.0.1\""), "{stdout}");
    let shown = host.home().with_file_name("shown.yaml");
    std::fs::write(&shown, stdout).expect("writing");
    let shown = shown.to_str().expect("UTF-8");
    assert_eq!(host.expect(0, &["manifest", "diff", &file, shown]).0, "");

    let other = host.home().with_file_name("other.yaml");
    let text = std::fs::read_to_string(&file).expect("reading").replacen("32MiB", "64MiB", 1);
    std::fs::write(&other, text).expect("writing");
    let other = other.to_str().expect("UTF-8");
    let (stdout, _) = host.expect(1, &["manifest", "diff", &file, other]);
    assert_eq!(stdout, "machines[web].resources.ramSize\n  - \"32MiB\"\n  + \"64MiB\"\n");
    host.up("lab", &["web", "db"]);
    host.expect(0, &["manifest", "diff", "lab", &file]);
    host.expect(1, &["manifest", "diff", "lab", other, "--json"]);
    let (_, stderr) = host.expect(2, &["manifest", "show", "nothing"]);
    assert!(stderr.contains("`nothing` is neither a file nor a lab"), "{stderr}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_fault_is_shown_with_its_line_and_what_was_meant() {
    let host = Host::new();
    let file = host.home().with_file_name("lab.yaml");
    std::fs::write(&file, "kind: playground\nname: lab\nplayground:\n  machnies: []\n").expect("writing");
    let file = file.to_str().expect("UTF-8");
    for verb in [&["up"][..], &["manifest", "validate"]] {
        let (_, stderr) = host.expect(2, &[verb, &[file]].concat());
        assert!(
            stderr.contains(":4:3: machnies: no such field `machnies`") || stderr.contains("no such field `machnies`"),
            "{stderr}"
        );
        assert!(stderr.contains("did you mean `machines`?\n  |\n4 |   machnies: []\n  |   ^^^^^^^^\n"), "{stderr}");
    }
    let (stdout, _) = host.expect(2, &["manifest", "validate", file, "--json"]);
    let told: Value = serde_json::from_str(&stdout).expect("one document");
    let one = &told["manifests"][0];
    assert_eq!((&one["valid"], &one["line"], &one["column"]), (&false.into(), &4.into(), &3.into()));
    let (stdout, _) = host.expect(0, &["manifest", "schema"]);
    let schema: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(schema["properties"]["playground"]["properties"]["machines"]["maxItems"], 64);
}

#[test]
fn what_a_manifest_is_called_is_no_word_to_the_terminal() {
    let host = Host::new();
    let hostile = "lab\u{1b}]0;mine\u{7}\u{9b}2J\u{202e}";
    let mut manifest: Value =
        serde_json::from_str(&std::fs::read_to_string(host.manifest("lab", &["web"])).expect("reading")).expect("JSON");
    manifest["name"] = hostile.into();
    let file = host.write_manifest("hostile", &manifest);
    // YAML has this one written as it is nowhere, but takes it by its number.
    let text = std::fs::read_to_string(&file).expect("reading").replace('\u{9b}', "\\u009b");
    std::fs::write(&file, text).expect("writing");
    let (stdout, stderr) = host.expect(2, &["up", &file]);
    let said = stdout + &stderr;
    assert!(said.contains("lab\u{fffd}]0;mine\u{fffd}\u{fffd}2J\u{fffd}"), "{said:?}");
    assert!(!said.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{said:?}");
    // A program is told it as it is.
    let (stdout, _) = host.expect(2, &["manifest", "validate", &file, "--json"]);
    let told: Value = serde_json::from_str(&stdout).expect("one document");
    assert!(told["manifests"][0]["message"].as_str().expect("a message").contains(hostile), "{told}");
}

#[test]
fn what_runs_here_to_make_an_image_is_run_when_it_was_allowed_alone() {
    let host = Host::new();
    let folder = host.home().with_file_name("app");
    std::fs::create_dir(&folder).expect("a folder");
    let text = std::fs::read_to_string(host.manifest("lab", &["web"])).expect("reading");
    let file = host.write_manifest(
        "lab",
        &serde_json::from_str(&text.replacen("\"debian\"", "\"dockerfile:app\"", 1)).expect("JSON"),
    );
    let out = host.home().with_file_name("out");
    for arguments in [&["up", &file][..], &["bake", &file, "--out", out.to_str().expect("UTF-8")]] {
        let (_, stderr) = host.expect(2, arguments);
        assert!(
            stderr.contains("machines[0].drives[0].source: `dockerfile:app` is built by running its steps"),
            "{stderr}"
        );
        assert!(stderr.contains("--allow-build"), "{stderr}");
        let built = std::fs::read_dir(host.home().join("images")).map_or(0, Iterator::count);
        assert!(built == 0 && !host.lab("lab").exists() && !out.exists());
    }
    host.expect(0, &["up", &file, "--allow-build"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}
