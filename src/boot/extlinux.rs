//! `extlinux.conf`, as SYSLINUX (<https://wiki.syslinux.org/wiki/index.php?title=Config>) and U-Boot
//! (`doc/develop/distro.rst`, `doc/README.pxe`) read it.
//!
//! | line | meaning |
//! |---|---|
//! | `DEFAULT NAME` | the label that comes first |
//! | `TIMEOUT TENTHS` | how long the menu waits for a key; 0, or without it: no countdown |
//! | `PROMPT 0\|1` | whether there is a menu without a key being held; not without it |
//! | `MENU TITLE` and the like | there is one, as with U-Boot, unless a `PROMPT` below says otherwise |
//! | `UI NAME` | there is one, as with SYSLINUX |
//! | `LABEL NAME` | starts a label; the lines below belong to it |
//! | `LINUX PATH`, `KERNEL PATH` | the kernel |
//! | `INITRD PATH[,PATH]...` | initrds; without it, those that an `initrd=` of `APPEND` names |
//! | `APPEND WORDS` | the kernel's command line; before the first label, that of labels without one; `-` for none |
//! | `FDT PATH`, `DEVICETREE PATH` | a device tree that replaces the machine's |
//! | `FDTDIR PATH`, `DEVICETREEDIR PATH` | where U-Boot looks for a board's device tree |
//! | `FDTOVERLAYS PATHS`, `DEVICETREE-OVERLAY PATHS` | refused: see [`entry`](crate::boot::entry) |
//! | `MENU LABEL TEXT`, `MENU DEFAULT` | the label's title; it comes first |
//!
//! Keywords may be written in any case. Other lines are ignored, and so is what stands between
//! `TEXT` and `ENDTEXT`. Paths start at the directory of the file unless they begin with `/`.

use crate::boot::{
    bls::Timeout,
    cmdline::{key_and_value, words},
    text::{Lines, lines, number},
};

/// What the file says before its first label, and where the labels are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config<'a> {
    /// The label that is to come first; need not exist.
    pub default: &'a [u8],
    /// How long the menu waits, in tenths of a second; 0 for no countdown.
    timeout_tenths: u32,
    /// Whether the menu is shown without a key being held.
    prompt: Option<bool>,
    /// The menu is shown whatever `prompt` says.
    ui: bool,
    /// The command line of labels without one.
    append: &'a [u8],
    text: &'a [u8],
}

impl<'a> Config<'a> {
    /// Reads the file, which may hold any bytes.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Self {
        let mut config = Self {
            text,
            ..Self::default()
        };
        let mut in_label = false;
        for (keyword, value) in Keywords(lines(text)) {
            match keyword {
                // These are global wherever they stand.
                Keyword::Default => config.default = value,
                Keyword::Timeout => config.timeout_tenths = number(value).unwrap_or(0),
                Keyword::Prompt => config.prompt = number(value).map(|flag| flag != 0),
                Keyword::Ui => config.ui = true,
                Keyword::Menu if !in_label => config.prompt = Some(true),
                Keyword::Label => in_label = true,
                Keyword::Append if !in_label => config.append = value,
                _ => {}
            }
        }
        config
    }

    /// What the file says about the menu.
    #[must_use]
    pub fn timeout(&self) -> Option<Timeout> {
        let shown = if self.ui { true } else { self.prompt? };
        match (shown, self.timeout_tenths) {
            (false, _) => Some(Timeout::Hidden),
            (true, 0) => Some(Timeout::Force),
            (true, tenths) => Some(Timeout::Seconds(tenths.div_ceil(10))),
        }
    }

    /// The labels, in the file's order.
    #[must_use]
    pub const fn labels(&self) -> Labels<'a> {
        Labels {
            rest: self.text,
            append: self.append,
        }
    }

    /// Which of the labels comes first, if the file says so: the one that `DEFAULT` names, or else
    /// the first with `MENU DEFAULT`.
    #[must_use]
    pub fn default_label(&self) -> Option<usize> {
        self.labels()
            .position(|label| !label.name.is_empty() && label.name == self.default)
            .or_else(|| self.labels().position(|label| label.menu_default))
    }
}

