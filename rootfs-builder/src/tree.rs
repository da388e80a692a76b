//! The merged tree: what will be in the file system, in memory. File contents stay in spool files; a node only says where.
//!
//! Directories are ordered maps, so every walk over a tree, and with it every image, has one order. Several names may lead to
//! one node (hard links); a directory has exactly one name. Depth is bounded by whoever builds the tree
//! ([`MAX_DEPTH`]), so walks may recurse.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::earlier::places::Placed;

/// Deepest nesting of directories.
pub const MAX_DEPTH: usize = 1024;
/// Most symbolic links followed for one path (`MAXSYMLINKS`).
pub const MAX_FOLLOWED: u32 = 40;

/// A node's place in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// Position in creation order.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A moment: seconds since 1970 and the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What every node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Extended attributes, each name once.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// Part of a file's content that lies in a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where in the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Which spool.
    pub spool: u32,
    /// Where in the spool.
    pub offset: u64,
}

/// A file's content: runs in rising order, zeros between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Length of the file.
    pub len: u64,
    /// What is not zero.
    pub runs: Box<[Run]>,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// What it names.
    pub node: NodeId,
    /// The layer that last put something at this name or below it.
    pub layer: u32,
}

/// What kind of thing a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the kinds of stat(2)")]
pub enum Kind {
    Directory(BTreeMap<Box<[u8]>, Child>),
    File(Content),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One inode to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Owner, mode, times, attributes.
    pub meta: Meta,
    /// Kind and content.
    pub kind: Kind,
}

/// A file system in memory.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// A root directory and nothing else.
    pub fn new() -> Self {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        Self { nodes: vec![Node { meta, kind: Kind::Directory(BTreeMap::new()) }] }
    }

    /// Number of nodes ever made; removed ones are counted too.
    pub fn nodes_made(&self) -> usize {
        self.nodes.len()
    }

    /// Adds a node that no name leads to yet.
    pub fn add(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("callers bound the number of entries"));
        self.nodes.push(node);
        id
    }

    /// The node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The node, to change.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Names in a directory; `None` for anything else.
    pub fn children(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, Child>> {
        match &self.node(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Names in a directory, to change; `None` for anything else.
    pub fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, Child>> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// What `name` in the directory `id` leads to.
    pub fn child(&self, id: NodeId, name: &[u8]) -> Option<Child> {
        self.children(id)?.get(name).copied()
    }

    /// The node at a path of plain components, without following links.
    pub fn find(&self, path: &str) -> Option<NodeId> {
        let components = path.split('/').filter(|component| !component.is_empty());
        components
            .into_iter()
            .try_fold(NodeId::ROOT, |at, name| self.child(at, name.as_bytes()).map(|child| child.node))
    }

    /// The node at a path, links followed as a process inside the tree would; `None` where it leads nowhere.
    pub fn follow(&self, path: &str) -> Option<NodeId> {
        let mut left: Vec<Box<[u8]>> = path.split('/').rev().map(|part| part.as_bytes().into()).collect();
        let mut walked = vec![NodeId::ROOT];
        let mut links = 0;
        while let Some(name) = left.pop() {
            let at = *walked.last()?;
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    walked.truncate((walked.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let next = self.child(at, &name)?.node;
            if let Kind::Symlink(target) = &self.node(next).kind {
                links += 1;
                if links > MAX_FOLLOWED {
                    return None;
                }
                if target.starts_with(b"/") {
                    walked.truncate(1);
                }
                left.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
            } else {
                walked.push(next);
            }
        }
        walked.last().copied()
    }

    /// Calls `visit` for each name, parents first, in the order of the image: node, its parent directory, whether the node
    /// was met before under another name.
    pub fn walk<E>(&self, visit: &mut impl FnMut(NodeId, NodeId, bool) -> Result<(), E>) -> Result<(), E> {
        let mut met = vec![false; self.nodes.len()];
        met[NodeId::ROOT.index()] = true;
        visit(NodeId::ROOT, NodeId::ROOT, false)?;
        self.walk_below(NodeId::ROOT, &mut met, visit)
    }

    fn walk_below<E>(
        &self,
        directory: NodeId,
        met: &mut [bool],
        visit: &mut impl FnMut(NodeId, NodeId, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        for child in self.children(directory).into_iter().flat_map(BTreeMap::values) {
            let again = std::mem::replace(&mut met[child.node.index()], true);
            visit(child.node, directory, again)?;
            if !again {
                self.walk_below(child.node, met, visit)?;
            }
        }
        Ok(())
    }

    /// A path that leads to `wanted`, for messages.
    pub fn path_of(&self, wanted: NodeId) -> String {
        fn below(tree: &Tree, at: NodeId, wanted: NodeId, path: &mut Vec<u8>) -> bool {
            let len = path.len();
            for (name, child) in tree.children(at).into_iter().flatten() {
                path.push(b'/');
                path.extend_from_slice(name);
                if child.node == wanted || below(tree, child.node, wanted, path) {
                    return true;
                }
                path.truncate(len);
            }
            false
        }
        let mut path = Vec::new();
        below(self, NodeId::ROOT, wanted, &mut path);
        if path.is_empty() { "/".to_owned() } else { String::from_utf8_lossy(&path).into_owned() }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// What holds the contents.
#[derive(Debug, Default)]
pub struct Spools(Vec<Spool>);

#[derive(Debug)]
enum Spool {
    File(Arc<File>),
    /// The disk of an earlier image.
    Placed(Placed),
}

impl Spools {
    /// Takes one more file; runs name it by the number that comes back.
    pub fn push(&mut self, file: impl Into<Arc<File>>) -> u32 {
        self.add(Spool::File(file.into()))
    }

    /// The same with contents that lie on a disk.
    pub(crate) fn push_placed(&mut self, placed: Placed) -> u32 {
        self.add(Spool::Placed(placed))
    }

    fn add(&mut self, spool: Spool) -> u32 {
        self.0.push(spool);
        (self.0.len() - 1) as u32
    }

    /// Whether a run can be read; what an earlier image has may be incomplete.
    pub(crate) fn has(&self, run: &Run) -> bool {
        match &self.0[run.spool as usize] {
            Spool::File(_) => true,
            Spool::Placed(placed) => placed.has(run.offset, run.len),
        }
    }

    /// Fills `into` with what `content` has at `at`; bytes past the end are zero. Says whether any run was read.
    pub fn read(&self, content: &Content, at: u64, into: &mut [u8]) -> io::Result<bool> {
        into.fill(0);
        let end = at.saturating_add(into.len() as u64);
        let first = content.runs.partition_point(|run| run.at + run.len <= at);
        let mut any = false;
        for run in content.runs[first..].iter().take_while(|run| run.at < end) {
            let (from, to) = (run.at.max(at), (run.at + run.len).min(end));
            let part = &mut into[(from - at) as usize..(to - at) as usize];
            let offset = run.offset + (from - run.at);
            match &self.0[run.spool as usize] {
                Spool::File(file) => file.read_exact_at(part, offset)?,
                Spool::Placed(placed) => placed.read(offset, part)?,
            }
            any = true;
        }
        Ok(any)
    }
}
