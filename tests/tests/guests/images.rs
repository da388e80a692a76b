//! Images of several makers on the drives of a guest, in both formats: Linux mounts them and sees what umoci unpacks. Then a disk that a
//! guest has filled, and what e2fsck says of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::host::{self, Traces};
use crate::lab::{self, Lab};
use crate::reference;

const NAME: &str = "makers";
const PATIENCE: Duration = Duration::from_secs(180);
/// The variable that names a folder of them which is made already.
pub(crate) const MADE: &str = "LABYARD_TEST_MADE";
/// What umoci unpacks, a line an entry.
const THEIRS: &str = "theirs.jsonl";
/// buildah, skopeo and umoci at work.
const MAKE: &[u8] = include_bytes!("../../../rootfs-builder/tests/images/made.sh");

const MACHINES: &str = "    - name: reader
      drives:
        - {source: 'IMAGE', mount: /, size: 4GiB}
        - {source: 'IMAGE', mount: /srv/example, filesystem: erofs, readOnly: true}
        - {source: 'oci-layout:MADE/buildah:it', mount: /srv/buildah, size: 64MiB}
        - {source: 'docker-archive:MADE/saved.tar', mount: /srv/saved, filesystem: erofs, readOnly: true}
        - {source: 'oci-layout:MADE/zstd:it', mount: /srv/zstd, size: 96MiB}
      network: {interfaces: [{network: local}]}
";

#[test]
fn linux_sees_in_images_of_every_maker_what_umoci_unpacks() -> Result<()> {
    let before = Traces::now()?;
    let (images, theirs, own) = made()?;
    let folder = tempfile::tempdir_in(host::given("LABYARD_SCRATCH")?)?;
    let machines = MACHINES.replace("MADE", &images.display().to_string());
    let manifest = lab::manifest(folder.path(), NAME, &machines)?;
    {
        let mut lab = Lab::new(NAME);
        lab.up(&manifest)?;
        lab.check("an EROFS drive is the example image as umoci unpacks it", |lab| {
            same(lab, "/srv/example", "erofs", &reference::example()?, 10_000)
        });
        for (at, filesystem) in [("/srv/buildah", "ext4"), ("/srv/saved", "erofs"), ("/srv/zstd", "ext4")] {
            lab.check(&format!("{at} on {filesystem} is what umoci unpacks"), |lab| {
                same(lab, at, filesystem, &theirs, 25)
            });
        }
        lab.check("nothing is written to a drive of EROFS", read_only);
        lab.check("a disk is filled, and holds what it took over a reboot", filled);
        lab.check("e2fsck finds a disk clean that was filled, and images in the store", |lab| {
            clean(lab, folder.path())
        });
        lab.verdict()?;
    }
    drop((folder, own));
    before.wait_until_back()
}

/// The images, and what umoci unpacks, listed: made here, or by root for somebody who is not ([`make`]).
fn made() -> Result<(PathBuf, Vec<u8>, Option<TempDir>)> {
    let (folder, own) = match std::env::var_os(MADE) {
        Some(folder) => (folder.into(), None),
        None => {
            let own = tempfile::tempdir_in(host::given("LABYARD_SCRATCH")?)?;
            make(own.path())?;
            (own.path().to_owned(), Some(own))
        }
    };
    let theirs = fs::read(folder.join(THEIRS))?;
    Ok((folder, theirs, own))
}

/// Makes the images, and lists what umoci unpacks. Needs root.
pub(crate) fn make(folder: &Path) -> Result<()> {
    let mut make = Command::new("sh");
    make.args(["-s", "--"]).arg(folder);
    host::run_with(make, MAKE)?.expect(0)?;
    let mut walk = Command::new("python3");
    walk.arg("-").arg(folder.join("bundle/rootfs"));
    fs::write(folder.join(THEIRS), host::run_with(walk, reference::WALK)?.expect(0)?.stdout)?;
    Ok(fs::remove_dir_all(folder.join("bundle"))?)
}

fn same(lab: &Lab, at: &str, filesystem: &str, theirs: &[u8], least: usize) -> Result<()> {
    let found = lab.exec("reader", &["findmnt", "-no", "FSTYPE", at])?.expect(0)?.text();
    ensure!(found.trim() == filesystem, "{at} is {found}");
    let ours = lab.exec_with("reader", &["python3", "-", at], reference::WALK)?.expect(0)?;
    reference::compare(&ours.stdout, theirs, least)
}

fn read_only(lab: &Lab) -> Result<()> {
    let said = lab.exec("reader", &["sh", "-c", "touch /srv/saved/new || mount -o remount,rw /srv/saved"])?;
    ensure!(said.code != 0 && said.stderr.contains("Read-only file system"), "{said:?}");
    Ok(())
}

fn filled(lab: &Lab) -> Result<()> {
    let script = "cd /srv/buildah
        mkdir many && for n in $(seq 300); do echo $n > many/$n || exit 1; done
        dd if=/dev/urandom of=big bs=64k 2>&1 | grep -q 'No space left' || exit 2
        sync
        sha256sum big etc/holes many/* > /root/sums
        sync";
    lab.exec("reader", &["sh", "-c", script])?.expect(0)?;
    let boot_id =
        || -> Result<String> { Ok(lab.exec("reader", &["cat", "/proc/sys/kernel/random/boot_id"])?.expect(0)?.text()) };
    let old = boot_id()?;
    let back = || {
        let now = boot_id();
        if now.as_ref().is_ok_and(|now| *now == old) {
            // Again where systemd does not listen yet. The program may be cut off by what it does.
            let _ = lab.exec("reader", &["systemctl", "reboot"])?;
        }
        Ok(now.ok().filter(|now| *now != old))
    };
    host::wait_for("another boot", PATIENCE, back, || lab.words())?;
    let script =
        "cd /srv/buildah && sha256sum --quiet -c /root/sums && rm -r many && rm etc/holes && echo more >> etc/one";
    lab.exec("reader", &["sh", "-c", script])?.expect(0)?;
    Ok(())
}

fn clean(lab: &Lab, folder: &Path) -> Result<()> {
    let asked = || Ok((lab.exec("reader", &["systemctl", "poweroff"])?.code == 0).then_some(()));
    host::wait_for("systemd takes the wish", PATIENCE, asked, || lab.words())?;
    lab.wait_for_state("reader", "powered off")?;
    let raw = folder.join("filled.raw");
    let name = raw.to_str().context("a path in UTF-8")?;
    host::run(&["drive", "export", &format!("{NAME}/reader:d02"), name])?.expect(0)?;
    judged("e2fsck", &["-fn"], &raw)?;
    judged("dumpe2fs", &[], &raw)?;
    let mut judges = 0;
    for image in fs::read_dir(host::given("LABYARD_HOME")?.join("images"))? {
        for (disk, judge, options) in [("disk.ext4", "e2fsck", &["-fn"][..]), ("disk.erofs", "fsck.erofs", &[][..])] {
            let disk = image.as_ref().map_or_else(|_| disk.into(), |image| image.path().join(disk));
            if disk.exists() {
                judged(judge, options, &disk)?;
                judges += 1;
            }
        }
    }
    ensure!(judges >= 5, "{judges} images were looked at");
    Ok(())
}

fn judged(program: &str, options: &[&str], disk: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.args(options).arg(disk).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let said = host::run_with(command, b"")?.expect(0).with_context(|| format!("{program} {}", disk.display()))?;
    let text = said.text() + &said.stderr;
    for word in ["ecovering journal", "Fix?", "<E>"] {
        ensure!(!text.contains(word), "{program} {}: {text}", disk.display());
    }
    Ok(())
}
