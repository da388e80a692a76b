//! A Dockerfile, built by buildah where that is installed: without root's help, in a storage that goes afterwards.
//!
//! Times in layers are those of `$SOURCE_DATE_EPOCH`, else 1970, so that the same folder gives the same image. What `RUN` does is isolated by
//! a chroot only: it is the person's own file. Base images come by buildah's way, with the same logins and registries.conf.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::SourceError;
use crate::program::{self, ProgramError};
use crate::watch::Watch;
use crate::workdir::Workdir;

/// Names that are looked for in a folder, as buildah does.
const NAMES: [&str; 2] = ["Containerfile", "Dockerfile"];
/// The name of the image in the layout.
pub(super) const TAG: &str = "built";

/// Builds `path`, a Dockerfile or a folder with one; the context is the folder. A layout, and the folder that it is in.
pub(super) fn make(path: &Path, temporary: &Path, watch: &Watch) -> Result<(Workdir, PathBuf), SourceError> {
    let refused = |problem: String| SourceError::Dockerfile { path: path.to_owned(), problem };
    let failed = |source| SourceError::Open { path: path.to_owned(), source };
    let (file, context) = if fs::metadata(path).map_err(failed)?.is_dir() {
        let found = NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file());
        (found.ok_or_else(|| refused("it has neither a Containerfile nor a Dockerfile".to_owned()))?, path)
    } else {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        (path.to_owned(), folder.unwrap_or(Path::new(".")))
    };
    let name = format!("buildah-{}", std::process::id());
    let work = Workdir::enter(temporary, &name, watch).map_err(|error| match error {
        crate::workdir::WorkdirError::Interrupted(interrupted) => interrupted.into(),
        other => SourceError::Temporary { path: temporary.to_owned(), source: std::io::Error::other(other) },
    })?;
    // buildah changes folders on its way.
    let absolute = |path: &Path| std::path::absolute(path).map_err(failed);
    let storage = Storage { folder: absolute(work.path())? };
    let out = storage.folder.join("layout");
    let epoch = std::env::var_os("SOURCE_DATE_EPOCH").unwrap_or_else(|| "0".into());
    let (file, context) = (absolute(&file)?, absolute(context)?);
    let options =
        ["build", "--isolation", "chroot", "--format", "oci", "--layers=false", "--timestamp"].map(OsStr::new);
    let rest =
        [&*epoch, OsStr::new("--tag"), OsStr::new(TAG), OsStr::new("--file"), file.as_os_str(), context.as_os_str()];
    let mut target = OsStr::new("oci:").to_owned();
    target.push(&out);
    target.push(format!(":{TAG}"));
    let result = storage
        .buildah(&[&options[..], &rest].concat(), &refused, watch)
        .and_then(|()| storage.buildah(&[OsStr::new("push"), OsStr::new(TAG), &target], &refused, watch));
    drop(storage);
    result?;
    Ok((work, out))
}

/// Where buildah keeps what it needs meanwhile.
struct Storage {
    folder: PathBuf,
}

impl Storage {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // No setting of the person's own storage reaches ours.
        command.env("STORAGE_DRIVER", "vfs").env_remove("STORAGE_OPTS").env("TMPDIR", &self.folder);
        command.arg("--root").arg(self.folder.join("root")).arg("--runroot").arg(self.folder.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    }

    fn buildah(
        &self,
        arguments: &[&OsStr],
        refused: &impl Fn(String) -> SourceError,
        watch: &Watch,
    ) -> Result<(), SourceError> {
        // It tells its steps on standard output, which are progress for us.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" >&2", "sh", "buildah"]);
        let real = self.command("buildah");
        command.args(real.get_args()).args(arguments);
        command.envs(real.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("STORAGE_OPTS");
        let ended = program::run("sh", &command, watch).map_err(|error| match error {
            ProgramError::Interrupted(interrupted) => interrupted.into(),
            ProgramError::Start(error) => refused(format!("starting setpriv and sh (package util-linux): {error}")),
            ProgramError::Listen(error) => refused(format!("listening to buildah: {error}")),
        })?;
        match ended.status.code() {
            Some(0) => Ok(()),
            // What a shell says of a program that is not there (POSIX, "Exit Status for Commands").
            Some(127) => Err(refused(
                "buildah is not installed; install it (Debian: `apt install buildah`), or build the image elsewhere and give it \
                 as oci-layout:PATH or docker-archive:PATH"
                    .to_owned(),
            )),
            _ => Err(refused(format!("buildah ended with {}: {}", ended.status, ended.last_words))),
        }
    }
}

impl Drop for Storage {
    /// Before the process gives up its capabilities: files of other users are inside, and folders that nobody may write to.
    fn drop(&mut self) {
        let rest = [self.folder.join("root"), self.folder.join("run")];
        if rustix::process::geteuid().is_root() {
            let _ = rest.map(fs::remove_dir_all);
        } else {
            // Only their own namespace can remove them; what stays is the folder's to remove.
            let mut command = self.command("buildah");
            let _ = command.args(["unshare", "rm", "-rf"]).args(rest).output();
        }
    }
}
