//! The configuration file `extlinux.conf`, as SYSLINUX
//! (<https://wiki.syslinux.org/wiki/index.php?title=Config>) and U-Boot (`doc/develop/distro.rst`,
//! `doc/README.pxe`) read it.
//!
//! | line | meaning |
//! |---|---|
//! | `ONTIMEOUT NAME`, `DEFAULT NAME [WORDS]` | the label to start first; `WORDS` are appended to its command line |
//! | `TIMEOUT TENTHS` | how long the menu waits for a key; 0 or missing: no countdown; negative: no menu |
//! | `PROMPT 0\|1` | whether the menu is shown without a key held down; default 0 |
//! | `MENU TITLE` and the like | shows the menu, as in U-Boot, unless there is `PROMPT 0` |
//! | `UI NAME`, `DEFAULT NAME.c32` | shows the menu, as in SYSLINUX; with `MENU HIDDEN` only if a key is held down |
//! | `INCLUDE FILE`, `MENU INCLUDE FILE` | is replaced by the lines of that file: see [`Include`] |
//! | `LABEL NAME` | begins a label, to which the following lines belong |
//! | `LINUX PATH`, `KERNEL PATH` | the kernel; a `#` and the text after it (the part of a FIT image) are removed |
//! | `INITRD PATH[,PATH]...` | initrds; if missing, those of an `initrd=` in `APPEND` |
//! | `APPEND WORDS` | the kernel's command line; before the first label: the default for all labels; `-` for none |
//! | `FDT PATH`, `DEVICETREE PATH` | a device tree that replaces the machine's |
//! | `FDTDIR PATH`, `DEVICETREEDIR PATH` | where U-Boot looks for a board's device tree |
//! | `FDTOVERLAYS PATHS`, `DEVICETREE-OVERLAY PATHS` | ignored, with a warning |
//! | `LOCALBOOT N`, `COM32 PATH` and others that start no Linux | the label is passed over |
//! | `MENU LABEL TEXT`, `MENU DEFAULT` | the label's title; the label to start first |
//!
//! The case of keywords is ignored. Other lines are ignored, and also all lines between `TEXT` and `ENDTEXT`.
//! Paths without a leading `/` are relative to the directory of the file.

use crate::boot::{
    bls::Timeout,
    cmdline::{key_and_value, words},
    text::{Lines, lines, number},
};
use core::ops::Range;

/// Longest file in bytes, including all files that it includes.
pub const MAX_BYTES: usize = 1 << 20;

/// Deepest nesting of included files, as in SYSLINUX and U-Boot.
pub const MAX_LEVELS: usize = 16;

/// Most included files.
pub const MAX_INCLUDES: usize = 256;

/// Longest menu in tenths of a second (SYSLINUX, "TIMEOUT").
const MAX_TENTHS: u32 = 35_996;

/// The global settings of a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config<'a> {
    /// `DEFAULT`: the name of a label, which need not exist, and optional words for its command line.
    pub default: &'a [u8],
    /// `ONTIMEOUT`: the label to start if the user does not choose one.
    on_timeout: &'a [u8],
    /// How long the menu waits, in tenths of a second; 0 for no countdown.
    timeout_tenths: u32,
    /// The timeout is negative: the menu is not shown.
    at_once: bool,
    /// `PROMPT`: whether the menu is shown without a key held down.
    prompt: Option<bool>,
    /// There is a global `MENU` line, for which U-Boot shows the menu.
    menu: bool,
    /// There is a `UI`: `prompt` has no effect on the menu.
    ui: bool,
    /// `MENU HIDDEN`: the menu of `UI` is shown only if a key is held down.
    hidden: bool,
    /// The command line of labels without `APPEND`.
    pub append: &'a [u8],
    text: &'a [u8],
}

