//! Texts: options, commands, command lines, names and versions.

use crate::source::Source;
use bootshare::boot::{
    bls::Timeout,
    cmdline::{self, CommandLineError, key_and_value, words},
    commands::{CommandError, Commands, MAX_WORDS},
    conventional::Conventional,
    options::{MAX_TAG_BYTES, OptionError, Options},
    version::compare,
};
use std::cmp::Ordering;

/// Whether `part` is inside `whole`, by its address.
pub fn lies_in(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

pub fn options(mut source: Source<'_>) {
    let line = source.rest();
    match Options::parse(line) {
        Ok(options) => {
            assert!(options.deadline.as_secs() >= 1 && options.deadline.as_secs() <= 86_400);
            assert!(!matches!(options.timeout, Some(Timeout::Seconds(86_401..))));
            for tag in &options.tags {
                assert!((1..=MAX_TAG_BYTES).contains(&tag.len()) && lies_in(tag, line));
            }
            for text in [options.entry, options.commands].into_iter().flatten() {
                assert!(!text.is_empty() && lies_in(text, line));
            }
            if !options.payload.is_empty() {
                assert!(lies_in(options.payload, line));
                assert_eq!(options.payload, options.payload.trim_ascii());
                assert!(words(line).any(|word| word == b"--"));
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            match error {
                OptionError::Unknown { key }
                | OptionError::NoValue { key, .. }
                | OptionError::BadValue { key, .. } => assert!(key.starts_with(b"bootshare.")),
                OptionError::OpenQuote { word } => assert!(word.contains(&b'"')),
                OptionError::TooManyTags => {}
            }
        }
    }
}

pub fn commands(mut source: Source<'_>) {
    let room = usize::from(source.u8());
    if source.flag() {
        return quoted_command(source);
    }
    let line = source.rest();
    let mut buffer = vec![0; if room == 255 { line.len() } else { room }];
    let limit = buffer.len();
    let mut all = Commands::new(line);
    let mut left = line.len() + 1;
    while let Some(result) = all.next(&mut buffer) {
        left = left.checked_sub(1).expect("more commands than bytes");
        match result {
            Ok(words) => {
                assert!(!words.is_empty());
                assert!(words.iter().map(|word| word.len()).sum::<usize>() <= limit);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                let too_long = matches!(error, CommandError::TooLong { .. });
                assert!(
                    !too_long || limit < line.len(),
                    "no more than the line's own bytes"
                );
                assert!(all.next(&mut []).is_none(), "nothing comes after an error");
                return;
            }
        }
    }
}

/// Quoted words of any bytes are parsed back unchanged.
fn quoted_command(mut source: Source<'_>) {
    let (mut expected, mut line) = (Vec::new(), Vec::new());
    while !source.is_empty() && expected.len() < MAX_WORDS {
        let style = source.below(3);
        let word = source.short_bytes();
        match style {
            0 => {
                line.push(b'"');
                for byte in word {
                    line.extend(format!("\\x{byte:02x}").bytes());
                }
                line.push(b'"');
            }
            1 => {
                // A single quote ends the quoted part, is written escaped, and a new quoted part starts.
                line.push(b'\'');
                for &byte in word {
                    match byte {
                        b'\'' => line.extend_from_slice(b"'\\''"),
                        _ => line.push(byte),
                    }
                }
                line.push(b'\'');
            }
            _ => {
                line.push(b'"');
                for &byte in word {
                    if matches!(byte, b'"' | b'\\') {
                        line.push(b'\\');
                    }
                    line.push(byte);
                }
                line.push(b'"');
            }
        }
        line.push(b' ');
        expected.push(word);
    }
    let mut buffer = vec![0; line.len()];
    match Commands::new(&line).next(&mut buffer) {
        Some(words) => assert_eq!(*words.expect("the quotes are balanced"), *expected),
        None => assert!(expected.is_empty()),
    }
}

pub fn command_line(mut source: Source<'_>) {
    let room = usize::from(source.u16()) % 2048;
    let limit = usize::from(source.u16()) % 2048;
    let board: Vec<&[u8]> = (0..source.below(4)).map(|_| source.short_bytes()).collect();
    // The words of a board's own command line are text.
    let board: Vec<&[u8]> = board
        .into_iter()
        .filter(|word| !word.contains(&0))
        .collect();
    let extra = source.short_bytes();
    let text = source.rest();
    let mut buffer = vec![0xa5; room];
    match cmdline::build(&mut buffer, limit, &board, text, extra) {
        Ok(line) => {
            let line = line.to_bytes();
            assert!(line.len() <= limit && line.len() < room);
            assert!(!line.contains(&b'\n') && !line.contains(&b'\t'));
            // White space at the ends of each part is removed, except some that the kernel removes itself.
            assert!(
                !line.ends_with(b" ")
                    || text.contains(&0x0b)
                    || extra.contains(&0x0b)
                    || board.iter().any(|word| word.contains(&0x0b))
            );
            let clean = |byte: &u8| {
                if *byte == 0x0b || byte.is_ascii_whitespace() {
                    b' '
                } else {
                    *byte
                }
            };
            // Words after a `--` are moved to the end.
            if ![text, extra]
                .iter()
                .any(|part| words(part).any(|word| word == b"--"))
            {
                let extra: Vec<u8> = extra.trim_ascii().iter().map(clean).collect();
                assert!(line.ends_with(&extra));
                let text: Vec<u8> = text.trim_ascii().iter().map(clean).collect();
                let before = &line[..line.len() - extra.len()];
                assert!(before.trim_ascii_end().ends_with(text.trim_ascii_end()));
            }
        }
        Err(error @ CommandLineError::Nul { offset }) => {
            assert!(
                [text, extra]
                    .iter()
                    .any(|part| part.get(offset) == Some(&0))
            );
            assert!(!error.to_string().is_empty());
        }
        Err(error @ CommandLineError::TooLong { bytes, limit: most }) => {
            // An empty buffer has no space for the NUL.
            assert!((bytes > most || room == 0) && most <= limit);
            assert!(!error.to_string().is_empty());
        }
    }
}

pub fn words_of(mut source: Source<'_>) {
    let line = source.rest();
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let mut all = words(line);
    let mut at = 0;
    while let Some(word) = all.next() {
        assert!(lies_in(word, line) && !word.is_empty());
        let start = word.as_ptr().addr() - line.as_ptr().addr();
        assert!(line[at..start].iter().all(is_space));
        at = start + word.len();
        assert_eq!(all.rest(), &line[at..]);
        let quotes = word.iter().filter(|&&byte| byte == b'"').count();
        assert_eq!(all.open_quote(), quotes % 2 == 1);
        assert!(!all.open_quote() || at == line.len());
        assert!(quotes > 0 || !word.iter().any(is_space));
        let (key, value) = key_and_value(word);
        assert!(lies_in(key, word) && !key.contains(&b'='));
        assert!(value.is_none_or(|value| lies_in(value, word)));
    }
    assert!(line[at..].iter().all(is_space));
    assert_eq!(all.next(), None);
}

pub fn conventional(mut source: Source<'_>) {
    // Names that often have the same beginnings and versions.
    const STARTS: [&[u8]; 18] = [
        b"",
        b"vmlinuz-",
        b"initrd.img-",
        b"initramfs-",
        b"initrd-",
        b"initramfs",
        b"vmlinuz",
        b"Image",
        b"initrd.img",
        b"initrd",
        b"cmdline",
        b"cmdline.txt",
        b"Image-",
        b"vmlinux-",
        b"vmlinux",
        b"bzImage",
        b"uInitrd-",
        b"initrd.gz",
    ];
    let mut names = Vec::new();
    while !source.is_empty() && names.len() < 24 {
        let mut name = STARTS[source.below(STARTS.len())].to_vec();
        name.extend_from_slice(source.short_bytes());
        if source.below(4) == 0 {
            name.extend_from_slice(b".img");
        }
        names.push(name);
    }
    let choice = chosen(names.iter());
    let kernel = choice.kernel().map(<[u8]>::to_vec);
    let initrd = choice.initrd().map(|name| name.to_vec());
    let cmdline = choice.cmdline().map(<[u8]>::to_vec);
    for name in [&kernel, &initrd, &cmdline].into_iter().flatten() {
        assert!(names.contains(name), "{name:?} is not there");
    }
    // The order of the directory entries does not matter.
    let other = chosen(names.iter().rev());
    assert_eq!(other.kernel(), kernel.as_deref());
    assert_eq!(other.initrd().as_deref(), initrd.as_deref());
    assert_eq!(other.cmdline(), cmdline.as_deref());
}

fn chosen<'a>(names: impl Iterator<Item = &'a Vec<u8>> + Clone) -> Conventional {
    let mut choice = Conventional::default();
    names.clone().for_each(|name| choice.consider(name));
    if choice.look_again() {
        names.for_each(|name| choice.consider(name));
    }
    choice
}

/// Versions have a total order.
pub fn versions(mut source: Source<'_>) {
    let (a, b) = (source.short_bytes(), source.short_bytes());
    let c = source.rest();
    check_order([a, b, c], |x, y| compare(x, y));
}

/// Asserts that `compare` is a total order on these three values.
pub fn check_order<T>([a, b, c]: [T; 3], compare: impl Fn(&T, &T) -> Ordering) {
    for (x, y, z) in [
        (&a, &b, &c),
        (&b, &c, &a),
        (&c, &a, &b),
        (&c, &b, &a),
        (&b, &a, &c),
        (&a, &c, &b),
    ] {
        assert_eq!(compare(x, x), Ordering::Equal);
        assert_eq!(compare(x, y), compare(y, x).reverse());
        let (xy, yz, xz) = (compare(x, y), compare(y, z), compare(x, z));
        if xy.is_eq() {
            assert_eq!(xz, yz);
        }
        if xy == yz {
            assert_eq!(xz, xy);
        }
    }
}
