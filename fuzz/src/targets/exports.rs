//! Exported images and catalogues that nearly make sense, and what images say that they need of the kernel.
//!
//! Rules: what is refused is refused as input and leaves nothing; an image that is taken is the one that its key says, and is exported as the
//! same file. A bound of a version reads as it is written.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use labyard_rootfs_builder::build::{self, Destination, Format, Request};
use labyard_rootfs_builder::catalogue::{Catalogue, CatalogueError};
use labyard_rootfs_builder::store::Store;
use labyard_rootfs_builder::transfer::{self, Found};
use labyard_rootfs_builder::verify::verify;
use labyard_rootfs_builder::watch::Watch;
use labyard_spec::needs::{self, Comparison, KernelNeeds, KernelOffer};
use labyard_spec::source::Source;
use serde_json::{Value, json};

use crate::input::Input;

const MIB: u64 = 1 << 20;
const HEAD: &str = "labyard-image.json";

/// A small image, exported: its document and its data.
fn image() -> &'static (Value, Vec<u8>) {
    static IMAGE: OnceLock<(Value, Vec<u8>)> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, "a", &b"hello"[..]).expect("room");
        let source = home.join("root.tar");
        fs::write(&source, tar.into_inner().expect("room")).expect("room");
        let store = Store::open(home).expect("a store");
        let request = Request {
            source: Source::RootfsTar(source),
            size_bytes: 2 * MIB,
            format: Format::Ext4,
            destination: Destination::Store(store.clone()),
            home: home.to_owned(),
            plain_http: false,
            confined: false,
        };
        let built = build::build(&request, &Watch::unattended()).expect("an image");
        let file = home.join("exported");
        transfer::export(&store, &built.record, &file, false, &Watch::unattended()).expect("a file");
        let bytes = fs::read(&file).expect("the file");
        let mut members = tar::Archive::new(&*bytes);
        let mut members = members.entries().expect("members").map(|member| {
            let mut bytes = Vec::new();
            member.expect("a member").read_to_end(&mut bytes).expect("its bytes");
            bytes
        });
        let head = serde_json::from_slice(&members.next().expect("a head")).expect("JSON");
        (head, members.next().expect("data"))
    })
}

/// Reads the bytes as a file that somebody wants imported.
pub(super) fn files(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    if input.one_in(4) {
        return catalogue(home, &mut input);
    }
    let file = home.join("file");
    fs::write(&file, exported(&mut input)).expect("room");
    let watch = Watch::unattended();
    match transfer::look(&file, home, &watch) {
        Ok(Found::Export) => {}
        Ok(Found::Source(_)) => return,
        Err(error) => return assert!(error.is_input(), "{error}"),
    }
    let store = Store::open(home).expect("a store");
    match transfer::import(&store, &file, true, &watch) {
        Err(error) => {
            assert!(error.is_input(), "a stranger's file is not the machine's fault: {error}");
            assert!(fs::read_dir(store.images_dir()).expect("images").next().is_none(), "something was left");
        }
        Ok((record, _)) => {
            let found = verify(&store, &[], false, &watch).expect("the store");
            assert!(found.iter().all(|one| one.fault.is_none()), "{found:?}");
            assert!(transfer::import(&store, &file, true, &watch).expect("the same").1, "it is there");
            let again = home.join("again");
            transfer::export(&store, &record, &again, false, &watch).expect("room");
            transfer::export(&store, &record, &again, false, &watch).expect_err("it is there");
            transfer::export(&store, &record, &again, true, &watch).expect("room");
            transfer::export(&store, &record, &home.join("no/folder"), false, &watch).expect_err("no folder");
            if input.one_in(2) {
                fs::write(store.disk(&record), vec![1; record.size_bytes as usize]).expect("room");
                transfer::export(&store, &record, &again, true, &watch).expect_err("it is damaged");
            }
        }
    }
}

