//! Labs whose guests are a few bytes of machine code: everything around a guest, and hardly a guest. They run where KVM runs at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::host;
use elf::elf;

#[path = "../../../vmm/tests/guests/elf.rs"]
mod elf;

/// hlt; jmp to it.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
const KERNEL: &str = "0.0.1-tiny";

/// A kernel in the store that does nothing, and an image with nothing in it; gone when dropped.
pub(crate) struct Tiny {
    kernel: PathBuf,
    folder: tempfile::TempDir,
}

impl Tiny {
    pub(crate) fn new() -> Result<Self> {
        Self::within(&host::given("LABYARD_HOME")?)
    }

    /// The same in the state directory of somebody else.
    pub(crate) fn within(home: &Path) -> Result<Self> {
        let kernel = home.join("kernels").join(KERNEL);
        fs::create_dir_all(&kernel)?;
        let tiny = Self { kernel, folder: tempfile::tempdir()? };
        fs::write(tiny.kernel.join("vmlinux"), elf(HALT))?;
        let record = json!({
            "id": KERNEL, "version": "0.0.1", "series": "0.0", "digest": "sha256:0", "early_modules": [], "late_modules": [],
            "stock": true, "format": format(home)?,
        });
        fs::write(tiny.kernel.join("kernel.json"), record.to_string())?;
        // Two blocks of zeros end an archive of nothing (pax(1), ustar).
        fs::write(tiny.folder.path().join("empty.tar"), [0; 1024])?;
        Ok(tiny)
    }

    /// Where its manifests lie.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A manifest of a lab with these machines, which is never ready.
    pub(crate) fn manifest(&self, lab: &str, machines: &[&str]) -> Result<String> {
        let machines: Vec<_> = machines
            .iter()
            .map(|name| {
                json!({
                    "name": name, "kernel": { "source": KERNEL },
                    "drives": [{ "source": "rootfs-tar:empty.tar", "mount": "/", "size": "16MiB" }],
                    "network": { "interfaces": [{ "network": "local" }] },
                    "resources": { "ramSize": "32MiB" },
                })
            })
            .collect();
        let networks = json!([{ "name": "local", "subnet": "172.16.0.0/24", "private": true }]);
        let manifest =
            json!({ "kind": "playground", "name": lab, "playground": { "networks": networks, "machines": machines } });
        let path = self.folder.path().join(format!("{lab}-{}.yaml", machines.len()));
        fs::write(&path, manifest.to_string())?;
        Ok(path.to_str().context("a path in UTF-8")?.to_owned())
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.kernel); // the store is the test host's
    }
}

/// The format of kernels that this store has, by one that is in it; the first where there is none.
fn format(home: &Path) -> Result<u64> {
    for entry in fs::read_dir(home.join("kernels"))?.flatten() {
        if let Ok(text) = fs::read(entry.path().join("kernel.json"))
            && let Some(format) = serde_json::from_slice::<serde_json::Value>(&text)?["format"].as_u64()
        {
            return Ok(format);
        }
    }
    Ok(1)
}
