//! A lab is baked: what its task has made is there when the manifest that comes out starts, and no task runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{self, Traces};
use crate::lab::{self, Lab};

const NAME: &str = "bakery";

/// A data drive beside the root, and a task that leaves on both what images are bad at keeping.
const MACHINES: &str = "    - name: web
      drives:
        - {source: 'IMAGE', mount: /, size: 4GiB}
        - {mount: /srv/data, size: 64MiB}
      network: {interfaces: [{network: local}]}
      resources: {cpuCount: 1, ramSize: 512MiB}
  initTasks:
    make:
      init: true
      machine: web
      timeout_seconds: 300
      run: |
        set -e
        # As a systemd does that is still starting: what is in /tmp goes, and not what the task leaves to others.
        systemd-tmpfiles --remove --boot || true
        install -m 4755 /bin/true /opt/setuid
        install -m 644 /dev/null /opt/file
        echo made >> /opt/file
        ln /opt/file /opt/other
        truncate -s 64M /opt/sparse
        mknod -m 644 /opt/node c 1 7
        echo kept > /srv/data/kept
        touch /tmp/gone
        python3 - <<'END'
        import os
        os.setxattr('/opt/file', 'user.labyard', b'attribute')
        os.setxattr('/opt/setuid', 'security.capability', bytes.fromhex('0100000200200000000000000000000000000000'))
        os.chown('/opt/file', 1234, 5678)
        os.utime('/opt/file', ns=(0, 1234567890123456789))
        END
";

/// What the task has made, in words.
const LOOK: &str = "
import os
found = os.stat('/opt/file')
print(open('/opt/file').read().strip(), os.getxattr('/opt/file', 'user.labyard').decode(), found.st_uid, found.st_gid)
print(found.st_mtime_ns, found.st_nlink, os.path.samefile('/opt/file', '/opt/other'))
setuid = os.stat('/opt/setuid')
print(oct(setuid.st_mode), os.getxattr('/opt/setuid', 'security.capability').hex())
sparse = os.stat('/opt/sparse')
print(sparse.st_size, sparse.st_blocks < 100, oct(os.stat('/opt/node').st_mode), os.stat('/opt/node').st_rdev)
print(open('/srv/data/kept').read().strip(), os.path.exists('/tmp/gone'), os.path.exists('/opt/lost+found'))
print(open('/etc/hostname').read().strip(), len(open('/etc/machine-id').read().strip()))
";
const FOUND: &str = "made attribute 1234 5678
1234567890123456789 2 True
0o104755 0100000200200000000000000000000000000000
67108864 True 0o20644 263
kept False False
web 32
";

#[test]
fn what_a_task_has_made_is_there_without_the_task() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir_in(host::given("LABYARD_SCRATCH")?)?;
    let manifest = lab::manifest(folder.path(), NAME, MACHINES)?;
    let out = folder.path().join("out");
    bake(&manifest, &out)?;
    {
        let mut lab = Lab::new(NAME);
        lab.up(&out.join("lab.yaml"))?;
        lab.check("no task has run", |lab| {
            let told = host::run(&["tasks", lab.name(), "--json"])?.expect(0)?;
            let told: Value = serde_json::from_slice(&told.stdout)?;
            ensure!(told["tasks"] == serde_json::json!([]), "{told}");
            Ok(())
        });
        lab.check("what it made is there as it was", |lab| {
            let found = lab.exec_with("web", &["python3", "-"], LOOK.as_bytes())?.expect(0)?.text();
            ensure!(found == FOUND, "{found}");
            Ok(())
        });
        lab.check("the image's init runs", |lab| {
            let running = lab.exec("web", &["readlink", "/proc/1/exe"])?.expect(0)?.text();
            ensure!(running.contains("systemd"), "{running}");
            Ok(())
        });
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

fn bake(manifest: &Path, out: &Path) -> Result<()> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");
    let said = host::run(&["bake", &text(manifest)?, "--out", &text(out)?, "--json"])?;
    ensure!(said.code == 0, "{}", said.stderr);
    eprintln!("{}", said.stderr);
    let told: Value = serde_json::from_slice(&said.stdout)?;
    ensure!(told["images"][0]["entries"].as_u64() > Some(10_000), "{told}");
    ensure!(told["images"][1]["entries"].as_u64() < Some(10), "{told}");
    let labs: Value = serde_json::from_slice(&host::run(&["ps", "--json"])?.expect(0)?.stdout)?;
    ensure!(labs["labs"] == serde_json::json!([]), "a lab is left: {labs}");
    let mut made: Vec<_> = fs::read_dir(out)?.flatten().map(|entry| entry.file_name()).collect();
    made.sort();
    ensure!(made == ["lab.yaml", "web", "web-d01"], "{made:?}");
    Ok(())
}
