//! Debian's docker-registry on loopback, with a folder of its own; skopeo puts images into it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

/// How long a program may take to answer at its port.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const USER: &str = "ada";
pub(crate) const PASSWORD: &str = "correct horse";

/// Who may pull.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    Everybody,
    /// Whoever shows a name and a password to the registry.
    Password,
    /// Whoever has a token from a server that wants the same.
    Token,
}

/// A registry that is running.
pub(crate) struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run tools/setup"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Debian's registry: installed, or as tools/setup has unpacked it.
fn program() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let unpacked = cache.map(|cache| cache.join("labyard/docker-registry/usr/bin/docker-registry"));
    unpacked.filter(|path| path.exists()).unwrap_or_else(|| "docker-registry".into())
}

const CONFIG: &str = "config.yml";

fn command(folder: &Path) -> Command {
    let mut command = Command::new(program());
    command.arg("serve").arg(folder.join(CONFIG));
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Registry {
    pub(crate) fn start(access: Access) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let auth = match access {
            Access::Everybody => json!(null),
            Access::Password => {
                let users = folder.path().join("users");
                // crypt(3) knows bcrypt, the only kind that the registry takes; any salt will do.
                let script = r#"print crypt($ARGV[0], "\$2y\$05\$abcdefghijklmnopqrstuu")"#;
                let hash = String::from_utf8(run(Command::new("perl").args(["-e", script, PASSWORD]))).unwrap();
                fs::write(&users, format!("{USER}:{hash}\n")).unwrap();
                json!({ "htpasswd": { "realm": "tests", "path": users } })
            }
            Access::Token => {
                let (realm, certificate) = tokens(folder.path());
                json!({ "token": { "realm": realm, "service": "tests", "issuer": "tests", "rootcertbundle": certificate } })
            }
        };
        // A port that was free a moment ago may be somebody's by now: another one then.
        for _ in 0..5 {
            let port = free_port();
            let mut config = json!({
                "version": "0.1",
                "log": { "level": "error", "accesslog": { "disabled": true } },
                "storage": { "filesystem": { "rootdirectory": folder.path().join("data") }, "delete": { "enabled": true } },
                "http": { "addr": format!("127.0.0.1:{port}"), "secret": "x" },
            });
            if !auth.is_null() {
                config["auth"] = auth.clone();
            }
            fs::write(folder.path().join(CONFIG), config.to_string()).unwrap(); // JSON is YAML
            let mut child = command(folder.path())
                .stdout(Stdio::null())
                .stderr(fs::File::create(folder.path().join("log")).unwrap())
                .spawn()
                .expect("docker-registry; run tools/setup");
            let end = Instant::now() + DEADLINE;
            loop {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() && child.try_wait().unwrap().is_none() {
                    return Self { child, folder, port };
                }
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                let log = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                assert!(Instant::now() < end, "docker-registry does not listen: {}", log());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("docker-registry ends at once: {}", fs::read_to_string(folder.path().join("log")).unwrap());
    }

    /// One more of it, over the same images.
    pub(crate) fn command(&self) -> Command {
        command(self.folder.path())
    }

    /// It answers nobody any more.
    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Who it knows, where it wants passwords; read anew when it changes.
    pub(crate) fn users(&self) -> PathBuf {
        self.folder.path().join("users")
    }

    /// `127.0.0.1:PORT/NAME`, for `oci://`.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Copies the image of a layout into it, as it is.
    pub(crate) fn push(&self, layout: &Path, name: &str) {
        let from = format!("oci:{}", layout.display());
        let to = format!("docker://{}", self.image(name));
        let credentials = format!("{USER}:{PASSWORD}");
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"])
            .args(["--dest-creds", &credentials, &from, &to]));
    }

    /// Where it keeps a blob's bytes.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.folder.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

/// A login file for `registry`.
pub(crate) fn login(path: &Path, registry: &str, user: &str, password: &str) {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    fs::write(path, json!({ "auths": { registry: { "auth": auth } } }).to_string()).unwrap();
}

/// A token server (distribution's "Token Authentication Specification") until the tests end: its address, and the
/// certificate that its tokens are signed for.
fn tokens(folder: &Path) -> (String, PathBuf) {
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    let arguments = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests", "-keyout"];
    run(Command::new("openssl").args(arguments).arg(&key).arg("-out").arg(&certificate));
    let pem = fs::read_to_string(&certificate).unwrap();
    let chain: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/token", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = head(&mut stream);
            let wanted = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
            let known = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .any(|(name, value)| name.eq_ignore_ascii_case("authorization") && value == wanted);
            let (status, body) = if known {
                ("200 OK", json!({ "token": token(&head, &chain, &key) }))
            } else {
                ("401 Unauthorized", json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "who are you?" }] }))
            };
            let body = body.to_string();
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (address, certificate)
}

/// What a client asks, up to the empty line.
pub(crate) fn head(stream: &mut TcpStream) -> String {
    let mut text = vec![];
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        text.push(byte[0]);
        // The first byte of TLS (RFC 8446, 5.1: handshake), which nobody here speaks.
        if text == [22] {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The token that a request asks for: everything in its scope.
fn token(head: &str, chain: &str, key: &Path) -> String {
    let query = head.split_whitespace().nth(1).unwrap_or_default();
    let scope = query.split(['?', '&']).find_map(|part| part.strip_prefix("scope=")).unwrap_or_default();
    let scope = scope.replace("%3A", ":").replace("%2C", ",").replace("%2F", "/");
    let access: Vec<_> = scope
        .split_once(':')
        .and_then(|(kind, rest)| rest.rsplit_once(':').map(|(name, actions)| (kind, name, actions)))
        .map(|(kind, name, actions)| json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }))
        .into_iter()
        .collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [chain] });
    let claims = json!({
        "iss": "tests", "sub": USER, "aud": "tests", "exp": now + 300, "nbf": now - 10, "iat": now, "jti": now.to_string(), "access": access,
    });
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let signature = openssl.wait_with_output().unwrap().stdout;
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
