//! Zstandard frames, compared with the reference library.

use crate::source::Source;
use bootshare_zstd::{Decoder, Error, MAX_BLOCK_BYTES, MAX_UNUSED_BYTES};
use std::cell::RefCell;

/// Unpacks frames of any bytes, or the output of a compressor, unchanged or with a few changed bytes. The result
/// must be that of the reference library, or an error.
pub fn zstd(input: &[u8]) {
    let mut source = Source::new(input);
    let room = usize::from(source.u16()) << (4 * source.below(2));
    let piece = usize::from(source.u8());
    let packed = if source.flag() {
        source.rest().to_vec()
    } else {
        let (mut packed, content) = reference::packed(&mut source);
        let changes = source.below(4);
        for _ in 0..changes {
            let at = usize::from(source.u16()) % packed.len();
            packed[at] ^= source.u8();
        }
        if changes == 0 {
            let whole = unpack(&packed, packed.len(), content.len());
            assert!(whole == Ok((content, packed.len())), "the content differs");
        }
        packed
    };
    let whole = unpack(&packed, packed.len(), room);
    let pieces = unpack(&packed, piece, room);
    assert_eq!(whole, pieces);
    reference::compare(&packed, room, &whole);
}

/// The output buffer, and the literals. They keep data of earlier frames, which a decoder must not read.
struct Buffers {
    out: Vec<u8>,
    literals: Box<[u8; MAX_BLOCK_BYTES]>,
}

/// Twice the size of the largest content that is compressed.
const MAX_OUT_BYTES: usize = 2 << 20;

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        out: vec![0xa5; MAX_OUT_BYTES],
        literals: Box::new([0x5a; MAX_BLOCK_BYTES]),
    });
}

/// Unpacks `packed` in pieces. Returns the content, and how many bytes were used.
fn unpack(packed: &[u8], piece: usize, room: usize) -> Result<(Vec<u8>, usize), Error> {
    BUFFERS.with_borrow_mut(|Buffers { out, literals }| {
        unpack_into(packed, piece, &mut out[..room], literals)
    })
}

fn unpack_into(
    packed: &[u8],
    piece: usize,
    out: &mut [u8],
    literals: &mut [u8; MAX_BLOCK_BYTES],
) -> Result<(Vec<u8>, usize), Error> {
    let room = out.len();
    let mut decoder = Decoder::new();
    let (mut start, mut end) = (0, piece.min(packed.len()));
    loop {
        let is_last = end == packed.len();
        let result = decoder.decode(&packed[start..end], out, literals, is_last);
        assert!(decoder.unpacked() <= room);
        match result {
            Ok(used) => start += used,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                if let Error::Checksum { expected, found } = error {
                    assert_ne!(expected, found);
                }
                return Err(error);
            }
        }
        if decoder.is_done() {
            return Ok((out[..decoder.unpacked()].to_vec(), start));
        }
        assert!(!is_last, "it neither ends nor fails");
        assert!(end - start <= MAX_UNUSED_BYTES);
        end = (end + piece.max(1)).min(packed.len());
    }
}

/// Miri cannot run C.
#[cfg(miri)]
mod reference {
    use super::*;

    pub fn packed(_: &mut Source<'_>) -> (Vec<u8>, Vec<u8>) {
        // A frame with an empty block.
        (b"\x28\xb5\x2f\xfd\x20\0\x01\0\0".to_vec(), Vec::new())
    }

    pub fn compare(_: &[u8], _: usize, _: &Result<(Vec<u8>, usize), Error>) {}
}

#[cfg(not(miri))]
mod reference {
    use super::*;
    use zstd::{
        bulk::{Compressor, Decompressor},
        zstd_safe::CParameter,
    };

    thread_local! {
        static COMPRESSOR: RefCell<Compressor<'static>> = RefCell::new(Compressor::new(1).unwrap());
        static DECOMPRESSOR: RefCell<Decompressor<'static>> =
            RefCell::new(Decompressor::new().unwrap());
    }

