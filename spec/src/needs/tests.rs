use super::*;

fn needs(name: &str, text: &str) -> KernelNeeds {
    KernelNeeds::from_labels([(name, text)]).expect(text)
}

fn kernel(version: &str) -> KernelOffer {
    KernelOffer {
        version: version.to_owned(),
        modules: Some(["overlay", "br_netfilter"].map(str::to_owned).into()),
        config: Some(config(
            "# CONFIG_NUMA is not set\nCONFIG_OVERLAY_FS=m\nCONFIG_HZ=250\nCONFIG_LSM=\"landlock,bpf\"\n",
        )),
    }
}

#[test]
fn a_range_of_versions_is_compared_by_as_many_numbers_as_it_has() {
    for (range, version, holds) in [
        (">=6.1, <7", "6.12.9-labyard", true),
        (">=6.1, <7", "7.0.1", false),
        (">=6.9", "6.12.1", true),
        ("<=6.1", "6.1.50-cloud-amd64", true),
        (">6.1", "6.1.50", false),
        ("6.12", "6.12.94+deb12-cloud-amd64", true),
        ("6.12", "6.1.2", false),
        ("!=6.12.3", "6.12.4", true),
        ("=6.12.0", "6.12", true),
        ("", "1.0", true),
    ] {
        let missing = needs(VERSION, range).missing(&kernel(version));
        assert_eq!(missing.is_empty(), holds, "{range} {version}: {missing:?}");
    }
    assert_eq!(needs(VERSION, ">= 6.13,<7").missing(&kernel("6.12.1")), ["version >=6.13, <7"]);
}

#[test]
fn features_and_modules_are_looked_for_and_each_that_is_missing_is_named() {
    let wanted = "CONFIG_OVERLAY_FS CONFIG_NUMA, CONFIG_HZ=250 CONFIG_HZ=100\nCONFIG_OVERLAY_FS=y";
    let missing = needs(FEATURES, wanted).missing(&kernel("6.12.1"));
    assert_eq!(missing, ["CONFIG_NUMA", "CONFIG_HZ=100", "CONFIG_OVERLAY_FS=y"]);
    let missing = needs(MODULES, "overlay,br-netfilter zfs").missing(&kernel("6.12.1"));
    assert_eq!(missing, ["module zfs"]);
}

#[test]
fn what_is_not_known_of_a_kernel_is_missing_and_said_to_be_so() {
    let kernel = KernelOffer { version: "6.1".to_owned(), ..KernelOffer::default() };
    assert_eq!(needs(FEATURES, "CONFIG_NUMA").missing(&kernel), ["CONFIG_NUMA (its configuration is not known)"]);
    assert_eq!(needs(MODULES, "zfs").missing(&kernel), ["module zfs (its modules are not known)"]);
    assert!(needs(MODULES, "").is_empty());
}

#[test]
fn what_is_no_need_is_refused_with_the_label_and_the_word() {
    for (name, text) in [
        (VERSION, "six"),
        (VERSION, ">=6.x"),
        (VERSION, "=>6"),
        (VERSION, "1.2.3.4.5"),
        (VERSION, "+6"),
        (VERSION, "99999999999999999999"),
        (FEATURES, "OVERLAY_FS"),
        (FEATURES, "CONFIG_"),
        (FEATURES, "CONFIG_A="),
        (MODULES, "../x"),
        (MODULES, "a.ko"),
        ("io.labyard.kernel.modul", "a"),
    ] {
        let error = KernelNeeds::from_labels([(name, text)]).expect_err(text);
        assert!(error.contains(name), "{error}");
    }
    let long = "a ".repeat(MAX_BYTES);
    assert!(KernelNeeds::from_labels([(MODULES, &*long)]).expect_err("long").contains("bytes, more than"));
    // Other people's labels are none of ours.
    assert!(KernelNeeds::from_labels([("org.opencontainers.image.version", "six")]).expect("a label").is_empty());
}

#[test]
fn needs_are_the_same_after_a_way_through_a_record() {
    let labels = [(VERSION, ">=6.1,<7"), (FEATURES, "CONFIG_HZ=250"), (MODULES, "br-netfilter")];
    let needs = KernelNeeds::from_labels(labels).expect("needs");
    let text = serde_json::to_string(&needs).expect("plain data");
    assert_eq!(text, r#"{"version":[">=6.1","<7"],"features":["CONFIG_HZ=250"],"modules":["br_netfilter"]}"#);
    assert_eq!(serde_json::from_str::<KernelNeeds>(&text).expect("read"), needs);
    assert!(needs.missing(&kernel("6.12.1")).is_empty());
}
