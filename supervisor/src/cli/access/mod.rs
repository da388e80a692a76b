//! The ways into a machine beside its console: files, ports, ssh, its journal.

pub(crate) mod args;
pub(crate) mod copy;
pub(crate) mod forward;
pub(crate) mod journal;
pub(crate) mod publish;
pub(crate) mod ssh;
