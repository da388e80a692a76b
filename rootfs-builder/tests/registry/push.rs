//! Images into a real registry, and into ones that stumble.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::layout::{Layer, Layout, Packing, digest};
use crate::proxy::{Fault, Proxy};
use crate::server::{Access, PASSWORD, Registry, USER, head, login, run};
use crate::{Home, image, noise};

impl Home {
    fn push(&self, from: &str, to: &str) -> Output {
        let command = self.builder("");
        let mut push = Command::new(command.get_program());
        push.args(["push", from, &format!("oci://{to}"), "--json", "--store"]).arg(self.path("store"));
        push.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        push.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        push.output().unwrap()
    }

    #[track_caller]
    fn pushed(&self, from: &str, to: &str) -> Value {
        let output = self.push(from, to);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn unpushed(&self, from: &str, to: &str, code: i32) -> String {
        let output = self.push(from, to);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        let line = text.lines().last().unwrap_or_default().to_owned();
        assert!(
            line.starts_with("error: ") && text.lines().filter(|line| line.starts_with("error: ")).count() == 1,
            "{text}"
        );
        line
    }
}

fn source(path: &Path) -> String {
    format!("oci-layout:{}:it", path.display())
}

/// What skopeo makes of an image of a registry, as a layout.
fn pulled_by_skopeo(image: &str, to: &Path) -> Vec<String> {
    let (from, to_text) = (format!("docker://{image}"), format!("oci:{}:it", to.display()));
    let credentials = format!("{USER}:{PASSWORD}");
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false", "--src-creds"])
        .args([&credentials, &from, &to_text]));
    let mut names: Vec<String> = fs::read_dir(to.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_we_push_is_what_skopeo_and_we_pull_with_passwords_and_tokens() {
    for access in [Access::Everybody, Access::Password, Access::Token] {
        let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
        let layout = image(&work.path().join("it"), "hello");
        let registry = Registry::start(access);
        let to = registry.image("team/it:1");
        let host = to.split('/').next().unwrap();
        if !matches!(access, Access::Everybody) {
            let error = home.unpushed(&source(&layout.path), &to, 2);
            assert!(error.contains("refuses") && error.contains(&format!("skopeo login {host}")), "{error}");
            login(&home.path("auth.json"), host, USER, "wrong horse");
            let error = home.unpushed(&source(&layout.path), &to, 2);
            assert!(error.contains(USER) && !error.contains("horse"), "{error}");
            login(&home.path("auth.json"), host, USER, PASSWORD);
        }
        let answer = home.pushed(&source(&layout.path), &to);
        assert_eq!((&answer["blobs"], &answer["sent"]), (&json!(3), &json!(3)));
        let mut all: Vec<String> = fs::read_dir(layout.path.join("blobs/sha256"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        assert_eq!(pulled_by_skopeo(&to, &work.path().join("back")), all);
        home.built(&to);
        // A second time nothing is sent, and a second tag is a manifest.
        let answer = home.pushed(&source(&layout.path), &registry.image("team/it:2"));
        assert_eq!((&answer["sent"], &answer["bytes"]), (&json!(0), &json!(0)));
        home.built(&registry.image("team/it:2"));
    }
}

#[test]
fn an_image_of_the_store_goes_on_to_another_repository_without_its_layers() {
    for access in [Access::Everybody, Access::Token] {
        let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
        let layout = image(&work.path().join("it"), "hello");
        let registry = Registry::start(access);
        let host = registry.image("").trim_end_matches('/').to_owned();
        login(&home.path("auth.json"), &host, USER, PASSWORD);
        registry.push(&layout.path, "one:1");
        let key = home.built(&registry.image("one:1"))["key"].as_str().unwrap().to_owned();
        let answer = home.pushed(&key, &registry.image("two/copy:1"));
        // A token is for one repository: there all is sent.
        let mounted = if matches!(access, Access::Everybody) { 3 } else { 0 };
        assert_eq!((&answer["mounted"], &answer["sent"]), (&json!(mounted), &json!(3 - mounted)));
        home.built(&registry.image("two/copy:1"));
        // What the store no longer has is named.
        fs::remove_file(home.path("store/blobs/sha256").join(&layout.layer_digests()[0][7..])).unwrap();
        let error = home.unpushed(&key, &registry.image("three:1"), 2);
        assert!(error.contains("layer 1 of 2") && error.contains("is not there"), "{error}");
    }
}

#[test]
fn an_index_takes_all_its_platforms_along() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let path = work.path().join("it");
    let mut layout = Layout::new(&path);
    layout.layer(Layer::new().file("a", b"a"), Packing::Gzip);
    let manifests = ["amd64", "arm64"].map(|architecture| {
        let mut manifest = layout.manifest(architecture);
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest
    });
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests });
    let mut index = layout.blob(kind, index.to_string().as_bytes());
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": "it" });
    layout.index(&[index.clone()]);
    let registry = Registry::start(Access::Everybody);
    let answer = home.pushed(&source(&path), &registry.image("it:1"));
    assert_eq!((&answer["blobs"], &answer["digest"]), (&json!(3), &index["digest"]));
    home.built(&registry.image("it:1"));
    run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--override-arch", "arm64"])
        .arg(format!("docker://{}", registry.image("it:1"))));
}

