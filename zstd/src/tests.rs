//! Frames made by hand and by the reference library.

use crate::{Decoder, Error, MAX_BLOCK_BYTES, MAX_UNUSED_BYTES};
use std::{format, string::ToString, vec, vec::Vec};
use zstd::{bulk::Compressor, zstd_safe::CParameter};

/// Decompresses `packed` in pieces; returns the content and the number of bytes used.
fn unpack(packed: &[u8], piece: usize, room: usize) -> Result<(Vec<u8>, usize), Error> {
    let mut out = vec![0xa5; room];
    let mut literals = vec![0x5a; MAX_BLOCK_BYTES];
    let literals: &mut [u8; MAX_BLOCK_BYTES] = literals.as_mut_slice().try_into().unwrap();
    let mut decoder = Decoder::new();
    let (mut start, mut end) = (0, piece.min(packed.len()));
    loop {
        let is_last = end == packed.len();
        start += decoder.decode(&packed[start..end], &mut out, literals, is_last)?;
        if decoder.is_done() {
            out.truncate(decoder.unpacked());
            return Ok((out, start));
        }
        assert!(!is_last, "it neither ends nor fails");
        assert!(end - start <= MAX_UNUSED_BYTES);
        end = (end + piece).min(packed.len());
    }
}

/// Decompresses `packed`, all of which are frames; returns the content.
fn content(packed: &[u8], room: usize) -> Vec<u8> {
    let (content, used) = unpack(packed, packed.len(), room).unwrap();
    assert_eq!(used, packed.len());
    content
}

fn error(packed: &[u8], room: usize) -> Error {
    unpack(packed, packed.len(), room).unwrap_err()
}

/// Bytes of which some parts compress well and others badly, with matches at various distances.
fn sample(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let size = 1 + (state >> 20) as usize % 40;
        let distance = 1 + (state >> 8) as usize % out.len().max(1);
        match state >> 30 {
            0 => out.extend(state.to_le_bytes()),
            1 => out.resize(out.len() + size, state.to_be_bytes()[1] & 7),
            _ if distance <= out.len() => {
                for _ in 0..size {
                    out.push(out[out.len() - distance]);
                }
            }
            _ => out.push(b'a'),
        }
    }
    out.truncate(bytes);
    out
}

fn pack(bytes: &[u8], level: i32, parameters: &[CParameter]) -> Vec<u8> {
    let mut compressor = Compressor::new(level).unwrap();
    for parameter in [CParameter::ChecksumFlag(true)].iter().chain(parameters) {
        compressor.set_parameter(*parameter).unwrap();
    }
    compressor.compress(bytes).unwrap()
}

/// A frame with a window of 1 KiB and these blocks.
fn frame(blocks: &[&[u8]]) -> Vec<u8> {
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0], &blocks.concat()[..]].concat()
}

/// A block, the last of its frame.
fn block(kind: u8, size: usize, content: &[u8]) -> Vec<u8> {
    let header = 1 | u32::from(kind) << 1 | (size as u32) << 3;
    [&header.to_le_bytes()[..3], content].concat()
}

const SKIPPABLE: &[u8] = b"\x5a\x2a\x4d\x18\x05\0\0\0skip!";

#[test]
fn raw_and_repeated_bytes_are_unpacked() {
    assert_eq!(content(&frame(&[&block(0, 4, b"text")]), 4), b"text");
    assert_eq!(
        content(&frame(&[&block(1, 1000, b"x")]), 1000),
        [b'x'; 1000]
    );
    assert_eq!(content(&frame(&[&block(0, 0, b"")]), 0), b"");
    let not_last = [0x20, 0, 0, b't', b'e', b'x', b't'];
    assert_eq!(
        content(&frame(&[&not_last, &block(1, 2, b"!")]), 6),
        b"text!!"
    );
}

