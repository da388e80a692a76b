//! Trees made by hand, with contents in a spool.

use std::fs::File;
use std::io::Write;

use labyard_rootfs_builder::tree::{Child, Content, Kind, Meta, Node, NodeId, Run, Spools, Time, Tree};

pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) tree: Tree,
    spool: File,
    spooled: u64,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let spool =
            File::options().read(true).write(true).create_new(true).open(folder.path().join("spool")).expect("a file");
        Self { folder, tree: Tree::new(), spool, spooled: 0 }
    }

    pub(crate) fn put(&mut self, parent: NodeId, name: &str, kind: Kind) -> NodeId {
        let meta = Meta { mode: 0o644, mtime: Time { seconds: 1_700_000_000, nanoseconds: 5 }, ..Meta::default() };
        let node = self.tree.add(Node { meta, kind });
        self.link(parent, name, node);
        node
    }

    pub(crate) fn link(&mut self, parent: NodeId, name: &str, node: NodeId) {
        self.tree.children_mut(parent).expect("a directory").insert(name.as_bytes().into(), Child { node, layer: 0 });
    }

    pub(crate) fn directory(&mut self, parent: NodeId, name: &str) -> NodeId {
        self.put(parent, name, Kind::Directory(Default::default()))
    }

    pub(crate) fn run(&mut self, at: u64, bytes: &[u8]) -> Run {
        self.spool.write_all(bytes).expect("room");
        self.spooled += bytes.len() as u64;
        Run { at, len: bytes.len() as u64, spool: 0, offset: self.spooled - bytes.len() as u64 }
    }

    pub(crate) fn file(&mut self, parent: NodeId, name: &str, bytes: &[u8]) -> NodeId {
        let runs = if bytes.is_empty() { Box::default() } else { Box::new([self.run(0, bytes)]) as Box<[Run]> };
        self.put(parent, name, Kind::File(Content { len: bytes.len() as u64, runs }))
    }

    /// A file of some length that is zero but for these runs.
    pub(crate) fn sparse(&mut self, parent: NodeId, name: &str, len: u64, runs: &[Run]) -> NodeId {
        self.put(parent, name, Kind::File(Content { len, runs: runs.into() }))
    }

    pub(crate) fn spools(&self) -> Spools {
        let mut spools = Spools::default();
        spools.push(self.spool.try_clone().expect("a descriptor"));
        spools
    }
}

pub(crate) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8 | 1).collect()
}
