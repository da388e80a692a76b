//! Layers become one tree (OCI image-spec, layer.md, "Applying Changesets").
//!
//! Paths are strictly below the root of the image: a leading slash means that root, `..` is refused, and a symbolic link in
//! the middle of a path is followed as if the image's root were the system's, so nothing leads out. A whiteout hides what
//! lower layers have, wherever in its layer it stands, and never what its own layer brings.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::layer::Limits;
use crate::layer::archive::{ArchiveError, Entry, What};
use crate::tree::{Child, Kind, MAX_DEPTH, MAX_FOLLOWED, Meta, Node, NodeId, Tree};

#[cfg(test)]
mod tests;

/// Before the name that a layer hides.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in this directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of AUFS's own files, which mean nothing here.
const AUFS: &[u8] = b".wh..wh.";
/// Longest name (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// Longest path (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// A tree that layers are being put on.
#[derive(Debug)]
pub struct Merge {
    tree: Tree,
    limits: Limits,
    /// Whether names can hide others; a plain root file system has no such names.
    whiteouts: bool,
    layer: u32,
    entries: u64,
    names_bytes: u64,
    /// Directories that this layer has already cleared of lower layers' names: doing it again finds nothing.
    cleared: HashSet<NodeId>,
}

type Name = Box<[u8]>;

impl Merge {
    /// Nothing but a root.
    pub fn new(limits: Limits, whiteouts: bool) -> Self {
        Self { tree: Tree::new(), limits, whiteouts, layer: 0, entries: 0, names_bytes: 0, cleared: HashSet::new() }
    }

    /// What comes now lies above all that came before.
    pub fn next_layer(&mut self) {
        self.layer += 1;
        self.cleared.clear();
    }

    /// The merged tree.
    pub fn finish(self) -> Tree {
        self.tree
    }

    /// Puts one entry of the current layer on the tree.
    pub fn apply(&mut self, entry: Entry) -> Result<(), ArchiveError> {
        self.count(&entry)?;
        let path = entry.path.clone();
        self.apply_checked(entry)
            .map_err(|problem| ArchiveError::Entry { path: String::from_utf8_lossy(&path).into_owned(), problem })
    }

