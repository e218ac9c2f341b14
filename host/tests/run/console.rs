//! Tests of the console: QEMU, the reader of standard output, standard input and the search for patterns are
//! independent. None of them may delay another one, the time limit or a signal.

use std::ffi::OsString;
use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::process::{Pid, Signal, getpgid, ioctl_tiocsctty, kill_process, setsid};
use rustix::termios::{LocalModes, OutputModes, tcgetattr};

use crate::parts::{LIMIT, c_server, install};
use crate::tool::{PID, Tool, namespace, terminal};

/// A limit for what must happen at once: far longer than it takes, and far shorter than the wait that must not
/// happen.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A pipe for standard output that is already full and never read.
fn unread_pipe() -> (PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// A script for [`Tool::fake`] that makes a file before it does what `script` says, and a function that returns
/// whether it has.
fn begun(tool: &Tool, script: &str) -> (String, impl Fn() -> bool + use<>) {
    let file = tool.path("begun");
    let _ = fs::remove_file(&file);
    let script = format!(": >'{file}'; {script}");
    (script, move || fs::exists(&file).unwrap())
}

fn wait(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + AT_ONCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    panic!("it did not end");
}

#[test]
fn the_time_limit_and_signals_work_while_nobody_reads_the_output() {
    let tool = Tool::new(&[]);
    for signal in [None, Some(Signal::TERM)] {
        let (reader, writer) = unread_pipe();
        let (script, has_begun) = begun(&tool, "exec yes");
        let mut command = tool.fake(&[], &script);
        command.args(["--timeout", if signal.is_none() { "1" } else { "1000" }]);
        command.args(["--expect", "never"]);
        // The program's last messages are written to the same pipe.
        command.stderr(writer.try_clone().unwrap()).stdout(writer);
        let mut child = command.spawn().unwrap();
        if let Some(signal) = signal {
            until("the machine does not start", has_begun);
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let expected = if signal.is_none() { 124 } else { 130 };
        assert_eq!(wait(&mut child), Some(expected), "{signal:?}");
        tool.assert_nothing_is_left();
        drop(reader);
    }
}

#[test]
fn messages_that_nobody_reads_do_not_delay_the_end() {
    let tool = Tool::new(&[]);
    for signal in [None, Some(Signal::TERM)] {
        let (reader, writer) = unread_pipe();
        let (script, has_begun) = begun(&tool, "echo Kernel panic; sleep 1000");
        let mut command = tool.fake(&[], &script);
        command.args(["--timeout", if signal.is_none() { "10" } else { "1000" }]);
        command
            .args(["--fail", "Kernel panic"])
            .stdout(Stdio::null());
        let mut child = command.stderr(writer).spawn().unwrap();
        if let Some(signal) = signal {
            until("the machine does not start", has_begun);
            until("the machine does not end", || tool.processes().len() == 1);
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let status = wait(&mut child);
        assert!(matches!(status, Some(1 | 130)), "{signal:?}: {status:?}");
        drop(reader);
    }
}

#[test]
fn unread_output_is_kept_for_a_slow_reader_after_the_guest_ends() {
    let tool = Tool::new(&[]);
    let mut command = tool.fake(&[], "seq 1 400000; exit 33");
    command.stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(child.try_wait().unwrap(), None, "nobody has read it");
    let mut shown = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut shown)
        .unwrap();
    assert_eq!(wait(&mut child), Some(0));
    let all: String = (1..=400_000).map(|line| format!("{line}\n")).collect();
    assert!(shown == all, "{} bytes of {}", shown.len(), all.len());
    // If the time limit passes, the lost output is reported.
    let (reader, writer) = unread_pipe();
    let mut command = tool.fake(&[], "echo result; exit 33");
    command.args(["--timeout", "15"]).stdout(writer);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{errors}");
    let said = "error: standard output did not take 7 bytes of the console";
    assert!(errors.contains(said), "{errors}");
    drop(reader);
}

#[test]
fn a_failure_is_noticed_while_nobody_reads_the_output() {
    let tool = Tool::new(&[]);
    let (reader, writer) = unread_pipe();
    let (script, has_begun) = begun(&tool, "seq 1 400000; echo Kernel panic; sleep 1000");
    let mut command = tool.fake(&[], &script);
    command.args(["--fail", "^Kernel panic$", "-t", "1000", "-e", "never"]);
    let mut child = command
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // QEMU is ended; the reader of standard output still has the whole time limit.
    let is_running = |tool: &Tool| tool.processes().len() > 1;
    until("it did not start", has_begun);
    until("the failure was not seen", || !is_running(&tool));
    assert_eq!(child.try_wait().unwrap(), None);
    drop(reader);
    assert_eq!(wait(&mut child), Some(1));
    tool.assert_nothing_is_left();
}

#[test]
fn a_closed_standard_output_ends_a_run_without_expect() {
    let tool = Tool::new(&[]);
    for (args, status) in [(&[][..], 141), (&["--expect", "^100$"], 0)] {
        let (reader, writer) = io::pipe().unwrap();
        // A closed pipe is noticed by writing.
        let mut command = tool.fake(&[], "while seq 1 100; do sleep 1; done");
        command.args(args).stdout(writer).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        drop((reader, command));
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {errors}");
        assert_eq!(errors.trim(), "");
        tool.assert_nothing_is_left();
    }
}

#[test]
fn a_standard_output_closed_after_the_end_hides_no_failure() {
    let tool = Tool::new(&[]);
    // The firmware's success (`isa-debug-exit`), and a failure of QEMU.
    for (end, status) in [(33, 141), (3, 121)] {
        let (reader, writer) = io::pipe().unwrap();
        // More than the pipe takes.
        let (script, has_begun) = begun(&tool, &format!("seq 1 100000; exit {end}"));
        let mut command = tool.fake(&[], &script);
        let mut child = command.stdout(writer).spawn().unwrap();
        drop(command);
        until("it did not start", has_begun);
        until("the machine did not end", || tool.processes().len() == 1);
        assert_eq!(child.try_wait().unwrap(), None);
        drop(reader);
        assert_eq!(wait(&mut child), Some(status), "{end}");
        tool.assert_nothing_is_left();
    }
}

#[test]
fn a_terminal_that_goes_away_is_an_interruption() {
    let tool = Tool::new(&[]);
    let (user, program) = terminal();
    // The terminal is full, since nobody reads it.
    let (script, has_begun) = begun(&tool, "exec yes");
    let mut command = tool.fake(&[], &script);
    let mut child = command.stdout(program).spawn().unwrap();
    drop(command);
    until("it did not start", has_begun);
    thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    drop(user);
    assert_eq!(wait(&mut child), Some(130));
    tool.assert_nothing_is_left();
}

#[test]
fn only_the_user_can_enter_the_directory_of_sockets() {
    let tool = Tool::new(&[]);
    let show = "stat -c %a \"$TMPDIR\"/bootshare-*; exit 33";
    let command = tool.fake(&["sh", "-c", "umask 0; exec \"$0\" \"$@\""], show);
    let ran = tool.run({ command }.env_remove("_"));
    assert_eq!((ran.status, &*ran.console), (Some(0), "700\n"), "{ran:?}");
}

#[test]
fn a_nonblocking_standard_output_is_waited_for() {
    let tool = Tool::new(&[]);
    let (mut reader, writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut command = tool.fake(&[], "seq 1 100000; exit 33");
    let mut child = command.stdout(writer).spawn().unwrap();
    drop(command);
    thread::sleep(Duration::from_secs(1));
    let mut shown = String::new();
    reader.read_to_string(&mut shown).unwrap();
    assert!(shown.ends_with("\n100000\n"));
    assert_eq!(wait(&mut child), Some(0));
}

#[test]
fn a_helper_process_with_the_console_open_does_not_delay_the_end() {
    let tool = Tool::new(&[]);
    // A helper in QEMU's process group ends with QEMU; one in a session of its own continues.
    for (helper, is_left) in [("setsid sh", true), ("sh", false)] {
        let pid = tool.path("pid");
        let script = format!(
            "rm -f {pid}\n{helper} -c 'echo $$ >{pid}; exec sleep 1000' &\n\
             until [ -s {pid} ]; do sleep 0.1; done; echo READY; exit 33"
        );
        let mut command = tool.fake(&[], &script);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        assert_eq!(wait(&mut child), Some(0), "{helper}");
        let pid: i32 = fs::read_to_string(tool.path("pid"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let lives = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        if !is_left {
            // It was killed, but may not have run since.
            until("the helper lives", || !lives());
        } else {
            assert!(lives(), "{helper}");
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
    }
}

#[test]
fn a_prompt_is_matched_at_once_and_answered() {
    let tool = Tool::new(&[]);
    // Each answer ends with a carriage return, which is what Enter sends.
    let guest = r#"printf 'login: '; IFS= read -r line
        [ "$line" = root ] || exit 35
        printf 'Welcome \nroot@vm:~# '; IFS= read -r line; echo "$line"; exec sleep 1000"#;
    let enter = "stdbuf -i0 -o0 tr '\\r' '\\n' | ";
    for pattern in ["# $", r"~#\s*$", r"vm\b.*# $"] {
        let mut command = tool.fake(&[], &format!("{enter}{{ {guest}; }}"));
        command.args(["-t", "1000", "-e", "^login: $", "--send", "root"]);
        command.args(["-e", pattern, "--send", "echo done", "-e", "echo done$"]);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        assert_eq!(wait(&mut child), Some(0), "{pattern}");
    }
    // Patterns must match in order, and the missing one is named.
    let mut command = tool.fake(&[], "echo two; echo one; exit 33");
    let ran = tool.run(command.args(["-e", "one", "-e", "two"]));
    ran.expect(
        1,
        &["never showed --expect 'two', 2 of 2: the firmware ended"],
    );
    // One of several --fail patterns is enough.
    let mut command = tool.fake(&[], "echo two; exit 33");
    let ran = tool.run(command.args(["-f", "one", "-f", "two", "-e", "never"]));
    ran.expect(1, &["the console showed --fail 'two': two"]);
    let ran = tool.run(tool.fake(&[], "exit 33").args(["--send", "x", "-e", "y"]));
    ran.expect(123, &["--send has no --expect before it"]);
}

#[test]
fn a_script_logs_in_and_ends_the_guest() {
    let tool = Tool::new(&[]);
    let mut command = tool.command(&[], &["boot", "share", "-t", "120", "-b", "x86_64-q35"]);
    command.args([
        "--accel",
        "tcg",
        "--cmdline",
        "demo.shell tsc_early_khz=2000000",
    ]);
    command.arg("--firmware");
    command.arg(crate::parts::target().join("firmware/bootshare-x86_64.elf"));
    command.args(["-e", "/share # $", "--send", "echo $((40+2))", "-e", "^42$"]);
    command.args(["-e", "/share # $", "--send", "exit"]);
    let ran = tool.run(&mut command);
    ran.expect(0, &[]);
    assert!(ran.console.contains("reboot: Power down"), "{ran:?}");
    assert_eq!(ran.errors.trim(), "");
}

#[test]
fn a_script_on_standard_input_waits_for_a_prompt() {
    let tool = Tool::new(&[]);
    // Linux discards input that came before it opened its console.
    let drop = "timeout 1 cat >/dev/null; printf '# '; IFS= read -r line; echo \"got $line\"";
    let silent = "timeout 1 cat >/dev/null; echo booted; IFS= read -r line; echo \"got $line\"";
    for script in [drop, silent] {
        let mut command = tool.fake(&[], &format!("echo booting; {script}; exit 33"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"exit\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shown}");
        assert!(shown.ends_with("got exit\n"), "{shown}");
    }
}

#[test]
fn an_unreadable_standard_input_is_ignored() {
    let tool = Tool::new(&[]);
    let mut command = tool.fake(&[], "printf '# '; sleep 1; exit 33");
    // nohup(1) opens standard input like this: for writing only.
    let input = fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .unwrap();
    let ran = tool.run(command.stdin(input));
    ran.expect(0, &[]);
}

#[test]
fn a_caller_that_ignores_sigchld_gets_the_guests_status() {
    let tool = Tool::new(&[]);
    for (code, status) in [(33, 0), (35, 1)] {
        let mut command = tool.fake(&["env", "--ignore-signal=CHLD"], &format!("exit {code}"));
        tool.run(&mut command).expect(status, &[]);
    }
}

/// A parent with threads may have blocked its signals.
#[test]
fn a_signal_that_the_caller_has_blocked_ends_a_run() {
    let tool = Tool::new(&[]);
    let (hangs, has_begun) = begun(&tool, "exec sleep 1000");
    let mut command = tool.fake(&["env", "--block-signal=TERM"], &hangs);
    let mut child = command.spawn().unwrap();
    until("QEMU does not start", &has_begun);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), Some(130));
    tool.assert_nothing_is_left();
}

#[test]
fn a_hanging_server_does_not_delay_a_signal() {
    let tool = Tool::new(&[]);
    let (hangs, has_begun) = begun(&tool, "trap '' TERM; exec sleep 1000");
    for script in [
        format!("{hangs}\n"),
        format!(
            "case $1 in --help) exec '{}' --help ;; esac\n{hangs}\n",
            c_server()
        ),
    ] {
        let (draft, path) = (tool.path("draft"), tool.path("server"));
        let _ = fs::remove_file(tool.path("begun"));
        fs::write(&draft, format!("#!/bin/sh\n{script}")).unwrap();
        install(draft.as_ref(), path.as_ref());
        let mut command = tool.fake(&[], "exec sleep 1000");
        let mut child = command.args(["--server", &path]).spawn().unwrap();
        until("the server does not start", &has_begun);
        let since = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = wait(&mut child);
        assert!(matches!(status, Some(123 | 130)), "{status:?}");
        // It does not wait the ten seconds that the server has to answer.
        let time = since.elapsed();
        assert!(time < Duration::from_secs(9), "{time:?}");
        tool.assert_nothing_is_left();
    }
}

/// A wrapper that mounts a file system on a directory for which nobody answers.
fn hanging(dir: &'static str) -> Vec<&'static str> {
    assert!(fs::exists("/dev/fuse").unwrap(), "no /dev/fuse");
    let script = r#"exec 3<>/dev/fuse || exit 99
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none "$1" || exit 99
        shift; exec "$@""#;
    [namespace(&["--mount"]), vec!["sh", "-c", script, "sh", dir]].concat()
}

/// A run that has ended waits for its server, which may hang in a file system of the host.
#[test]
fn a_file_that_does_not_answer_delays_neither_a_signal_nor_the_limit_after_the_end() {
    let tool = Tool::new(&[]);
    fs::create_dir(tool.path("share/hangs")).unwrap();
    let wrapper = hanging("share/hangs");
    let command = |limit| {
        let options = "bootshare.cmd=\"cat /hangs/file\"";
        let mut command = tool.firmware_command(&wrapper, options, limit);
        command.args(["share", "--expect", "no progress"]);
        command
    };
    let mut first = command(2 * LIMIT);
    let (user, program) = terminal();
    on_terminal(&mut first, &program);
    let start = Instant::now();
    let mut child = first.spawn().unwrap();
    let has_qemu = || {
        let found = tool.processes();
        found
            .iter()
            .any(|(_, line)| line.contains("memory-backend-memfd"))
    };
    until("QEMU does not start", has_qemu);
    until("QEMU does not end", || !has_qemu());
    let end = start.elapsed();
    // Now a key sends a signal.
    until("the terminal stays raw", || !is_raw(&program));
    let since = Instant::now();
    rustix::io::write(&user, b"\x03").unwrap();
    assert_eq!(wait(&mut child), Some(130));
    // It does not wait the ten seconds that the server has to end.
    let time = since.elapsed();
    assert!(time < Duration::from_secs(9), "{time:?}");

    // A limit within these ten seconds.
    let limit = end + Duration::from_secs(4);
    let since = Instant::now();
    let ran = tool.run(&mut command(limit));
    let time = since.elapsed();
    // A busy machine may show the text only after the limit.
    assert!(matches!(ran.status, Some(0 | 124)), "{ran:?}");
    assert!(time < limit + Duration::from_secs(4), "{time:?}, {limit:?}");
}

/// Opening a directory may wait without end, too: then there is no machine yet.
#[test]
fn a_directory_that_does_not_answer_delays_neither_the_limit_nor_a_signal() {
    let tool = Tool::new(&[]);
    let kernel = tool.path("kernel");
    fs::copy(tool.path("share/vmlinuz"), &kernel).unwrap();
    let hangs = hanging("share");
    let blocked = [hangs.clone(), vec!["env", "--block-signal=TERM"]].concat();
    let run = ["run", "--kernel", &kernel, "share", "--json", "report"];
    for args in [&["boot", "share"][..], &["share"], &run] {
        fs::write(tool.path("report"), "").unwrap();
        let mut command = tool.command(&hangs, args);
        let mut child = command.args(["--timeout", "2"]).spawn().unwrap();
        assert_eq!(wait(&mut child), Some(124), "{args:?}");
        let report = fs::read_to_string(tool.path("report")).unwrap();
        assert_eq!(report.contains("\"status\":124"), args == run, "{report}");
        for wrapper in [&hangs, &blocked] {
            let mut command = tool.command(wrapper, args);
            let mut child = command.spawn().unwrap();
            until("no handler", || handles_sigterm(child.id()));
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            assert_eq!(wait(&mut child), Some(130), "{args:?}");
        }
        tool.assert_nothing_is_left();
    }
    let mut command = tool.command(&hangs, &["serve", "share", "--socket", "socket"]);
    let mut child = command.args(["--trace", "trace"]).spawn().unwrap();
    until("it does not start", || {
        let line = fs::read(format!("/proc/{}/cmdline", child.id())).unwrap();
        line.starts_with(tool.path("tool").as_bytes())
    });
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), None);
    let entries = fs::read_dir(tool.dir.path()).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    let is_left = |name: &OsString| name == "socket" || name.as_bytes().starts_with(b".bootshare-");
    assert!(!names.iter().any(is_left), "{names:?}");
}

/// Starts a command in a mount namespace in which a file system that does not answer is mounted on `dir`. The second
/// process holds it.
fn spawn_beside_hanging(tool: &Tool, mut command: Command, dir: &str) -> (Child, Child) {
    let go = tool.path("go");
    let _ = fs::remove_file(&go);
    let child = command.spawn().unwrap();
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let own = namespace("self");
    until("no namespace", || namespace(&child.id().to_string()) != own);
    let holder = hang(&child, &tool.path(dir));
    fs::write(go, "").unwrap();
    (child, holder)
}

/// A wrapper for [`spawn_beside_hanging`].
fn waits_for_go() -> Vec<&'static str> {
    let script = "until [ -e go ]; do sleep 0.1; done; exec \"$@\"";
    [namespace(&["--mount"]), vec!["sh", "-c", script, "sh"]].concat()
}

/// QEMU's program is looked for before it starts.
#[test]
fn a_path_that_does_not_answer_delays_neither_the_limit_nor_a_signal() {
    let tool = Tool::new(&[]);
    fs::create_dir(tool.path("hangs")).unwrap();
    drop(tool.fake(&[], "exec sleep 1000"));
    let (path, wrapper) = (std::env::var("PATH").unwrap(), waits_for_go());
    let path = format!("{}:{}:{path}", tool.path("hangs"), tool.path("bin"));
    let spawn = |limit: &str| {
        let mut command = tool.command(&wrapper, &["boot", "share", "--board", "x86_64-microvm"]);
        command
            .env("PATH", &path)
            .args(["--timeout", limit, "--accel", "tcg"]);
        spawn_beside_hanging(&tool, command, "hangs")
    };
    let end = |mut holder: Child| {
        holder.kill().unwrap();
        holder.wait().unwrap();
    };
    let (mut child, holder) = spawn("2");
    assert_eq!(wait(&mut child), Some(124));
    end(holder);
    tool.assert_nothing_is_left();
    let (mut child, holder) = spawn("1000");
    until("no handler", || handles_sigterm(child.id()));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), Some(130));
    end(holder);
    tool.assert_nothing_is_left();

    // The time before the start is a part of the limit.
    let since = Instant::now();
    let (mut child, holder) = spawn("12");
    thread::sleep(Duration::from_secs(9));
    end(holder);
    assert_eq!(wait(&mut child), Some(124));
    let time = since.elapsed();
    assert!(time < Duration::from_secs(18), "{time:?}");
    tool.assert_nothing_is_left();

    // The temporary directory may stop answering, too.
    let (mut child, holder) = spawn("1000");
    until("no directory", || {
        fs::read_dir(tool.path("tmp")).unwrap().count() > 0
    });
    let other = hang(&child, &tool.path("tmp"));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), Some(130));
    end(holder);
    end(other);
}