/// Two literals, and a match of five bytes with offset 2; without descriptions of tables.
#[test]
fn a_sequence_made_by_hand_is_unpacked() {
    // Raw literals "ab"; one sequence; predefined tables or tables of one symbol: literal length 2, offset
    // code 2, match length 5. The two additional bits 01 of the offset give the value 5, which is offset 2. The
    // end mark precedes them.
    let sequence = [0x10, b'a', b'b', 1, 0b0101_0100, 2, 2, 2, 0b101];
    let packed = frame(&[&block(2, sequence.len(), &sequence)]);
    assert_eq!(content(&packed, 7), b"abababa");
    // An output that is one byte too small.
    assert_eq!(error(&packed, 6), Error::TooLarge);
}

#[test]
fn every_level_of_the_reference_library_is_unpacked() {
    let bytes = sample(400_000);
    for level in -5..=22 {
        let packed = pack(&bytes, level, &[]);
        assert!(content(&packed, bytes.len()) == bytes, "level {level}");
    }
    for window in [10, 17, 27, 31] {
        let packed = pack(
            &bytes,
            3,
            &[
                CParameter::WindowLog(window),
                CParameter::ContentSizeFlag(false),
            ],
        );
        assert!(content(&packed, bytes.len()) == bytes, "window {window}");
    }
}

/// These sequences have more bits than one refill provides.
#[test]
fn long_matches_from_far_away_are_unpacked() {
    let mut state = 1_u64;
    let mut noise = |bytes: usize| -> Vec<u8> {
        let next = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..bytes).map(next).collect()
    };
    let mut bytes = noise(4_000_000);
    for start in (0..40).map(|number| number * 777_777 % 3_000_000) {
        bytes.extend(noise(9_000));
        bytes.extend_from_within(start..start + 9_000);
    }
    let packed = pack(&bytes, 19, &[]);
    assert!(packed.len() < bytes.len() - 300_000, "there are no matches");
    assert!(content(&packed, bytes.len()) == bytes);
}

#[test]
fn contents_of_all_small_sizes_are_unpacked() {
    let bytes = sample(600);
    for size in 0..bytes.len() {
        for level in [1, 19] {
            let packed = pack(&bytes[..size], level, &[]);
            assert!(content(&packed, size) == bytes[..size], "{size} bytes");
        }
    }
}

#[test]
fn pieces_of_any_size_make_the_whole() {
    let bytes = sample(300_000);
    let packed = [pack(&bytes, 5, &[]), SKIPPABLE.to_vec(), pack(b"", 1, &[])].concat();
    for piece in [1, 7, 1000, 1 << 17, 1 << 20] {
        let (out, used) = unpack(&packed, piece, bytes.len()).unwrap();
        assert!(out == bytes && used == packed.len(), "pieces of {piece}");
    }
}

#[test]
fn consecutive_frames_are_unpacked_up_to_other_data() {
    let (one, two) = (pack(b"one ", 1, &[]), pack(b"two", 19, &[]));
    let packed = [SKIPPABLE, &one, SKIPPABLE, SKIPPABLE, &two, SKIPPABLE].concat();
    assert_eq!(content(&packed, 7), b"one two");
    for padding in [&[0; 1][..], &[0; 100], &[0xff; 3], b"\x28\xb5", SKIPPABLE] {
        let padded = [&packed, padding].concat();
        for piece in [1, 100, padded.len()] {
            assert_eq!(unpack(&padded, piece, 7).unwrap().0, b"one two");
        }
    }
    // A truncated frame does not count as other data.
    let cut_off = [&one, &two[..two.len() - 1]].concat();
    assert_eq!(error(&cut_off, 7), Error::Truncated);
}

/// The output serves as the window, which needs no memory of its own.
#[test]
fn a_window_of_3_75_tib_needs_no_more_memory_than_the_content() {
    let mut packed = frame(&[&block(0, 4, b"text")]);
    packed[5] = 0xff;
    assert_eq!(content(&packed, 4), b"text");
}

