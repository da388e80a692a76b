//! Whether each machine's kernel has what its image needs: known before anything boots.

use labyard_rootfs_builder::store::{ImageRecord, KernelRecord, Store};
use labyard_spec::manifest::Manifest;

use super::super::Failure;

/// Refuses a kernel that lacks something, with the ones that would do.
pub(super) fn check(
    store: &Store,
    manifest: &Manifest,
    machine: usize,
    image: &ImageRecord,
    kernel: &KernelRecord,
) -> Result<(), Failure> {
    if image.kernel.is_empty() {
        return Ok(());
    }
    let missing = image.kernel.missing(&store.kernel_offer(kernel)?);
    if missing.is_empty() {
        return Ok(());
    }
    let mut others = Vec::new();
    for other in store.kernels()? {
        if other.is_current() && image.kernel.missing(&store.kernel_offer(&other)?).is_empty() {
            others.push(other.id);
        }
    }
    let way_out = match &*others {
        [] if !store.has_offer(kernel) => {
            "what this kernel has was not noted when it was added; add it again".to_owned()
        }
        [] => "no kernel of the store has all of it; see `labyard kernel add` and `labyard kernel build`".to_owned(),
        some => format!("these kernels of the store have all of it: {}", some.join(", ")),
    };
    let message =
        format!("image {} needs what kernel {} has not: {}; {way_out}", image.source, kernel.id, missing.join("; "));
    let asked = &manifest.lab.machines[machine];
    let root = asked.drives.iter().position(|drive| drive.mount.as_deref() == Some("/")).unwrap_or_default();
    let drive = asked.drives.get(root).and_then(|drive| drive.source.as_ref());
    let fault = match (&asked.kernel, drive) {
        (Some(kernel), _) => manifest.fault(kernel.place, format!("machines[{machine}].kernel"), message),
        (None, Some(source)) => {
            manifest.fault(source.place, format!("machines[{machine}].drives[{root}].source"), message)
        }
        (None, None) => return Err(Failure::input(message)),
    };
    Err(fault.into())
}
