//! Whole labs on fakes: the real `labyard` around a monitor, a jail and a builder that need no KVM, no image and no privileges.

mod access;
mod drives;
mod host;
mod images;
mod kernels;
mod lifecycle;
mod saved;
mod stopping;
mod streams;