#[test]
fn what_is_attached_to_an_image_of_a_registry_says_what_it_needs_of_the_kernel() {
    for access in [Access::Everybody, Access::Password, Access::Token] {
        let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
        let layout = image(&work.path().join("it"), "hello");
        let mut registry = Registry::start(access);
        let host = registry.image("").trim_end_matches('/').to_owned();
        login(&home.path("auth.json"), &host, USER, PASSWORD);
        home.pushed(&source(&layout.path), &registry.image("it:1"));
        let plain = home.built(&registry.image("it:1"))["key"].clone();

        // Debian's registry has no list of what is attached: a tag stands for it (distribution-spec, "Referrers Tag Schema").
        let mut manifest = layout.manifest("amd64");
        manifest.as_object_mut().unwrap().remove("annotations");
        let text = "version: v1alpha1
compatibilities:
- rules:
  - name: it
    matchFeatures:
    - {feature: kernel.loadedmodule, matchExpressions: {zfs: {op: Exists}}}
";
        let artifact = layout.needs(&manifest, text);
        let kind = "application/vnd.oci.image.index.v1+json";
        let list = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [artifact] });
        let mut list = layout.blob(kind, list.to_string().as_bytes());
        list["annotations"] = json!({ "org.opencontainers.image.ref.name": "list" });
        layout.index(&[list]);
        let tag = manifest["digest"].as_str().unwrap().replace(':', "-");
        home.pushed(&format!("oci-layout:{}:list", layout.path.display()), &registry.image(&format!("it:{tag}")));

        let needy = home.built(&registry.image("it:1"))["key"].clone();
        assert_ne!(plain, needy);
        let record = home.path("store/images").join(needy.as_str().unwrap()).join("image.json");
        let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        assert_eq!(record["kernel"]["modules"], json!(["zfs"]));
        // It is known while the registry is down, too.
        registry.stop();
        assert_eq!(home.built(&registry.image("it:1"))["key"], needy);
    }
}

#[test]
fn an_upload_that_breaks_ends_well_and_one_that_cannot_says_so() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let layout = image(&work.path().join("it"), "hello");
    let registry = Registry::start(Access::Everybody);
    let proxy = Proxy::new(registry.port, Fault::CutUploads(300 << 10, 2));
    home.pushed(&source(&layout.path), &format!("127.0.0.1:{}/it:1", proxy.port));
    assert!(proxy.connections() > 2, "nothing was cut");
    home.built(&registry.image("it:1"));

    let proxy = Proxy::new(registry.port, Fault::CutUploads(300 << 10, u64::MAX));
    let error = home.unpushed(&source(&layout.path), &format!("127.0.0.1:{}/other:1", proxy.port), 1);
    assert!(error.contains(&layout.layer_digests()[1]) && error.contains("in 6 attempts"), "{error}");
    let (error, _) = home.refused(&registry.image("other:1"));
    assert!(error.contains("no such image"), "{error}");
}

#[test]
fn what_is_wrong_is_named_before_anything_is_sent() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let layout = image(&work.path().join("it"), "hello");
    let registry = Registry::start(Access::Everybody);
    let to = registry.image("it:1");
    let error = home.unpushed("oci-layout:/no/such", &to, 2);
    assert!(error.contains("/no/such") && error.contains("not an OCI image layout"), "{error}");
    let error = home.unpushed(&format!("oci-layout:{}:other", layout.path.display()), &to, 2);
    assert!(error.contains("tags: it"), "{error}");
    let error = home.unpushed("0123", &to, 2);
    assert!(error.contains("`0123`: neither oci-layout:PATH[:TAG] nor a key"), "{error}");
    let error = home.unpushed(&source(&layout.path), "127.0.0.1:1/it:1", 1);
    assert!(error.contains("127.0.0.1:1/it:1"), "{error}");
    let error = home.unpushed(&source(&layout.path), "127.0.0.1:1/IT:1", 2);
    assert!(error.contains("REGISTRY/REPOSITORY:TAG"), "{error}");
    let damaged = &layout.layer_digests()[1];
    let path = layout.blob_path(damaged);
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(path, bytes).unwrap();
    let error = home.unpushed(&source(&layout.path), &to, 2);
    assert!(error.contains(damaged) && error.contains("nothing was sent"), "{error}");
    let (error, _) = home.refused(&to);
    assert!(error.contains("no such image"), "{error}");
}

