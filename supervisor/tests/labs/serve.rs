//! `labyard serve`: all labs at one socket, described, and measured.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::host::{Host, PATIENCE, Running, has_ended, kill, text, until};

/// A `labyard serve`, with metrics at a free port.
struct Served {
    serve: Running,
    told: Value,
}

impl Served {
    fn start(host: &Host) -> Self {
        let mut serve = Running::start(&mut host.command(&["serve", "--json", "--metrics", "127.0.0.1:0"]));
        let fields = ["\"metrics\"", "\"socket\""].map(|field| serve.wait_for(field));
        let told = serde_json::from_str(&format!("{{{}}}", fields.concat())).expect("JSON");
        Self { serve, told }
    }

    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        self.ask_with(method, path, "")
    }

    fn ask_with(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.told["socket"].as_str().expect("a path")).expect("connecting");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        answer(&mut stream, method, path, body)
    }

    fn end(self) {
        self.serve.signal(Signal::TERM);
        let (code, stderr) = self.serve.end();
        assert_eq!(code, Some(0), "{stderr}");
    }
}

/// Status and body of the answer to one request.
fn answer(stream: &mut (impl Read + Write), method: &str, path: &str, body: &str) -> (u16, String) {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{kind}Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("asking");
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("an answer");
    let said = text(&said);
    let (head, body) = said.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status"), body.to_owned())
}

/// What a value is not that a schema of the document asks for; as much of JSON schema as the document uses.
fn faults(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let named = document.pointer(reference.trim_start_matches('#')).expect("what it refers to");
        return faults(document, named, value, at);
    }
    let wrong = |what: String| vec![format!("{at}: {what}, not {value}")];
    if let Some(choices) = schema["oneOf"].as_array() {
        let fitting = choices.iter().filter(|choice| faults(document, choice, value, at).is_empty()).count();
        return if fitting == 1 { Vec::new() } else { wrong(format!("{fitting} of the choices of {schema}")) };
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is(kind)) {
        return wrong(format!("{kinds:?}"));
    }
    if let Some(choices) = schema["enum"].as_array()
        && !choices.contains(value)
    {
        return wrong(format!("one of {choices:?}"));
    }
    let mut found = Vec::new();
    if let Some(fields) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                found.push(format!("{at}: no {name}"));
            }
        }
        for (name, field) in fields {
            match schema["properties"].get(name) {
                Some(schema) => found.extend(faults(document, schema, field, &format!("{at}.{name}"))),
                None if schema["additionalProperties"] == false => found.push(format!("{at}: {name} is not described")),
                None => {}
            }
        }
    }
    for (position, item) in value.as_array().into_iter().flatten().enumerate() {
        let of_place = schema["prefixItems"].get(position);
        let schema = of_place.or_else(|| schema.get("items")).unwrap_or(&Value::Null);
        match schema {
            Value::Bool(false) => found.push(format!("{at}[{position}]: not described")),
            schema => found.extend(faults(document, schema, item, &format!("{at}[{position}]"))),
        }
    }
    found
}

