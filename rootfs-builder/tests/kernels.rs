//! `rootfs-builder kernel` and `initramfs` from the outside, with a kernel that only looks like one.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod oracle;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use labyard_rootfs_builder::store::{KernelRecord, Store};
use oracle::{assert_clean, content, debugfs};
use serde_json::Value;

const VERSION: &str = "6.12.9-test";

fn run(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rootfs-builder"));
    command.args(arguments).arg("--store").arg(home).stdin(Stdio::null()).output().unwrap()
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap()
}

/// An ELF header, one segment that is loaded at 16 MiB and takes 20 MiB, and a banner.
fn elf() -> Vec<u8> {
    const LEN: u64 = 100_000;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0]);
    elf.resize(32, 0);
    elf.extend(64u64.to_le_bytes());
    elf.resize(54, 0);
    elf.extend([56, 0, 1, 0]);
    elf.resize(64, 0);
    // Type and flags, offset, two addresses, length in the file and in memory, alignment.
    for word in [1, 0, 16 << 20, 16 << 20, LEN, 20 << 20, 4096u64] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(format!("Linux version {VERSION} (me) #1\0").as_bytes());
    elf.resize(LEN as usize, 9);
    elf
}

/// The same, packed as a distribution has it.
fn bz_image() -> Vec<u8> {
    let mut payload = zstd::encode_all(&elf()[..], 3).unwrap();
    payload.extend((elf().len() as u32).to_le_bytes());
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image
}

/// A folder of modules in `home`.
fn modules(home: &Path, name: &str) -> PathBuf {
    let folder = home.join("lib/modules").join(name);
    fs::create_dir_all(folder.join("kernel/drivers")).unwrap();
    for file in ["virtio_blk.ko.xz", "virtio.ko.xz", "virtio_net.ko.xz", "virtio-rng.ko.xz", "vsock.ko.xz"] {
        fs::write(folder.join("kernel/drivers").join(file), file).unwrap();
    }
    let dep = "kernel/drivers/virtio_blk.ko.xz: kernel/drivers/virtio.ko.xz\nkernel/drivers/virtio.ko.xz:\n\
        kernel/drivers/virtio_net.ko.xz: kernel/drivers/virtio.ko.xz\nkernel/drivers/virtio-rng.ko.xz:\n";
    fs::write(folder.join("modules.dep"), dep).unwrap();
    let builtin = "kernel/virtio_mmio.ko\nkernel/fs/ext4/ext4.ko\nkernel/net/vmw_vsock_virtio_transport.ko\n";
    fs::write(folder.join("modules.builtin"), builtin).unwrap();
    folder
}

fn add(home: &Path, image: &Path, modules: &Path) -> Output {
    let (image, modules) = (image.display().to_string(), modules.display().to_string());
    run(home, &["kernel", "add", "--image", &image, "--modules", &modules, "--json"])
}

/// A store with the kernel.
fn with_kernel() -> (tempfile::TempDir, KernelRecord) {
    let home = tempfile::tempdir().unwrap();
    let image = home.path().join("vmlinuz");
    fs::write(&image, bz_image()).unwrap();
    let id = answer(&add(home.path(), &image, &modules(home.path(), VERSION)))["id"].as_str().unwrap().to_owned();
    let record = Store::open(home.path()).unwrap().kernel(&id).unwrap();
    (home, record)
}

#[test]
fn a_kernel_is_an_elf_image_a_modules_disk_and_what_mounts_the_root() {
    let (home, record) = with_kernel();
    let store = Store::open(home.path()).unwrap();
    assert!(fs::read(store.vmlinux(&record)).unwrap() == elf());
    assert_eq!((record.version.as_str(), record.series.as_str(), record.stock), (VERSION, "6.12", true));
    assert_eq!(record.min_memory_mib, 64);
    assert_eq!(record.early_modules, ["virtio.ko.xz", "virtio_blk.ko.xz"]);
    assert_eq!(record.late_modules, ["virtio", "virtio_net", "virtio_rng"]);
    let disk = store.modules_disk(&record);
    assert_clean(&disk);
    assert_eq!(content(&disk, "/kernel/drivers/virtio-rng.ko.xz"), b"virtio-rng.ko.xz");
    assert!(content(&disk, "/modules.dep").starts_with(b"kernel/drivers/virtio_blk"));
    let stat = debugfs(&disk, "stat /modules.dep");
    oracle::assert_has(&stat, &["Mode:  0644", "User:     0", "mtime: 0x00000000:00000000"]);
    let list = answer(&run(home.path(), &["kernel", "ls", "--json"]));
    assert_eq!((&list[0]["id"], &list[0]["default"]), (&Value::from(record.id), &Value::from(true)));
}

