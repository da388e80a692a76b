//! A layout with two images of two layers: the lower one is the same in both, the upper one is another. Files of very different
//! lengths, two thirds words, one third bytes that hardly pack. The same bytes each time.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Files in a folder.
const FOLDER: u64 = 200;
/// Bytes that files take theirs from.
const POOL: usize = 1 << 20;

/// Tags of the two images.
pub const TAGS: [&str; 2] = ["first", "other-top"];

/// Numbers that look random (xorshift64*; Vigna, 2016).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }

    /// Most are short, few are long: the mean is `mean`.
    fn length(&mut self, mean: u64) -> u64 {
        let part = (self.below(1 << 30) + 1) as f64 / (1u64 << 30) as f64;
        (-part.ln() * mean as f64) as u64
    }
}

/// The same bytes again and again.
struct Again<'a> {
    all: &'a [u8],
    at: usize,
}

impl Read for Again<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.all.len() - self.at);
        into[..len].copy_from_slice(&self.all[self.at..self.at + len]);
        self.at = (self.at + len) % self.all.len();
        Ok(len)
    }
}

/// Hashes and counts what passes.
struct Counted<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Counted<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn digest(self) -> (String, u64) {
        let sum: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (sum, self.bytes)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Makes the layout in the empty folder `at`, each image with so many files of so many bytes together, a tenth of them in the upper layer.
pub fn make(at: &Path, files: u64, bytes: u64) -> Result<()> {
    fs::create_dir_all(at.join("blobs/sha256")).context("a folder for blobs")?;
    let lower = layer(at, "lower", files / 10 * 9, bytes / 10 * 9, 1)?;
    let mut manifests = Vec::new();
    for (seed, tag) in (2..).zip(TAGS) {
        let upper = layer(at, "upper", files / 10, bytes / 10, seed)?;
        let layers = [&lower, &upper];
        let diff_ids: Vec<&str> = layers.iter().map(|(_, diff_id)| diff_id.as_str()).collect();
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs});
        let config = blob(at, "application/vnd.oci.image.config.v1+json", &config)?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let blobs: Vec<&Value> = layers.iter().map(|(blob, _)| blob).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": blobs});
        let mut manifest = blob(at, kind, &manifest)?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        manifests.push(manifest);
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(at.join("index.json"), index.to_string()).context("index.json")?;
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("oci-layout")
}

fn blob(at: &Path, kind: &str, document: &Value) -> Result<Value> {
    let mut counted = Counted::new(io::sink());
    let text = document.to_string();
    counted.write_all(text.as_bytes())?;
    let (digest, bytes) = counted.digest();
    fs::write(at.join("blobs/sha256").join(&digest), text).context("a blob")?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes}))
}

/// A layer, as gzip; its descriptor and its diff id.
fn layer(at: &Path, name: &str, files: u64, bytes: u64, seed: u64) -> Result<(Value, String)> {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let noise: Vec<u8> = (0..POOL).map(|_| numbers.next() as u8).collect();
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|_| {
            let len = 2 + numbers.below(8);
            let mut word: Vec<u8> = (0..len).map(|_| b'a' + numbers.below(26) as u8).collect();
            word.push(b' ');
            word
        })
        .collect();
    let mut text = Vec::with_capacity(POOL + 16);
    while text.len() < POOL {
        text.extend_from_slice(&words[numbers.below(words.len() as u64) as usize]);
    }
    let half = at.join("half");
    let stored = Counted::new(BufWriter::new(File::create(&half).context("a blob")?));
    let unpacked = Counted::new(GzEncoder::new(stored, Compression::fast()));
    let mut archive = Builder::new(BufWriter::with_capacity(1 << 20, unpacked));
    for number in 0..files {
        let folder = format!("usr/share/{name}/{:05}", number / FOLDER);
        if number.is_multiple_of(FOLDER) {
            archive.append_data(&mut header(EntryType::Directory, 0o755, 0), format!("{folder}/"), io::empty())?;
        }
        let len = numbers.length(bytes / files.max(1));
        let pool = if number % 3 == 0 { &noise } else { &text };
        let start = numbers.below(POOL as u64 / 2) as usize;
        let content = Again { all: &pool[start..start + POOL / 2], at: 0 }.take(len);
        archive.append_data(&mut header(EntryType::Regular, 0o644, len), format!("{folder}/{number:06}"), content)?;
    }
    let buffered = archive.into_inner()?;
    let unpacked = buffered.into_inner().map_err(|error| error.into_error())?;
    let Counted { inner, hash, bytes: unpacked_bytes } = unpacked;
    let stored = inner.finish()?;
    let (diff_id, _) = Counted { inner: (), hash, bytes: unpacked_bytes }.digest();
    let (digest, stored_bytes) = stored.digest();
    fs::rename(half, at.join("blobs/sha256").join(&digest)).context("a blob")?;
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let descriptor = json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": stored_bytes});
    Ok((descriptor, format!("sha256:{diff_id}")))
}

fn header(kind: EntryType, mode: u32, len: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(len);
    header
}
