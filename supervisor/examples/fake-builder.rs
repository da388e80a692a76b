//! `rootfs-builder` for tests: puts a small disk into the store. The source `slow` never ends, `bad` is refused, `needy` wants
//! of its kernel what 6.12 has not.

use std::fs;
use std::path::{Path, PathBuf};

use labyard_rootfs_builder::store::{ImageRecord, KERNEL_FORMAT, KernelRecord};
use labyard_spec::needs::{self, KernelNeeds};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after = |flag: &str| {
        let position = arguments.iter().position(|argument| argument == flag).expect("a flag that is always given");
        arguments.get(position + 1).expect("a value").clone()
    };
    let home = PathBuf::from(after("--store"));
    match arguments.first().map(String::as_str) {
        Some("build") => build(&home, arguments.get(1).expect("a source"), &after("--size"), &after("--format")),
        Some("initramfs") => {
            let path = home.join("kernels").join(after("--kernel")).join("initramfs.cpio");
            fs::write(&path, b"initramfs").expect("writing");
            println!("{}", serde_json::json!({ "path": path }));
        }
        Some("import") => build(&home, "debian", &after("--size"), "ext4"),
        Some("export") => {
            let [key, path] = arguments.get(1..3).expect("a key and a file") else { panic!("not two") };
            fs::write(path, key).expect("writing");
            println!("{}", serde_json::json!({ "key": key, "path": path, "bytes": key.len() }));
        }
        Some("push") => {
            let [image, to] = arguments.get(1..3).expect("an image and a place") else { panic!("not two") };
            let answer = serde_json::json!({
                "image": to, "digest": "sha256:0", "blobs": 3, "sent": 2, "bytes": image.len(), "mounted": 0
            });
            println!("{answer}");
        }
        Some("bake") if home.join("no-bakes").exists() => {
            eprintln!("error: the archive: writing: No space left on device");
            std::process::exit(1);
        }
        Some("bake") => bake(Path::new(arguments.get(1).expect("a folder")), &arguments),
        Some("verify") => verify(&home),
        Some("kernel") => kernel(&home, arguments.get(1..3).expect("a verb and its first argument")),
        other => panic!("{other:?}"),
    }
}

/// An image is damaged where a file says so.
fn verify(home: &Path) {
    let fault = home.join("damaged").exists().then_some("its disk is another; remove it with `labyard image rm k`");
    let finding = |kind: &str, name: &str, fault: Option<&str>| {
        serde_json::json!({
            "kind": kind, "name": name, "bytes": 8, "fault": fault, "unchecked": false, "removed": false
        })
    };
    let objects = [finding("image", "0123456789abcdef", fault), finding("blob", "sha256:00", None)];
    println!("{}", serde_json::json!({ "objects": objects, "damaged": usize::from(fault.is_some()) }));
    if fault.is_some() {
        eprintln!("error: 1 of 2 objects are damaged");
        std::process::exit(1);
    }
}

/// `add FOLDER` and `build --series 6.1`; the latter never ends for 6.12.
fn kernel(home: &Path, arguments: &[String]) {
    let id = match arguments {
        [verb, folder] if verb == "add" && folder.ends_with("bad") => {
            eprintln!("reading the kernel\nerror: kernel {folder}: it is neither an ELF image nor a bzImage");
            std::process::exit(2);
        }
        [verb, _] if verb == "add" => "6.12.2-added",
        [verb, _] if verb == "build" => {
            eprintln!("objects compiled: 1");
            if std::env::args().any(|argument| argument == "6.12") {
                loop {
                    std::thread::park();
                }
            }
            "6.1.3-labyard-built"
        }
        other => panic!("{other:?}"),
    };
    let path = home.join("kernels").join(id);
    let cached = path.exists();
    fs::create_dir_all(&path).expect("a folder");
    let record = KernelRecord {
        id: id.into(),
        version: id.rsplit_once('-').expect("a digest").0.into(),
        series: id.split('.').take(2).collect::<Vec<_>>().join("."),
        digest: "sha256:0".into(),
        early_modules: vec![],
        late_modules: vec![],
        stock: !id.contains("labyard"),
        min_memory_mib: 64,
        format: KERNEL_FORMAT,
    };
    fs::write(path.join("vmlinux"), "kernel").expect("writing");
    fs::write(path.join("modules"), "overlay\nzfs\n").expect("writing");
    fs::write(path.join("config"), "CONFIG_NUMA=y\n").expect("writing");
    fs::write(path.join("kernel.json"), serde_json::to_vec(&record).expect("plain data")).expect("writing");
    println!("{}", serde_json::json!({ "id": id, "path": path, "cached": cached }));
}

/// The image is what came, and what it was told.
fn bake(folder: &Path, arguments: &[String]) {
    fs::create_dir(folder).expect("a folder");
    let mut layer = fs::File::create(folder.join("layer")).expect("a file");
    let bytes = std::io::copy(&mut std::io::stdin().lock(), &mut layer).expect("the archive");
    let told = arguments.get(2..).unwrap_or_default().join(" ");
    fs::write(folder.join("told"), told).expect("writing");
    println!("{}", serde_json::json!({ "path": folder, "digest": "sha256:0", "entries": 1, "bytes": bytes }));
}

fn needy() -> KernelNeeds {
    let labels = [(needs::VERSION, ">=6.1,<6.2"), (needs::MODULES, "overlay zfs"), (needs::FEATURES, "CONFIG_NUMA")];
    KernelNeeds::from_labels(labels).expect("needs")
}

fn build(home: &Path, source: &str, size: &str, format: &str) {
    eprintln!("reading {source}");
    match source {
        "slow" => loop {
            std::thread::park();
        },
        "bad" => {
            eprintln!("error: no image `bad` in the catalogue; there is debian");
            std::process::exit(2);
        }
        _ => {}
    }
    let key = format!("{source}-{size}{}", if format == "ext4" { "" } else { format })
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let folder = home.join("images").join(&key);
    let cached = folder.exists();
    fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join(format!("disk.{format}"));
    fs::write(&path, b"an image").expect("writing");
    let record = ImageRecord {
        key: key.clone(),
        source: source.to_owned(),
        digest: "sha256:0".into(),
        layers: vec![],
        size_bytes: 8,
        filesystem: format.into(),
        uuid: "u".into(),
        init: true,
        entrypoint: None,
        entries: 1,
        writer: 1,
        disk: None,
        blobs: vec![],
        kernel: if source == "needy" { needy() } else { KernelNeeds::default() },
        unproved: false,
    };
    fs::write(folder.join("image.json"), serde_json::to_vec(&record).expect("plain data")).expect("writing");
    println!("{}", serde_json::json!({ "key": key, "path": path, "cached": cached, "entries": 1, "bytes": 8 }));
}
