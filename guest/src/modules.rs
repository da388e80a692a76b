//! Kernel modules: a small modprobe over `modules.dep` (modules.dep(5), modprobe.d(5) for soft dependencies).
//!
//! Names are compared with `-` and `_` equal. Dependencies go first; what is loaded or built in already is done.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// `MODULE_INIT_COMPRESSED_FILE` (include/uapi/linux/module.h): the kernel unpacks the file itself.
const COMPRESSED: i32 = 4;

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("module `{name}` is not in modules.dep of {folder}: add it to the kernel's modules image")]
    Unknown { name: String, folder: PathBuf },
    #[error("reading {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("loading module {path}")]
    Load { path: PathBuf, source: io::Error },
    #[error("module {path} is compressed in a way that this kernel does not unpack: store it uncompressed")]
    Compressed { path: PathBuf },
}

/// Loads the module in one file.
pub(crate) fn load_file(path: &Path) -> Result<(), ModuleError> {
    let file = File::open(path).map_err(|source| ModuleError::Read { path: path.to_owned(), source })?;
    let plain = path.extension().is_some_and(|extension| extension == "ko");
    match rustix::system::finit_module(&file, c"", if plain { 0 } else { COMPRESSED }) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::INVAL) if !plain => Err(ModuleError::Compressed { path: path.to_owned() }),
        Err(error) => Err(ModuleError::Load { path: path.to_owned(), source: error.into() }),
    }
}

/// The modules of one kernel.
pub(crate) struct Modules {
    folder: PathBuf,
    /// Name to file and the files it needs, as modules.dep has them.
    files: HashMap<String, (String, Vec<String>)>,
    built_in: HashSet<String>,
    /// Name to names that are wanted before it, where there are any.
    wanted_before: HashMap<String, Vec<String>>,
    loaded: HashSet<String>,
}

impl Modules {
    /// Reads the index of `folder` (`/lib/modules/<version>`).
    pub(crate) fn read(folder: &Path) -> Result<Self, ModuleError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|source| ModuleError::Read { path, source })
        };
        let dep = read("modules.dep")?;
        // Only depmod's main file is a must; small images may lack the others.
        let built_in = read("modules.builtin").unwrap_or_default();
        let soft = read("modules.softdep").unwrap_or_default();
        Ok(Self::parse(folder, &dep, &built_in, &soft))
    }

    fn parse(folder: &Path, dep: &str, built_in: &str, soft: &str) -> Self {
        let files = dep.lines().filter_map(|line| line.split_once(':')).map(|(file, needs)| {
            (name_of(file), (file.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
        });
        let wanted_before = soft.lines().filter_map(|line| {
            let mut words = line.strip_prefix("softdep ")?.split_whitespace();
            let name = name_of(words.next()?);
            let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
            Some((name, before.map(name_of).collect()))
        });
        Self {
            folder: folder.to_owned(),
            files: files.collect(),
            built_in: built_in.lines().map(name_of).collect(),
            wanted_before: wanted_before.collect(),
            loaded: HashSet::new(),
        }
    }

    /// Loads the module `name` and everything that it needs.
    pub(crate) fn load(&mut self, name: &str) -> Result<(), ModuleError> {
        for file in self.order(name)? {
            load_file(&self.folder.join(&file))?;
            self.loaded.insert(name_of(&file));
        }
        Ok(())
    }

    /// Files to load for `name`, in order; empty where it is there already.
    fn order(&self, name: &str) -> Result<Vec<String>, ModuleError> {
        let wanted = name_of(name);
        if !self.files.contains_key(&wanted) && !self.built_in.contains(&wanted) {
            return Err(ModuleError::Unknown { name: name.to_owned(), folder: self.folder.clone() });
        }
        let (mut order, mut seen) = (Vec::new(), self.loaded.clone());
        self.visit(&wanted, &mut seen, &mut order);
        Ok(order)
    }

    // Depth is bounded by `seen`: each module is entered once, also where a broken index has a cycle.
    fn visit(&self, name: &str, seen: &mut HashSet<String>, order: &mut Vec<String>) {
        let Some((file, needs)) = self.files.get(name) else { return };
        if !seen.insert(name.to_owned()) {
            return;
        }
        for wanted in self.wanted_before.get(name).into_iter().flatten() {
            self.visit(wanted, seen, order);
        }
        for needed in needs {
            self.visit(&name_of(needed), seen, order);
        }
        order.push(file.clone());
    }
}

/// The module's name of a path or name: `kernel/net/virtio-net.ko.xz` is `virtio_net`.
fn name_of(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    file.split_once(".ko").map_or(file, |(name, _)| name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz\n\
        kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz\n\
        kernel/net/core/failover.ko.xz:\n\
        kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\nkernel/lib/libcrc32c.ko:\n\
        kernel/crypto/crc32c-generic.ko:\n\
        kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\nnonsense\n";

    fn modules() -> Modules {
        let soft = "# soft\nsoftdep libcrc32c pre: crc32c_generic missing post: a\nsoftdep b post: a\n";
        Modules::parse(Path::new("/m"), DEP, "kernel/fs/ext4/ext4.ko\n", soft)
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        for name in ["virtio_net", "virtio-net"] {
            let order = modules().order(name).expect(name);
            let names: Vec<_> = order.iter().map(|file| name_of(file)).collect();
            assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
        }
    }

    #[test]
    fn soft_dependencies_go_first_where_they_exist() {
        let order = modules().order("xfs").expect("xfs");
        assert_eq!(order, ["kernel/crypto/crc32c-generic.ko", "kernel/lib/libcrc32c.ko", "kernel/fs/xfs/xfs.ko"]);
    }

    #[test]
    fn built_in_and_loaded_modules_need_nothing() {
        let mut modules = modules();
        assert_eq!(modules.order("ext4").expect("built in"), [""; 0]);
        modules.loaded.insert("failover".to_owned());
        assert_eq!(modules.order("net-failover").expect("known"), ["kernel/drivers/net/net_failover.ko.xz"]);
    }

    #[test]
    fn a_cycle_ends_and_an_unknown_name_is_refused() {
        assert_eq!(modules().order("a").expect("a cycle").len(), 2);
        assert!(modules().order("zfs").expect_err("unknown").to_string().contains("`zfs`"));
    }
}
