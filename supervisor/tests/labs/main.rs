//! Whole labs on fakes: the real `labyard` around a monitor, a jail and a builder that need no KVM, no image and no privileges.

mod access;
mod addresses;
mod bake;
mod changing;
mod chaos;
mod confined;
mod drives;
mod full;
mod host;
mod images;
mod kernels;
mod lifecycle;
mod limited;
mod links;
mod living;
mod manifests;
mod members;
mod networks;
mod quotas;
mod saved;
mod serve;
mod six;
mod starting;
mod stopping;
mod streams;
mod tasks;
