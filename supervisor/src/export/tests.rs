use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use labyard_spec::overlay::{
    BLOCK_BYTES, Header, LayerId, PAGE_BLOCKS, PAGE_BYTES, PAGE_WORDS, encode_page, map_bytes, page_offset,
};
use labyard_spec::playground::{BaseSpec, Engine, LayerSlots, OverlaySpec, PlaygroundSpec, Slot};
use labyard_sys::lease::{self, Lease};

use super::*;
use crate::cgroup::Limits;
use crate::plan::{FileAccess, PlannedFile};

/// More than one page of a map, more than one L2 table, and half a block.
const CAPACITY: u64 = (600 << 20) + 2048;
const BASE_BYTES: u64 = (1 << 20) + 512;

/// Layers written as a vmm writes them, and what they make together.
struct Drive {
    folder: tempfile::TempDir,
    plan: Plan,
    spec: DriveSpec,
}

impl Drive {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let names = ["base", "0.data", "0.map", "1.data", "1.map"];
        let files = names.map(|name| PlannedFile { path: folder.path().join(name), access: FileAccess::Read });
        fs::write(folder.path().join("base"), vec![1; BASE_BYTES as usize]).expect("writing");
        let layers = [0u32, 1].map(|layer| LayerSlots { data: Slot(1 + 2 * layer), map: Slot(2 + 2 * layer) });
        let spec = DriveSpec {
            serial: "d00".into(),
            read_only: false,
            base: Some(BaseSpec { file: Slot(0), name: "image".into() }),
            overlay: Some(OverlaySpec { frozen: vec![layers[0]], top: layers[1], capacity_bytes: CAPACITY }),
            engine: Engine::Auto,
        };
        let spec_of_lab = PlaygroundSpec { name: "lab".into(), networks: Vec::new(), machines: Vec::new() };
        let plan = Plan {
            spec: spec_of_lab,
            files: files.into(),
            max_descriptors: 0,
            uplink: None,
            limits: Limits::default(),
        };
        let drive = Self { folder, plan, spec };
        // Blocks 0 and 1 are flushed, 2 was when it was frozen; the layer above says that this counts.
        drive.layer(0, "image", 256 << 20, &[(0, &[0, 1]), (3, &[2])], false);
        let below = LayerId([0; 16]).to_string();
        drive.layer(1, &below, CAPACITY, &[(0, &[1, 20_000]), (4, &[CAPACITY / BLOCK_BYTES - 4 * PAGE_BLOCKS])], true);
        drive.write("0.data", 0, &[2; 3 * 4096]);
        drive.write("1.data", 4096, &[3; 4096]);
        drive.write("1.data", CAPACITY - 2048, &[4; 2048]);
        drive
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(self.path(name));
        file.expect("opening").write_all_at(bytes, offset).expect("writing");
    }

    fn layer(&self, number: u8, below: &str, capacity_bytes: u64, bits: &[(u64, &[u64])], settled: bool) {
        let layer = LayerId([number; 16]);
        let header = Header { layer, capacity_bytes, base_bytes: BASE_BYTES, below: below.to_owned(), settled };
        self.write(&format!("{number}.map"), 0, &header.encode());
        for (page, blocks) in bits {
            let mut words = [0; PAGE_WORDS];
            blocks.iter().for_each(|block| words[(block / 64) as usize] |= 1 << (block % 64));
            let mut bytes = [0; PAGE_BYTES];
            encode_page(layer, *page, &words, &mut bytes);
            self.write(&format!("{number}.map"), page_offset(*page), &bytes);
        }
        for (what, len) in [("map", map_bytes(capacity_bytes)), ("data", capacity_bytes)] {
            self.write(&format!("{number}.{what}"), len - 1, &[0]);
        }
    }

    fn export(&self, name: &str, format: Format) -> Result<Exported, ExportError> {
        export(&self.plan, &self.spec, &self.path(name), (format, false), &AtomicBool::new(false), |_| {})
    }

    /// The names of all that is in its folder beside its own files.
    fn others(&self) -> Vec<String> {
        let listed = fs::read_dir(self.folder.path()).expect("listing").flatten();
        let names = listed.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != "base" && !name.ends_with(".map") && !name.ends_with(".data")).collect()
    }
}