    /// Compresses some content. Returns the result and the content.
    pub fn packed(source: &mut Source<'_>) -> (Vec<u8>, Vec<u8>) {
        let (mut packed, mut all) = (Vec::new(), Vec::new());
        for _ in 0..=source.below(4) / 3 {
            if source.below(8) == 0 {
                packed.extend([0x50 | (source.u8() & 15), 0x2a, 0x4d, 0x18]);
                let bytes = source.short_bytes();
                packed.extend((bytes.len() as u32).to_le_bytes());
                packed.extend(bytes);
            }
            let level = source.below(22).min(source.below(22)) as i32 + 1;
            let parameters = [
                CParameter::CompressionLevel(level),
                CParameter::ChecksumFlag(source.flag()),
                CParameter::ContentSizeFlag(source.flag()),
                CParameter::WindowLog(10 + source.below(8) as u32),
                CParameter::TargetCBlockSize(match source.below(4) {
                    0 => 1340 + u32::from(source.u8()),
                    _ => 0,
                }),
            ];
            let content = content(source);
            COMPRESSOR.with_borrow_mut(|compressor| {
                for parameter in parameters {
                    compressor.set_parameter(parameter).unwrap();
                }
                packed.extend(compressor.compress(&content).unwrap());
            });
            all.extend(content);
        }
        (packed, all)
    }

    /// Content made of literals, runs and repetitions.
    fn content(source: &mut Source<'_>) -> Vec<u8> {
        let mut content = Vec::new();
        // Several blocks are rare, because packing them takes most of the time.
        let limit = match source.u8() {
            0 => 300_000,
            1..16 => 0,
            _ => 6_000,
        };
        while content.len() < limit && !source.is_empty() {
            let size = (1 + usize::from(source.u8())) << (source.below(16) / 2);
            match source.below(4) {
                0 => content.extend(source.bytes(size % 64)),
                1 => content.resize(content.len() + size, source.u8()),
                2 => {
                    // Bytes with few different values, as in text and code.
                    let (mut state, mask) = (u32::from(source.u8()), source.u8());
                    content.extend((0..size).map(|_| {
                        state = state.wrapping_mul(0x19660d).wrapping_add(0x3c6ef35f);
                        (state >> 24) as u8 & mask
                    }));
                }
                _ => {
                    let from = usize::from(source.u16()) % content.len().max(1);
                    for at in from..from + size {
                        let byte = content.get(at).copied();
                        content.extend(byte);
                    }
                }
            }
        }
        content
    }

    /// The errors for inputs where RFC 8878 is stricter than the reference library.
    const STRICT: [&str; 5] = [
        "a block is larger than the window",
        "a block unpacks to more than a block has",
        "a stream of bits has no end mark",
        "a stream of bits is too short",
        "literals do not end where their bits do",
    ];

    pub fn compare(packed: &[u8], room: usize, ours: &Result<(Vec<u8>, usize), Error>) {
        let packed = match ours {
            Ok((_, used)) => &packed[..*used],
            Err(_) => packed,
        };
        let mut out = vec![0; room];
        let theirs =
            DECOMPRESSOR.with_borrow_mut(|it| it.decompress_to_buffer(packed, out.as_mut_slice()));
        match (ours, theirs) {
            (Ok((ours, _)), Ok(size)) => assert!(*ours == out[..size], "the content differs"),
            (Ok(_), Err(error)) => {
                // The reference library does not accept windows of more than 2 GiB; this decoder needs no memory
                // for the window.
                let error = error.to_string();
                assert!(
                    error.contains("too much memory"),
                    "this decoder accepts it: {error}"
                );
            }
            (Err(Error::Damaged(why)), Ok(_)) if STRICT.contains(why) => {}
            // Not a frame at all.
            (Err(Error::Truncated), Ok(0)) if packed.is_empty() => {}
            (Err(error), Ok(_)) => panic!("the reference library accepts it: {error}"),
            (Err(_), Err(_)) => {}
        }
    }
}
