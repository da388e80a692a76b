//! Guest kernels: what is in the store, adding, building, removing.

use std::path::Path;

use labyard_rootfs_builder::store::Store;
use labyard_supervisor::builder::AddedKernel;
use labyard_supervisor::home::Home;
use serde_json::json;

use super::args::{KernelAdd, KernelBuild, KernelRm};
use super::building::with_builder;
use super::{Failure, Outcome, output, users};

pub(crate) fn ls(home: &Home, json: bool) -> Outcome {
    let store = Store::open(&home.path)?;
    let kernels = store.kernels()?;
    let default = store.default_kernel().ok().map(|kernel| kernel.id);
    if json {
        output::document(&json!({ "kernels": kernels, "default": default }))?;
        return Ok(0);
    }
    let rows: Vec<_> = kernels
        .into_iter()
        .map(|kernel| {
            let mark = if Some(&kernel.id) == default.as_ref() { "*" } else { "" };
            let origin = if kernel.stock { "stock" } else { "tuned" };
            let memory = match kernel.min_memory_mib {
                0 => "?".to_owned(),
                mib => format!("{mib} MiB"),
            };
            vec![kernel.series, kernel.version, origin.to_owned(), memory, kernel.id, mark.to_owned()]
        })
        .collect();
    output::table(&["SERIES", "VERSION", "FROM", "MEMORY", "ID", "DEFAULT"], &rows);
    Ok(0)
}

pub(crate) fn add(home: &Home, add: &KernelAdd) -> Outcome {
    let text = |path: &Path| std::path::absolute(path).map(|path| path.to_string_lossy().into_owned());
    let mut arguments = vec!["add".to_owned()];
    if let Some(folder) = &add.folder {
        arguments.push(text(folder)?);
    }
    for (option, path) in [("--image", &add.image), ("--modules", &add.modules)] {
        if let Some(path) = path {
            arguments.extend([option.to_owned(), text(path)?]);
        }
    }
    tell(&ask(home, &arguments)?, add.json)
}

pub(crate) fn build(home: &Home, build: &KernelBuild) -> Outcome {
    tell(&ask(home, &["build".to_owned(), "--series".to_owned(), build.series.clone()])?, build.json)
}

fn ask(home: &Home, arguments: &[String]) -> Result<AddedKernel, Failure> {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    with_builder(home, async |builder, told, cancel| builder.kernel(&arguments, told, cancel.wait()).await)
}

fn tell(kernel: &AddedKernel, json: bool) -> Outcome {
    if json {
        output::document(kernel)?;
    } else {
        output::line(&format!("{} {}", kernel.id, if kernel.cached { "was there" } else { "added" }));
    }
    Ok(0)
}

pub(crate) fn rm(home: &Home, rm: &KernelRm) -> Outcome {
    let store = Store::open(&home.path)?;
    let mut kernels = Vec::new();
    // All are looked at before one goes.
    for id in &rm.ids {
        let there =
            || store.kernels().map(|all| all.into_iter().map(|kernel| kernel.id).collect::<Vec<_>>().join(", "));
        let Some(kernel) = store.kernel_by_id(id)? else {
            return Err(Failure::input(format!("kernel `{id}`: not in the store; there is: {}", there()?)));
        };
        if let Some(reason) = users::reason(home, &store.kernel_dir(&kernel))? {
            return Err(Failure::input(format!("kernel {id}: {reason}")));
        }
        kernels.push(kernel);
    }
    kernels.dedup_by(|a, b| a.id == b.id);
    for kernel in &kernels {
        store.remove_kernel(kernel)?;
        if !rm.json {
            output::line(&format!("{}: gone", kernel.id));
        }
    }
    if rm.json {
        let ids: Vec<_> = kernels.iter().map(|kernel| &kernel.id).collect();
        output::document(&json!({ "removed": ids }))?;
    }
    Ok(0)
}