/// Asks for something that is described, and sees that it is as described.
fn described(served: &Served, document: &Value, lab: &str, path: &str) -> Value {
    let (code, body) = served.ask("GET", &format!("/v1/labs/{lab}{path}"));
    assert_eq!(code, 200, "{path}: {body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    let content = &document["paths"][format!("/v1/labs/{{lab}}{path}")]["get"]["responses"]["200"]["content"];
    let schema = &content["application/json"]["schema"];
    assert!(schema.is_object(), "{path} is not described");
    assert_eq!(faults(document, schema, &answer, path), [""; 0], "{answer:#}");
    answer
}

#[test]
fn all_labs_are_at_one_socket_as_the_document_says() {
    let host = Host::new();
    host.up("one", &["web", "db", "full"]);
    host.up("two", &["web"]);
    let served = Served::start(&host);
    let (code, body) = served.ask("GET", "/v1/labs");
    let (shown, _) = host.expect(0, &["ps", "--json"]);
    let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert_eq!((code, parsed(&body)), (200, parsed(&shown)));

    let document = parsed(&served.ask("GET", "/v1/openapi.json").1);
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(described(&served, &document, "one", "/status")["name"], "one");
    let vmm = described(&served, &document, "one", "/vmm");
    assert_eq!(vmm["machines"].as_array().map(Vec::len), Some(3), "{vmm}");
    // The fake machine `full` has no room once its drive is limited.
    host.expect(0, &["limit", "one/full:d00", "--ops", "1"]);
    until("the host's disk is full", || {
        described(&served, &document, "one", "/status").to_string().contains("HostDiskFull")
    });
    host.expect(0, &["limit", "one/full:d00", "--off"]);
    described(&served, &document, "two", "/ports");
    described(&served, &document, "two", "/links");

    let published = r#"{"protocol": "tcp", "bind": "127.0.0.1", "host_port": 1, "machine": "nobody", "port": 80}"#;
    let (code, said) = served.ask_with("POST", "/v1/labs/two/ports", published);
    assert_eq!((code, said.as_str()), (404, "no machine `nobody` in this lab"));
    let (code, said) = served.ask("POST", "/v1/labs/one/machines/db/stop?grace_ms=0");
    assert_eq!(code, 200, "{said}");
    until("db has ended", || {
        let status = parsed(&served.ask("GET", "/v1/labs/one/status").1);
        !status["machines"][1]["ended"].is_null()
    });
    host.expect(0, &["down", "--all"]);
    assert_eq!(parsed(&served.ask("GET", "/v1/labs").1)["labs"], Value::Array(Vec::new()));
    served.end();
    host.assert_clean();
}

#[test]
fn labs_that_are_not_there_or_do_not_run_are_told_apart() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let served = Served::start(&host);
    for (path, status, words) in [
        ("/v1/labs/nobody/status", 404, "lab `nobody` is not there; `labyard ps` shows those that are"),
        ("/v1/labs/..%2Fhome/status", 404, ""),
        ("/v1/labs/lab/nothing", 404, ""),
        ("/v1/nothing", 404, ""),
    ] {
        let (code, said) = served.ask("GET", path);
        assert!(code == status && said.contains(words), "{path}: {code} {said}");
    }
    host.expect(0, &["stop", "lab", "--grace", "0s"]);
    let (code, said) = served.ask("GET", "/v1/labs/lab/vmm");
    assert!(code == 409 && said.contains("`labyard start lab` starts it again"), "{code} {said}");
    let (code, said) = served.ask("GET", "/v1/labs/lab/status");
    assert!(code == 200 && said.contains("\"name\":\"lab\""), "{code} {said}");
    host.expect(0, &["down"]);
    served.end();
}

#[test]
fn a_supervisor_that_was_killed_is_replaced_for_who_asks() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let served = Served::start(&host);
    let supervisor = || host.ps()["supervisor_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    let first = supervisor();
    kill(first, Signal::KILL);
    until("it is gone", || has_ended(first));
    let (code, said) = served.ask("GET", "/v1/labs/lab/vmm");
    assert_eq!(code, 200, "{said}");
    assert_ne!(supervisor(), first);
    host.expect(0, &["down"]);
    served.end();
}

#[test]
fn a_stream_into_a_machine_passes_through() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let served = Served::start(&host);
    let mut stream = UnixStream::connect(served.told["socket"].as_str().expect("a path")).expect("connecting");
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    stream
        .write_all(b"POST /v1/labs/lab/machines/web/console HTTP/1.1\r\nHost: labyard\r\nConnection: upgrade\r\nUpgrade: labyard-stream\r\n\r\n")
        .expect("asking");
    let mut said = Vec::new();
    let mut read_until = |stream: &mut UnixStream, part: &str| {
        let mut piece = [0; 4096];
        while !text(&said).contains(part) {
            let count = stream.read(&mut piece).expect("more");
            assert!(count > 0, "it ended with {:?}", text(&said));
            said.extend(&piece[..count]);
        }
    };
    read_until(&mut stream, "101 Switching Protocols");
    read_until(&mut stream, "\r\n\r\n");
    stream.write_all(b"hello\n").expect("typing");
    read_until(&mut stream, "HELLO");
    drop(stream);
    let (code, said) = served.ask("POST", "/v1/labs/lab/machines/web/console");
    assert_eq!((code, said.as_str()), (426, "ask for an upgrade to labyard-stream"));
    host.expect(0, &["down"]);
    served.end();
}

