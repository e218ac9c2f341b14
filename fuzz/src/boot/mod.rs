//! The parsers and planners of the module `boot`.

mod device_tree;
mod entries;
mod images;
mod memory;
mod text;

use crate::source::Source;

/// Runs one parser or planner, selected by the first byte.
pub fn boot(input: &[u8]) {
    let mut source = Source::new(input);
    match source.below(20) {
        0 => images::bzimage(source),
        1 => images::arm64_image(source),
        2 => images::kind(source),
        3 => images::pe(source),
        4 => device_tree::update_tree(source),
        5 => text::options(source),
        6 => text::commands(source),
        7 => text::command_line(source),
        8 => text::words_of(source),
        9 => text::conventional(source),
        10 => text::versions(source),
        11 => memory::planner(source),
        12 => entries::bls(source),
        13 => entries::extlinux(source),
        14 => entries::order(source),
        15 => entries::pattern(source),
        16 => images::elf(source),
        17 => images::uki(source),
        18 => images::gzip(source),
        _ => images::start_info(source),
    }
}