/// While the process is being ended by the time limit, the work that was waited for may fail, or go on.
#[test]
fn the_report_of_a_run_that_is_late_agrees_with_its_status() {
    let tool = Tool::new(&[]);
    let (kernel, modules) = (tool.path("kernel"), tool.path("lib/modules/1.0"));
    fs::copy(tool.path("share/vmlinuz"), &kernel).unwrap();
    fs::create_dir_all(&modules).unwrap();
    fs::write(tool.path("lib/modules/1.0/modules.dep"), "virtiofs.ko:\n").unwrap();
    let module = tool.path("lib/modules/1.0/virtiofs.ko");
    mkfifoat(CWD, &module, Mode::RUSR | Mode::WUSR).unwrap();
    let args = ["run", "--kernel", &kernel, "--modules", &modules, "share"];
    for delay in [1900, 2100, 2250, 2400, 2600] {
        let (_reader, writer) = unread_pipe();
        let mut command = tool.command(&[], &args);
        command.args(["--timeout", "2", "--json", "report"]);
        let mut child = command.stderr(writer).spawn().unwrap();
        thread::sleep(Duration::from_millis(delay));
        // Nobody may read it any more.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let _ = rustix::fs::open(&module, flags, Mode::empty());
        let status = wait(&mut child).unwrap();
        assert!([123, 124].contains(&status), "{status}");
        let report = fs::read_to_string(tool.path("report")).unwrap();
        let told = format!("\"status\":{status}");
        assert!(
            report.contains(&told),
            "{status} after {delay} ms, but {report}"
        );
        fs::remove_file(tool.path("report")).unwrap();
        tool.assert_nothing_is_left();
    }
}