impl<'a> Config<'a> {
    /// Parses the file, which may hold any bytes.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Self {
        let mut config = Self {
            text,
            ..Self::default()
        };
        let mut in_label = false;
        for (keyword, value) in Keywords(lines(text)) {
            match keyword {
                // These are global even after a label.
                Keyword::Default => config.default = value,
                Keyword::OnTimeout => config.on_timeout = value,
                Keyword::Timeout => {
                    let below_0 = value.strip_prefix(b"-").and_then(number);
                    if let Some(tenths) = number(value).or(below_0) {
                        config.timeout_tenths = tenths.min(MAX_TENTHS);
                        config.at_once = below_0.is_some_and(|tenths| tenths > 0);
                    }
                }
                Keyword::Prompt => config.prompt = number(value).map(|flag| flag != 0),
                Keyword::Ui => config.ui = true,
                Keyword::MenuHidden => config.hidden = true,
                Keyword::Menu if !in_label => config.menu = true,
                Keyword::Label => in_label = true,
                Keyword::Append if !in_label => config.append = value,
                _ => {}
            }
        }
        config.ui |= is_module(config.default);
        config
    }

    /// How long the menu waits; `None` if the file does not define it.
    #[must_use]
    pub fn timeout(&self) -> Option<Timeout> {
        let shown = match self.prompt {
            _ if self.ui => !self.hidden,
            Some(prompt) => prompt,
            None if self.menu => true,
            None => return None,
        };
        match (shown && !self.at_once, self.timeout_tenths) {
            (false, _) => Some(Timeout::Hidden),
            (true, 0) => Some(Timeout::Force),
            (true, tenths) => Some(Timeout::Seconds(tenths.div_ceil(10))),
        }
    }

    /// The labels, in the order of the file.
    #[must_use]
    pub const fn labels(&self) -> Labels<'a> {
        Labels {
            rest: self.text,
            append: self.append,
        }
    }

    /// The index of the label to start first, and words to append to its command line: the label named by
    /// `ONTIMEOUT` or `DEFAULT`, otherwise the first one with `MENU DEFAULT`, if any.
    #[must_use]
    pub fn default_label(&self) -> Option<(usize, &'a [u8])> {
        let position = |name: &[u8], any_case: bool| {
            let mut labels = self.labels();
            labels.position(|label| match any_case {
                true => label.name.eq_ignore_ascii_case(name),
                false => label.name == name,
            })
        };
        for value in [self.on_timeout, self.default] {
            let (first, more) = split_word(value);
            for (name, more) in [(value, &b""[..]), (first, more)] {
                let found = || position(name, false).or_else(|| position(name, true));
                if let Some(index) = (!name.is_empty()).then(found).flatten() {
                    return Some((index, more));
                }
            }
        }
        let index = self.labels().position(|label| label.menu_default)?;
        Some((index, b""))
    }
}

/// A label. Missing values are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The human-readable name.
    pub menu_label: &'a [u8],
    /// Whether it has `MENU DEFAULT`.
    pub menu_default: bool,
    /// The kernel's path.
    pub linux: &'a [u8],
    /// The kernel's command line.
    pub append: &'a [u8],
    /// The path of a device tree.
    pub fdt: &'a [u8],
    /// The directory of device trees.
    pub fdtdir: &'a [u8],
    /// Paths of device tree overlays.
    pub fdtoverlays: &'a [u8],
    /// The keyword or program, if the label starts something other than Linux.
    pub other: &'a [u8],
    /// Paths, separated by commas.
    initrd: &'a [u8],
    /// All lines of the label.
    pub text: &'a [u8],
}

impl<'a> Label<'a> {
    /// Parses the label at the start of `text`; `append` is the command line of labels without `APPEND`.
    #[must_use]
    pub fn parse(text: &'a [u8], append: &'a [u8]) -> Option<Self> {
        let mut all = Keywords(lines(text));
        let (Keyword::Label, name) = all.next()? else {
            return None;
        };
        let mut label = Self {
            name,
            append,
            ..Self::default()
        };
        loop {
            let end = text.len().saturating_sub(all.0.rest().len());
            label.text = text.get(..end).unwrap_or_default();
            let Some((keyword, value)) = all.next() else {
                label.text = text;
                break;
            };
            match keyword {
                Keyword::Label => break,
                Keyword::Linux if is_module(value) => label.other = value,
                Keyword::Linux => {
                    let path = value.split(|&byte| byte == b'#').next();
                    label.linux = path.unwrap_or_default().trim_ascii();
                }
                Keyword::Initrd => label.initrd = value,
                Keyword::Append => label.append = value,
                Keyword::Fdt => label.fdt = value,
                Keyword::FdtDir => label.fdtdir = value,
                Keyword::FdtOverlays => label.fdtoverlays = value,
                Keyword::MenuLabel => label.menu_label = value,
                Keyword::MenuDefault => label.menu_default = true,
                Keyword::Other(name) => label.other = name,
                Keyword::Default
                | Keyword::OnTimeout
                | Keyword::Timeout
                | Keyword::Prompt
                | Keyword::Ui
                | Keyword::MenuHidden
                | Keyword::Menu => {}
            }
        }
        if label.append == b"-" {
            label.append = b"";
        }
        if label.initrd.is_empty() {
            let values = words(label.append).map(key_and_value);
            for (_, value) in values.filter(|(key, _)| *key == b"initrd") {
                label.initrd = value.unwrap_or_default();
            }
        }
        Some(label)
    }

