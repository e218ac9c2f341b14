//! Boot entries of UAPI.1, the "Boot Loader Specification" 1.0, type 1
//! (<https://uapi-group.org/specifications/specs/boot_loader_specification/>), and systemd-boot's
//! `loader.conf` (loader.conf(5)).
//!
//! An entry is a text file, `/loader/entries/NAME.conf`:
//!
//! | key | meaning |
//! |---|---|
//! | `title`, `version`, `machine-id`, `sort-key` | the name, and the position in the list |
//! | `linux` | the kernel's path |
//! | `initrd` | the path of an initrd; may be repeated |
//! | `options` | words for the kernel's command line; may be repeated |
//! | `devicetree` | the path of a device tree that replaces the machine's |
//! | `devicetree-overlay` | refused: see [`entry`](crate::boot::entry) |
//! | `architecture` | hides the entry from other machines |
//! | `uki` | the path of a [unified kernel image](crate::boot::uki) |
//! | `efi` | the path of any EFI program: the entry is hidden unless it is chosen by name |
//! | `uki-url` | hides the entry: this loader has no network |
//! | `profile` | the profile of a unified kernel image to start |
//! | `extra` | the path of an addon for a unified kernel image; may be repeated |
//!
//! Other keys are ignored. If a single-valued key is repeated, the last line wins. All paths are relative to
//! the root of the file system that holds the entry, with a leading `/` or without. As in systemd-boot,
//! quotation marks around a whole value are removed. As in GRUB, an `initrd` line may name several paths,
//! and `linux`, `initrd`, `options` and `devicetree` may contain [variables](crate::boot::grub), which
//! [`expand`] replaces.

use crate::boot::{
    Architecture, glob,
    grub::{Environment, has_variables},
    text::{Lines, as_str, lines, number, unquoted},
    version,
};
use core::cmp::{Ordering, Reverse};

/// The parsed file name of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileName<'a> {
    /// The entry's id: the name without its extension and without boot counters.
    pub id: &'a [u8],
    /// The boot counters, if any.
    pub tries: Option<Tries>,
    /// The profile of a unified kernel image: 0 for the file itself, otherwise the number after `@`.
    pub profile: u32,
    /// The whole name.
    pub name: &'a [u8],
}

/// The boot counters of an entry ("Boot counting"). They are read but never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Tries left.
    pub left: u32,
    /// Failed tries.
    pub done: u32,
}

impl<'a> FileName<'a> {
    /// Parses the name of a file in `/loader/entries` or (type 2) `/EFI/Linux`; `None` if it is not the name
    /// of an entry. As in systemd-boot, `@1` and so on after the name of an image select its other profiles;
    /// the id of such an entry is the whole name.
    #[must_use]
    pub fn parse(name: &'a [u8]) -> Option<Self> {
        if let Some((file, profile)) = profile(name) {
            return Some(Self {
                id: name,
                profile,
                name,
                ..Self::parse(file)?
            });
        }
        let stem = stem(name)?;
        // `*.conf` does not match hidden files.
        if stem.is_empty() || stem.starts_with(b".") {
            return None;
        }
        let (id, tries) = match counters(stem) {
            Some((id, tries)) => (id, Some(tries)),
            None => (stem, None),
        };
        Some(Self {
            id,
            tries,
            profile: 0,
            name,
        })
    }

    /// The id without the profile: that of the file.
    fn file_id(&self) -> &'a [u8] {
        let file = profile(self.name).and_then(|(file, _)| Self::parse(file));
        file.map_or(self.id, |file| file.id)
    }

    /// Whether no tries are left.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.tries.is_some_and(|tries| tries.left == 0)
    }
}

/// How well a name fits a pattern; smaller is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It matches.
    Exact,
    /// It matches if the case of letters is ignored, as in systemd-boot.
    AnyCase,
    /// It does not match.
    None,
}