/// Makes a file system that does not answer of a directory, in the mount namespace of a process, until the
/// returned process ends.
fn hang(process: &Child, dir: &str) -> Child {
    let target = process.id().to_string();
    let user: &[&str] = match rustix::process::geteuid().is_root() {
        true => &[],
        false => &["--user", "--preserve-credentials"],
    };
    let script = r#"exec 3<>/dev/fuse || exit 99
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none "$0" || exit 99
        echo; exec cat"#;
    let mut command = Command::new("nsenter");
    command.args(["--target", &target, "--mount"]).args(user);
    command.args(["sh", "-c", script, dir]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = command.spawn().unwrap();
    let read = holder.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
    assert_eq!(read, 1, "no file system that hangs");
    holder
}

#[test]
fn an_output_that_does_not_answer_delays_no_end() {
    let tool = Tool::new(&[]);
    let kernel = tool.path("kernel");
    fs::copy(tool.path("share/vmlinuz"), &kernel).unwrap();
    fs::create_dir(tool.path("out")).unwrap();
    let namespace = namespace(&["--mount"]);
    let (script, has_begun) = begun(&tool, "exec sleep 1000");
    drop(tool.fake(&[], &script));
    let bin = tool.path("bin");
    let mut command = tool.command(&namespace, &["run", "--kernel", &kernel, "share"]);
    command.args(["--qemu", &bin, "--accel", "tcg", "--json", "out/report"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    until("QEMU does not start", &has_begun);
    let mut holder = hang(&child, &tool.path("out"));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), Some(130));
    let mut errors = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    let line = "bootshare-host: error: cannot write out/report: it does not answer: name a place";
    assert!(errors.contains(line), "{errors}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    tool.assert_nothing_is_left();
}

/// Whether a process has a handler of SIGTERM (proc_pid_status(5)).
fn handles_sigterm(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    caught & 1 << (Signal::TERM.as_raw() - 1) != 0
}

/// Makes `terminal` the controlling terminal of the command, which starts a new session.
fn on_terminal(command: &mut Command, terminal: &fs::File) {
    let copy = || terminal.try_clone().unwrap();
    command.stdin(copy()).stdout(copy()).stderr(copy());
    // SAFETY: the closure makes two system calls and allocates nothing, as is required between fork
    // and exec.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
}

fn is_raw(terminal: &fs::File) -> bool {
    !tcgetattr(terminal)
        .unwrap()
        .local_modes
        .contains(LocalModes::ICANON)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A wrapper that makes a PID namespace, in which the leaders of the process group and of the session have no
/// numbers. Its first process is a shell, because no signal stops that.
fn nameless() -> Vec<&'static str> {
    let first = vec!["--mount-proc", "sh", "-c", "\"$@\"; exit $?", "sh"];
    [namespace(&PID), first].concat()
}

#[test]
fn ctrl_z_restores_the_terminal_and_stops_qemu() {
    let tool = Tool::new(&[]);
    let go_on = tool.path("go-on");
    mkfifoat(CWD, &go_on, Mode::RUSR | Mode::WUSR).unwrap();
    let mut options = fs::File::options();
    let mut say_go_on = options.read(true).write(true).open(&go_on).unwrap();
    for (last, inner) in [(Signal::TERM, vec![]), (Signal::QUIT, nameless())] {
        let (_user, program) = terminal();
        // A shell with job control, which continues its stopped job in the foreground when it is told to.
        let script = "set -m; go_on=$1; shift; \"$@\"; status=$?
            while [ $status = 148 ]; do read -r _ <\"$go_on\"; fg >/dev/null; status=$?; done
            exit $status";
        let wrapper = [&["sh", "-c", script, "sh", &go_on], &*inner].concat();
        let mut command = tool.linux(&wrapper, None);
        on_terminal(command.arg("--qemu-arg=-S"), &program);
        let mut child = command.spawn().unwrap();
        tool.wait_until_running(&mut child, 3);
        until("the terminal is not raw", || is_raw(&program));
        let qemu = tool.process("memory-backend-memfd");
        let state = |pid: Pid| {
            let path = format!("/proc/{}/stat", pid.as_raw_pid());
            let stat = fs::read_to_string(path).unwrap();
            stat.rsplit_once(") ").unwrap().1.to_owned()
        };
        let parent = state(qemu).split(' ').nth(1).unwrap().parse().unwrap();
        let pid = Pid::from_raw(parent).unwrap();
        let is_stopped = |pid: Pid| state(pid).starts_with('T');
        for _ in 0..2 {
            kill_process(pid, Signal::TSTP).unwrap();
            until("it does not stop", || is_stopped(pid) && is_stopped(qemu));
            assert!(!is_raw(&program));
            // The shell waits for this one: the tool itself or what made the namespace.
            kill_process(getpgid(Some(pid)).unwrap(), Signal::TSTP).unwrap();
            say_go_on.write_all(b"\n").unwrap();
            until("it does not go on", || {
                !is_stopped(qemu) && is_raw(&program)
            });
        }
        kill_process(pid, last).unwrap();
        assert_eq!(wait(&mut child), Some(130), "{last:?}");
        assert!(!is_raw(&program), "{last:?}");
        tool.assert_nothing_is_left();
    }
}

/// Silence ends a line. On a busy machine, the writer itself may be silent for so long.
#[test]
fn a_stop_is_no_silence_of_the_guest() {
    let tool = Tool::new(&[]);
    let writes = "trap '' TERM; while :; do printf a; sleep 0.01; done";
    let go_on = tool.path("go-on");
    mkfifoat(CWD, &go_on, Mode::RUSR | Mode::WUSR).unwrap();
    let mut options = fs::File::options();
    let mut say_go_on = options.read(true).write(true).open(&go_on).unwrap();
    let script = "set -m; \"$@\"; read -r _ <go-on; fg >/dev/null";
    let mut survives = || {
        let (_user, program) = terminal();
        let (begins, has_begun) = begun(&tool, writes);
        let mut command = tool.fake(&["sh", "-c", script, "sh"], &begins);
        on_terminal(command.args(["--fail", "a$"]), &program);
        let mut shell = command.spawn().unwrap();
        until("QEMU does not start", has_begun);
        let (program_path, found) = (tool.path("tool"), tool.processes());
        let is_tool = |(_, line): &&(Pid, String)| line.starts_with(&program_path);
        let pid = found.iter().find(is_tool).unwrap().0;
        let is_stopped = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        kill_process(pid, Signal::TSTP).unwrap();
        until("it does not stop", is_stopped);
        thread::sleep(Duration::from_millis(500));
        say_go_on.write_all(b"\n").unwrap();
        thread::sleep(Duration::from_millis(1500));
        let ended = shell.try_wait().unwrap().is_some();
        if !ended {
            kill_process(pid, Signal::TERM).unwrap();
        }
        wait(&mut shell);
        tool.assert_nothing_is_left();
        !ended
    };
    assert!((0..10).any(|_| survives()));
}

/// Nobody could continue it: the program of a terminal without a shell, as by `ssh -t`.
#[test]
fn ctrl_z_without_a_shell_has_no_effect() {
    let tool = Tool::new(&[]);
    let limited = vec!["timeout", "--foreground", "-s", "KILL", "60"];
    for inner in [vec![], nameless()] {
        let (user, program) = terminal();
        let script = "printf '# '; read -r line; echo \"got $line\"; exit 33";
        let mut command = tool.fake(&[&*limited, &*inner].concat(), script);
        on_terminal(&mut command, &program);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 2]).unwrap();
        rustix::io::write(&user, b"\x1aon\n").unwrap();
        let mut shown = String::new();
        stdout.read_to_string(&mut shown).unwrap();
        assert_eq!((wait(&mut child), &*shown), (Some(0), "got on\n"));
    }
}

