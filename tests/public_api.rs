//! Compares the list of the library's public items, `docs/public-api.txt`, with the sources, so that a
//! review shows each change of the interface.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const LIST: &str = "docs/public-api.txt";

/// The format of rustdoc's JSON that the crate `public-api` can read: that of the pinned Rust.
const FORMAT: &str = "\"format_version\":57}";

#[test]
fn the_list_of_public_items_is_that_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = own.parent().unwrap();
    // Only rustdoc gets RUSTC_BOOTSTRAP, so that cargo does not rebuild the dependencies.
    let rustdoc = own.join("rustdoc");
    fs::write(
        &rustdoc,
        "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc \"$@\"\n",
    )
    .unwrap();
    fs::set_permissions(&rustdoc, fs::Permissions::from_mode(0o755)).unwrap();
    let status = Command::new(env!("CARGO"))
        .args(["rustdoc", "--quiet", "--lib", "-p", "bootshare"])
        .args(["--features", "loader", "--target-dir"])
        .arg(target)
        .args(["--", "-Zunstable-options", "--output-format", "json"])
        .args(["--cap-lints", "allow"])
        .env("RUSTDOC", &rustdoc)
        .current_dir(root)
        .status()
        .unwrap();
    assert!(status.success(), "rustdoc failed");
    let json = target.join("doc/bootshare.json");
    if !fs::read_to_string(&json).unwrap().ends_with(FORMAT) {
        let version = Command::new("rustc").arg("--version").output().unwrap();
        let version = String::from_utf8(version.stdout).unwrap();
        let version = version.split(' ').nth(1).unwrap();
        let toolchain = fs::read_to_string(root.join("rust-toolchain.toml")).unwrap();
        assert!(
            !toolchain.contains(&format!("\"{version}\"")),
            "the JSON of Rust {version} has another format: update FORMAT and public-api"
        );
        println!("not tested, for it needs the Rust of rust-toolchain.toml: {LIST}");
        return;
    }
    let items = public_api::Builder::from_rustdoc_json(&json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .unwrap();
    let found = items.to_string();
    let listed = fs::read_to_string(root.join(LIST)).unwrap();
    if found == listed {
        return;
    }
    let new = own.join("public-api.txt");
    fs::write(&new, &found).unwrap();
    let count = |a: &str, b: &str| {
        let known: std::collections::HashSet<_> = b.lines().collect();
        a.lines().filter(|line| !known.contains(line)).count()
    };
    panic!(
        "the public items differ from {LIST}, {} are new and {} are gone: if that is meant, copy {} \
         there, and say in CHANGELOG.md what changes for users",
        count(&found, &listed),
        count(&listed, &found),
        new.display()
    );
}