/// What one label says. Empty values stand for what is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// For people.
    pub menu_label: &'a [u8],
    /// It asks to be the default.
    pub menu_default: bool,
    /// The kernel's path.
    pub linux: &'a [u8],
    /// The kernel's command line.
    pub append: &'a [u8],
    /// The path of a device tree.
    pub fdt: &'a [u8],
    /// The directory of device trees.
    pub fdtdir: &'a [u8],
    /// Paths of overlays.
    pub fdtoverlays: &'a [u8],
    /// Paths, apart at commas.
    initrd: &'a [u8],
}

impl<'a> Label<'a> {
    /// The paths of the initrds, in their order.
    pub fn initrds(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.initrd
            .split(|&byte| byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|path| !path.is_empty())
    }
}

/// The labels of a file, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    rest: &'a [u8],
    append: &'a [u8],
}

impl<'a> Iterator for Labels<'a> {
    type Item = Label<'a>;

    fn next(&mut self) -> Option<Label<'a>> {
        let mut all = Keywords(lines(self.rest));
        let name = loop {
            let (keyword, value) = all.next()?;
            if keyword == Keyword::Label {
                break value;
            }
        };
        let mut label = Label {
            name,
            append: self.append,
            ..Label::default()
        };
        loop {
            // Up to the next label, which is left for the next call.
            self.rest = all.0.rest();
            let Some((keyword, value)) = all.next() else {
                break;
            };
            match keyword {
                Keyword::Label => break,
                Keyword::Linux => label.linux = value,
                Keyword::Initrd => label.initrd = value,
                Keyword::Append => label.append = value,
                Keyword::Fdt => label.fdt = value,
                Keyword::FdtDir => label.fdtdir = value,
                Keyword::FdtOverlays => label.fdtoverlays = value,
                Keyword::MenuLabel => label.menu_label = value,
                Keyword::MenuDefault => label.menu_default = true,
                Keyword::Default
                | Keyword::Timeout
                | Keyword::Prompt
                | Keyword::Ui
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
}

/// The lines that mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keyword {
    Default,
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
    /// Something else about the menu.
    Menu,
    Ui,
}

const KEYWORDS: [(&[u8], Keyword); 16] = [
    (b"default", Keyword::Default),
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

/// The known lines of a file.
#[derive(Clone, Copy, Debug)]
struct Keywords<'a>(Lines<'a>);

impl<'a> Iterator for Keywords<'a> {
    type Item = (Keyword, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (word, value) = self.0.next()?;
            let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
            if is(b"text") {
                // Help for a menu, of any words.
                while let Some((word, _)) = self.0.next()
                    && !word.eq_ignore_ascii_case(b"endtext")
                {}
                continue;
            }
            if is(b"menu") {
                let (word, value) = lines(value).next().unwrap_or_default();
                let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
                return Some(match () {
                    () if is(b"label") => (Keyword::MenuLabel, value),
                    () if is(b"default") => (Keyword::MenuDefault, value),
                    () => (Keyword::Menu, value),
                });
            }
            if let Some((_, keyword)) = KEYWORDS.iter().find(|(name, _)| is(name)) {
                return Some((*keyword, value));
            }
        }
    }
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
        assert_eq!(config.default_label(), Some(0));
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
        assert_eq!(config.default_label(), Some(1));
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
            ("prompt 0\nmenu title A\n", Some(Timeout::Force)),
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
    fn a_default_that_is_not_there_is_no_default() {
        let default = |text: &[u8]| Config::parse(text).default_label();
        assert_eq!(default(b"label a\nlabel b\ndefault b\n"), Some(1));
        assert_eq!(default(b"default menu.c32\nlabel a\nlabel b\n"), None);
        assert_eq!(
            default(b"default x\nlabel a\nlabel b\nmenu default"),
            Some(1)
        );
        assert_eq!(default(b""), None);
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
