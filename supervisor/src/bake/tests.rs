use labyard_spec::manifest::Manifest;

use super::*;

fn lab(drives: &str) -> Lab {
    let text = format!(
        "\
kind: playground
name: lab
playground:
  machines: [{{name: web, drives: [{drives}], network: {{interfaces: [{{network: local}}]}}}}]
"
    );
    Manifest::read(&text, "lab.yaml").unwrap_or_else(|fault| panic!("{fault}")).lab
}

fn of_web(drives: &str) -> Result<Vec<Kept>, String> {
    super::drives(&lab(drives), &["web".to_owned()])
}

#[test]
fn drives_that_are_written_become_images_and_those_that_are_only_read_stay() {
    let kept =
        of_web("{source: x, mount: /}, {source: y, mount: /a, readOnly: true}, {mount: /b}").expect("drives to keep");
    let images: Vec<_> = kept.iter().map(|kept| (kept.serial.as_str(), kept.image.as_str())).collect();
    assert_eq!(images, [("d00", "web"), ("d02", "web-d02")]);
}

#[test]
fn a_drive_whose_content_would_be_lost_is_refused() {
    for (drives, part) in [
        ("{source: x, mount: /}, {mount: /b, filesystem: xfs}", "drive d01 cannot become an image, because images are"),
        ("{source: x, mount: /}, {size: 1GiB}", "drive d01 cannot become an image, because it is not mounted"),
        ("{source: x, mount: /, readOnly: true}", "its root is only read"),
    ] {
        let error = of_web(drives).expect_err(drives);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_manifest_names_the_images_and_is_one_that_can_be_read() {
    let lab = lab("{source: 'rootfs-tar:a.tar', mount: /, size: 1GiB}, {mount: /b, size: 64MiB}");
    let kept = drives(&lab, &["web".to_owned()]).expect("drives to keep");
    let text = manifest(&lab, &kept, Path::new("/labs"), &[]).expect("a manifest");
    let again = Manifest::read(&text, "baked.yaml").unwrap_or_else(|fault| panic!("{fault}\n{text}")).lab;
    let sources: Vec<_> = again.machines[0].drives.iter().flat_map(|drive| &drive.source).collect();
    let sources: Vec<_> = sources.iter().map(|source| source.value.to_string()).collect();
    assert_eq!(sources, ["oci-layout:./web:baked", "oci-layout:./web-d01:baked"]);
    assert_eq!(again.machines[0].drives[1].size_bytes.value, 64 << 20);
}
