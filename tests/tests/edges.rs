//! Who may depend on whom (the table is ARCHITECTURE.md's), what may be linked into which program, and where unsafe lives.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Result;
use labyard_e2e::house::{self, Package};

/// Crate, what it may name of ours. A crate that is not here may name nothing.
const EDGES: &[(&str, &[&str])] = &[
    ("labyard-spec", &[]),
    ("labyard-sys", &[]),
    ("labyard-devices", &["labyard-spec", "labyard-sys"]),
    ("labyard-vmm", &["labyard-spec", "labyard-devices", "labyard-sys"]),
    ("labyard-jail", &["labyard-spec", "labyard-sys"]),
    ("labyard-archive", &[]),
    ("labyard-guest", &["labyard-spec", "labyard-archive"]),
    ("labyard-rootfs-builder", &["labyard-spec", "labyard-sys"]),
    ("labyard-supervisor", &["labyard-spec", "labyard-sys", "labyard-archive", "labyard-rootfs-builder"]),
    ("labyard-e2e", &["labyard-spec", "labyard-devices"]),
    ("labyard-bench", &["labyard-devices", "labyard-vmm", "labyard-rootfs-builder"]),
    (
        "labyard-fuzz",
        &["labyard-spec", "labyard-sys", "labyard-archive", "labyard-devices", "labyard-vmm", "labyard-rootfs-builder"],
    ),
];

/// Crate, what must not be in what is linked into its programs, and why.
const KEPT_OUT: &[(&str, &[&str], &str)] = &[
    ("labyard-vmm", &["tokio", "hyper", "axum", "clap", "serde-saphyr", "labyard-rootfs-builder"], "it runs guests"),
    ("labyard-devices", &["tokio", "kvm-ioctls", "kvm-bindings"], "it is what the guest sees"),
    ("labyard-jail", &["tokio", "labyard-devices", "labyard-vmm", "virtio-queue"], "it is privileged"),
    (
        "labyard-supervisor",
        &["labyard-devices", "labyard-vmm", "kvm-ioctls", "virtio-queue", "tar", "flate2", "zstd", "oci-spec"],
        "it is privileged: no code that faces a guest or parses an image",
    ),
    ("labyard-guest", &["tokio", "labyard-sys", "vm-memory", "clap"], "it is small and static"),
    ("labyard-archive", &["libc", "tokio", "serde_json"], "it reads what hostile guests send, and is small"),
    ("labyard-spec", &["libc", "rustix", "tokio"], "it is plain data"),
    ("labyard-sys", &["tokio", "serde_json"], "it is thin"),
];

/// Feature of a crate of ours, and who may ask for it outside of tests.
const FEATURES: &[(&str, &str, &[&str])] = &[
    ("labyard-devices", "testing", &["labyard-e2e", "labyard-bench", "labyard-fuzz"]),
    ("labyard-sys", "testing", &[]),
    ("labyard-spec", "manifest", &["labyard-supervisor"]),
    ("labyard-spec", "overlay", &["labyard-devices", "labyard-supervisor", "labyard-fuzz"]),
    ("labyard-vmm", "testing", &["labyard-fuzz"]),
    ("labyard-rootfs-builder", "build", &["labyard-bench", "labyard-fuzz"]),
];

/// Folders whose code may say unsafe.
const UNSAFE: &[&str] = &["sys", "vmm/src/kvm"];
/// Crates that the compiler lets say it.
const OPEN: &[&str] = &["labyard-sys", "labyard-vmm"];

fn ours() -> Result<Vec<Package>> {
    Ok(house::packages()?.into_iter().filter(Package::is_ours).collect())
}

#[test]
fn crates_depend_only_on_those_they_may() -> Result<()> {
    let ours = ours()?;
    let names: BTreeSet<&str> = ours.iter().map(|package| package.name.as_str()).collect();
    let listed: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, listed, "crates of the workspace and of the table");
    let mut forbidden = Vec::new();
    for package in &ours {
        let may = EDGES.iter().find(|(name, _)| *name == package.name).map_or(&[][..], |(_, may)| may);
        for dependency in package.dependencies.iter().filter(|dependency| names.contains(dependency.name.as_str())) {
            // A crate's tests may use its own features.
            let itself = dependency.for_tests && dependency.name == package.name;
            if !itself && !may.contains(&dependency.name.as_str()) {
                forbidden.push(format!("{} -> {}", package.name, dependency.name));
            }
        }
    }
    assert!(forbidden.is_empty(), "forbidden edges: {forbidden:?}");
    Ok(())
}

