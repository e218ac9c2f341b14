//! Passes the names and paths of the embedded images, and the commit, to the program.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(carries, values(\"firmware\", \"init\"))");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BOOTSHARE_COMMIT");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    // Cargo adds this file to packages only.
    if root.join("Cargo.toml.orig").exists() {
        packaged(&root);
        return;
    }
    for (feature, images) in [
        ("CARGO_FEATURE_EMBED_FIRMWARE", "firmware"),
        ("CARGO_FEATURE_EMBED_INIT", "init"),
    ] {
        if env::var_os(feature).is_some() {
            println!("cargo::rustc-cfg=carries=\"{images}\"");
        }
    }
    say(
        &root.join("../target/firmware"),
        &env::var("BOOTSHARE_COMMIT").unwrap_or_default(),
    );
}

/// In a package, the images are beside the sources, with a file that names the commit they were built from. That
/// must be the commit that cargo has packed.
fn packaged(root: &Path) {
    let images = root.join("images");
    let remedy = "make the package by `make package` in a clone of the repository";
    let built = fs::read_to_string(images.join("COMMIT"))
        .unwrap_or_else(|error| panic!("images/COMMIT: {error}: {remedy}"));
    let built = built.trim();
    let packed = fs::read_to_string(root.join(".cargo_vcs_info.json")).unwrap_or_default();
    let clean = built.trim_end_matches("-dirty");
    assert!(
        !clean.is_empty() && packed.contains(&format!("\"{clean}\"")),
        "the images are of commit {built}, and .cargo_vcs_info.json tells of another one: {remedy}"
    );
    for images in ["firmware", "init"] {
        println!("cargo::rustc-cfg=carries=\"{images}\"");
    }
    say(&images, built);
}

fn say(images: &Path, commit: &str) {
    println!("cargo::rustc-env=BOOTSHARE_IMAGES={}", images.display());
    println!("cargo::rustc-env=BOOTSHARE_COMMIT={commit}");
}
