//! Boot entries: their files, names and order, and the patterns that select them.

use super::text::{check_order, lies_in};
use crate::source::Source;
use bootshare::boot::{
    Architecture,
    bls::{self, FileName, Fit, LoaderConf},
    entry::{Base, Entry, EntryError, MAX_INITRDS},
    extlinux::{Config, Include, Label, remove_variables},
    glob,
    grub::Environment,
    uboot_image,
};

const MACHINES: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];

/// Asserts that a value is part of one line of `text`, without white space around it.
fn check_value(value: &[u8], text: &[u8]) {
    if !value.is_empty() {
        assert!(lies_in(value, text));
        assert!(!value.contains(&b'\n'));
        // White space inside quotation marks is kept.
        assert!(value == value.trim_ascii() || text.contains(&b'"') || text.contains(&b'\''));
    }
}

/// The values of the lines that start with `key`, by a simple search.
fn values<'a>(text: &'a [u8], key: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    text.split(|&byte| byte == b'\n').filter_map(move |line| {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let rest = line.trim_ascii().strip_prefix(key)?;
        let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
        ends.then(|| unquoted(rest.trim_ascii()))
    })
}

/// The value without quotation marks around the whole of it.
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"' | b'\'', inside @ .., _] if value.ends_with(&value[..1]) => {
            match inside.contains(&value[0]) {
                true => value,
                false => inside,
            }
        }
        _ => value,
    }
}

