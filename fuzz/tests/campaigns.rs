//! The driver finds what breaks a rule, says the same twice, and every target holds for a moment.

use labyard_fuzz::campaign::{self, Until};
use labyard_fuzz::targets::{Target, all};

/// One process, one panic hook: targets take turns in one test.
#[test]
fn a_campaign_finds_a_panic_and_targets_have_none() {
    let breaks = |bytes: &[u8]| assert!(!bytes.contains(&0x7f), "seven and f");
    let target = Target { name: "breaks".into(), run: Box::new(breaks), seeds: Vec::new, files: Vec::new() };
    let outcome = campaign::run(&target, &[], 1, Until::Seconds(30.0), |_| ());
    let crash = outcome.crash.expect("a byte of 256 comes up");
    assert_eq!(crash.input, [0x7f], "and nothing else is left of the input");
    assert!(crash.said.contains("seven and f"), "{}", crash.said);
    let again = campaign::run(&target, &[], 1, Until::Seconds(30.0), |_| ());
    assert_eq!(again.inputs, outcome.inputs, "the same seed finds it at the same place");

    let caught = |_: &[u8]| drop(std::panic::catch_unwind(|| panic!("in a worker")));
    let target = Target { name: "caught".into(), run: Box::new(caught), seeds: Vec::new, files: Vec::new() };
    assert!(
        campaign::run(&target, &[], 1, Until::Seconds(30.0), |_| ()).crash.is_some(),
        "a panic that somebody catches counts"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let path = campaign::save(folder.path(), "breaks", &crash.input).expect("written");
    assert_eq!(std::fs::read(path).expect("there"), crash.input);

    for target in all() {
        let outcome = campaign::run(&target, &[], 2, Until::Seconds(0.2), |input| {
            eprintln!("an input of {} bytes hangs: {input:?}", input.len());
            std::process::exit(1)
        });
        assert!(outcome.crash.is_none(), "{}: {:?}", target.name, outcome.crash);
        assert!(outcome.inputs > 0, "{}", target.name);
    }
}
