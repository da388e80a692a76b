//! OCI image to bootable disk: fast, without root, byte for byte the same.
//!
//! - [`store`]: the content store: where images and kernels lie, and the records beside them. All that the supervisor links
//!   (feature `store`).
//! - [`catalogue`]: short names of images.
//! - [`registry`]: images of registries, fetched into the store's blobs.
//! - [`source`]: registries, OCI layouts, archives of `docker save`, plain tars become lists of layers.
//! - [`layer`]: a layer is read, checked, taken apart.
//! - [`merge`]: layers become one [`tree`].
//! - [`ext4`]: a tree becomes a disk; [`erofs`]: one that is only ever read.
//! - [`build`]: all of it, into the store; [`workdir`] is where unfinished work lies; `earlier`: layers that an image of the store has already.
//! - [`baked`]: the other way round: a root file system as a tar becomes an image.
//! - [`transfer`]: images as files that travel; [`verify`]: whether what lies in the store is whole; [`disk`]: the digest of a disk.
//! - [`kernel`]: guest kernels, their modules and the initramfs.
//! - [`confine`]: what the process gives up before it reads what a stranger wrote.
//! - [`watch`], [`report`], [`digest`], [`section`]: progress and interruption, errors on one line, sums, parts of files.

#![forbid(unsafe_code)]

#[cfg(feature = "build")]
pub mod baked;
#[cfg(feature = "build")]
pub mod build;
#[cfg(feature = "build")]
mod bytes;
pub mod catalogue;
#[cfg(feature = "build")]
pub mod confine;
#[cfg(feature = "build")]
pub mod digest;
#[cfg(feature = "build")]
pub mod disk;
#[cfg(feature = "build")]
mod earlier;
#[cfg(feature = "build")]
pub mod erofs;
#[cfg(feature = "build")]
pub mod ext4;
#[cfg(feature = "build")]
pub mod kernel;
#[cfg(feature = "build")]
pub mod layer;
#[cfg(feature = "build")]
pub mod merge;
#[cfg(feature = "build")]
mod output;
#[cfg(feature = "build")]
mod program;
#[cfg(feature = "build")]
pub mod registry;
#[cfg(feature = "build")]
pub mod report;
#[cfg(feature = "build")]
pub mod section;
#[cfg(feature = "build")]
pub mod source;
pub mod store;
#[cfg(feature = "build")]
mod temporary;
#[cfg(feature = "build")]
pub mod transfer;
#[cfg(feature = "build")]
pub mod tree;
#[cfg(feature = "build")]
pub mod verify;
#[cfg(feature = "build")]
pub mod watch;
#[cfg(feature = "build")]
pub mod workdir;
