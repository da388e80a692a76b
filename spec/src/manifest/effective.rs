//! The effective manifest: what a text asks for with every default and address filled in, again as a manifest.
//!
//! Read back, it asks for the same. So two manifests differ where their effective forms do, however they are written.

use serde_json::{Map, Value, json};

use super::lab::{Drive, Interface, Lab, Machine, Network, StartupFile, Tab, Task};
use super::size;
use crate::playground::Engine;

/// One field that two manifests disagree about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field, such as `machines[web].resources.ramSize`: what has a name is called by it.
    pub path: String,
    /// What the first says; nothing where it lacks the field.
    pub from: Option<Value>,
    /// What the second says.
    pub to: Option<Value>,
}

/// The effective manifest of a lab.
pub fn effective(lab: &Lab) -> Value {
    let about = &lab.about;
    object([
        ("kind", json!("playground")),
        ("name", json!(lab.name)),
        // A name may be shorter than a title.
        ("title", if about.title == lab.name { Value::Null } else { json!(about.title) }),
        ("description", text(&about.description)),
        ("categories", list(&about.categories, |category| json!(category))),
        ("cover", json!(about.cover)),
        ("markdown", json!(about.markdown)),
        ("base", json!(about.base)),
        ("playground", playground(lab)),
    ])
}

fn playground(lab: &Lab) -> Value {
    let tasks: Map<String, Value> = lab.tasks.iter().map(|one| (one.name.clone(), task(one))).collect();
    let conditions = list(&lab.conditions, |condition| {
        object([
            ("key", json!(condition.key)),
            ("default", json!(condition.default)),
            ("options", list(&condition.options, |option| json!(option))),
            ("nullable", json!(condition.nullable)),
            ("placeholder", json!(condition.placeholder)),
            ("validationRegex", json!(condition.validation_regex)),
        ])
    });
    let forwards = list(&lab.port_forwards, |forward| {
        object([
            ("kind", json!(forward.kind)),
            ("machine", json!(forward.machine)),
            ("localHost", json!(forward.local_host)),
            ("localPort", json!(forward.local_port)),
            ("remoteHost", json!(forward.remote_host)),
            ("remotePort", json!(forward.remote_port)),
        ])
    });
    let access = &lab.access;
    object([
        ("networks", list(&lab.networks, network)),
        ("machines", list(&lab.machines, machine)),
        ("initTasks", if tasks.is_empty() { Value::Null } else { tasks.into() }),
        ("initConditions", if conditions.is_null() { conditions } else { json!({ "values": conditions }) }),
        ("tabs", list(&lab.tabs, tab)),
        ("portForwards", forwards),
        ("registryAuth", json!(lab.registry_auth)),
        (
            "accessControl",
            json!({ "canList": access.can_list, "canRead": access.can_read, "canStart": access.can_start }),
        ),
    ])
}

fn network(network: &Network) -> Value {
    let six = network.six.map(|six| json!({ "subnet6": six.subnet.to_string(), "gateway6": six.gateway }));
    object([
        ("name", json!(network.name)),
        ("subnet", json!(network.subnet.to_string())),
        ("gateway", json!(network.gateway)),
        ("private", json!(network.private)),
        ("labyard", six.unwrap_or_default()),
    ])
}

fn machine(machine: &Machine) -> Value {
    let users = machine.users.iter().enumerate().map(|(position, user)| {
        object([("name", json!(user.name)), ("default", json!(position == 0)), ("welcome", json!(user.welcome))])
    });
    object([
        ("name", json!(machine.name)),
        ("kernel", machine.kernel.as_ref().map_or(Value::Null, |kernel| json!({ "source": kernel.value }))),
        ("users", users.collect()),
        ("drives", list(&machine.drives, drive)),
        ("network", json!({ "interfaces": machine.interfaces.iter().map(interface).collect::<Vec<_>>() })),
        ("resources", json!({ "cpuCount": machine.cpu_count, "ramSize": size::show(machine.memory_mib << 20) })),
        ("startupFiles", list(&machine.startup_files, startup_file)),
        ("noSSH", json!(machine.no_ssh)),
        (
            "labyard",
            object([
                ("entry", json!(machine.entry.name())),
                ("cpuTemplate", json!(machine.cpu_template)),
                ("nestedVirtualization", json!(machine.nested)),
                ("hugePages", json!(machine.huge_pages.is_some())),
            ]),
        ),
    ])
}

