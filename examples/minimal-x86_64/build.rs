//! Passes the linker script to the linker.

use std::env;

fn main() {
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rerun-if-changed=memory.ld");
    println!("cargo:rustc-link-arg-bins=-T{here}/memory.ld");
}