#[test]
fn features_of_ours_are_asked_for_only_by_those_who_may() -> Result<()> {
    let mut forbidden = Vec::new();
    for package in ours()? {
        for dependency in package.dependencies.iter().filter(|dependency| !dependency.for_tests) {
            for (owner, feature, may) in FEATURES {
                // The builder's default features are those of its program.
                let by_default = *owner == "labyard-rootfs-builder" && dependency.default_features;
                let asked = dependency.features.iter().any(|name| name == feature) || by_default;
                if dependency.name == *owner && asked && !may.contains(&package.name.as_str()) {
                    forbidden.push(format!("{} -> {owner}[{feature}]", package.name));
                }
            }
        }
    }
    assert!(forbidden.is_empty(), "forbidden features: {forbidden:?}");
    Ok(())
}

#[test]
fn programs_hold_only_what_they_may() -> Result<()> {
    let mut found = Vec::new();
    for (package, kept_out, why) in KEPT_OUT {
        let tree = house::cargo(&[
            "tree",
            "--locked",
            "--package",
            package,
            "--edges",
            "normal",
            "--target",
            house::TARGET,
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])?;
        let held: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(held.contains(package), "cargo tree of {package} does not hold itself: {tree}");
        found.extend(
            kept_out.iter().filter(|name| held.contains(*name)).map(|name| format!("{package}: {name}; {why}")),
        );
    }
    assert!(found.is_empty(), "linked where it must not be: {found:#?}");
    Ok(())
}

#[test]
fn unsafe_is_said_only_where_it_lives() -> Result<()> {
    let top = house::top();
    let mut found = Vec::new();
    for file in rust_files(&top)? {
        let name = file.strip_prefix(&top)?;
        if UNSAFE.iter().any(|home| name.starts_with(home)) {
            continue;
        }
        for (number, line) in fs::read_to_string(&file)?.lines().enumerate().filter(|(_, line)| says_unsafe(line)) {
            found.push(format!("{}:{}: {}", name.display(), number + 1, line.trim()));
        }
    }
    assert!(found.is_empty(), "unsafe outside {UNSAFE:?}: {found:#?}");
    Ok(())
}

#[test]
fn the_compiler_forbids_unsafe_in_every_other_crate() -> Result<()> {
    let mut open = Vec::new();
    for package in ours()?.iter().filter(|package| !OPEN.contains(&package.name.as_str())) {
        for (_, root) in package.targets.iter().filter(|(kind, _)| kind == "lib" || kind == "bin") {
            if !fs::read_to_string(root)?.contains("#![forbid(unsafe_code") {
                open.push(root.strip_prefix(house::top())?.to_owned());
            }
        }
    }
    assert!(open.is_empty(), "no #![forbid(unsafe_code)] in {open:?}");
    Ok(())
}

#[test]
fn unsafe_is_found_in_code_and_not_in_words() {
    for line in [
        "    unsafe { x() }",
        "pub unsafe fn a() {",
        "unsafe impl Send for A {}",
        "let a = unsafe{b};",
        "unsafe extern \"C\" {",
    ] {
        assert!(says_unsafe(line), "{line}");
    }
    for line in
        ["// unsafe { here }", "//! Home of unsafe.", "#![forbid(unsafe_code)]", "an unsafe file", "let unsafety = 1;"]
    {
        assert!(!says_unsafe(line), "{line}");
    }
}

fn says_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices("unsafe").any(|(at, found)| {
        let after = &code[at + found.len()..];
        let begins = !code[..at].ends_with(word) && !after.starts_with(word);
        begins
            && ["{", "fn ", "impl ", "impl<", "trait ", "extern ", "("]
                .iter()
                .any(|next| after.trim_start().starts_with(next))
    })
}

/// Every Rust file of the checkout that is ours: not below a build folder, not this file with its examples.
fn rust_files(top: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = vec![top.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if kind.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if kind.is_file() && name.ends_with(".rs") && !path.ends_with(file!()) {
                files.push(path);
            }
        }
    }
    Ok(files)
}
