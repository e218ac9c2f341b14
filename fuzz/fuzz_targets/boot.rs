//! The target `boot`, for `cargo fuzz`; a plain build runs files or random changes of them.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| bootshare_fuzz::boot(input));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    bootshare_fuzz::run::main(bootshare_fuzz::boot)
}
