//! The supervisor of one playground, and what the `labyard` command needs to talk to it.
//!
//! There is no central daemon: every playground is a folder in the state directory, one supervisor process and one vmm process.
//! The command prepares the folder (images, disks, plan) and starts the supervisor, which starts the vmm in its jail, follows
//! it and answers over a socket in the folder. A supervisor that dies takes nothing with it: the next one adopts the vmm.
//!
//! - [`home`]: the state directory, its folders, locks and sockets.
//! - [`record`]: `state.json`, who runs and what was reached.
//! - [`journal`]: what happened, in `events.jsonl`.
//! - [`host`]: can this host run the lab? Which programs does it need?
//! - [`builder`]: `rootfs-builder`, called as a process.
//! - [`disks`]: the drives of a machine as files.
//! - [`plan`]: from the manifest to what the vmm is told, and which files it gets.
//! - [`export`]: a drive as one file.
//! - [`bake`]: a lab whose tasks have run as a manifest that needs none.
//! - [`control`]: the caller's side of the control socket.
//! - [`jailed`]: starts the vmm in its jail.
//! - [`cgroup`]: what the vmm may take of the host.
//! - [`run`]: the supervisor process.
//! - [`confine`]: what the supervisor process gives up.
//! - [`starter`]: the thread of it that starts programs.
//! - [`saved`]: labs that were saved and go on later.
//! - [`openapi`]: the API of supervisors, described.
//! - [`listener`]: a socket that answers its owner alone.
//! - [`client`]: finds, starts and asks a supervisor.
//! - [`call`]: the caller's side of the agent in a guest.
//! - [`forward`]: connections of this host, carried into a guest.
//! - [`ports`]: published ports, and how ports are written.
//! - [`end`]: ends whatever runs of a playground and removes its folder.
//! - [`tasks`]: init tasks as they were chosen.
//! - [`quota`]: what labs may take of the host, and what they take.
//! - [`room`]: a host disk without room, in words.
//! - [`words`]: errors and foreign text as people read them.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod bake;
pub mod boots;
pub mod builder;
pub mod call;
pub mod cgroup;
pub mod client;
pub mod confine;
pub mod control;
pub mod disks;
pub mod end;
pub mod export;
pub mod forward;
pub mod home;
pub mod host;
pub mod jailed;
pub mod journal;
pub mod listener;
pub mod openapi;
pub mod plan;
pub mod ports;
pub mod quota;
pub mod record;
pub mod room;
pub mod run;
pub mod saved;
pub mod scope;
pub mod starter;
pub mod tasks;
pub mod wayout;
pub mod words;
