//! The menu and the shell on the serial console, with and without somebody who types.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootshare_host::{Arch, Board, Machine, Outcome, demo};

use crate::entries::{share, words, write};
use crate::lab::{Run, Server, machine, random, run, run_typing};

/// Far longer than any test needs between two keys: a run that reaches it hangs.
const IN_TIME: Duration = Duration::from_secs(120);

const MENU: &str = "bootshare: menu: ";
const PROMPT: &str = "bootshare> ";

/// The line of Linux that shows its command line, whole.
const COMMAND_LINE: &str = "Kernel command line: .*\n";

/// The words of an entry with which Linux shows its command line at once, by an early console.
fn shown_words(board: Board, entry: &str) -> String {
    let early = match board.arch() {
        Arch::X86_64 => "earlycon=uart8250,io,0x3f8",
        Arch::Aarch64 => "earlycon",
    };
    format!("{early} {} loglevel=7", words(board, entry))
}

/// A share with three entries. The first and the third boot; the second names an initrd that does not
/// exist.
fn three_entries(name: &str, board: Board) -> PathBuf {
    let share = share(&format!("menu-{name}"), board, "6.1");
    for (id, initrd) in [("a", "initrd"), ("b", "missing"), ("c", "initrd")] {
        let options = shown_words(board, id);
        let text = format!(
            "title Entry {id}\nsort-key {id}\nlinux /6.1/linux\ninitrd /6.1/{initrd}\noptions {options}\n"
        );
        write(&share, &format!("loader/entries/{id}.conf"), &text);
    }
    share
}

fn with(board: Board, share: &Path, options: &str) -> Machine {
    let mut machine = machine(board, Server::Rust, share, options);
    machine.time_limit = Some(IN_TIME);
    machine
}

/// The same, until Linux has shown its command line.
fn until_linux(board: Board, share: &Path, options: &str) -> Machine {
    let mut machine = with(board, share, options);
    machine.watch.expect = vec![COMMAND_LINE.parse().unwrap()];
    machine
}

/// Checks that Linux has started with all of `words` on its command line.
fn expect_linux(run: &Run, words: &[&str]) {
    assert_eq!(run.outcome, Outcome::Expected);
    command_line(run, words);
}

fn command_line<'a>(run: &'a Run, words: &[&str]) -> &'a str {
    let mut parts = vec!["Kernel command line: "];
    parts.extend(words);
    run.line(&parts)
}

/// The third entry is chosen and its command line edited: at its end, in its middle, and a whole word.
/// Words of `-append` after `--` are in the line, too.
pub(crate) fn edits_a_command_line(board: Board) {
    let share = three_entries("edit", board);
    let machine = with(board, &share, "bootshare.timeout=60 -- demo.extra=1");
    let run = run_typing(
        &machine,
        &[
            (MENU, "jj"),
            ("> 3 c ", "e"),
            // The cursor starts at the end. The keys replace the last word, and insert one word
            // before it and another at the start of the line.
            (
                "demo.extra=1",
                "\x17demo.extra=2\x01demo.first \x05 demo.lost\x1b[1~\x1b[4~",
            ),
            (
                "demo.lost",
                "\x1b[D\x1b[D\x7f\x7fm\x1b[C\x1b[3~\x1b[C\x04\x7f\x7f\r",
            ),
        ],
    );
    run.line(&["  1 a: Entry a (/6.1/linux)"]);
    run.line(&["  3 c: Entry c (/6.1/linux)"]);
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&[demo::GREETING.trim()]);
    let line = command_line(
        &run,
        &["demo.first", "demo.entry=c loglevel=7 demo.extra=2"],
    );
    assert!(
        !line.contains("demo.extra=1") && !line.contains("demo.entry=a"),
        "{line}"
    );
}

