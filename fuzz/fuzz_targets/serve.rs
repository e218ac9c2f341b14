//! The target `serve`, for `cargo fuzz`; a plain build runs the files named on its command line.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| bootshare_fuzz::serve(input));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    bootshare_fuzz::run_files(bootshare_fuzz::serve)
}