impl Fit {
    /// Compares `pattern` with an entry. It may match the id, with or without an extension, or the whole
    /// file name.
    #[must_use]
    pub fn of(pattern: &[u8], id: &[u8], name: &[u8]) -> Self {
        let fits = |matches: fn(&[u8], &[u8]) -> bool| {
            matches(stem(pattern).unwrap_or(pattern), id) || matches(pattern, name)
        };
        match () {
            () if fits(glob::matches) => Self::Exact,
            () if fits(glob::matches_any_case) => Self::AnyCase,
            () => Self::None,
        }
    }
}

/// A name without the extension of an entry file.
fn stem(name: &[u8]) -> Option<&[u8]> {
    before(name, b".conf").or_else(|| before(name, b".efi"))
}

/// Whether `name` is that of a unified kernel image: an entry of type 2.
#[must_use]
pub fn is_image(name: &[u8]) -> bool {
    before(name, b".efi").is_some()
}

/// Whether `name` is that of an addon for a unified kernel image.
#[must_use]
pub fn is_addon(name: &[u8]) -> bool {
    before(name, b".addon.efi").is_some()
}

/// Whether `name` is that of a credential, or of a system or configuration extension: files that systemd-stub
/// passes to the system in an initrd.
#[must_use]
pub fn is_credential_or_extension(name: &[u8]) -> bool {
    before(name, b".cred")
        .or_else(|| before(name, b".raw"))
        .is_some()
}

/// Splits `FILE@N`, which names profile N (at least 1) of an image, into the file name and N.
#[must_use]
pub fn profile(name: &[u8]) -> Option<(&[u8], u32)> {
    let at = name.iter().rposition(|&byte| byte == b'@')?;
    let (file, profile) = name.split_at_checked(at)?;
    let profile = number(profile.get(1..)?).filter(|&profile| profile > 0)?;
    is_image(file).then_some((file, profile))
}

/// `name` without `ending`, in upper or lower case, since FAT does not keep the case.
fn before<'a>(name: &'a [u8], ending: &[u8]) -> Option<&'a [u8]> {
    let (stem, end) = name.split_at_checked(name.len().checked_sub(ending.len())?)?;
    end.eq_ignore_ascii_case(ending).then_some(stem)
}

/// Splits off boot counters: `ID+LEFT` or `ID+LEFT-DONE`.
fn counters(stem: &[u8]) -> Option<(&[u8], Tries)> {
    let plus = stem.iter().rposition(|&byte| byte == b'+')?;
    let (id, counters) = stem.split_at_checked(plus)?;
    let mut numbers = counters.get(1..)?.splitn(2, |&byte| byte == b'-');
    let left = number(numbers.next()?)?;
    let done = numbers.next().map_or(Some(0), number)?;
    (!id.is_empty()).then_some((id, Tries { left, done }))
}