/// A digit chooses an entry. The menu appears again after an entry that cannot be loaded, and after an
/// abandoned edit.
pub(crate) fn comes_back_after_a_failure(board: Board) {
    let share = three_entries("failure", board);
    write(&share, "loader/loader.conf", "timeout 60\n");
    let run = run_typing(
        &until_linux(board, &share, ""),
        &[
            (MENU, "2\r"),
            ("/6.1/missing: no such file", ""),
            (MENU, "3"),
            ("> 3 c ", "e"),
            ("loglevel=7", " demo.not\x03"),
            ("> 3 c ", "\r"),
        ],
    );
    run.line(&["bootshare: error: /loader/entries/b.conf: /6.1/missing: "]);
    expect_linux(&run, &["demo.entry=c"]);
    assert_eq!(run.find(&["Kernel command line: ", "demo.not"]), None);
}

/// Nobody types: at the end of the countdown, or at once without one, the first entry is booted.
pub(crate) fn nobody_there(board: Board) {
    let share = three_entries("nobody", board);
    write(&share, "loader/loader.conf", "timeout 2\ndefault c\n");
    let booted = run(&until_linux(board, &share, ""));
    booted.line(&[MENU]);
    booted.line(&["> 1 c (1 starts in 0 s)"]);
    expect_linux(&booted, &["demo.entry=c"]);
    for options in ["bootshare.timeout=0", "bootshare.timeout=menu-disabled"] {
        let booted = run(&until_linux(board, &share, options));
        assert_eq!(booted.find(&[MENU]), None);
        expect_linux(&booted, &["demo.entry=c"]);
    }
}

/// `extlinux.conf` asks for a menu; another label than the default is chosen.
pub(crate) fn of_extlinux(board: Board) {
    let share = share("menu-extlinux", board, "boot");
    let config = format!(
        "DEFAULT one\nPROMPT 1\nTIMEOUT 600\nLABEL one\n  KERNEL /nosuch\nLABEL two\n  MENU LABEL Two\n  \
         LINUX /boot/linux\n  INITRD /boot/initrd\n  APPEND {}\n",
        shown_words(board, "two")
    );
    write(&share, "extlinux/extlinux.conf", &config);
    let script = [(MENU, "\x1b[B"), ("> 2 two ", "\r")];
    let run = run_typing(&until_linux(board, &share, ""), &script);
    run.line(&["  2 two: Two (/boot/linux)"]);
    expect_linux(&run, &["demo.entry=two"]);
}

/// From the menu to the shell and back. The shell has line editing, a history and completion, and boots
/// an entry.
pub(crate) fn shell_boots_an_entry(board: Board) {
    let share = three_entries("shell", board);
    write(&share, "a directory/é.txt", "found\n");
    let run = run_typing(
        &until_linux(board, &share, "bootshare.timeout=60"),
        &[
            (MENU, "c"),
            // Completed to `cat /a\ directory/é.txt`. The two bytes of é may arrive separately.
            (PROMPT, "cat /a\té\t\r"),
            ("found", ""),
            // The previous line, changed into one that fails.
            (PROMPT, "\x1b[A\x1b[D\x7f\x7f\x7f\x7f\r"),
            (r"\\xc3\\xa9", ""),
            // Two lines back and one forward in the history.
            (PROMPT, "ls /6\x10\x10\x0e\x0e.1\r"),
            ("initrd", ""),
            // If several names match, they are listed.
            (PROMPT, "stat /\t\t"),
            ("loader\n", "nosuch\x15\x0bexit\r"),
            (MENU, "\x1b"),
            (PROMPT, "boot nosuch\r"),
            ("there is a, b, c", ""),
            (PROMPT, "boot b\r"),
            ("no such file", ""),
            (PROMPT, "boot c\r"),
        ],
    );
    run.line(&["bootshare: error: /a directory/\\xc3\\xa9: no such file"]);
    run.line(&["bootshare: error: boot nosuch: no entry has this name; there is a, b, c"]);
    expect_linux(&run, &["demo.entry=c"]);
}