/// What `export` writes, as it is or spoilt.
fn exported(input: &mut Input<'_>) -> Vec<u8> {
    let (mut head, mut data) = image().clone();
    for _ in 0..(input.byte() % 8).saturating_sub(4) {
        let number = json!(input.pick(&[0, 1, 2 * MIB, 2 * MIB - 1, u64::MAX, 4096]));
        match input.byte() % 10 {
            0 => head["format"] = number,
            1 => head["digest"] = json!(input.pick(&["", "sha256:00", "../../x"])),
            2 => head["record"]["key"] = json!(input.pick(&["", "..", "/x", "00"])),
            3 => head["record"]["size_bytes"] = number,
            4 => head["record"]["layers"] = json!([input.pick(&["", "sha256:00"])]),
            5 => head["record"]["filesystem"] = json!(input.pick(&["erofs", ""])),
            6 => head["extents"] = json!([[number, input.long()]]),
            7 => head["extents"].as_array_mut().expect("a list").push(json!([number, input.below(9000)])),
            8 => head["record"]["disk"] = json!(input.pick(&["", "sha256:00"])),
            _ => head["record"] = json!(null),
        }
    }
    let mut text = head.to_string().into_bytes();
    if input.one_in(8) {
        let at = input.below(text.len());
        text[at] = input.byte();
    }
    if input.one_in(8) {
        let at = input.below(data.len());
        data[at] ^= input.byte();
    }
    let mut tar = tar::Builder::new(Vec::new());
    let names = [input.pick(&[HEAD, HEAD, HEAD, HEAD, "data", "manifest.json", "oci-layout"]), "data"];
    for (name, bytes) in names.into_iter().zip([&text, &data]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, &**bytes).expect("room");
    }
    let mut file = tar.into_inner().expect("room");
    if input.one_in(8) {
        file.truncate(input.below(file.len()));
    }
    if input.one_in(4) { zstd::encode_all(&*file, 1).expect("packing") } else { file }
}

fn catalogue(home: &Path, input: &mut Input<'_>) {
    let names = ["debian", "debian", "a.b_c-d", "a/b", "", "#", "\u{fc}"];
    let sources = ["oci://h/a:1", "oci-layout:x", "docker-archive:/y", "alpine", "oci://", "rootfs-tar:", "\u{7f}"];
    let mut text = Vec::new();
    for _ in 0..input.below(6) {
        let line = format!("{}{}{}", input.pick(&names), input.pick(&[" ", "\t ", ""]), input.pick(&sources));
        text.extend_from_slice(line.as_bytes());
        text.push(if input.one_in(32) { input.byte() } else { b'\n' });
    }
    if input.one_in(64) {
        text.resize(MIB as usize + 1, b'#');
    }
    fs::write(home.join("catalogue"), text).expect("room");
    match Catalogue::load(home) {
        Ok(catalogue) => {
            for name in ["debian", "alpine", "none"] {
                let resolved = catalogue.resolve(name);
                assert!(!matches!(resolved, Ok(Source::Alias(_))), "a name that stands for a name");
                let _ = resolved.map_err(|error| error.to_string());
            }
        }
        // Bytes that are no text.
        Err(CatalogueError::Read { source, .. }) => assert!(source.raw_os_error().is_none(), "{source}"),
        Err(error) => drop(error.to_string()),
    }
}

/// Reads the bytes as labels of an image and as a kernel.
pub(super) fn needs(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let texts = [
        ">=6.1, <7",
        "6.12",
        "!=6.1.50",
        ">6",
        "<=1.2.3.4",
        "=1.2.3.4.5",
        ">=",
        "+1",
        "18446744073709551616",
        "CONFIG_A",
        "CONFIG_HZ=250 CONFIG_B=m",
        "CONFIG_",
        "CONFIG_A=",
        "CONFIG_\u{e4}",
        "overlay br-netfilter",
        "a/b",
        "",
        ",,",
    ];
    let mut labels = Vec::new();
    for _ in 0..input.below(6) {
        let other = ["io.labyard.kernel.other", "io.labyard.kernel.", "org.example"];
        let name = if input.one_in(8) {
            input.pick(&other)
        } else {
            input.pick(&[needs::VERSION, needs::FEATURES, needs::MODULES])
        };
        let mut text = input.pick(&texts).to_owned();
        if input.one_in(4) {
            text.push_str(&String::from_utf8_lossy(input.bytes(6)));
        }
        if input.one_in(64) {
            text = text.repeat(20_000);
        }
        labels.push((name, text));
    }
    let Ok(needs) = KernelNeeds::from_labels(labels.iter().map(|(name, text)| (*name, &**text))) else { return };
    for bound in &needs.version {
        assert_eq!(bound.to_string().parse::<Comparison>().as_ref(), Ok(bound));
    }
    let text = serde_json::to_string(&needs).expect("strings are JSON");
    assert_eq!(serde_json::from_str::<KernelNeeds>(&text).expect("what was written"), needs);
    let config = "CONFIG_A=y\nCONFIG_HZ=250\n# CONFIG_B is not set\nCONFIG_S=\"x\"\nx";
    let kernel = KernelOffer {
        version: input.pick(&["6.12.9-labyard", "6.1", "", "6..1", "x"]).to_owned(),
        modules: input.one_in(2).then(|| ["overlay".to_owned()].into()),
        config: input.one_in(2).then(|| needs::config(config)),
    };
    let missing = needs.missing(&kernel);
    assert!(!needs.is_empty() || missing.is_empty(), "nothing needed, and {missing:?} lacks");
    let _ = serde_json::from_value::<Comparison>(json!(input.pick(&texts)));
}