/// The content of an entry file. A missing key has an empty value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry<'a> {
    /// The human-readable name.
    pub title: &'a [u8],
    /// The version of the kernel or system.
    pub version: &'a [u8],
    /// The installation that the entry belongs to.
    pub machine_id: &'a [u8],
    /// The first key to sort by.
    pub sort_key: &'a [u8],
    /// The kernel's path.
    pub linux: &'a [u8],
    /// The path of a device tree.
    pub devicetree: &'a [u8],
    /// Paths of device tree overlays, separated by spaces.
    pub devicetree_overlay: &'a [u8],
    /// The architecture that the entry is for, as the EFI specification names it.
    pub architecture: &'a [u8],
    /// The path of a unified kernel image.
    pub uki: &'a [u8],
    /// The path of an EFI program.
    pub efi: &'a [u8],
    /// The profile of the unified kernel image to start.
    pub profile: &'a [u8],
    /// The URL of a unified kernel image.
    pub uki_url: &'a [u8],
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Parses an entry file, which may hold any bytes.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Self {
        let mut entry = Self {
            text,
            ..Self::default()
        };
        // A table: comparing with each key in a `match` would take 1 KiB more code.
        let mut fields: [(&[u8], &mut &'a [u8]); 12] = [
            (b"title", &mut entry.title),
            (b"version", &mut entry.version),
            (b"machine-id", &mut entry.machine_id),
            (b"sort-key", &mut entry.sort_key),
            (b"linux", &mut entry.linux),
            (b"devicetree", &mut entry.devicetree),
            (b"devicetree-overlay", &mut entry.devicetree_overlay),
            (b"architecture", &mut entry.architecture),
            (b"uki", &mut entry.uki),
            (b"efi", &mut entry.efi),
            (b"profile", &mut entry.profile),
            (b"uki-url", &mut entry.uki_url),
        ];
        for (key, value) in lines(text) {
            if let Some((_, field)) = fields.iter_mut().find(|(name, _)| *name == key) {
                **field = unquoted(value);
            }
        }
        entry
    }

    /// The paths of the initrds, in the order of the file.
    pub fn initrds(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.values(b"initrd").flat_map(Paths)
    }

    /// The `options` lines, in the order of the file; together they are the kernel's command line.
    #[must_use]
    pub fn options(&self) -> Values<'a> {
        self.values(b"options")
    }

    /// The `extra` paths (addons for a unified kernel image), in the order of the file.
    #[must_use]
    pub fn extras(&self) -> Values<'a> {
        self.values(b"extra")
    }

    fn values(&self, key: &'static [u8]) -> Values<'a> {
        Values {
            lines: lines(self.text),
            key,
        }
    }

    /// Whether the entry may be started on `machine`, by its key `architecture`.
    #[must_use]
    pub fn is_for(&self, machine: Architecture) -> bool {
        // The names of the EFI specification, then others in common use.
        let names: [&[u8]; 4] = match machine {
            Architecture::X86_64 => [b"x64", b"x86-64", b"x86_64", b"amd64"],
            Architecture::Aarch64 => [b"aa64", b"aarch64", b"arm64", b"armv8"],
        };
        let same = |name: &&[u8]| name.eq_ignore_ascii_case(self.architecture);
        self.architecture.is_empty() || names.iter().any(same)
    }
}

/// Iterates over the values of a repeated key; empty values are skipped.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    lines: Lines<'a>,
    key: &'static [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let key = self.key;
        let matching = self.lines.by_ref().filter(|(other, _)| *other == key);
        let mut values = matching.map(|(_, value)| unquoted(value));
        values.find(|value| !value.is_empty())
    }
}

/// Iterates over the paths in a line. A `/` after white space starts the next path, so that a path may
/// contain spaces.
struct Paths<'a>(&'a [u8]);

impl<'a> Iterator for Paths<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut pairs = self.0.windows(2);
        let end = pairs.position(|pair| matches!(pair, [b' ' | b'\t', b'/']));
        let (path, rest) = self.0.split_at_checked(end.unwrap_or(self.0.len()))?;
        self.0 = rest.trim_ascii();
        let path = path.trim_ascii();
        (!path.is_empty()).then_some(path)
    }
}

/// Whether GRUB expands variables in the values of `key`.
fn is_expanded(key: &[u8]) -> bool {
    matches!(as_str(key), "linux" | "initrd" | "options" | "devicetree")
}

/// Whether an entry has variables for [`expand`] to replace.
#[must_use]
pub fn wants_expansion(text: &[u8]) -> bool {
    lines(text).any(|(key, value)| is_expanded(key) && has_variables(value))
}

/// Writes the entry `text` to the start of `out` with GRUB's variables replaced by their values. Returns the
/// size in bytes; if that is more than `out` holds, the output is incomplete.
pub fn expand(text: &[u8], environment: &Environment<'_>, out: &mut [u8]) -> usize {
    let mut size = 0_usize;
    for (key, value) in lines(text) {
        let parts: [(&[u8], bool); 4] = [
            (key, false),
            (b" ", false),
            (value, is_expanded(key)),
            (b"\n", false),
        ];
        for (part, expanded) in parts {
            let out = out.get_mut(size..).unwrap_or_default();
            let part_size = if expanded {
                environment.expand(part, out)
            } else {
                if let Some(out) = out.get_mut(..part.len()) {
                    out.copy_from_slice(part);
                }
                part.len()
            };
            size = size.saturating_add(part_size);
        }
    }
    size
}