/// Nothing can be booted, so the firmware starts its shell, where a kernel and its initrds are named.
pub(crate) fn shell_after_an_error(board: Board) {
    let share = share("menu-error", board, "files");
    let options = "bootshare.on-error=shell -- demo.extra=1";
    let words = shown_words(board, "typed");
    let command = format!("linux /files/linux {words} demo.quoted=\"a  b\"\r");
    let run = run_typing(
        &until_linux(board, &share, options),
        &[
            ("there is no kernel", ""),
            (PROMPT, "initrd /files/initrd\r"),
            ("name a kernel before it", ""),
            (PROMPT, "read-bench /files/linux\r"),
            ("again: ", ""),
            (PROMPT, &command),
            (PROMPT, "initrd /files/initrd\r"),
            (PROMPT, "boot\r"),
        ],
    );
    let size = fs::metadata(share.join("files/linux")).unwrap().len();
    for pass in ["first", "again"] {
        run.line(&[&format!("{pass}: {size} bytes in "), " ms (", " MiB/s)"]);
    }
    expect_linux(
        &run,
        &["demo.entry=typed loglevel=7 \"demo.quoted=a  b\" demo.extra=1"],
    );
}

/// The commands that end the machine, typed and in `bootshare.cmd`, and a script that boots.
pub(crate) fn ends(board: Board) {
    let share = three_entries("ends", board);
    // On `microvm`, which has no power-off device, `poweroff` ends with success.
    let off = |outcome: &Outcome| outcome.exit_code() == 0;
    let typed = |command: &str| {
        let machine = with(board, &share, "bootshare.timeout=60");
        run_typing(&machine, &[(MENU, "c"), (PROMPT, command)]).outcome
    };
    assert!(off(&typed("poweroff\r")));
    assert_eq!(typed("reboot\r"), Outcome::Reset);
    let command = |commands: &str| format!("bootshare.cmd=\"{commands}\"");
    let from = |commands: &str| run(&with(board, &share, &command(commands)));
    assert_eq!(from("poweroff; cat /nosuch").outcome, Outcome::PowerOff);
    assert_eq!(from("reboot").outcome, Outcome::Reset);
    assert_eq!(from("exit; cat /nosuch").outcome, Outcome::FirmwareExit(0));
    assert!(matches!(from("boot b").outcome, Outcome::FirmwareExit(1)));
    let boots = |commands: &str| run(&until_linux(board, &share, &command(commands)));
    expect_linux(&boots("ls /; boot c"), &["demo.entry=c"]);
    let words = shown_words(board, "script");
    let script = format!("linux /6.1/linux {words}; initrd 6.1/initrd; boot");
    expect_linux(&boots(&script), &["demo.entry=script"]);
}

/// A key opens a hidden menu, even while the first entry is loaded. A disabled menu is not opened.
pub(crate) fn hidden(board: Board) {
    let share = three_entries("hidden", board);
    // The guest hashes the file, which takes long enough to type a key.
    fs::write(share.join("6.1/large"), random(64 << 20)).unwrap();
    let slow = format!(
        "title Slow\nsort-key 0\nlinux /6.1/linux\ninitrd /6.1/large\noptions {}\n",
        words(board, "slow")
    );
    write(&share, "loader/entries/slow.conf", &slow);
    let options = "bootshare.log=trace bootshare.entry=[cs]*";
    let script = [("bootshare: mounted ", " "), (MENU, "2"), ("> 2 c ", "\r")];
    let chosen = run_typing(&until_linux(board, &share, options), &script);
    expect_linux(&chosen, &["demo.entry=c"]);

    let options = "bootshare.timeout=menu-disabled bootshare.entry=c";
    let script = [("bootshare: mounted ", " ")];
    let run = run_typing(&until_linux(board, &share, options), &script);
    assert_eq!(run.find(&[MENU]), None);
    expect_linux(&run, &["demo.entry=c"]);
}
