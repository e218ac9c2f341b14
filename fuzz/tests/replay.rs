//! Runs the committed inputs and a fixed number of random ones, without a fuzzer.

use bootshare_fuzz::{
    Random, boot, client,
    run::{inputs, named},
    serve, wire, zstd,
};
use std::path::Path;

fn replay(name: &str, target: fn(&[u8]), random_cases: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = inputs(&root.join("corpus").join(name)).unwrap();
    let regressions = root.join("regressions").join(name);
    let regressions = if regressions.exists() {
        inputs(&regressions).unwrap()
    } else {
        Vec::new()
    };
    // Miri is a thousand times slower, and is used to check pointers, not to test many inputs.
    let step = if cfg!(miri) { 6 } else { 1 };
    for (path, input) in corpus.iter().chain(&regressions).step_by(step) {
        named(target, &path.display(), input);
    }
    let corpus: Vec<_> = corpus.into_iter().map(|(_, input)| input).collect();
    let mut random = Random::new(1);
    let random_cases = if cfg!(miri) { 5 } else { random_cases };
    for number in 0..random_cases {
        let case = random.case(&corpus);
        named(target, &format_args!("random case {number}"), &case);
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
