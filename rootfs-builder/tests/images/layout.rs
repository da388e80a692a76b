//! OCI image layouts made by hand: layers from the `tar` crate, digests from `sha2`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// How a layer is packed.
#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layout being filled.
pub(crate) struct Layout {
    pub(crate) path: PathBuf,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
    annotations: Value,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    format!("sha256:{}", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl Layout {
    pub(crate) fn new(path: &Path) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { path: path.to_owned(), layers: vec![], diff_ids: vec![], annotations: Value::Null }
    }

    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    pub(crate) fn layer(&mut self, layer: Layer, packing: Packing) {
        let bytes = layer.bytes();
        self.diff_ids.push(digest(&bytes));
        let (suffix, packed) = match packing {
            Packing::Plain => ("", bytes),
            Packing::Gzip => {
                let mut packer = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
                packer.write_all(&bytes).unwrap();
                ("+gzip", packer.finish().unwrap())
            }
            Packing::Zstd => ("+zstd", zstd::encode_all(&bytes[..], 1).unwrap()),
        };
        let blob = self.blob(&format!("application/vnd.oci.image.layer.v1.tar{suffix}"), &packed);
        self.layers.push(blob);
    }

    /// Digests of the layers as they are stored.
    #[allow(dead_code, reason = "for the registry tests")]
    pub(crate) fn layer_digests(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
    }

    /// The last layer's diff id becomes one of other bytes.
    pub(crate) fn swap_diff_id(&mut self) {
        *self.diff_ids.last_mut().unwrap() = digest(b"other bytes");
    }

    /// Writes configuration and manifest; the manifest's descriptor.
    pub(crate) fn manifest(&self, architecture: &str) -> Value {
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Entrypoint": ["/bin/app"], "Cmd": ["--serve"], "Env": ["A=b"], "StopSignal": "SIGINT" },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": self.layers });
        if !self.annotations.is_null() {
            manifest["annotations"] = self.annotations.clone();
        }
        self.blob(kind, manifest.to_string().as_bytes())
    }

    /// One image whose manifest has these annotations.
    #[allow(dead_code, reason = "for the image tests")]
    pub(crate) fn annotate(&mut self, annotations: &Value) {
        self.annotations = annotations.clone();
        self.finish("annotated");
    }

    /// What an image needs of a machine, attached to the manifest or index with this descriptor: the descriptor of the artifact.
    pub(crate) fn needs(&self, subject: &Value, text: &str) -> Value {
        let kind = "application/vnd.nfd.image-compatibility.v1alpha1";
        let layer = self.blob("application/vnd.nfd.image-compatibility.spec.v1alpha1+yaml", text.as_bytes());
        let artifact = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": kind,
            "config": self.blob("application/vnd.oci.empty.v1+json", b"{}"),
            "layers": [layer],
            "subject": subject,
        });
        let mut artifact = self.blob("application/vnd.oci.image.manifest.v1+json", artifact.to_string().as_bytes());
        artifact["artifactType"] = json!(kind);
        artifact
    }

    pub(crate) fn index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.path.join("index.json"), index.to_string()).unwrap();
    }

    /// One image, with a tag.
    pub(crate) fn finish(&self, tag: &str) {
        let mut manifest = self.manifest("amd64");
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.index(&[manifest]);
    }
}

/// A layer being filled.
pub(crate) struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(Builder::new(vec![]))
    }

    /// An entry with any header; `change` says what is special about it.
    pub(crate) fn put(mut self, name: &str, kind: EntryType, bytes: &[u8], change: impl Fn(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(bytes.len() as u64);
        change(&mut header);
        self.0.append_data(&mut header, name, bytes).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.put(name, EntryType::Regular, bytes, |_| {})
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.put(name, EntryType::Directory, b"", |_| {})
    }

    pub(crate) fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_001);
        header.set_size(0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }
}
