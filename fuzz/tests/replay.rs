//! Runs the committed inputs and a fixed number of random ones, without a fuzzer.

use bootshare_fuzz::{Random, boot, client, serve, wire, zstd};
use std::{fs, panic, path::Path};

/// The inputs in `fuzz/KIND/TARGET`, sorted by name, so that every run uses the same order.
fn inputs(kind: &str, target: &str) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(entries) = fs::read_dir(root.join(kind).join(target)) else {
        return Vec::new();
    };
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            (name, fs::read(path).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs `target`. If it panics, names the input.
fn run(target: fn(&[u8]), name: &str, input: &[u8]) {
    if let Err(cause) = panic::catch_unwind(|| target(input)) {
        eprintln!("{name}: {}", input.escape_ascii());
        panic::resume_unwind(cause);
    }
}

fn replay(name: &str, target: fn(&[u8]), random_cases: usize) {
    let corpus = inputs("corpus", name);
    assert!(!corpus.is_empty(), "fuzz/corpus/{name} is missing");
    // Miri is a thousand times slower, and is used to check pointers, not to test many inputs.
    let step = if cfg!(miri) { 6 } else { 1 };
    let regressions = inputs("regressions", name);
    for (name, input) in corpus.iter().chain(&regressions).step_by(step) {
        run(target, name, input);
    }
    let corpus: Vec<_> = corpus.into_iter().map(|(_, input)| input).collect();
    let mut random = Random::new(1);
    let random_cases = if cfg!(miri) { 5 } else { random_cases };
    for number in 0..random_cases {
        let case = random.case(&corpus);
        run(target, &format!("random case {number}"), &case);
    }
}

#[test]
fn hostile_replies_are_refused_or_read_right() {
    replay("wire", wire, 300_000);
}

#[test]
fn boot_files_of_any_bytes_are_refused_or_read_right() {
    replay("boot", boot, 100_000);
}

#[test]
fn a_client_survives_any_device() {
    replay("client", client, 20_000);
}

#[test]
fn zstandard_frames_are_refused_or_unpacked_as_by_the_reference_library() {
    replay("zstd", zstd, 20_000);
}

#[test]
fn a_server_survives_any_front_end() {
    replay("serve", serve, 1_000);
}
