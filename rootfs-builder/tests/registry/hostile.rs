//! A registry that lies: each case is a table of answers, and each ends in one line that names what is wrong.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::Home;
use crate::layout::digest;
use crate::server::head;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A path below `/v2/it/` and what is answered.
pub(crate) type Answers = BTreeMap<String, Vec<u8>>;

pub(crate) fn serve(answers: Answers) -> u16 {
    serve_at(0, answers)
}

/// At this port.
pub(crate) fn serve_at(port: u16, answers: Answers) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = head(&mut stream);
            let path = head.split_whitespace().nth(1).unwrap_or_default();
            let name = path.strip_prefix("/v2/it/").unwrap_or(path);
            let empty = vec![];
            let found = if path == "/v2/" { Some(&empty) } else { answers.get(name) };
            let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
            let body = found.unwrap_or(&empty);
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(body);
        }
    });
    port
}

fn blob(bytes: &[u8], kind: &str) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

/// An image of one layer, and its manifest under the tag `1`.
fn image(layer: Value, config: Value) -> Answers {
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    BTreeMap::from([("manifests/1".to_owned(), manifest.to_string().into_bytes())])
}

#[test]
fn a_registry_that_lies_is_found_out() {
    let bytes = b"these are the bytes";
    let good = blob(bytes, LAYER);
    let name = format!("blobs/{}", digest(bytes));
    let with = |mut answers: Answers, body: &[u8]| {
        answers.insert(name.clone(), body.to_vec());
        answers
    };
    let sized = |size: u64| {
        let mut layer = good.clone();
        layer["size"] = json!(size);
        layer
    };
    let nested = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
    let cases: Vec<(&str, Answers, &str, i32)> = vec![
        ("no JSON", BTreeMap::from([("manifests/1".to_owned(), b"<html>".to_vec())]), "not what it should be", 2),
        ("no manifest at all", BTreeMap::from([("manifests/1".to_owned(), vec![])]), "not what it should be", 2),
        ("too long", BTreeMap::from([("manifests/1".to_owned(), vec![b' '; 9 << 20])]), "longer than", 1),
        (
            "empty index",
            BTreeMap::from([("manifests/1".to_owned(), nested.to_string().into_bytes())]),
            "linux/amd64",
            2,
        ),
        (
            "another kind",
            BTreeMap::from([("manifests/1".to_owned(), json!({ "mediaType": "text/plain" }).to_string().into_bytes())]),
            "neither a manifest nor an index",
            2,
        ),
        (
            "a digest that is a path",
            image(json!({ "mediaType": LAYER, "digest": "sha256:../../x", "size": 1 }), good.clone()),
            "../../x",
            2,
        ),
        (
            "a foreign layer",
            image(blob(b"x", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), good.clone()),
            "foreign layer",
            2,
        ),
        ("a blob that is missing", image(good.clone(), good.clone()), "404", 1),
        ("a longer blob", with(image(sized(5), sized(5)), bytes), "more than the 5 bytes", 1),
        ("another blob", with(image(good.clone(), good.clone()), b"those are the bytes"), "damaged", 1),
    ];
    for (case, answers, expected, wanted) in cases {
        let home = Home::new();
        let image = format!("127.0.0.1:{}/it:1", serve(answers));
        let (error, code) = home.refused(&image);
        assert!(error.contains(expected), "{case}: {error}");
        assert_eq!(code, wanted, "{case}: {error}");
        assert_eq!(home.parts(), 0, "{case}");
    }
}

#[test]
fn an_index_that_names_itself_ends() {
    // A real one cannot: it would hold its own digest. Nothing but the digest tells them apart, so the lie is found there.
    let inner =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [blob(b"x", INDEX)] }).to_string().into_bytes();
    let answers =
        BTreeMap::from([("manifests/1".to_owned(), inner.clone()), (format!("manifests/{}", digest(b"x")), inner)]);
    let (error, _) = Home::new().refused(&format!("127.0.0.1:{}/it:1", serve(answers)));
    assert!(error.contains(&digest(b"x")), "{error}");
}