    fn count(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(ArchiveError::Entries { limit: self.limits.entries });
        }
        let target = match &entry.what {
            What::Symlink(target) | What::HardLink(target) => target.len(),
            _ => 0,
        };
        let attributes: usize = entry.meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.names_bytes += (entry.path.len() + target + attributes) as u64;
        if self.names_bytes > self.limits.names_bytes {
            return Err(ArchiveError::Names { limit: self.limits.names_bytes });
        }
        Ok(())
    }

    fn apply_checked(&mut self, entry: Entry) -> Result<(), String> {
        let mut path = components(&entry.path)?;
        let Some(name) = path.pop() else { return self.root(entry) };
        if self.whiteouts
            && let Some(hidden) = name.strip_prefix(WHITEOUT)
        {
            let Some(directory) = self.directory(&path, false)? else { return Ok(()) };
            match &*name {
                OPAQUE => self.clear(directory),
                aufs if aufs.starts_with(AUFS) => {}
                _ if matches!(hidden, b"" | b"." | b"..") => return Err("hides a name that is none".into()),
                _ => self.hide(directory, hidden),
            }
            return Ok(());
        }
        // The target first: putting the name there may make directories, but must not when the target is missing.
        let target = match &entry.what {
            What::HardLink(target) => Some(self.link_target(target)?),
            _ => None,
        };
        let directory = self.directory(&path, true)?.ok_or("its directory cannot be made")?;
        self.put(directory, name, entry, target)
    }

    fn root(&mut self, entry: Entry) -> Result<(), String> {
        if entry.what != What::Directory {
            return Err("the root can only be a directory".into());
        }
        self.tree.node_mut(NodeId::ROOT).meta = entry.meta;
        Ok(())
    }

    fn put(&mut self, directory: NodeId, name: Name, entry: Entry, target: Option<NodeId>) -> Result<(), String> {
        let there = self.tree.child(directory, &name);
        if entry.what == What::Directory
            && let Some(there) = there
            && let Kind::Directory(_) = self.tree.node(there.node).kind
        {
            self.tree.node_mut(there.node).meta = entry.meta;
            self.name(directory, name, there.node);
            return Ok(());
        }
        let kind = match entry.what {
            What::HardLink(_) => {
                let node = target.ok_or("a link without a target")?;
                self.name(directory, name, node);
                return Ok(());
            }
            What::Directory => Kind::Directory(BTreeMap::new()),
            What::File(content) => Kind::File(content),
            What::Symlink(target) if target.is_empty() || target.contains(&0) || target.len() >= MAX_PATH => {
                return Err(format!("its target of {} bytes is none that a symbolic link can have", target.len()));
            }
            What::Symlink(target) => Kind::Symlink(target.into()),
            What::CharDevice { major, minor } => device(major, minor, Kind::CharDevice { major, minor })?,
            What::BlockDevice { major, minor } => device(major, minor, Kind::BlockDevice { major, minor })?,
            What::Fifo => Kind::Fifo,
        };
        let node = self.tree.add(Node { meta: entry.meta, kind });
        self.name(directory, name, node);
        Ok(())
    }

    fn name(&mut self, directory: NodeId, name: Name, node: NodeId) {
        let child = Child { node, layer: self.layer };
        self.tree.children_mut(directory).expect("callers give a directory").insert(name, child);
    }

    /// What a hard link means: links in the middle are followed, the last name is not.
    fn link_target(&mut self, target: &[u8]) -> Result<NodeId, String> {
        let shown = String::from_utf8_lossy(target).into_owned();
        let mut path = components(target).map_err(|problem| format!("link to `{shown}`: {problem}"))?;
        let name = path.pop().ok_or_else(|| format!("link to `{shown}`, a directory"))?;
        let directory = self.directory(&path, false)?;
        let child = directory.and_then(|directory| self.tree.child(directory, &name));
        let child = child.ok_or_else(|| format!("link to `{shown}`, which is not there"))?;
        if self.tree.children(child.node).is_some() {
            return Err(format!("link to `{shown}`, a directory"));
        }
        Ok(child.node)
    }

    /// The directory at a path; made where it is missing and `make` is given, else `None`.
    fn directory(&mut self, path: &[Name], make: bool) -> Result<Option<NodeId>, String> {
        let mut left: VecDeque<Name> = path.iter().cloned().collect();
        let mut walked = vec![NodeId::ROOT];
        let mut followed = 0;
        while let Some(name) = left.pop_front() {
            let at = *walked.last().expect("the root is never left");
            if &*name == b".." {
                // Only link targets have these; above the root is the root.
                walked.truncate((walked.len() - 1).max(1));
                continue;
            }
            let next = match self.tree.child(at, &name) {
                Some(child) => child.node,
                None if make => {
                    let meta = Meta { mode: 0o755, ..Meta::default() };
                    self.tree.add(Node { meta, kind: Kind::Directory(BTreeMap::new()) })
                }
                None => return Ok(None),
            };
            match &self.tree.node(next).kind {
                Kind::Directory(_) => {
                    if walked.len() >= MAX_DEPTH {
                        return Err(format!("deeper than {MAX_DEPTH} directories"));
                    }
                    walked.push(next);
                    if make {
                        self.name(at, name, next);
                    }
                }
                Kind::Symlink(target) => {
                    followed += 1;
                    if followed > MAX_FOLLOWED {
                        return Err(format!("more than {MAX_FOLLOWED} symbolic links on its way"));
                    }
                    if target.starts_with(b"/") {
                        walked.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        if !matches!(part, b"" | b".") {
                            check_name(part)?;
                            left.push_front(part.into());
                        }
                    }
                }
                _ if make => return Err(format!("`{}` on its way is not a directory", String::from_utf8_lossy(&name))),
                _ => return Ok(None),
            }
        }
        Ok(walked.last().copied())
    }

    /// Takes a lower layer's name away.
    fn hide(&mut self, directory: NodeId, name: &[u8]) {
        let Some(child) = self.tree.child(directory, name) else { return };
        if child.layer == self.layer {
            self.clear(child.node);
        } else if let Some(children) = self.tree.children_mut(directory) {
            children.remove(name);
        }
    }

    /// Takes away every name that lower layers have in a directory, and in those below that this layer goes into.
    fn clear(&mut self, directory: NodeId) {
        let mut todo = vec![directory];
        while let Some(directory) = todo.pop() {
            if !self.cleared.insert(directory) {
                continue;
            }
            let layer = self.layer;
            if let Some(children) = self.tree.children_mut(directory) {
                children.retain(|_, child| child.layer == layer);
                todo.extend(children.values().map(|child| child.node));
            }
        }
    }
}

/// The names on a path below the root.
fn components(path: &[u8]) -> Result<Vec<Name>, String> {
    if path.len() > MAX_PATH {
        return Err(format!("a path of {} bytes, more than {MAX_PATH}", path.len()));
    }
    let mut names = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("a path with `..`, which could lead out of the image".into()),
            _ => names.push(check_name(part)?.into()),
        }
    }
    if names.len() > MAX_DEPTH {
        return Err(format!("deeper than {MAX_DEPTH} directories"));
    }
    Ok(names)
}

fn check_name(name: &[u8]) -> Result<&[u8], String> {
    if name.len() > MAX_NAME {
        return Err(format!("a name of {} bytes, more than {MAX_NAME}", name.len()));
    }
    if name.contains(&0) {
        return Err("a name with a zero byte".into());
    }
    Ok(name)
}

/// Linux has 12 bits for a major and 20 for a minor number.
fn device(major: u32, minor: u32, kind: Kind) -> Result<Kind, String> {
    if major >> 12 != 0 || minor >> 20 != 0 {
        return Err(format!("device number {major}:{minor} is none that Linux has"));
    }
    Ok(kind)
}
