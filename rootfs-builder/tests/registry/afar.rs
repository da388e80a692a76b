//! A registry that is not on this machine's loopback: it is asked by TLS, and in plain HTTP only on request.
//!
//! Its address is one of documentation's (RFC 5737, 3), in a network namespace where nothing else is.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::server::{Access, DEADLINE, Registry};
use super::{Home, Scene, scene};

const ADDRESS: &str = "192.0.2.1:5000";
const IMAGE: &str = "192.0.2.1:5000/it:1";

/// A network namespace with that address; it ends with its holder.
struct Afar {
    holder: Child,
    server: Option<Child>,
}

impl Drop for Afar {
    fn drop(&mut self) {
        for child in [self.server.as_mut(), Some(&mut self.holder)].into_iter().flatten() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Afar {
    fn new() -> Self {
        let script = "ip link set lo up && ip address add 192.0.2.1/32 dev lo && echo up && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "up\n", "no namespace");
        Self { holder, server: None }
    }

    /// The same program, in there.
    fn within(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["--user", "--net", "--target", &self.holder.id().to_string(), "--"]);
        inside.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            inside.env(name, value.unwrap());
        }
        inside
    }

    /// A registry there, with what another one has.
    fn serve(&mut self, registry: &Registry) {
        let mut server = registry.command();
        server.env("REGISTRY_HTTP_ADDR", ADDRESS);
        let child = self.within(&server).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        self.server = Some(child);
        let end = Instant::now() + DEADLINE;
        let mut connect = Command::new("bash");
        connect.args(["-c", "</dev/tcp/192.0.2.1/5000"]);
        while !self.within(&connect).stderr(Stdio::null()).status().unwrap().success() {
            assert!(Instant::now() < end, "the registry does not listen at {ADDRESS}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn build(&self, home: &Home, more: &[&str]) -> Output {
        let mut builder = home.builder(IMAGE);
        builder.args(more);
        self.within(&builder).output().unwrap()
    }
}

#[test]
fn plain_http_is_spoken_to_others_only_on_request() {
    let Scene { registry, .. } = &scene(Access::Everybody);
    let mut afar = Afar::new();
    afar.serve(registry);
    let said = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();

    let home = Home::new();
    let output = afar.build(&home, &[]);
    let error = said(&output);
    let error = error.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in ["192.0.2.1:5000", "--plain-http", "insecure = true"] {
        assert!(error.contains(part), "no `{part}` in {error}");
    }

    let output = afar.build(&home, &["--plain-http"]);
    assert!(output.status.success(), "{}", said(&output));

    // What was asked for once does not hold for the next one.
    let home = Home::new();
    let other = "[[registry]]\nprefix = \"192.0.2.2:5000\"\ninsecure = true\n";
    fs::write(home.path("registries.conf"), other).unwrap();
    assert!(!afar.build(&home, &[]).status.success());
    fs::write(home.path("registries.conf"), other.replace("192.0.2.2", "192.0.2.1")).unwrap();
    let output = afar.build(&home, &[]);
    assert!(output.status.success(), "{}", said(&output));
}