fn check_entry(entry: Result<Entry<'_>, EntryError<'_>>, machine: Architecture) {
    match entry {
        Ok(entry) => {
            assert!(!entry.kernel.is_empty());
            assert!(entry.initrds.len() <= MAX_INITRDS);
            assert!(entry.initrds.iter().all(|path| !path.is_empty()));
            for path in entry.initrds.iter().chain([&entry.kernel]) {
                let places = entry.base.places(path);
                assert!(places.iter().all(|place| path.ends_with(place.name)));
            }
            assert!(entry.device_tree.is_none_or(|path| !path.is_empty()));
            assert!(entry.device_tree.is_none() || machine == Architecture::Aarch64);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Files of the Boot Loader Specification.
pub fn bls(mut source: Source<'_>) {
    let text = source.rest();
    let entry = bls::Entry::parse(text);
    for (value, key) in [
        (entry.title, &b"title"[..]),
        (entry.version, b"version"),
        (entry.machine_id, b"machine-id"),
        (entry.sort_key, b"sort-key"),
        (entry.linux, b"linux"),
        (entry.devicetree, b"devicetree"),
        (entry.architecture, b"architecture"),
    ] {
        check_value(value, text);
        assert_eq!(value, values(text, key).last().unwrap_or_default());
    }
    let all = |key| values(text, key).filter(|value| !value.is_empty());
    let initrds: Vec<_> = entry.initrds().collect();
    assert!(
        initrds.len()
            >= all(b"initrd")
                .filter(|value| !value.trim_ascii().is_empty())
                .count()
    );
    assert!(
        initrds
            .iter()
            .all(|path| !path.is_empty() && lies_in(path, text))
    );
    assert!(entry.options().eq(all(b"options")));
    for machine in MACHINES {
        assert!(entry.is_for(machine) || !entry.architecture.is_empty());
        for asked in [false, true] {
            let base = Base::Bls { root: "/boot" };
            check_entry(Entry::from_bls(base, &entry, machine, asked), machine);
        }
    }
    let environment = Environment::parse(text);
    let size = bls::expand(text, &environment, &mut []);
    let mut expanded = vec![0; size];
    assert_eq!(bls::expand(text, &environment, &mut expanded), size);
    if !bls::wants_expansion(text) {
        assert!(bls::Entry::parse(&expanded).options().eq(entry.options()));
    }
    assert!(uboot_image::initrd(text).is_err() || uboot_image::has_magic(text));

    let conf = LoaderConf::parse(text);
    let default = all(b"default").last();
    assert_eq!(conf.default, default);
}

pub fn extlinux(mut source: Source<'_>) {
    let text = source.rest();
    let config = Config::parse(text);
    check_value(config.default, text);
    let mut count = 0;
    for label in config.labels() {
        count += 1;
        assert_eq!(Label::parse(label.text, config.append), Some(label));
        for value in [
            label.name,
            label.menu_label,
            label.linux,
            label.append,
            label.fdt,
            label.fdtdir,
            label.fdtoverlays,
            label.other,
        ] {
            check_value(value, text);
        }
        assert_ne!(label.append, b"-");
        for initrd in label.initrds() {
            assert!(!initrd.is_empty() && !initrd.contains(&b','));
            assert!(lies_in(initrd, text));
        }
        for machine in MACHINES {
            let base = Base::extlinux("/extlinux");
            check_entry(Entry::from_label(base, &label, b"", machine), machine);
        }
    }
    let lines = text.split(|&byte| byte == b'\n').count();
    assert!(count <= lines);
    assert!(
        config
            .default_label()
            .is_none_or(|(index, _)| index < count)
    );
    let mut from = 0;
    while let Some(include) = Include::find(text, from) {
        assert!(include.line.start >= from && include.line.end > include.line.start);
        assert!(include.line.end <= text.len());
        assert!(include.path.is_empty() || lies_in(include.path, text));
        from = include.line.end;
    }
    let mut line = text.to_vec();
    let mut name = [0; 16];
    let (size, found) = remove_variables(&mut line, &mut name);
    assert!(size <= text.len());
    assert_eq!(found.is_none(), size == text.len());
}

/// Names of entry files, and the order of the menu.
pub fn order(mut source: Source<'_>) {
    let names: Vec<Vec<u8>> = (0..3)
        .map(|_| [source.short_bytes(), b".conf"].concat())
        .collect();
    let texts = [source.short_bytes(), source.short_bytes(), source.rest()];
    let mut entries = Vec::new();
    for (name, text) in names.iter().zip(texts) {
        let Some(file) = FileName::parse(name) else {
            let stem = name.len() - 5;
            assert!(stem == 0 || name.starts_with(b"."));
            return;
        };
        assert!(!file.id.is_empty() && name.starts_with(file.id));
        assert_eq!(
            Fit::of(&name.to_ascii_uppercase(), b"", name) == Fit::None,
            { !glob::matches_any_case(&name.to_ascii_uppercase(), name) }
        );
        assert_eq!(file.tries.is_none(), file.id.len() + 5 == name.len());
        assert!(!file.is_bad() || file.tries.is_some());
        entries.push((file, bls::Entry::parse(text)));
    }
    let [a, b, c] = [0, 1, 2].map(|index| (&entries[index].0, &entries[index].1));
    check_order([a, b, c], |x, y| bls::compare(*x, *y));
}

pub fn pattern(mut source: Source<'_>) {
    // Shorter than the longest set, to which the definition below is limited.
    let name = source.bytes(usize::from(source.clone().u8() % 60));
    let pattern = source.rest();
    let pattern = &pattern[..pattern.len().min(60)];
    let expected = fits(pattern, name);
    assert_eq!(glob::matches(pattern, name), expected);
}

/// fnmatch(3) by its definition: whether each suffix of the pattern matches each suffix of the name.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let mut known = vec![vec![false; name.len() + 1]; pattern.len() + 1];
    known[pattern.len()][name.len()] = true;
    for p in (0..pattern.len()).rev() {
        for n in (0..=name.len()).rev() {
            known[p][n] = match (pattern[p], name.get(n)) {
                (b'*', None) => known[p + 1][n],
                (b'*', Some(_)) => known[p + 1][n] || known[p][n + 1],
                (_, None) => false,
                (_, Some(&byte)) => {
                    let (matched, used) = one(&pattern[p..], byte);
                    matched && known[p + used][n + 1]
                }
            };
        }
    }
    known[0][0]
}

/// Whether the start of `pattern` matches `byte`, and its length.
fn one(pattern: &[u8], byte: u8) -> (bool, usize) {
    match pattern {
        [b'\\', escaped, ..] => (*escaped == byte, 2),
        [b'[', set @ ..] => {
            let (matched, used) = in_set(set, byte).unwrap_or((byte == b'[', 0));
            (matched, 1 + used)
        }
        _ => (pattern[0] == b'?' || pattern[0] == byte, 1),
    }
}

/// Whether `byte` is in the set, and the bytes of the set up to its end.
fn in_set(set: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    let end = (start + 1..set.len()).find(|&at| set[at] == b']')?;
    let members = &set[start..end];
    let mut at = 0;
    let mut found = false;
    while at < members.len() {
        if at + 2 < members.len() && members[at + 1] == b'-' {
            found |= members[at] <= byte && byte <= members[at + 2];
            at += 3;
        } else {
            found |= members[at] == byte;
            at += 1;
        }
    }
    Some((found != negated, end + 1))
}
