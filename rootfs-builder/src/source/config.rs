//! The configuration of an image (OCI image-spec, config.md): diff ids of its layers, and what it starts.

use labyard_spec::guest::Entrypoint;
use labyard_spec::needs::KernelNeeds;
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{ARCHITECTURE, MAX_LAYERS, SourceError, parse};
use crate::digest::Digest;

#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    config: Option<serde_json::Value>,
    rootfs: Rootfs,
}

#[derive(Debug, Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Docker writes `null` for what is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Runtime {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// What we take from a configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) diff_ids: Vec<Digest>,
    pub(super) entrypoint: Option<Entrypoint>,
    /// `config` as it is.
    pub(super) whole: Option<serde_json::Value>,
    /// By its labels and by the annotations of its manifest.
    pub(super) kernel: KernelNeeds,
}

/// Annotations of a manifest.
pub(super) type Annotations = BTreeMap<String, String>;

/// Reads the configuration that `what` names, for an image of `layers` layers whose manifest has these annotations.
pub(super) fn read(what: &str, text: &[u8], layers: usize, annotations: &Annotations) -> Result<Config, SourceError> {
    let document: Document = parse(what, text)?;
    let wrong = |problem: String| SourceError::Document { what: what.to_owned(), problem };
    let (os, architecture) = (document.os.as_deref(), document.architecture.as_deref());
    if os.is_some_and(|os| os != "linux") || architecture.is_some_and(|found| found != ARCHITECTURE) {
        let (os, architecture) = (os.unwrap_or("?"), architecture.unwrap_or("?"));
        return Err(wrong(format!("the image is for {os}/{architecture}; give one for linux/{ARCHITECTURE}")));
    }
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() != layers {
        return Err(wrong(format!("{} diff ids for {layers} layers", diff_ids.len())));
    }
    if layers > MAX_LAYERS {
        return Err(wrong(format!("{layers} layers, more than {MAX_LAYERS}")));
    }
    let diff_ids = diff_ids.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(wrong)?;
    let mut runtime: Runtime = match &document.config {
        Some(config) => Runtime::deserialize(config)
            .map_err(|error| wrong(format!("its config is not what it should be: {error}")))?,
        None => Runtime::default(),
    };
    // Whoever annotates a manifest knows the labels of the image.
    let mut labels = runtime.labels.take().unwrap_or_default();
    labels.extend(annotations.iter().map(|(name, text)| (name.clone(), text.clone())));
    let labels = labels.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let kernel = KernelNeeds::from_labels(labels).map_err(wrong)?;
    Ok(Config { diff_ids, entrypoint: entrypoint(runtime), whole: document.config, kernel })
}

fn entrypoint(runtime: Runtime) -> Option<Entrypoint> {
    let argv: Vec<String> = [runtime.entrypoint, runtime.cmd].into_iter().flatten().flatten().collect();
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    (!argv.is_empty()).then(|| Entrypoint {
        argv,
        env: runtime.env.unwrap_or_default(),
        user: runtime.user.unwrap_or_default(),
        working_dir: text(runtime.working_dir).unwrap_or_else(|| "/".to_owned()),
        stop_signal: text(runtime.stop_signal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn entrypoint_and_command_are_joined_and_nulls_are_nothing() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{ID}"]}},
               "config":{{"Entrypoint":["/a"],"Cmd":["b"],"Env":null,"WorkingDir":"","Volumes":{{}}}}}}"#
        );
        let config = read("config", text.as_bytes(), 1, &Annotations::new()).expect("a configuration");
        let entrypoint = config.entrypoint.expect("an entrypoint");
        assert_eq!(entrypoint.argv, ["/a", "b"]);
        assert_eq!((entrypoint.working_dir.as_str(), entrypoint.stop_signal), ("/", None));
        assert_eq!(config.diff_ids[0].to_string(), ID);
    }

    #[test]
    fn what_it_needs_of_the_kernel_is_in_labels_and_annotations_and_the_latter_count() {
        let text = |labels: &str| format!(r#"{{"rootfs":{{"diff_ids":[]}},"config":{{"Labels":{labels}}}}}"#);
        let labels = r#"{"io.labyard.kernel.version":"6.1","io.labyard.kernel.modules":"zfs","maintainer":"ada"}"#;
        let annotations = Annotations::from([("io.labyard.kernel.version".to_owned(), ">=6.12".to_owned())]);
        let kernel = read("config", text(labels).as_bytes(), 0, &annotations).expect("a configuration").kernel;
        assert_eq!((kernel.version[0].to_string(), kernel.modules), (">=6.12".to_owned(), vec!["zfs".to_owned()]));
        let none = read("config", text("null").as_bytes(), 0, &Annotations::new()).expect("a configuration");
        assert!(none.kernel.is_empty());
        let wrong = text(r#"{"io.labyard.kernel.version":"new"}"#);
        let error =
            read("config sha256:0", wrong.as_bytes(), 0, &Annotations::new()).expect_err("no version").to_string();
        assert!(error.contains("config sha256:0: label io.labyard.kernel.version: `new`"), "{error}");
    }

    #[test]
    fn another_machine_or_another_count_of_layers_is_refused() {
        for (text, layers, part) in [
            (r#"{"architecture":"arm64","os":"linux","rootfs":{"diff_ids":[]}}"#, 0, "linux/arm64"),
            (r#"{"architecture":"amd64","os":"windows","rootfs":{"diff_ids":[]}}"#, 0, "windows/amd64"),
            (r#"{"rootfs":{"diff_ids":[]}}"#, 1, "0 diff ids for 1 layers"),
            (r#"{"rootfs":{"diff_ids":["md5:0"]}}"#, 1, "md5:0"),
            (r#"{}"#, 0, "rootfs"),
            ("", 0, "not what it should be"),
        ] {
            let error = read("config", text.as_bytes(), layers, &Annotations::new()).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