#[test]
fn an_interrupted_push_leaves_no_image_there() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let layout = image(&work.path().join("it"), "hello");
    let registry = Registry::start(Access::Everybody);
    // No answer comes back once the first few have: the builder waits.
    let proxy = Proxy::new(registry.port, Fault::Silence(100));
    let mut child = Command::new(env!("CARGO_BIN_EXE_rootfs-builder"))
        .args(["push", &source(&layout.path), &format!("oci://127.0.0.1:{}/it:1", proxy.port), "--store"])
        .arg(home.path("store"))
        .env("HOME", home.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.any(|line| line.starts_with("asking ")));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(lines.last().unwrap().starts_with("error: interrupted"));
    let (error, _) = home.refused(&registry.image("it:1"));
    assert!(error.contains("no such image"), "{error}");
}

/// A registry that takes uploads up again as the specification says: what came of each, and how often each was begun.
struct Resuming {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    uploads: Vec<Vec<u8>>,
    /// Content-Range of each PATCH.
    ranges: Vec<String>,
    blobs: Vec<String>,
    manifests: usize,
}

/// Serves until the tests end; the first `cuts` bodies of more than 1 MiB are cut there.
fn resuming(cuts: usize) -> Resuming {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let state = Arc::new(Mutex::new(State::default()));
    let shared = Arc::clone(&state);
    let left = Arc::new(Mutex::new(cuts));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (state, left) = (Arc::clone(&shared), Arc::clone(&left));
            std::thread::spawn(move || answer(stream.unwrap(), &state, &left));
        }
    });
    Resuming { port, state }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, left: &Mutex<usize>) {
    let head = head(&mut stream);
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let header = |name: &str| {
        let line =
            head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name));
        line.map(|(_, value)| value.to_owned())
    };
    let len: usize = header("content-length").map_or(0, |text| text.parse().unwrap());
    let number = || path.rsplit('/').next().unwrap().split('?').next().unwrap().parse::<usize>().unwrap();
    let mut extra = String::new();
    let status = match method {
        "GET" if path == "/v2/" => "200 OK",
        "HEAD" => "404 Not Found",
        "POST" => {
            let mut state = state.lock().unwrap();
            state.uploads.push(vec![]);
            extra = format!("location: /v2/it/blobs/uploads/{}\r\n", state.uploads.len() - 1);
            "202 Accepted"
        }
        "PATCH" => {
            let cut = len > 1 << 20 && {
                let mut left = left.lock().unwrap();
                let cut = *left > 0;
                *left = left.saturating_sub(1);
                cut
            };
            let mut bytes = vec![0; if cut { 1 << 20 } else { len }];
            stream.read_exact(&mut bytes).unwrap();
            let mut state = state.lock().unwrap();
            state.ranges.extend(header("content-range"));
            state.uploads[number()].extend(bytes);
            if cut {
                return;
            }
            extra = format!("location: {path}\r\n");
            "202 Accepted"
        }
        "GET" => {
            let there = state.lock().unwrap().uploads[number()].len();
            extra = format!("location: {path}\r\nrange: 0-{}\r\n", there.saturating_sub(1));
            "204 No Content"
        }
        "PUT" if path.contains("/uploads/") => {
            let mut state = state.lock().unwrap();
            let sum = digest(&state.uploads[number()]);
            assert!(path.ends_with(&sum.replace(':', "%3A")), "{path}: {sum}");
            state.blobs.push(sum);
            "201 Created"
        }
        "PUT" => {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            state.lock().unwrap().manifests += 1;
            "201 Created"
        }
        _ => "405 Method Not Allowed",
    };
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{extra}content-length: 0\r\nconnection: close\r\n\r\n");
}

#[test]
fn an_upload_goes_on_where_a_registry_says_how_far_it_got() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let path = work.path().join("it");
    let mut layout = Layout::new(&path);
    layout.layer(Layer::new().file("noise", &noise(4 << 20, 7)), Packing::Plain);
    layout.finish("it");
    let len = fs::metadata(layout.blob_path(&layout.layer_digests()[0])).unwrap().len();
    let registry = resuming(2);
    let answer = home.pushed(&source(&path), &format!("127.0.0.1:{}/it:1", registry.port));
    assert_eq!(answer["sent"], 2);
    let state = registry.state.lock().unwrap();
    assert_eq!((state.uploads.len(), state.blobs.len(), state.manifests), (2, 2, 1));
    let last = len - 1;
    assert_eq!(state.ranges, [format!("{}-{last}", 1 << 20), format!("{}-{last}", 2 << 20)]);
}
