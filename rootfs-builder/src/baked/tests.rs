use labyard_spec::source::Source;

use super::*;
use crate::source;

/// A tar with one file.
fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_mode(0o4755);
    archive.append_data(&mut header, "./hello", &b"hello"[..]).expect("memory");
    archive.into_inner().expect("memory")
}

fn make(folder: &Path, tar: &[u8], config: Option<Value>) -> Result<Baked, BakedError> {
    let request = Request { to: &folder.join("web"), tag: "baked", config, disk_bytes: 1 << 20 };
    bake(tar, &request, &Watch::unattended())
}

#[test]
fn a_tar_becomes_an_image_of_one_layer_that_starts_what_the_other_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({ "Entrypoint": ["/hello"], "Env": ["A=b"], "Labels": { "maintainer": "ada" } });
    let baked = make(folder.path(), &archive(), Some(config.clone())).expect("an image");
    assert_eq!(baked.entries, 1);
    let source = Source::OciLayout { path: folder.path().join("web"), tag: Some("baked".into()) };
    let places = source::Places { temporary: folder.path(), home: folder.path(), plain_http: false };
    let image = source::open(&source, places, &Watch::unattended()).expect("an image that can be read");
    assert_eq!((image.digest, image.layers.len()), (baked.digest, 1));
    assert_eq!(image.config, Some(config));
    assert_eq!(image.entrypoint.expect("an entrypoint").env, ["A=b"]);
    let again = make(&folder.path().join("other"), &archive(), None);
    assert!(matches!(again, Err(BakedError::Workdir(_))), "a folder in a folder that is not there");
}

#[test]
fn the_same_tar_becomes_the_same_image() {
    let digests = [(); 2].map(|()| {
        let folder = tempfile::tempdir().expect("a folder");
        make(folder.path(), &archive(), None).expect("an image").digest
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn of_what_is_no_archive_or_is_cut_off_nothing_is_left() {
    let whole = archive();
    for (tar, part) in [
        (&b""[..], "cut off"),
        (&b"this is no archive at all"[..], "cut off"),
        (&[7; 1024][..], "checksum"),
        (&whole[..700], "cut off"),
        // Without the two blocks that end it, a guest may have had more to say.
        (&whole[..1024], "cut off"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let error = make(folder.path(), tar, None).expect_err(part);
        let text = crate::report::one_line(&error);
        assert!(error.is_input() && text.contains(part), "{text}");
        assert_eq!(fs::read_dir(folder.path()).expect("listing").count(), 0, "{part}");
    }
}

#[test]
fn what_is_there_is_not_written_over() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("web"), "mine").expect("writing");
    let error = make(folder.path(), &archive(), None).expect_err("something is there");
    assert!(matches!(error, BakedError::There { .. }), "{error}");
    assert_eq!(fs::read(folder.path().join("web")).expect("reading"), b"mine");
}
