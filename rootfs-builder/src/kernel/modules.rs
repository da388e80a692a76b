//! A folder `lib/modules/VERSION`: what is in it, which module needs which, and the tree of a disk made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::tree::{Child, Content, Kind, MAX_DEPTH, Meta, Node, NodeId, Run, Spools, Tree};
use crate::watch::{Interrupted, Watch};

/// A folder of modules cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ModulesError {
    #[error("{path}: reading it")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: there is no modules.dep in it; run `depmod -b DIR VERSION`")]
    NoIndex { path: PathBuf },
    #[error("{path}: folders nested more than {MAX_DEPTH} deep")]
    Deep { path: PathBuf },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A folder of modules and its `modules.dep` (depmod(8)).
#[derive(Debug)]
pub struct Index {
    /// The folder.
    pub folder: PathBuf,
    /// Its name, where that looks like a version.
    pub version: Option<String>,
    /// Module name to path, and the paths it needs, nearest first.
    modules: BTreeMap<String, (String, Vec<String>)>,
    /// Names of what is built into the kernel.
    builtin: BTreeSet<String>,
}

/// The name of a module at `path`, as the kernel knows it: no folder, no suffix, `_` for `-`.
pub fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

impl Index {
    /// Reads `modules.dep` in `folder`.
    pub fn read(folder: &Path) -> Result<Self, ModulesError> {
        let failed = |source| ModulesError::Read { path: folder.to_owned(), source };
        let folder = fs::canonicalize(folder).map_err(failed)?;
        let text = match fs::read_to_string(folder.join("modules.dep")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ModulesError::NoIndex { path: folder });
            }
            other => other.map_err(failed)?,
        };
        let mut modules = BTreeMap::new();
        for line in text.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            modules.insert(name_of(path), (path.to_owned(), needs));
        }
        let builtin = match fs::read_to_string(folder.join("modules.builtin")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(failed)?,
        };
        let builtin = builtin.lines().map(name_of).collect();
        let name = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let version = name.filter(|name| name.starts_with(|c: char| c.is_ascii_digit()) && name.contains('.'));
        Ok(Self { folder, version, modules, builtin })
    }

    /// Every name, of modules and of what is built in, in order.
    pub fn names(&self) -> BTreeSet<&str> {
        self.modules.keys().chain(&self.builtin).map(String::as_str).collect()
    }

    /// Whether the kernel has it, built in or as a module.
    pub fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.builtin.contains(name)
    }

    /// Paths of the modules in `wanted` and of all that they need, each once, what is needed first. Names without a module
    /// are built into the kernel, or not there, which the guest will say.
    pub fn load_order(&self, wanted: &[&str]) -> Vec<&str> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for (path, needs) in wanted.iter().filter_map(|name| self.modules.get(*name)) {
            // depmod lists the farthest last.
            for path in needs.iter().rev().chain([path]) {
                if seen.insert(path) {
                    order.push(path.as_str());
                }
            }
        }
        order
    }

    /// The folder as a tree that belongs to root, its files' content in `spool`. Links are left out: they lead to sources.
    pub fn tree(&self, mut spool: File, watch: &Watch) -> Result<(Tree, Spools), ModulesError> {
        let mut tree = Tree::new();
        self.add(&mut tree, NodeId::ROOT, &self.folder, &mut spool, 0, watch)?;
        let mut spools = Spools::default();
        spools.push(spool);
        Ok((tree, spools))
    }

    fn add(
        &self,
        tree: &mut Tree,
        parent: NodeId,
        folder: &Path,
        spool: &mut File,
        depth: usize,
        watch: &Watch,
    ) -> Result<(), ModulesError> {
        let failed = |source| ModulesError::Read { path: folder.to_owned(), source };
        if depth > MAX_DEPTH {
            return Err(ModulesError::Deep { path: folder.to_owned() });
        }
        for entry in fs::read_dir(folder).map_err(failed)? {
            watch.check()?;
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let (mode, kind) = if kind.is_dir() {
                (0o755, Kind::Directory(BTreeMap::new()))
            } else if kind.is_file() {
                (0o644, Kind::File(copy(&entry.path(), spool).map_err(failed)?))
            } else {
                continue;
            };
            let is_folder = matches!(kind, Kind::Directory(_));
            let node = tree.add(Node { meta: Meta { mode, ..Meta::default() }, kind });
            if let Some(children) = tree.children_mut(parent) {
                children.insert(entry.file_name().as_bytes().into(), Child { node, layer: 0 });
            }
            if is_folder {
                self.add(tree, node, &entry.path(), spool, depth + 1, watch)?;
            }
        }
        Ok(())
    }
}

fn copy(path: &Path, spool: &mut File) -> io::Result<Content> {
    let offset = spool.stream_position()?;
    let len = io::copy(&mut File::open(path)?, spool)?;
    spool.flush()?;
    let runs = if len == 0 { Vec::new() } else { vec![Run { at: 0, len, spool: 0, offset }] };
    Ok(Content { len, runs: runs.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir_all(folder.path().join("kernel/net")).expect("folders");
        for file in ["a.ko.xz", "b-c.ko", "net/d.ko.xz"] {
            fs::write(folder.path().join("kernel").join(file), file).expect("written");
        }
        let text = "kernel/a.ko.xz: kernel/b-c.ko kernel/net/d.ko.xz\nkernel/b-c.ko: kernel/net/d.ko.xz\nkernel/net/d.ko.xz:\n";
        fs::write(folder.path().join("modules.dep"), text).expect("written");
        fs::write(folder.path().join("modules.builtin"), "kernel/built-in.ko\n").expect("written");
        folder
    }

    #[test]
    fn what_is_needed_is_loaded_first_and_once() {
        let folder = folder();
        let index = Index::read(folder.path()).expect("an index");
        assert_eq!(index.load_order(&["a"]), ["kernel/net/d.ko.xz", "kernel/b-c.ko", "kernel/a.ko.xz"]);
        assert!(index.has("built_in") && index.has("b_c") && !index.has("none"));
        assert_eq!(index.load_order(&["b_c", "built_in", "d"]), ["kernel/net/d.ko.xz", "kernel/b-c.ko"]);
    }

    #[test]
    fn the_tree_has_every_file_and_belongs_to_root() {
        let folder = folder();
        std::os::unix::fs::symlink("/usr/src", folder.path().join("build")).expect("link");
        let index = Index::read(folder.path()).expect("an index");
        let (tree, spools) = index.tree(tempfile::tempfile().expect("spool"), &Watch::unattended()).expect("a tree");
        assert_eq!(tree.find("build"), None);
        let node = tree.node(tree.find("kernel/net/d.ko.xz").expect("there"));
        let Kind::File(content) = &node.kind else { panic!("a file") };
        let mut bytes = [0; 11];
        spools.read(content, 0, &mut bytes).expect("read");
        assert_eq!((&bytes, node.meta.uid, node.meta.mode), (b"net/d.ko.xz", 0, 0o644));
    }

    #[test]
    fn a_folder_without_an_index_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().expect("folder");
        let error = Index::read(folder.path()).expect_err("no index").to_string();
        assert!(error.contains("depmod"), "{error}");
    }
}
