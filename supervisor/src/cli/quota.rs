//! What labs may take, and what they take.

use labyard_spec::manifest::size;
use labyard_supervisor::home::Home;
use labyard_supervisor::quota::{self, Config, Limits};

use super::{Outcome, output};

pub(crate) fn quota(home: &Home, json: bool) -> Outcome {
    let config = Config::read(home)?;
    let used = quota::in_use(home, None)?;
    if json {
        output::document(
            &serde_json::json!({ "used": used, "host": config.host, "user": config.user, "lab": config.lab }),
        )?;
        return Ok(0);
    }
    let shown = |used: String, of: &dyn Fn(&Limits) -> Option<String>| {
        [used, of(&config.user).unwrap_or_else(|| "-".into()), of(&config.lab).unwrap_or_else(|| "-".into())]
    };
    let rows = [
        ("vCPUs", shown(used.cpus.to_string(), &|of| of.cpus.map(|count| count.to_string()))),
        ("memory", shown(format!("{}MiB", used.memory_mib), &|of| of.memory.map(size::show))),
        ("disk", shown(size::show(used.disk_bytes), &|of| of.disk.map(size::show))),
        ("machines", shown(used.machines.to_string(), &|of| of.machines.map(|count| count.to_string()))),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(what, cells)| [vec![what.to_owned()], cells.to_vec()].concat()).collect();
    output::table(&["WHAT", "IN USE", "ALL LABS", "EACH LAB"], &rows);
    for (what, kept) in [("memory", config.host.reserve_memory), ("disk", config.host.reserve_disk)] {
        if kept > 0 {
            output::line(&format!("{what} kept for the host: {}", size::show(kept)));
        }
    }
    Ok(0)
}