#[test]
fn metrics_are_read_by_prometheus_own_parser() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let served = Served::start(&host);
    let (code, said) = served.ask("GET", "/metrics");
    assert_eq!(code, 200, "{said}");
    let parser = "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as f; \
                  [print(s.name, sorted(s.labels.items()), s.value) for m in f(sys.stdin.read()) for s in m.samples]";
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", parser])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3");
    python.stdin.take().expect("piped").write_all(said.as_bytes()).expect("writing");
    let output = python.wait_with_output().expect("its end");
    assert!(output.status.success(), "{}\n{said}", text(&output.stderr));
    let samples = text(&output.stdout);
    for sample in [
        "labyard_labs [('standing', 'running')] 1\n",
        "labyard_labs [('standing', 'stopped')] 0\n",
        "labyard_lab_answers [('lab', 'lab')] 1\n",
        "labyard_machine_ready [('lab', 'lab'), ('machine', 'db')] 1\n",
        "labyard_machine_memory_bytes [('lab', 'lab'), ('machine', 'web')] 33554432\n",
    ] {
        assert!(samples.contains(sample), "no {sample} in\n{samples}");
    }
    // Over TCP there are metrics, and nothing else.
    let at = served.told["metrics"].as_str().and_then(|url| url.strip_prefix("http://")).expect("a URL");
    let at = at.strip_suffix("/metrics").expect("its path");
    let fetch = |path: &str| answer(&mut TcpStream::connect(at).expect("connecting"), "GET", path, "");
    assert!(fetch("/metrics").1.ends_with("# EOF\n"));
    assert_eq!(fetch("/v1/labs").0, 404);
    // A name of somebody else that leads here is not answered.
    let port = at.rsplit_once(':').expect("a port").1;
    let by = |hosts: &[String]| -> String {
        let mut stream = TcpStream::connect(at).expect("connecting");
        let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        write!(stream, "GET /metrics HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").expect("asking");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("an answer");
        said.lines().next().unwrap_or_default().to_owned()
    };
    for ours in ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"] {
        for host in [ours.to_owned(), format!("{ours}:{port}")] {
            assert_eq!(by(std::slice::from_ref(&host)), "HTTP/1.1 200 OK", "{host}");
        }
    }
    for theirs in
        ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "[::1]x", ""]
    {
        let hosts = [theirs.to_owned()];
        assert_eq!(by(&hosts), "HTTP/1.1 421 Misdirected Request", "{theirs}");
    }
    assert!(by(&["localhost".to_owned(), "evil.example".to_owned()]).contains("421"));
    assert!(!by(&[]).contains("200"));
    host.expect(0, &["down"]);
    served.end();
}

#[test]
fn there_is_one_of_it_and_it_goes_when_told_to() {
    let host = Host::new();
    let served = Served::start(&host);
    let (_, stderr) = host.expect(2, &["serve"]);
    assert!(stderr.contains("another `labyard serve` listens at ") && stderr.lines().count() == 1, "{stderr}");
    let socket = host.home().join("serve.sock");
    assert!(socket.exists());
    served.end();
    assert!(!socket.exists());
    let (_, stderr) = host.expect(2, &["serve", "--metrics", "0.0.0.0:9470"]);
    assert!(stderr.contains("not a loopback address"), "{stderr}");
    // One that was killed leaves its socket, and the next takes its place.
    let mut served = Served::start(&host);
    served.serve.signal(Signal::KILL);
    served.serve.child.wait().expect("its end");
    assert!(socket.exists());
    Served::start(&host).end();
}