#[test]
fn time_while_stopped_does_not_count_for_the_time_limit() {
    let tool = Tool::new(&[]);
    let (script, has_begun) = begun(&tool, "sleep 1; exit 33");
    let mut command = tool.fake(&[], &script);
    // A job of this process's session, which SIGTSTP stops.
    let mut child = command.args(["-t", "12"]).process_group(0).spawn().unwrap();
    until("QEMU does not start", &has_begun);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TSTP).unwrap();
    thread::sleep(Duration::from_secs(13));
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(wait(&mut child), Some(0));
}

#[test]
fn a_terminal_on_one_side_only_is_not_changed() {
    let tool = Tool::new(&[]);
    let (mut user, program) = terminal();
    let mut command = tool.fake(
        &[],
        "printf '# '; IFS= read -r line; echo \"got $line\"; exit 33",
    );
    on_terminal(&mut command, &program);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    assert!(!is_raw(&program));
    user.write_all(b"exit\n").unwrap();
    let mut shown = String::new();
    stdout.read_to_string(&mut shown).unwrap();
    assert_eq!((wait(&mut child), &*shown), (Some(0), "got exit\n"));
}

#[test]
fn the_quit_key_of_qemu_is_an_interruption() {
    let tool = Tool::new(&[]);
    let (mut user, program) = terminal();
    let mut command = tool.linux(&[], None);
    on_terminal(command.args(["--qemu-arg=-S", "-e", "never"]), &program);
    let mut child = command.spawn().unwrap();
    tool.wait_until_running(&mut child, 2);
    until("the terminal is not raw", || is_raw(&program));
    // The output modes stay on, because a guest may end lines with a bare newline.
    let output = tcgetattr(&program).unwrap().output_modes;
    assert!(output.contains(OutputModes::OPOST | OutputModes::ONLCR));
    user.write_all(b"\x01x").unwrap();
    assert_eq!(wait(&mut child), Some(130));
    tool.assert_nothing_is_left();
}

#[test]
fn a_run_in_the_background_continues_without_the_terminal() {
    let tool = Tool::new(&[]);
    let (mut user, program) = terminal();
    // timeout(1) makes a new process group, which is in the background.
    let wrapper = ["sh", "-c", "\"$@\"; exit $?", "sh", "timeout", "60"];
    let mut command = tool.fake(&wrapper, "echo READY; sleep 1; exit 33");
    on_terminal(&mut command, &program);
    let mut child = command.spawn().unwrap();
    // The input for the shell, not for the program.
    user.write_all(b"exit\n").unwrap();
    assert_eq!(wait(&mut child), Some(0));
    assert!(!is_raw(&program));
    tool.assert_nothing_is_left();
}