#[test]
fn content_larger_than_the_output_is_refused_after_filling_it() {
    let bytes = sample(300_000);
    let packed = pack(&bytes, 3, &[]);
    let mut literals = vec![0; MAX_BLOCK_BYTES];
    let literals: &mut [u8; MAX_BLOCK_BYTES] = literals.as_mut_slice().try_into().unwrap();
    for room in [0, 1, 7, 4096, 131_072, 131_073, 299_999] {
        let mut out = vec![0; room];
        let mut decoder = Decoder::new();
        let result = decoder.decode(&packed, &mut out, literals, true);
        assert_eq!(result, Err(Error::TooLarge));
        assert_eq!(decoder.unpacked(), room);
        assert!(out == bytes[..room]);
    }
}

#[test]
fn a_frame_that_is_cut_off_anywhere_is_refused() {
    let packed = pack(&sample(3_000), 19, &[]);
    for length in 0..packed.len() {
        assert_eq!(error(&packed[..length], 3_000), Error::Truncated);
    }
}

#[test]
fn a_flipped_bit_is_refused_or_does_not_matter() {
    let bytes = sample(3_000);
    for level in [1, 19] {
        let packed = pack(&bytes, level, &[]);
        let mut refused = 0;
        for bit in 0..packed.len() * 8 {
            let mut packed = packed.clone();
            packed[bit / 8] ^= 1 << (bit % 8);
            match unpack(&packed, packed.len(), 3_000) {
                Ok((out, _)) => assert!(out == bytes),
                Err(_) => refused += 1,
            }
        }
        // Some bits are unused, different offsets may refer to the same bytes, and one flag turns the checksum off.
        let bits = packed.len() * 8;
        assert!(
            refused > bits - bits / 50,
            "{refused} of {bits} are refused"
        );
    }
}

#[test]
fn errors_name_the_cause() {
    let good = pack(b"text", 1, &[]);
    let mut checksum = good.clone();
    let end = checksum.len() - 4;
    checksum[end..].copy_from_slice(&[1, 2, 3, 4]);
    assert!(matches!(
        error(&checksum, 4),
        Error::Checksum {
            expected: 0x0403_0201,
            ..
        }
    ));
    // A single segment, with the content size in one byte.
    let mut size = good.clone();
    size[5] += 1;
    let (expected, found) = (5, 4);
    assert_eq!(error(&size, 9), Error::ContentSize { expected, found });
    let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 2, 0, 7, 1, 1, 0, 0];
    assert_eq!(error(&dictionary, 9), Error::Dictionary { id: 0x107 });
    assert_eq!(error(b"text", 9), Error::NotZstd);
    let reserved = [0x28, 0xb5, 0x2f, 0xfd, 8, 0, 1, 0, 0];
    assert_eq!(
        error(&reserved, 9).to_string(),
        "the data is damaged: a reserved bit is set"
    );
    for (block, what) in [
        (block(3, 0, b""), "a block is of the reserved type"),
        (block(0, 1025, b""), "a block is larger than the window"),
        (block(2, 0, b""), "a block ends too early"),
        (
            block(2, 3, &[3, 0, 0]),
            "there is no Huffman code to use again",
        ),
        (block(2, 3, &[0, 0, 1]), "a block goes on after its end"),
        (block(2, 3, &[0, 1, 0xff]), "a reserved bit is set"),
        (block(2, 3, &[0, 1, 0xfc]), "there is no table to use again"),
        (
            block(2, 6, &[0, 1, 0x54, 99, 0, 0]),
            "a sequence has a code that does not exist",
        ),
        (
            block(2, 7, &[0, 1, 0x54, 0, 2, 0, 0]),
            "a stream of bits has no end mark",
        ),
        (
            block(2, 7, &[0, 1, 0x54, 0, 2, 0, 0b101]),
            "a match is from before the frame",
        ),
        (
            block(2, 7, &[0, 1, 0x54, 5, 2, 0, 0b101]),
            "a sequence has more literals than are there",
        ),
        (
            block(2, 8, &[8, b'a', 1, 0x54, 1, 2, 0, 0b1001]),
            "sequences do not end where their bits do",
        ),
        (
            block(2, 4, &[0xd5, 0xff, b'x', 0]),
            "a block has more literals than a block has bytes",
        ),
    ] {
        let text = error(&frame(&[&block]), 4096).to_string();
        assert_eq!(text, format!("the data is damaged: {what}"));
    }
}