#[test]
fn the_same_kernel_is_the_same_bytes_and_packed_or_not_it_is_one() {
    let ((one, record), (two, other)) = (with_kernel(), with_kernel());
    assert_eq!(record, other);
    let disk = |home: &tempfile::TempDir| fs::read(Store::open(home.path()).unwrap().modules_disk(&record)).unwrap();
    assert!(disk(&one) == disk(&two));
    let image = one.path().join("vmlinux");
    fs::write(&image, elf()).unwrap();
    let again = answer(&add(one.path(), &image, &modules(one.path(), VERSION)));
    assert_eq!((again["id"].as_str(), &again["cached"]), (Some(record.id.as_str()), &Value::from(true)));
}

#[test]
fn a_kernel_that_another_version_added_is_refused_until_it_is_added_again() {
    let (home, record) = with_kernel();
    let store = Store::open(home.path()).unwrap();
    let path = store.kernel_dir(&record).join("kernel.json");
    let mut old = serde_json::to_value(&record).unwrap();
    old.as_object_mut().unwrap().remove("format");
    old["late_modules"] = serde_json::json!(["virtio"]);
    fs::write(&path, old.to_string()).unwrap();
    let init = home.path().join("init");
    fs::write(&init, b"\x7fELF").unwrap();
    let initramfs = ["initramfs", "--kernel", "6.12", "--init", &init.display().to_string(), "--json"];
    let output = run(home.path(), &initramfs);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("labyard kernel add"), "{text}");
    let image = home.path().join("vmlinuz");
    let again = answer(&add(home.path(), &image, &modules(home.path(), VERSION)));
    assert_eq!((again["id"].as_str(), &again["cached"]), (Some(record.id.as_str()), &Value::from(false)));
    assert_eq!(store.kernels().unwrap(), [record]);
    assert_eq!(fs::read_dir(store.kernels_dir()).unwrap().count(), 1);
    answer(&run(home.path(), &initramfs));
}

#[test]
fn a_folder_as_our_scripts_make_it_is_enough() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("built");
    let everything = folder.join("lib/modules").join(VERSION);
    fs::create_dir_all(&everything).unwrap();
    fs::write(folder.join("vmlinux"), elf()).unwrap();
    // Everything that mounts the root is built in: no early and no late module.
    fs::write(everything.join("modules.dep"), "kernel/fs/btrfs/btrfs.ko:\n").unwrap();
    let builtin = ["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "ext4"];
    fs::write(everything.join("modules.builtin"), builtin.map(|name| format!("kernel/{name}.ko\n")).concat()).unwrap();
    std::os::unix::fs::symlink(format!("lib/modules/{VERSION}"), folder.join("modules")).unwrap();
    let path = folder.display().to_string();
    let id = answer(&run(home.path(), &["kernel", "add", &path, "--json"]))["id"].as_str().unwrap().to_owned();
    let record = Store::open(home.path()).unwrap().kernel(&id).unwrap();
    assert!(record.early_modules.is_empty() && record.late_modules.is_empty());
    let init = home.path().join("init");
    fs::write(&init, b"\x7fELF").unwrap();
    answer(&run(home.path(), &["initramfs", "--kernel", &id, "--init", &init.display().to_string(), "--json"]));
    fs::remove_file(folder.join("vmlinux")).unwrap();
    for (arguments, code, part) in [
        (&["kernel", "add", path.as_str()][..], 2, "no vmlinux or vmlinuz"),
        (&["kernel", "add"], 2, "required"),
        (&["kernel", "add", &path, "--image", "x"], 2, "cannot be used with"),
    ] {
        let output = run(home.path(), arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && text.contains(part), "{text}");
    }
}

#[test]
fn the_initramfs_is_made_once_for_each_init() {
    let (home, record) = with_kernel();
    let init = home.path().join("init");
    fs::write(&init, b"\x7fELF one").unwrap();
    let arguments = ["initramfs", "--kernel", "6.12", "--init", &init.display().to_string(), "--json"];
    let path = |output: &Output| PathBuf::from(answer(output)["path"].as_str().unwrap());
    let first = path(&run(home.path(), &arguments));
    let bytes = fs::read(&first).unwrap();
    assert!(bytes.starts_with(b"070701") && first.starts_with(home.path().join("kernels").join(&record.id)));
    assert_eq!(path(&run(home.path(), &arguments)), first);
    fs::remove_file(&first).unwrap();
    assert_eq!(fs::read(path(&run(home.path(), &arguments))).unwrap(), bytes);
    fs::write(&init, b"\x7fELF two").unwrap();
    assert_ne!(path(&run(home.path(), &arguments)), first);
}

