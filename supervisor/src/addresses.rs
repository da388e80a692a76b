//! Addresses that a lab has, which stay where its manifest leaves them open (`spec::manifest::kept`).

use labyard_spec::manifest::{Fault, Kept, Manifest};

use crate::home::{Folder, HomeError, names};
use crate::plan::Plan;
use crate::record::State;

/// What the lab has: of machines by its state, of gateways by its plan, as far as it was planned.
///
/// # Errors
/// What the file system says.
pub fn kept(folder: &Folder, state: &State) -> Result<Kept, HomeError> {
    let plan: Option<Plan> = folder.read(names::PLAN)?.and_then(|text| serde_json::from_slice(&text).ok());
    let networks = plan.map(|plan| plan.spec.networks).unwrap_or_default();
    Ok(Kept {
        gateways6: networks.iter().filter_map(|network| Some((network.name.clone(), network.six?.gateway))).collect(),
        gateways: networks.into_iter().map(|network| (network.name, network.gateway)).collect(),
        machines: state.machines.iter().map(|one| (one.name.clone(), one.addresses.clone())).collect(),
        machines6: state.machines.iter().map(|one| (one.name.clone(), one.addresses6.clone())).collect(),
    })
}

/// The manifest as the lab with these addresses would have it.
///
/// # Errors
/// The first rule that it breaks.
pub fn stay(manifest: &Manifest, kept: &Kept) -> Result<Manifest, Fault> {
    let mut stays = Manifest::read_for(&manifest.text, &manifest.file, kept)?;
    stays.lab.name.clone_from(&manifest.lab.name);
    Ok(stays)
}