fn drive(drive: &Drive) -> Value {
    let engine = match drive.engine {
        Engine::Auto => "auto",
        Engine::Sync => "sync",
        Engine::Uring => "uring",
    };
    object([
        ("source", drive.source.as_ref().map_or(Value::Null, |source| json!(source.value.to_string()))),
        ("mount", json!(drive.mount)),
        ("size", json!(size::show(drive.size_bytes.value))),
        ("filesystem", json!(drive.filesystem.map(super::lab::Filesystem::name))),
        ("readOnly", json!(drive.read_only)),
        ("persistent", json!(drive.persistent)),
        ("labyard", json!({ "engine": engine })),
    ])
}

fn interface(interface: &Interface) -> Value {
    let six = interface.six.map(|six| json!({ "address6": format!("{}/{}", six.address, six.prefix) }));
    object([
        ("network", json!(interface.network)),
        ("address", json!(format!("{}/{}", interface.address, interface.prefix))),
        ("labyard", six.unwrap_or_default()),
    ])
}

fn startup_file(file: &StartupFile) -> Value {
    object([
        ("path", json!(file.path)),
        ("content", json!(file.content)),
        ("append", json!(file.append)),
        ("owner", json!(file.owner)),
        ("mode", file.mode.map_or(Value::Null, |mode| json!(format!("{mode:o}")))),
    ])
}

fn task(task: &Task) -> Value {
    object([
        ("init", json!(true)),
        ("machine", json!(task.machine)),
        ("user", json!(task.user)),
        ("run", json!(task.run)),
        ("needs", list(&task.needs, |need| json!(need))),
        ("timeout_seconds", json!(task.timeout_seconds)),
        ("conditions", list(&task.conditions, |(key, value)| json!({ "key": key, "value": value }))),
    ])
}

fn tab(tab: &Tab) -> Value {
    object([
        ("id", json!(tab.id)),
        ("kind", json!(tab.kind)),
        ("name", json!(tab.name)),
        ("machine", json!(tab.machine)),
        ("number", json!(tab.number)),
        ("access", json!(tab.access)),
        ("tls", json!(tab.tls)),
        ("hostRewrite", json!(tab.host_rewrite)),
        ("pathRewrite", json!(tab.path_rewrite)),
        ("url", json!(tab.url)),
        ("pane", json!(tab.pane)),
    ])
}

/// An object without the fields that are not there.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A list; nothing where it is empty.
fn list<T>(items: &[T], each: impl Fn(&T) -> Value) -> Value {
    if items.is_empty() { Value::Null } else { items.iter().map(each).collect() }
}

fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

/// Where two labs differ, in the order of the fields' names.
pub fn differences(from: &Lab, to: &Lab) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", Some(&effective(from)), Some(&effective(to)), &mut found);
    for difference in &mut found {
        if let Some(rest) = difference.path.strip_prefix("playground.") {
            difference.path = rest.to_owned();
        }
        if difference.path == "registryAuth" {
            // A secret is not for a terminal.
            for value in [&mut difference.from, &mut difference.to].into_iter().flatten() {
                *value = json!("(a secret)");
            }
        }
    }
    found
}

fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<Difference>) {
    match (from, to) {
        (from, to) if from == to => {}
        (Some(Value::Object(from)), Some(Value::Object(to))) => {
            let mut keys: Vec<_> = from.keys().chain(to.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, from.get(key), to.get(key), found);
            }
        }
        (Some(Value::Array(from)), Some(Value::Array(to))) => {
            let mut labels: Vec<String> = Vec::new();
            for label in from.iter().enumerate().chain(to.iter().enumerate()).map(|(at, item)| label(at, item)) {
                if !labels.contains(&label) {
                    labels.push(label);
                }
            }
            for wanted in labels {
                let find = |list: &[Value]| {
                    list.iter().enumerate().find(|(at, item)| label(*at, item) == wanted).map(|(_, item)| item.clone())
                };
                compare(&format!("{path}[{wanted}]"), find(from).as_ref(), find(to).as_ref(), found);
            }
        }
        (from, to) => {
            found.push(Difference { path: path.to_owned(), from: from.cloned(), to: to.cloned() });
        }
    }
}

/// What an item of a list is called: its name, or its position.
fn label(position: usize, item: &Value) -> String {
    ["name", "key"]
        .into_iter()
        .find_map(|field| item.get(field)?.as_str())
        .map_or_else(|| position.to_string(), str::to_owned)
}

/// Fields that come first wherever they are.
const FIRST: [&str; 5] = ["kind", "name", "title", "description", "networks"];

/// A manifest as YAML.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    write_yaml(value, 0, &mut out);
    out
}

fn write_yaml(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let mut fields: Vec<_> = fields.iter().collect();
            let rank = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
            fields.sort_by_key(|(name, _)| rank(name));
            for (name, value) in fields {
                out.push_str(&format!("{indent}{}:", scalar(&json!(name))));
                nested(value, depth + 1, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                write_yaml(item, depth + 1, &mut text);
                let inner = "  ".repeat(depth + 1);
                match text.strip_prefix(&inner) {
                    Some(rest) => out.push_str(&format!("{indent}- {rest}")),
                    None => out.push_str(&format!("{indent}- {text}")),
                }
            }
        }
        other => out.push_str(&format!("{}\n", scalar(other))),
    }
}

fn nested(value: &Value, depth: usize, out: &mut String) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    out.push(if is_block { '\n' } else { ' ' });
    write_yaml(value, depth, out);
}

/// A scalar on one line: words as they are, all else as JSON writes it, which is YAML too.
fn scalar(value: &Value) -> String {
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    match value {
        Value::String(text)
            if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
                && !reserved.contains(&text.to_ascii_lowercase().as_str()) =>
        {
            text.clone()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    const EXAMPLES: [&str; 4] = [
        include_str!("../../testdata/storage.yaml"),
        include_str!("../../testdata/segments.yaml"),
        include_str!("../../testdata/cluster.yaml"),
        include_str!("../../testdata/six.yaml"),
    ];

    #[test]
    fn an_effective_manifest_asks_for_the_same() {
        for text in EXAMPLES {
            let lab = Manifest::read(text, "lab.yaml").expect("it keeps every rule").lab;
            let shown = to_yaml(&effective(&lab));
            let again = Manifest::read(&shown, "shown.yaml").unwrap_or_else(|fault| panic!("{fault}\n{shown}")).lab;
            assert_eq!(differences(&lab, &again), [], "{shown}");
            assert_eq!(effective(&lab), effective(&again));
        }
    }

    #[test]
    fn differences_are_told_by_name_and_not_by_how_they_are_written() {
        let lab = Manifest::read(EXAMPLES[1], "lab.yaml").expect("it keeps every rule").lab;
        let mut other = Manifest::read(&format!("# the same\n\n{}", EXAMPLES[1]), "lab.yaml").expect("the same").lab;
        assert_eq!(differences(&lab, &other), []);
        other.machines[1].memory_mib = 1024;
        other.registry_auth = Some("me:secret".into());
        other.machines.remove(0);
        let found = differences(&lab, &other);
        let paths: Vec<_> = found.iter().map(|difference| difference.path.as_str()).collect();
        assert_eq!(paths, ["machines[bastion]", "machines[router].resources.ramSize", "registryAuth"]);
        assert_eq!((&found[1].from, &found[1].to), (&Some(json!("512MiB")), &Some(json!("1GiB"))));
        assert!(!format!("{found:?}").contains("secret\""), "{found:?}");
    }
}