    /// The paths of the initrds, in the order of the file.
    pub fn initrds(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.initrd
            .split(|&byte| byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|path| !path.is_empty())
    }
}

/// Iterates over the labels of a file.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    rest: &'a [u8],
    append: &'a [u8],
}

impl<'a> Iterator for Labels<'a> {
    type Item = Label<'a>;

    fn next(&mut self) -> Option<Label<'a>> {
        let mut all = Keywords(lines(self.rest));
        loop {
            let here = all.0.rest();
            if let (Keyword::Label, _) = all.next()? {
                self.rest = here;
                break;
            }
        }
        let label = Label::parse(self.rest, self.append)?;
        self.rest = self.rest.get(label.text.len()..).unwrap_or_default();
        Some(label)
    }
}

/// A line that includes another file. Its path is relative to the directory of the main file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include<'a> {
    /// The range of the line in the text, with its line end.
    pub line: Range<usize>,
    /// The file's path.
    pub path: &'a [u8],
}

impl<'a> Include<'a> {
    /// Finds the first such line in `text` at or after the offset `from`.
    #[must_use]
    pub fn find(text: &'a [u8], from: usize) -> Option<Self> {
        let mut lines = lines(text.get(from..)?);
        let mut in_help = false;
        loop {
            let start = text.len().saturating_sub(lines.rest().len());
            let (word, value) = lines.next()?;
            if is_help(word, &mut in_help) {
                continue;
            }
            let path = match () {
                () if word.eq_ignore_ascii_case(b"include") => value,
                () if word.eq_ignore_ascii_case(b"menu") => {
                    let (word, value) = split_word(value);
                    if !word.eq_ignore_ascii_case(b"include") {
                        continue;
                    }
                    value
                }
                () => continue,
            };
            let end = text.len().saturating_sub(lines.rest().len());
            let (path, _) = split_word(path);
            return Some(Self {
                line: start..end,
                path,
            });
        }
    }
}

/// Removes U-Boot's variables, `${NAME}`, from a command line: outside of U-Boot they are undefined, and so
/// empty. Returns the new size, and the name of the last removed variable, if any, which is stored in `name`.
pub fn remove_variables<'t>(line: &mut [u8], name: &'t mut [u8]) -> (usize, Option<&'t [u8]>) {
    let (mut from, mut to) = (0_usize, 0_usize);
    let mut named = None;
    while let Some(rest @ [first, ..]) = line.get(from..) {
        let variable = rest.strip_prefix(b"${").and_then(|rest| {
            let end = rest.iter().position(|&byte| byte == b'}')?;
            rest.get(..end)
        });
        if let Some(variable) = variable {
            let size = variable.len().min(name.len());
            if let (Some(name), Some(variable)) = (name.get_mut(..size), variable.get(..size)) {
                name.copy_from_slice(variable);
                named = Some(size);
            }
            from = from.saturating_add(variable.len()).saturating_add(3);
            continue;
        }
        let first = *first;
        if let Some(place) = line.get_mut(to) {
            *place = first;
        }
        (from, to) = (from.saturating_add(1), to.saturating_add(1));
    }
    (to, named.and_then(|size| name.get(..size)))
}

/// Splits a value into its first word and the rest.
fn split_word(value: &[u8]) -> (&[u8], &[u8]) {
    let end = value.iter().position(u8::is_ascii_whitespace);
    let (word, rest) = value
        .split_at_checked(end.unwrap_or(value.len()))
        .unwrap_or_default();
    (word, rest.trim_ascii())
}

