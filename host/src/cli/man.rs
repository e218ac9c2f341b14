//! Manual pages, generated from the help texts. Their sections have the order of man-pages(7).

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use clap_mangen::Man;

use bootshare_host::output;
use bootshare_host::run::EXIT_STATUSES;

use super::{NOT_STARTED, boot, command, run};

const ENVIRONMENT: [(&str, &str); 5] = [
    (
        "PATH",
        "QEMU's program is searched here, unless --qemu names it.",
    ),
    (
        "TMPDIR",
        "The directory for sockets, for the kernel and the initrd of run, and for console text that standard output has not accepted yet.",
    ),
    (
        "XDG_CACHE_HOME, HOME",
        "The cache is $XDG_CACHE_HOME/bootshare, or ~/.cache/bootshare: the downloads of demo and qemu, and the kernels that boot and run have unpacked.",
    ),
    ("NO_COLOR", "If it is set, no colours are used."),
    (
        "CLICOLOR_FORCE",
        "If it is set, colours are used even without a terminal.",
    ),
];

const FILES: [(&str, &str); 3] = [
    ("~/.cache/bootshare", "The cache; it can be removed."),
    (
        "target/firmware",
        "The firmware images that make firmware builds, used by a program without embedded images.",
    ),
    ("/dev/kvm", "Used as the accelerator if it works."),
];

/// Writes a page for the program and one for each command into `dir`.
pub(super) fn write(dir: &Path) -> Result<()> {
    let mut program = command().disable_help_subcommand(true);
    program.build();
    output::directory(dir)?;
    let name = program.get_name().to_owned();
    let commands: Vec<_> = program
        .get_subcommands()
        .filter(|it| !it.is_hide_set())
        .collect();
    let pages = commands
        .iter()
        .map(|command| format!("{name}-{}", command.get_name()));
    let pages: Vec<_> = std::iter::once(name.clone()).chain(pages).collect();
    let mut files = Vec::new();
    for (index, page) in pages.iter().enumerate() {
        let command = match index.checked_sub(1) {
            None => program.clone(),
            Some(index) => {
                let command = commands[index].clone();
                let usage = format!("{name} {}", command.get_name());
                command.bin_name(usage).display_name(page.clone())
            }
        };
        let see_also = pages.iter().filter(|other| *other != page);
        let text = render(&command, see_also)?;
        files.push((dir.join(format!("{page}.1")), text));
    }
    output::update(&files, "a manual page")
}

fn render<'a>(
    command: &clap::Command,
    see_also: impl Iterator<Item = &'a String>,
) -> Result<Vec<u8>> {
    let failed = NOT_STARTED.to_string();
    let failure = (&*failed, "failure, with an error line");
    let signal = ("130", "SIGINT, SIGTERM, SIGHUP or SIGQUIT ended it");
    type Rows<'a> = Vec<(&'a str, &'a str)>;
    let (statuses, examples): (Rows<'_>, Rows<'_>) = match command.get_name() {
        "boot" => (EXIT_STATUSES.into(), boot::EXAMPLES.into()),
        "run" => (run::EXIT_STATUSES.into(), run::EXAMPLES.into()),
        "doctor" => {
            let found = ("1", "something failed that every boot needs");
            (vec![("0", "success"), found, failure, signal], Vec::new())
        }
        "demo" | "qemu" => (vec![("0", "success"), failure, signal], Vec::new()),
        _ if command.has_subcommands() => {
            let others = ("other", "see the pages of boot, run and doctor");
            let examples = boot::EXAMPLES.into_iter().chain(run::EXAMPLES);
            (vec![("0", "success"), failure, others], examples.collect())
        }
        _ => (vec![("0", "success"), failure], Vec::new()),
    };
    // These texts are in sections of their own here.
    let shown = match examples[..] {
        [] => command.clone(),
        _ => command.clone().after_help(""),
    };
    let page = Man::new(shown).source(format!("bootshare-host {}", env!("CARGO_PKG_VERSION")));
    let mut out = Vec::new();
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        page.render_options_section(&mut out)?;
    }
    if command.has_subcommands() {
        page.render_subcommands_section(&mut out)?;
    }
    if command.get_after_help().is_some() && examples.is_empty() {
        page.render_extra_section(&mut out)?;
    }
    section(&mut out, "EXIT STATUS", &statuses)?;
    section(&mut out, "ENVIRONMENT", &ENVIRONMENT)?;
    section(&mut out, "FILES", &FILES)?;
    if !examples.is_empty() {
        writeln!(out, ".SH EXAMPLES")?;
        for (what, line) in examples {
            writeln!(
                out,
                "{}:\n.PP\n.RS\n.nf\n{}\n.fi\n.RE\n.PP",
                roff(what),
                roff(line)
            )?;
        }
    }
    writeln!(out, ".SH SEE ALSO")?;
    let pages: Vec<_> = see_also
        .map(|page| format!("\\fB{}\\fR(1)", roff(page)))
        .collect();
    writeln!(out, "{}, \\fBqemu\\fR(1)", pages.join(", "))?;
    Ok(out)
}

fn section(out: &mut Vec<u8>, name: &str, entries: &[(&str, &str)]) -> io::Result<()> {
    writeln!(out, ".SH {name}")?;
    for (what, text) in entries {
        writeln!(out, ".TP\n\\fB{}\\fR\n{}", roff(what), roff(text))?;
    }
    Ok(())
}

/// Escapes text for groff: no line is a command, backslashes are literal, and hyphens can be
/// copied.
fn roff(text: &str) -> String {
    let text = text
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    match text.starts_with('.') {
        true => format!("\\&{text}"),
        false => text,
    }
}