fn piece(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    File::open(path).expect("opening").read_exact_at(&mut bytes, offset).expect("reading");
    bytes
}

#[test]
fn a_raw_file_is_what_the_layers_say_together_and_sparse() {
    let drive = Drive::new();
    let said = drive.export("raw", Format::Raw).expect("a file");
    let path = drive.path("raw");
    let meta = fs::metadata(&path).expect("metadata");
    assert_eq!((said.capacity_bytes, said.file_bytes, meta.len()), (CAPACITY, CAPACITY, CAPACITY));
    assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
    assert_eq!(meta.mode() & 0o777, 0o600);
    for (block, byte) in [(0, 2), (1, 3), (2, 2), (3, 1), (255, 1), (300, 0), (20_000, 0)] {
        assert!(piece(&path, block * 4096, 4096).iter().all(|found| *found == byte), "block {block}");
    }
    assert!(piece(&path, BASE_BYTES - 512, 1024) == [[1; 512], [0; 512]].concat(), "the base ends within a block");
    assert!(piece(&path, CAPACITY - 4096, 4096) == [[0; 2048], [4; 2048]].concat(), "the drive, too");
    assert_eq!(drive.others(), ["raw"]);
}

#[test]
fn a_qcow2_image_is_sound_and_the_same_drive_by_qemus_account() {
    let drive = Drive::new();
    drive.export("raw", Format::Raw).expect("a file");
    let said = drive.export("qcow2", Format::Qcow2).expect("a file");
    let run = |arguments: &[&str]| {
        let output = Command::new("qemu-img").args(arguments).current_dir(drive.folder.path()).output();
        let output = output.expect("qemu-img runs (Debian: qemu-utils, `make setup`)");
        assert!(output.status.success(), "qemu-img {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let checked = run(&["check", "-f", "qcow2", "qcow2"]);
    assert!(checked.contains("No errors were found"), "{checked}");
    run(&["compare", "-f", "raw", "-F", "qcow2", "raw", "qcow2"]);
    let info = run(&["info", "--output=json", "qcow2"]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!((&info["virtual-size"], &info["format"]), (&CAPACITY.into(), &"qcow2".into()));
    assert_eq!(fs::metadata(drive.path("qcow2")).expect("metadata").len(), said.file_bytes);
    assert!(said.file_bytes < 4 << 20, "{} bytes", said.file_bytes);
}

#[test]
fn a_drive_that_was_never_written_is_its_base() {
    let mut drive = Drive::new();
    drive.spec.overlay.as_mut().expect("an overlay").frozen.clear();
    File::create(drive.path("1.map")).expect("emptied");
    drive.export("raw", Format::Raw).expect("a file");
    assert!(piece(&drive.path("raw"), BASE_BYTES - 512, 1024) == [[1; 512], [0; 512]].concat());
    // And one without layers, what it is.
    drive.spec.overlay = None;
    let said = drive.export("read-only", Format::Raw).expect("a file");
    assert_eq!((said.capacity_bytes, said.data_bytes), (BASE_BYTES, BASE_BYTES));
    drive.spec.base = None;
    assert!(matches!(drive.export("nothing", Format::Raw), Err(ExportError::Chain(ChainError::Empty(_)))));
}

#[test]
fn what_is_there_is_replaced_only_when_asked_for() {
    let drive = Drive::new();
    fs::write(drive.path("raw"), b"mine").expect("writing");
    let error = drive.export("raw", Format::Raw).expect_err("it is there").to_string();
    assert!(error.contains("--force"), "{error}");
    assert_eq!(fs::read(drive.path("raw")).expect("reading"), b"mine");
    let replace = (Format::Raw, true);
    export(&drive.plan, &drive.spec, &drive.path("raw"), replace, &AtomicBool::new(false), |_| {}).expect("replaced");
    assert_eq!(fs::metadata(drive.path("raw")).expect("metadata").len(), CAPACITY);
    let folder = drive.folder.path();
    let error =
        export(&drive.plan, &drive.spec, folder, replace, &AtomicBool::new(false), |_| {}).expect_err("a folder");
    assert!(error.to_string().contains("not a plain file"), "{error}");
}

#[test]
fn an_export_that_is_interrupted_leaves_nothing() {
    for at in [0, 1 << 20, CAPACITY - 4096] {
        for format in [Format::Raw, Format::Qcow2] {
            let (drive, cancel) = (Drive::new(), AtomicBool::new(false));
            let told = |offset| {
                if offset >= at {
                    cancel.store(true, Ordering::SeqCst);
                }
            };
            let ended = export(&drive.plan, &drive.spec, &drive.path("file"), (format, false), &cancel, told);
            assert!(matches!(ended, Err(ExportError::Interrupted)), "{ended:?}");
            assert_eq!(drive.others(), [""; 0]);
        }
    }
}

#[test]
fn a_drive_in_use_and_each_chain_that_is_none_are_refused_by_name() {
    type Damage = fn(&mut Drive);
    let cases: &[(&str, Damage)] = &[
        ("1.map: not the map of an overlay layer", |drive| drive.write("1.map", 0, b"x")),
        ("0.map: its header is damaged", |drive| drive.write("0.map", 40, b"x")),
        ("0.map: sector 0 of page 0 is damaged", |drive| drive.write("0.map", 4096 + 100, b"x")),
        ("0.map: sector 0 of page 3 is damaged", |drive| drive.write("0.map", 4 * 4096 + 100, b"x")),
        ("1.map: its data has 100 bytes", |drive| cut(drive, "1.data", 100)),
        ("0.map: its map has 8192 bytes", |drive| cut(drive, "0.map", 8192)),
        ("0.map: its map has 0 bytes", |drive| cut(drive, "0.map", 0)),
        ("0.map: it was made on a base of 1049088 bytes, which has 512 now", |drive| cut(drive, "base", 512)),
        ("0.map: it lies on `image` and was given `other`", |drive| {
            drive.spec.base.as_mut().expect("a base").name = "other".into();
        }),
        ("1.map: it lies on `00000000000000000000000000000000` and was given `image`", |drive| {
            overlay(drive).frozen.clear();
        }),
        ("1.map: it belongs to a drive of 629147648 bytes, asked is one of 536870912", |drive| {
            overlay(drive).capacity_bytes = 512 << 20;
        }),
        ("base: it has 1049088 bytes, the drive on it only 4096", |drive| overlay(drive).capacity_bytes = 4096),
        ("d00: the plan says 1000 bytes", |drive| overlay(drive).capacity_bytes = 1000),
        ("d00: the plan has no file Slot(77)", |drive| overlay(drive).top.map = Slot(77)),
        ("0.data: opening", |drive| fs::remove_file(drive.path("0.data")).expect("removed")),
    ];
    for (expected, damage) in cases {
        let mut drive = Drive::new();
        damage(&mut drive);
        let error = drive.export("file", Format::Raw).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
        assert_eq!(drive.others(), [""; 0]);
    }
    let drive = Drive::new();
    let writer = File::open(drive.path("1.data")).expect("opening");
    assert!(lease::take(&writer, Lease::Writer).expect("flock"));
    let error = drive.export("file", Format::Raw).expect_err("in use").to_string();
    assert!(error.contains("1.data: its machine runs and writes it; stop it first"), "{error}");
}

fn overlay(drive: &mut Drive) -> &mut OverlaySpec {
    drive.spec.overlay.as_mut().expect("an overlay")
}

fn cut(drive: &Drive, name: &str, len: u64) {
    fs::OpenOptions::new().write(true).open(drive.path(name)).expect("opening").set_len(len).expect("cut");
}