/// Whether a path is that of a program for SYSLINUX, by its name (SYSLINUX, "KERNEL").
fn is_module(value: &[u8]) -> bool {
    let (path, _) = split_word(value);
    let end = path.len().checked_sub(4).and_then(|at| path.get(at..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(b".c32"))
}

/// The known keywords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keyword<'a> {
    Default,
    OnTimeout,
    Timeout,
    Prompt,
    Label,
    Linux,
    Initrd,
    Append,
    Fdt,
    FdtDir,
    FdtOverlays,
    MenuLabel,
    MenuDefault,
    MenuHidden,
    /// Any other line that begins with `MENU`.
    Menu,
    Ui,
    /// One of [`OTHERS`].
    Other(&'a [u8]),
}

const KEYWORDS: [(&[u8], Keyword<'_>); 17] = [
    (b"default", Keyword::Default),
    (b"ontimeout", Keyword::OnTimeout),
    (b"timeout", Keyword::Timeout),
    (b"prompt", Keyword::Prompt),
    (b"ui", Keyword::Ui),
    (b"label", Keyword::Label),
    (b"linux", Keyword::Linux),
    (b"kernel", Keyword::Linux),
    (b"initrd", Keyword::Initrd),
    (b"append", Keyword::Append),
    (b"fdt", Keyword::Fdt),
    (b"devicetree", Keyword::Fdt),
    (b"fdtdir", Keyword::FdtDir),
    (b"devicetreedir", Keyword::FdtDir),
    (b"fdtoverlays", Keyword::FdtOverlays),
    (b"devicetree-overlay", Keyword::FdtOverlays),
    (b"fdtoverlay", Keyword::FdtOverlays),
];

/// Keywords by which SYSLINUX starts something other than Linux ("LOCALBOOT", "KERNEL").
const OTHERS: [&[u8]; 8] = [
    b"localboot",
    b"com32",
    b"config",
    b"boot",
    b"bss",
    b"pxe",
    b"fdimage",
    b"comboot",
];

/// Iterates over the lines that begin with a known keyword.
#[derive(Clone, Copy, Debug)]
struct Keywords<'a>(Lines<'a>);

impl<'a> Iterator for Keywords<'a> {
    type Item = (Keyword<'a>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (word, value) = next_line(&mut self.0)?;
            let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
            if is(b"menu") {
                let (word, value) = split_word(value);
                let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
                return Some(match () {
                    () if is(b"label") => (Keyword::MenuLabel, value),
                    () if is(b"default") => (Keyword::MenuDefault, value),
                    () if is(b"hidden") => (Keyword::MenuHidden, value),
                    () => (Keyword::Menu, value),
                });
            }
            if let Some((_, keyword)) = KEYWORDS.iter().find(|(name, _)| is(name)) {
                return Some((*keyword, value));
            }
            if OTHERS.iter().any(|name| is(name)) {
                return Some((Keyword::Other(word), value));
            }
        }
    }
}

/// The next line that is not part of a help text between `TEXT` and `ENDTEXT`.
fn next_line<'a>(lines: &mut Lines<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let mut in_help = false;
    lines.find(|(word, _)| !is_help(word, &mut in_help))
}

