//! Bad input: one clear error that names the thing and the value, exit code 2, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host::{self, Said, Traces};
use crate::lab;

const GOOD: &str = "    - name: one
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
";

fn refusal(said: &Said, expected: &str) -> Result<()> {
    ensure!(said.code == 2, "exit code {}\n{}{}", said.code, said.text(), said.stderr);
    let errors: Vec<_> = said.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    ensure!(errors.len() == 1, "not one error but {errors:?}\n{}", said.stderr);
    ensure!(errors[0].contains(expected), "`{expected}` is not in: {}", errors[0]);
    Ok(())
}

#[test]
fn a_wrong_manifest_is_refused_by_line_and_nothing_is_left() -> Result<()> {
    // What is replaced in a good manifest, by what, and what the error must name.
    let cases = [
        ("ramSize: 256MiB", "ramSize: 256MiB, colour: blue", "colour"),
        ("ramSize: 256MiB", "cpuCount: many", "cpuCount"),
        ("ramSize: 256MiB", "ramSize: 100GiB", "102400 MiB"),
        (
            "    - name: one\n",
            "    - name: one\n      drives: [{source: 'IMAGE', mount: /}]\n      network: {interfaces: [{network: local}]}\n    - name: one\n",
            "one",
        ),
        ("source: 'IMAGE', mount: /", "mount: /", "source"),
        (
            "{name: local, subnet: 172.16.0.0/24, private: true}",
            "{name: local, subnet: 172.16.0.0/24}, {name: lan, subnet: 172.16.0.128/25}",
            "172.16.0.128/25",
        ),
        ("[{network: local}]", "[{network: local, address: 10.0.0.1}]", "10.0.0.1"),
        ("[{network: local}]", "[{network: lan}]", "lan"),
    ];
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    for (from, to, expected) in cases {
        let path = lab::manifest(folder.path(), "wrong", GOOD)?;
        let text = fs::read_to_string(&path)?;
        let layout = host::given("LABYARD_TEST_LAYOUT")?;
        let image = format!("oci-layout:{}:debian", layout.display());
        let changed = text.replace(&from.replace("IMAGE", &image), &to.replace("IMAGE", &image));
        ensure!(changed != text, "the case does not change the manifest: {from}");
        fs::write(&path, changed)?;
        let said = host::run(&["up", path.to_str().context("a path")?])?;
        refusal(&said, expected).with_context(|| to.to_owned())?;
        ensure!(expected.contains("MiB") != said.stderr.contains("wrong.yaml:"), "no line and column: {}", said.stderr);
    }
    drop(folder);
    before.wait_until_back()
}

#[test]
fn without_a_usable_kvm_the_way_out_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = lab::manifest(folder.path(), "wrong", GOOD)?;
    let mut command = host::labyard(&["up", path.to_str().context("a path")?])?;
    command.env("LABYARD_KVM_DEVICE", "/nonexistent/kvm");
    refusal(&host::run_with(command, &[])?, "/nonexistent/kvm")
}

fn builder(arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new(host::given("LABYARD_LIBEXEC")?.join("rootfs-builder"));
    command.args(arguments).arg("--store").arg(host::given("LABYARD_HOME")?);
    host::run_with(command, &[])
}

#[test]
fn what_is_no_image_or_no_kernel_is_refused_and_nothing_is_left() -> Result<()> {
    let before = Traces::now()?;
    let images = |home: &Path| fs::read_dir(home.join("images")).map(|entries| entries.count());
    let home = host::given("LABYARD_HOME")?;
    let count = images(&home)?;
    let folder = tempfile::tempdir()?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path");

    let empty = text(folder.path())?;
    refusal(&builder(&["build", &format!("oci-layout:{empty}")])?, &empty)?;

    // One byte of one blob is another.
    let layout = folder.path().join("layout");
    let copied = Command::new("cp").arg("-rL").arg(host::given("LABYARD_TEST_LAYOUT")?).arg(&layout).status()?;
    ensure!(copied.success(), "copying the layout");
    let mut blobs: Vec<_> = fs::read_dir(layout.join("blobs/sha256"))?.flatten().map(|entry| entry.path()).collect();
    blobs.sort_by_key(|blob| fs::metadata(blob).map(|data| data.len()).unwrap_or(0));
    let largest = blobs.last().context("a blob")?;
    let mut bytes = fs::read(largest)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest, bytes)?;
    let digest = text(Path::new(largest.file_name().context("a name")?))?;
    // A size that is not in the store yet: what is there already is taken by its digest, without reading layers again.
    let source = format!("oci-layout:{}:debian", text(&layout)?);
    refusal(&builder(&["build", &source, "--size", "5GiB"])?, &digest)?;

    let script = folder.path().join("vmlinuz");
    fs::write(&script, "#!/bin/sh\n")?;
    let said = builder(&["kernel", "add", "--image", &text(&script)?, "--modules", &empty])?;
    refusal(&said, "neither an ELF image nor a bzImage")?;

    ensure!(
        images(&home)? == count,
        "images are left: {:?}",
        fs::read_dir(home.join("images"))?.flatten().map(|e| e.path()).collect::<Vec<_>>()
    );
    drop(folder);
    before.wait_until_back()
}