#[test]
fn what_is_no_kernel_is_refused_in_one_line_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let good = home.path().join("vmlinuz");
    fs::write(&good, bz_image()).unwrap();
    let text = home.path().join("text");
    fs::write(&text, "no kernel").unwrap();
    let cut = home.path().join("cut");
    fs::write(&cut, &bz_image()[..1060]).unwrap();
    let short = home.path().join("short");
    fs::write(&short, &elf()[..elf().len() - 1]).unwrap();
    let arm = home.path().join("arm");
    fs::write(&arm, [&elf()[..18], &[183], &elf()[19..]].concat()).unwrap();
    let folder = modules(home.path(), VERSION);
    let other = modules(home.path(), "6.1.0-other");
    let bare = home.path().join("bare").join(VERSION);
    fs::create_dir_all(&bare).unwrap();
    let poor = home.path().join("poor").join(VERSION);
    fs::create_dir_all(&poor).unwrap();
    fs::write(poor.join("modules.dep"), "kernel/virtio_mmio.ko:\n").unwrap();
    for (image, modules, parts) in [
        (&text, &folder, ["text", "neither an ELF image nor a bzImage"]),
        (&cut, &folder, ["cut", "the file ends before"]),
        (&short, &folder, ["short", "cut short"]),
        (&arm, &folder, ["arm", "machine 183"]),
        (&PathBuf::from("/dev/zero"), &folder, ["/dev/zero", "no kernel is that long"]),
        (&home.path().join("missing"), &folder, ["missing", "reading"]),
        (&good, &other, ["6.1.0-other", VERSION]),
        (&good, &bare, ["modules.dep", "depmod"]),
        (&good, &poor, ["no virtio_blk", "poor"]),
        (&good, &home.path().join("nowhere"), ["nowhere", "reading"]),
    ] {
        let output = add(home.path(), image, modules);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("error: ") && parts.iter().all(|part| last.contains(part)), "{text}");
        assert_eq!(fs::read_dir(home.path().join("kernels")).unwrap().count(), 0, "{text}");
    }
}

#[test]
fn a_kernel_or_an_init_that_is_not_there_is_refused() {
    let (home, record) = with_kernel();
    let init = home.path().join("init");
    fs::write(&init, "#!/bin/sh").unwrap();
    let init = init.display().to_string();
    for (kernel, init, part) in [
        ("6.1", init.as_str(), record.id.as_str()),
        ("6.12", &init, "not an ELF program"),
        ("6.12", "/nowhere/init", "/nowhere/init"),
    ] {
        let output = run(home.path(), &["initramfs", "--kernel", kernel, "--init", init, "--json"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.starts_with("error: ") && text.contains(part), "{text}");
    }
}

#[test]
fn what_a_kernel_has_is_noted_for_images_that_need_it() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let image = folder.path().join("vmlinuz");
    fs::write(&image, bz_image()).unwrap();
    let modules = modules(folder.path(), VERSION);
    let id = answer(&add(&home, &image, &modules))["id"].as_str().unwrap().to_owned();
    let store = Store::open(&home).unwrap();
    let offer = || store.kernel_offer(&store.kernel_by_id(&id).unwrap().unwrap()).unwrap();
    let names = offer().modules.unwrap();
    assert!(names.contains("virtio_rng") && names.contains("ext4") && !names.contains("zfs"), "{names:?}");
    assert_eq!(offer().config, None);
    // One that was added before its modules were noted is completed.
    fs::remove_file(home.join("kernels").join(&id).join("modules")).unwrap();
    fs::write(folder.path().join(format!("config-{VERSION}")), "CONFIG_NUMA=y\n# CONFIG_X is not set\n").unwrap();
    assert_eq!(answer(&add(&home, &image, &modules))["cached"], false);
    assert_eq!(offer().config.unwrap().into_iter().collect::<Vec<_>>(), [("CONFIG_NUMA".to_owned(), "y".to_owned())]);
    assert_eq!(offer().modules, Some(names));
    assert_eq!(answer(&add(&home, &image, &modules))["cached"], true);
}