/// The order of the menu ("Sorting"): the smaller entry comes first.
#[must_use]
pub fn compare(a: (&FileName<'_>, &Entry<'_>), b: (&FileName<'_>, &Entry<'_>)) -> Ordering {
    let ((name_a, a), (name_b, b)) = (a, b);
    // 1. Entries with no tries left come last.
    let bad = name_a.is_bad().cmp(&name_b.is_bad());
    bad.then_with(|| match (a.sort_key, b.sort_key) {
        ([], []) => Ordering::Equal,
        // 3. Entries with a sort-key come before those without one.
        ([], _) => Ordering::Greater,
        (_, []) => Ordering::Less,
        // 2. "Alphanumerical order" is byte order; a missing value comes first.
        (key_a, key_b) => key_a
            .cmp(key_b)
            .then_with(|| a.machine_id.cmp(b.machine_id))
            .then_with(|| version::compare(b.version, a.version)),
    })
    // 4. By file name, newest version first.
    .then_with(|| version::compare(name_b.file_id(), name_a.file_id()))
    // The profiles of one file, by number.
    .then_with(|| name_a.profile.cmp(&name_b.profile))
    // As in systemd-boot: more tries left first, then fewer failed tries.
    .then_with(|| {
        let key = |name: &FileName<'_>| name.tries.map(|tries| (Reverse(tries.left), tries.done));
        key(name_a).cmp(&key(name_b))
    })
    // Make the result independent of the order of the directory.
    .then_with(|| name_b.name.cmp(name_a.name))
}

/// The settings in `/loader/loader.conf`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoaderConf<'a> {
    /// The entry to try first: a [pattern](crate::boot::glob) for its id or file name. Values such as
    /// `@saved` refer to state that a boot loader keeps between boots; this one keeps none.
    pub default: Option<&'a [u8]>,
    /// How long the menu waits.
    pub timeout: Option<Timeout>,
}

/// Whether the menu is shown, and how long it waits for a key (loader.conf(5), "timeout").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// The menu waits for this many seconds; 0 is the same as [`Timeout::Hidden`].
    Seconds(u32),
    /// The menu is shown without a countdown.
    Force,
    /// The menu is shown only if a key is held down.
    Hidden,
    /// The menu is never shown.
    Disabled,
}

impl Timeout {
    /// Parses the value of `timeout`; `None` if it is not valid.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        match as_str(value) {
            "menu-force" => Some(Self::Force),
            "menu-hidden" => Some(Self::Hidden),
            "menu-disabled" => Some(Self::Disabled),
            _ => number(value).map(Self::Seconds),
        }
    }
}

impl<'a> LoaderConf<'a> {
    /// Parses the file, which may hold any bytes. Unknown keys and invalid timeouts are ignored.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Self {
        let mut conf = Self::default();
        for (key, value) in lines(text) {
            let value = unquoted(value);
            match (as_str(key), value) {
                (_, b"") => {}
                ("default", _) => conf.default = Some(value),
                ("timeout", _) => conf.timeout = Timeout::parse(value).or(conf.timeout),
                _ => {}
            }
        }
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::{string::String, vec::Vec};

    // "Type #1 Boot Loader Entry Keys": the example.
    const FEDORA: &[u8] = b"# /boot/loader/entries/6a98-3.8.0-2.fc19.x86_64.conf
title        Fedora 19 (Rawhide)
sort-key     fedora
machine-id   6a9857a393724b7a981ebb5b8495b9ea
version      3.8.0-2.fc19.x86_64
options      root=UUID=6d3376e4-fc93-4509-95ec-a21d68011da2 quiet
architecture x64
linux        /6a98/3.8.0-2.fc19.x86_64/linux
initrd       /6a98/3.8.0-2.fc19.x86_64/initrd
";

