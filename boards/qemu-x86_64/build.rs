//! Hands the linker its script when the firmware is built; a build for the host needs none.

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let crate_root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let script = Path::new(&crate_root).join("../../linker/x86_64.ld");
    let script = script.display();
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=--orphan-handling=error");
    println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
}