/// Whether the line that starts with `word` is part of a help text. `in_help` is the state between lines.
fn is_help(word: &[u8], in_help: &mut bool) -> bool {
    let was_in = *in_help;
    *in_help = match was_in {
        true => !word.eq_ignore_ascii_case(b"endtext"),
        false => word.eq_ignore_ascii_case(b"text"),
    };
    was_in || *in_help
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{Random, seeds};
    use std::vec::Vec;

    // As Debian's u-boot-menu writes it.
    const DEBIAN: &[u8] = b"## /boot/extlinux/extlinux.conf

default l0
menu title U-Boot menu
prompt 0
timeout 50

label l0
\tmenu label Debian GNU/Linux 12 6.1.0-13-arm64
\tlinux /boot/vmlinuz-6.1.0-13-arm64
\tinitrd /boot/initrd.img-6.1.0-13-arm64
\tfdtdir /usr/lib/linux-image-6.1.0-13-arm64/
\tappend root=/dev/vda1 ro quiet

label l0r
\tmenu label Debian GNU/Linux 12 6.1.0-13-arm64 (rescue target)
\tlinux /boot/vmlinuz-6.1.0-13-arm64
\tappend root=/dev/vda1 ro single
";

    #[test]
    fn debians_file_is_read() {
        let config = Config::parse(DEBIAN);
        assert_eq!(config.default, b"l0");
        // "menu title", then "prompt 0".
        assert_eq!(config.timeout(), Some(Timeout::Hidden));
        assert_eq!(config.default_label(), Some((0, &b""[..])));
        let labels: Vec<_> = config.labels().collect();
        assert_eq!(labels.len(), 2);
        let first = labels[0];
        assert_eq!(first.name, b"l0");
        assert_eq!(first.menu_label, b"Debian GNU/Linux 12 6.1.0-13-arm64");
        assert_eq!(first.linux, b"/boot/vmlinuz-6.1.0-13-arm64");
        assert_eq!(first.append, b"root=/dev/vda1 ro quiet");
        assert_eq!(first.fdtdir, b"/usr/lib/linux-image-6.1.0-13-arm64/");
        let initrds: Vec<_> = first.initrds().collect();
        assert_eq!(initrds, [b"/boot/initrd.img-6.1.0-13-arm64"]);
        assert_eq!(labels[1].name, b"l0r");
        assert_eq!(labels[1].initrds().count(), 0);
        assert_eq!(labels[1].fdtdir, b"");
    }

    #[test]
    fn keywords_may_be_in_any_case_and_unknown_ones_are_ignored() {
        let text =
            b"UI vesamenu.c32\nAPPEND common\nLabel One\nMenu Label ^First\nKERNEL ../vmlinuz\n\
            InitRD a.img, b.img,,c.img\nMENU HIDE\nipappend 2\r\nlabel two\nMENU DEFAULT\nlinux k\n\
            append -\ndevicetree d\nlabel three\nlinux k\nappend initrd=x,y quiet\nTEXT HELP\n\
            label none\nENDTEXT\nfdtoverlays o";
        let config = Config::parse(text);
        // SYSLINUX, "MENU DEFAULT"; DEFAULT is not there.
        assert_eq!(config.default_label(), Some((1, &b""[..])));
        let labels: Vec<_> = config.labels().collect();
        let names: Vec<_> = labels.iter().map(|label| label.name).collect();
        assert_eq!(names, [&b"One"[..], b"two", b"three"]);
        assert_eq!(labels[0].linux, b"../vmlinuz");
        assert_eq!(labels[0].menu_label, b"^First");
        // "INITRD": several, apart at commas.
        let initrds: Vec<_> = labels[0].initrds().collect();
        assert_eq!(initrds, [b"a.img", b"b.img", b"c.img"]);
        // "APPEND": before the labels for all, `-` for none.
        assert_eq!(labels[0].append, b"common");
        assert_eq!(labels[1].append, b"");
        assert_eq!(labels[1].fdt, b"d");
        // "INITRD": the same as `initrd=` in APPEND.
        let initrds: Vec<_> = labels[2].initrds().collect();
        assert_eq!(initrds, [b"x", b"y"]);
        assert_eq!(labels[2].fdtoverlays, b"o");
    }

    #[test]
    fn there_is_a_menu_where_syslinux_or_u_boot_show_one() {
        // SYSLINUX, "PROMPT", "TIMEOUT" and "UI"; U-Boot's parse_pxefile_top takes a MENU before
        // the labels for `prompt 1`.
        let label = "label a\nmenu label A\nlinux k\n";
        for (text, timeout) in [
            ("", None),
            ("timeout 50\n", None),
            ("prompt 0\ntimeout 50\n", Some(Timeout::Hidden)),
            ("PROMPT 1\nTIMEOUT 41\n", Some(Timeout::Seconds(5))),
            ("prompt 1\n", Some(Timeout::Force)),
            ("timeout 50\nmenu title A\n", Some(Timeout::Seconds(5))),
            ("menu title A\n", Some(Timeout::Force)),
            ("menu title A\nprompt 0\n", Some(Timeout::Hidden)),
            ("prompt 0\nmenu title A\n", Some(Timeout::Hidden)),
            // Alpine's.
            (
                "default menu.c32\nprompt 0\nmenu title A\ntimeout 10\n",
                Some(Timeout::Seconds(1)),
            ),
            (
                "default menu.c32\nprompt 0\nmenu hidden\ntimeout 10\n",
                Some(Timeout::Hidden),
            ),
            // NixOS' for "at once", until 2024.
            ("menu title A\ntimeout -10\n", Some(Timeout::Hidden)),
            ("menu title A\ntimeout -0\n", Some(Timeout::Force)),
            // An hour at most, as in SYSLINUX; a value that is not a number is ignored.
            (
                "prompt 1\ntimeout 99999999999\n",
                Some(Timeout::Seconds(3600)),
            ),
            (
                "prompt 1\ntimeout 20\ntimeout x\n",
                Some(Timeout::Seconds(2)),
            ),
            (
                "ui menu.c32\nprompt 0\ntimeout 1\n",
                Some(Timeout::Seconds(1)),
            ),
        ] {
            let text = std::format!("{text}{label}");
            let config = Config::parse(text.as_bytes());
            assert_eq!(config.timeout(), timeout, "{text}");
        }
    }

    #[test]
    fn a_default_without_an_entry_is_ignored() {
        let default = |text: &'static [u8]| Config::parse(text).default_label();
        let none = &b""[..];
        assert_eq!(default(b"label a\nlabel b\ndefault b\n"), Some((1, none)));
        // SYSLINUX, "ONTIMEOUT"; with DEFAULT for the menu.
        assert_eq!(
            default(b"default menu.c32\nontimeout b\nlabel a\nlabel b\n"),
            Some((1, none))
        );
        assert_eq!(
            default(b"default a\nontimeout x\nlabel b\nlabel a\n"),
            Some((1, none))
        );
        // "DEFAULT": a label with words for its command line.
        assert_eq!(
            default(b"default linux quiet  splash\nlabel a\nlabel linux\n"),
            Some((1, &b"quiet  splash"[..]))
        );
        assert_eq!(
            default(b"default B\nlabel a\nlabel b\nlabel B"),
            Some((2, none))
        );
        assert_eq!(default(b"default B\nlabel a\nlabel b"), Some((1, none)));
        assert_eq!(default(b"default menu.c32\nlabel a\nlabel b\n"), None);
        assert_eq!(
            default(b"default x\nlabel a\nlabel b\nmenu default"),
            Some((1, none))
        );
        assert_eq!(default(b""), None);
    }

    #[test]
    fn labels_that_start_no_linux_are_detected() {
        let label = |text: &'static [u8]| Config::parse(text).labels().next().unwrap();
        assert_eq!(label(b"label a\nlocalboot 0").other, b"localboot");
        assert_eq!(
            label(b"label a\nKERNEL chain.C32 hd0\nappend x").other,
            b"chain.C32 hd0"
        );
        assert_eq!(label(b"label a\nCOM32 reboot.c32").other, b"COM32");
        let linux = label(b"label a\nkernel /fitImage#conf-1\n");
        assert_eq!((linux.linux, linux.other), (&b"/fitImage"[..], &b""[..]));
    }

    #[test]
    fn lines_that_include_files_are_found() {
        // SYSLINUX, "INCLUDE" and "MENU INCLUDE".
        let text = b"# first\nDEFAULT a\nInclude one.conf\nTEXT HELP\ninclude no\nENDTEXT\n\
            menu include /two tag\nmenu title include\nlabel a\n include three";
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(include) = Include::find(text, from) {
            let line = text[include.line.clone()].trim_ascii();
            found.push((line.to_ascii_lowercase(), include.path));
            from = include.line.end;
        }
        let expected: [(&[u8], &[u8]); 3] = [
            (b"include one.conf", b"one.conf"),
            (b"menu include /two tag", b"/two"),
            (b"include three", b"three"),
        ];
        assert!(
            found
                .iter()
                .map(|(line, path)| (&line[..], *path))
                .eq(expected)
        );
        assert_eq!(Include::find(b"", 0), None);
        assert_eq!(Include::find(b"x", 2), None);
    }

    #[test]
    fn variables_of_u_boot_are_empty() {
        for (line, expected, name) in [
            (
                "root=/dev/mmcblk${devnum}p1 ${bootargs}",
                "root=/dev/mmcblkp1 ",
                Some("bootargs"),
            ),
            ("a $b ${c $d}", "a $b ", Some("c $d")),
            ("a $b ${c", "a $b ${c", None),
            ("", "", None),
        ] {
            let (mut line, mut room) = (line.as_bytes().to_vec(), [0; 64]);
            let (size, found) = remove_variables(&mut line, &mut room);
            assert_eq!(&line[..size], expected.as_bytes());
            assert_eq!(found, name.map(str::as_bytes));
        }
    }

    #[test]
    fn a_label_is_read_again_from_its_own_lines() {
        let config = Config::parse(DEBIAN);
        let mut rest = DEBIAN;
        for label in config.labels() {
            assert_eq!(Label::parse(label.text, config.append), Some(label));
            let at = rest
                .windows(label.text.len())
                .position(|part| part == label.text);
            rest = &rest[at.unwrap() + label.text.len()..];
        }
        assert_eq!(rest, b"");
        assert_eq!(Label::parse(b"timeout 1\nlabel a", b""), None);
    }

    #[test]
    fn any_bytes_give_labels() {
        for seed in seeds(2000) {
            let mut text = DEBIAN.to_vec();
            Random::new(seed).damage(&mut text);
            let config = Config::parse(&text);
            assert!(config.labels().count() <= 3);
            _ = config.default_label();
        }
    }
}