    #[test]
    fn each_key_has_its_value() {
        let entry = Entry::parse(FEDORA);
        assert_eq!(entry.title, b"Fedora 19 (Rawhide)");
        assert_eq!(entry.sort_key, b"fedora");
        assert_eq!(entry.machine_id, b"6a9857a393724b7a981ebb5b8495b9ea");
        assert_eq!(entry.version, b"3.8.0-2.fc19.x86_64");
        assert_eq!(entry.linux, b"/6a98/3.8.0-2.fc19.x86_64/linux");
        assert!(entry.is_for(Architecture::X86_64));
        assert!(!entry.is_for(Architecture::Aarch64));
        assert!(entry.uki.is_empty() && entry.devicetree.is_empty());
        assert_eq!(entry.options().count(), 1);
    }

    #[test]
    fn lines_are_read_as_the_specification_says() {
        // "Type #1": "Lines beginning with # are used for comments", "the first word of a line is
        // used as key and is separated by one or more spaces from its value". Keys that are not
        // known are ignored. initrd and options "may appear more than once".
        let text =
            b"\xef\xbb\xbf\tlinux\t  /a path/with spaces \r\n#linux /no\nLinux /no\nlinuxx /no\n\
            initrd 1\noptions  a  b\ninitrd\ninitrd 2\n options \"c d\"\r\ntitle one\ntitle 'two'";
        let entry = Entry::parse(text);
        assert_eq!(entry.linux, b"/a path/with spaces");
        assert_eq!(entry.title, b"two");
        let initrds: Vec<_> = entry.initrds().collect();
        assert_eq!(initrds, [b"1", b"2"]);
        let options: Vec<_> = entry.options().collect();
        assert_eq!(options, [&b"a  b"[..], b"c d"]);
    }

    #[test]
    fn a_line_may_have_several_initrds() {
        // GRUB's blscfg; a path itself may have spaces in it.
        let text = b"initrd  /a.img /b c.img\t/d\ninitrd e f\ninitrd /";
        let initrds: Vec<_> = Entry::parse(text).initrds().collect();
        assert_eq!(initrds, [&b"/a.img"[..], b"/b c.img", b"/d", b"e f", b"/"]);
    }

    #[test]
    fn grubs_variables_are_expanded_where_grub_does() {
        let text = b"title $x\nversion 1\nlinux /vmlinuz-$v\ninitrd /i $none\noptions a $x\n\
            grub_users $none\noptions $none";
        assert!(wants_expansion(text));
        assert!(!wants_expansion(
            b"title $x\noptions memmap=1G$4G\nversion $v"
        ));
        let mut out = [0; 256];
        let size = expand(text, &Environment::parse(b"x=b c\nv=6.1\n"), &mut out);
        let entry = Entry::parse(&out[..size]);
        assert_eq!((entry.title, entry.version), (&b"$x"[..], &b"1"[..]));
        assert_eq!(entry.linux, b"/vmlinuz-6.1");
        assert!(entry.initrds().eq([b"/i"]));
        assert!(entry.options().eq([b"a b c"]));
        assert_eq!(
            expand(text, &Environment::parse(b"x=b c\nv=6.1\n"), &mut []),
            size
        );
    }

    #[test]
    fn a_pattern_matches_the_id_or_the_file_name() {
        let name = FileName::parse(b"Arch-LTS+2-1.conf").unwrap();
        let fit = |pattern: &str| Fit::of(pattern.as_bytes(), name.id, name.name);
        for pattern in [
            "Arch-LTS",
            "Arch-LTS.conf",
            "A*",
            "Arch-LTS+2-1.conf",
            "Arch-LTS.EFI",
        ] {
            assert_eq!(fit(pattern), Fit::Exact, "{pattern}");
        }
        for pattern in ["arch-lts", "arch-LTS.CONF", "ARCH*"] {
            assert_eq!(fit(pattern), Fit::AnyCase, "{pattern}");
        }
        assert_eq!(fit("arch"), Fit::None);
    }

