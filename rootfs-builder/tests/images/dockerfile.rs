//! Images built from a Dockerfile by the real buildah.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::oracle::{assert_clean, content};
use super::{builder, disk, left_in};

/// A PATH that leads to buildah: installed, or as tools/setup has unpacked it.
fn path() -> String {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache"))).unwrap();
    let own = std::env::var("PATH").unwrap();
    let path = format!("{own}:{}", cache.join("labyard/buildah/usr/bin").display());
    let there = path.split(':').any(|folder| Path::new(folder).join("buildah").exists());
    assert!(there, "no buildah in {path}; run tools/setup");
    path
}

fn command(home: &Path, folder: &Path) -> Command {
    let mut command = builder(&["build", &format!("dockerfile:{}", folder.display()), "--size", "64MiB", "--json"]);
    command.arg("--store").arg(home).env("PATH", path()).env_remove("SOURCE_DATE_EPOCH");
    command
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A folder with a static shell and this Dockerfile.
fn context(home: &Path, name: &str, text: &str) -> PathBuf {
    let folder = home.join("context");
    fs::create_dir_all(&folder).unwrap();
    fs::copy("/bin/busybox", folder.join("busybox")).unwrap();
    fs::write(folder.join("hello"), "hello").unwrap();
    fs::write(folder.join(name), text).unwrap();
    folder
}

const TEXT: &str = "FROM scratch
LABEL io.labyard.kernel.modules=overlay
COPY busybox /bin/busybox
COPY hello /etc/hello
RUN [\"/bin/busybox\", \"cp\", \"/etc/hello\", \"/etc/copied\"]
ENTRYPOINT [\"/bin/busybox\", \"sh\"]
";

#[test]
fn a_dockerfile_becomes_a_disk_and_the_same_one_the_same_disk() {
    let home = tempfile::tempdir().unwrap();
    let folder = context(home.path(), "Dockerfile", TEXT);
    let output = command(home.path(), &folder).output().unwrap();
    let built = answer(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("STEP 5/6: RUN"), "{said}");
    assert_clean(&disk(&built));
    assert_eq!(content(&disk(&built), "/etc/copied"), b"hello");
    let key = built["key"].as_str().unwrap();
    let record: Value = serde_json::from_slice(&fs::read(disk(&built).with_file_name("image.json")).unwrap()).unwrap();
    assert_eq!((&record["kernel"]["modules"][0], &record["entrypoint"]["argv"][1]), (&"overlay".into(), &"sh".into()));
    assert_eq!(answer(&command(home.path(), &folder.join("Dockerfile")).output().unwrap())["cached"], true);
    assert_eq!(left_in(home.path()), [key]);
}

#[test]
fn what_is_no_dockerfile_is_refused_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    let folder = context(home.path(), "Dockerfile", "FROM scratch\nCOPY nothing-like-it /\n");
    let refused = |command: &mut Command, part: &str| {
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("error: ") && line.contains(part), "{text}");
        if home.path().join("images").exists() {
            assert_eq!(left_in(home.path()), [""; 0]);
        }
    };
    refused(&mut command(home.path(), &folder), "nothing-like-it");
    fs::write(folder.join("Dockerfile"), "NONSENSE\n").unwrap();
    refused(&mut command(home.path(), &folder), "buildah ended with exit status");
    fs::remove_file(folder.join("Dockerfile")).unwrap();
    refused(&mut command(home.path(), &folder), "neither a Containerfile nor a Dockerfile");
    refused(&mut command(home.path(), &folder.join("none")), "context/none");

    fs::write(folder.join("Containerfile"), TEXT).unwrap();
    let programs = home.path().join("programs");
    fs::create_dir(&programs).unwrap();
    for name in ["sh", "setpriv"] {
        symlink(Path::new("/usr/bin").join(name), programs.join(name)).unwrap();
    }
    refused(command(home.path(), &folder).env("PATH", &programs), "buildah is not installed; install it");
}

#[test]
fn an_interrupted_build_of_a_dockerfile_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let text = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"1000\"]\n";
    let folder = context(home.path(), "Dockerfile", text);
    let mut child = command(home.path(), &folder).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.any(|line| line.starts_with("STEP 3/3")));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(left_in(home.path()), [""; 0]);
}