    #[test]
    fn the_case_of_an_architecture_is_ignored() {
        // "architecture": "The comparison should be done case-insensitively."
        let is_for = |line: &[u8], machine| Entry::parse(line).is_for(machine);
        for name in ["x64", "X64", "x86-64", "x86_64", "amd64"] {
            let line = std::format!("architecture {name}\n");
            assert!(is_for(line.as_bytes(), Architecture::X86_64), "{name}");
            assert!(!is_for(line.as_bytes(), Architecture::Aarch64), "{name}");
        }
        for name in ["AA64", "aa64", "aarch64", "arm64"] {
            let line = std::format!("architecture {name}\n");
            assert!(is_for(line.as_bytes(), Architecture::Aarch64), "{name}");
            assert!(!is_for(line.as_bytes(), Architecture::X86_64), "{name}");
        }
        for machine in [Architecture::X86_64, Architecture::Aarch64] {
            assert!(is_for(b"", machine));
            assert!(!is_for(b"architecture IA32", machine));
        }
    }

    #[test]
    fn file_names_have_ids_and_counters() {
        // "Boot counting": the pattern of the name.
        type Parsed = Option<(&'static [u8], Option<(u32, u32)>)>;
        let cases: [(&[u8], Parsed); 17] = [
            (b"a.conf", Some((b"a", None))),
            (b"a+3.conf", Some((b"a", Some((3, 0))))),
            (b"a+0-7.conf", Some((b"a", Some((0, 7))))),
            (b"a+1+2-3.conf", Some((b"a+1", Some((2, 3))))),
            (b"a+00.conf", Some((b"a", Some((0, 0))))),
            (b"a+.conf", Some((b"a+", None))),
            (b"a+1-.conf", Some((b"a+1-", None))),
            (b"a+x.conf", Some((b"a+x", None))),
            (b"a+1-2-3.conf", Some((b"a+1-2-3", None))),
            (b"gcc+5x.conf", Some((b"gcc+5x", None))),
            (b"+1.conf", Some((b"+1", None))),
            (b"a+99999999999.conf", Some((b"a", Some((u32::MAX, 0))))),
            (b".conf", None),
            (b".hidden.conf", None),
            (b"a.conf~", None),
            (b"a.CONF", Some((b"a", None))),
            (b"A+2.Efi", Some((b"A", Some((2, 0))))),
        ];
        for (name, expected) in cases {
            let parsed = FileName::parse(name);
            let parsed = parsed.map(|n| (n.id, n.tries.map(|t| (t.left, t.done))));
            assert_eq!(parsed, expected, "{}", name.escape_ascii());
        }
    }

    /// Sorts entries, each a file's name and its text, and gives the names.
    fn sorted<'a>(entries: &[(&'a str, &'a str)]) -> Vec<&'a str> {
        let mut entries: Vec<_> = entries.to_vec();
        entries.sort_by(|a, b| {
            let parsed = |(name, text): &(&'a str, &'a str)| {
                let name = FileName::parse(name.as_bytes()).unwrap();
                (name, Entry::parse(text.as_bytes()))
            };
            let (a, b) = (parsed(a), parsed(b));
            compare((&a.0, &a.1), (&b.0, &b.1))
        });
        entries.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn entries_are_sorted_as_the_specification_says() {
        // "Sorting"; each list is in the order expected.
        let lists: [&[(&str, &str)]; 11] = [
            // 1. Bad entries come last, whatever their keys; indeterminate ones are sorted like good ones.
            &[
                ("b+1-2.conf", ""),
                ("a.conf", ""),
                ("z+0-1.conf", "sort-key a"),
            ],
            // 2. sort-key, increasing.
            &[
                ("1.conf", "sort-key Debian"),
                ("2.conf", "sort-key arch"),
                ("3.conf", "sort-key debian"),
            ],
            // Then machine-id, increasing; none is lower than any ("Alphanumerical Order").
            &[
                ("1.conf", "sort-key a"),
                ("2.conf", "sort-key a\nmachine-id 1"),
                ("3.conf", "sort-key a\nmachine-id 2\nversion 9"),
            ],
            // Then version, decreasing ("Version Order").
            &[
                ("1.conf", "sort-key a\nversion 6.10"),
                ("2.conf", "sort-key a\nversion 6.9"),
                ("3.conf", "sort-key a\nversion 6.9~rc1"),
                ("9.conf", "sort-key a"),
            ],
            // 3. Those with a sort-key first.
            &[("1.conf", "sort-key z"), ("2.conf", "version 9")],
            // 4. The file's name, decreasing; without a sort-key nothing else counts.
            &[
                ("debian-6.10.conf", "version 1"),
                ("debian-6.9.conf", "version 2\nmachine-id 1"),
                ("arch.conf", ""),
            ],
            // All else equal.
            &[
                ("b.conf", "sort-key a\nversion 1"),
                ("a.conf", "sort-key a\nversion 1"),
            ],
            // Counters are no part of the name that is compared.
            &[("arch-6.10.1.conf", ""), ("arch-6.10+3.conf", "")],
            &[("arch-6.10.1+1-2.conf", ""), ("arch-6.10+3.conf", "")],
            // Then tries count.
            &[
                ("a.conf", ""),
                ("a+10.conf", ""),
                ("a+9.conf", ""),
                ("a+1-1.conf", ""),
                ("a+1-2.conf", ""),
            ],
            // Names that are equal as versions.
            &[("a_.conf", ""), ("a.conf", "")],
        ];
        for expected in lists {
            let names: Vec<_> = expected.iter().map(|(name, _)| *name).collect();
            let mut list = expected.to_vec();
            for _ in 0..list.len() {
                list.rotate_left(1);
                assert_eq!(sorted(&list), names);
            }
            list.reverse();
            assert_eq!(sorted(&list), names);
        }
    }

    #[test]
    fn loader_conf_is_read_as_systemd_boot_does() {
        // loader.conf(5), "default" and "timeout".
        let parse = |text: &'static str| LoaderConf::parse(text.as_bytes());
        let conf = parse(
            "\u{feff}timeout 9\ntimeout \"3\"\r\nconsole-mode max\ndefault 'debian-*.conf' \n",
        );
        assert_eq!(conf.default, Some(&b"debian-*.conf"[..]));
        assert_eq!(conf.timeout, Some(Timeout::Seconds(3)));
        for (value, timeout) in [
            ("menu-force", Timeout::Force),
            ("menu-hidden", Timeout::Hidden),
            ("menu-disabled", Timeout::Disabled),
            ("0", Timeout::Seconds(0)),
        ] {
            assert_eq!(Timeout::parse(value.as_bytes()), Some(timeout));
        }
        assert_eq!(
            parse("timeout 5\ntimeout menu-hidden").timeout,
            Some(Timeout::Hidden)
        );
        assert_eq!(
            parse("timeout 5\ntimeout soon").timeout,
            Some(Timeout::Seconds(5))
        );
        assert_eq!(parse("default\ntimeout\n"), LoaderConf::default());
    }

    #[test]
    fn any_bytes_give_an_entry() {
        for seed in seeds(2000) {
            let mut text = FEDORA.to_vec();
            Random::new(seed).damage(&mut text);
            let entry = Entry::parse(&text);
            assert!(entry.initrds().all(|path| !path.is_empty()));
            assert!(entry.options().count() <= 1);
            _ = LoaderConf::parse(&text);
            if let Some(name) = FileName::parse(&text) {
                assert!(compare((&name, &entry), (&name, &entry)).is_eq());
            }
            assert!(String::from_utf8_lossy(entry.linux).len() < 400);
        }
    }
}
