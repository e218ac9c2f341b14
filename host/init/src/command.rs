//! Starts the command with its user, directory, environment and streams, waits for it, and reports
//! its status.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, ioctl_tiocsctty, kill_process, pidfd_open,
    setsid, wait,
};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::config::Config;
use crate::ports::Ports;
use crate::relay::Flow;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest time between two checks for orphans that have ended.
const REAP: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Replaces this program by the tree's own init, which keeps the process id.
pub fn replace_by(init: &Path) -> io::Error {
    Command::new(init)
        .env_clear()
        .env("PATH", PATH)
        .env("TERM", "linux")
        .exec()
}

/// Runs the command to its end.
pub fn run(config: &Config, ports: &mut Ports) -> Result<()> {
    let user = User::find(config.user.as_deref().unwrap_or("0"))?;
    let words = match &config.command[..] {
        [] => vec![user.shell.clone().into_os_string()],
        words => words.to_vec(),
    };
    let directory = config.directory.as_deref().unwrap_or(Path::new("/"));
    let is_ours = ["/tmp", "/run"]
        .iter()
        .any(|ours| directory.starts_with(ours));
    ensure!(
        directory.is_dir(),
        "the tree has no directory {} to start the command in{}",
        directory.display(),
        if is_ours {
            ": /tmp and /run are empty in the machine"
        } else {
            ""
        }
    );
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .current_dir(directory)
        .uid(user.uid)
        .gid(user.gid)
        .env_clear()
        .envs([
            ("PATH", PATH),
            ("USER", &user.name),
            ("LOGNAME", &user.name),
        ])
        .env("HOME", &user.home)
        .env("SHELL", &user.shell)
        .envs(config.environment.iter().map(|(name, value)| (name, value)));

    let streams = ports.streams.take().context("the streams are gone")?;
    let (mut flows, terminal) = match config.terminal {
        true => with_terminal(&mut command, streams)?,
        false => (with_pipes(&mut command, streams)?, None),
    };
    let has_terminal = terminal.is_some();
    let before_exec = move || {
        setsid()?;
        if has_terminal {
            ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls and allocates nothing, as is required between fork
    // and exec.
    unsafe { command.pre_exec(before_exec) };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let path = variable(config, "PATH");
            let (status, why) = unstarted(&words[0], &path, &error);
            ports.tell(&format!("unstarted {status} {why}"));
            ports.wait_for_bye();
            return Ok(());
        }
    };
    // Drop the command's ends of the pipes, which would stay open here.
    drop(command);
    ports.tell("stage command");
    let pid = Pid::from_child(&child);
    let status = relay(pid, ports, &mut flows, terminal.as_ref())?;
    let [sent, errors] = [1, 2].map(|index| flows.get(index).map_or(0, |flow: &Flow| flow.sent));
    ports.tell(&format!("ended {status} {sent} {errors}"));
    ports.wait_for_bye();
    Ok(())
}

/// A variable of the command's environment.
fn variable(config: &Config, name: &str) -> OsString {
    let set = config
        .environment
        .iter()
        .rev()
        .find(|(known, _)| known == name);
    set.map_or_else(|| PATH.into(), |(_, value)| value.clone())
}

/// The status that a shell returns for a command that could not be started, and the reason.
fn unstarted(program: &OsStr, path: &OsStr, error: &io::Error) -> (u8, String) {
    let name = program.to_string_lossy();
    let exists = match name.contains('/') {
        true => Path::new(program).exists(),
        false => std::env::split_paths(path).any(|dir| dir.join(program).exists()),
    };
    match error.raw_os_error() {
        Some(code) if code == Errno::NOENT.raw_os_error() && exists => (
            127,
            format!("{name}: the tree lacks its interpreter or its dynamic linker"),
        ),
        Some(code) if code == Errno::NOENT.raw_os_error() => {
            (127, format!("{name}: command not found"))
        }
        Some(code) if code == Errno::NOEXEC.raw_os_error() => {
            (126, format!("{name}: it is not a program for this machine"))
        }
        _ => (126, format!("{name}: cannot be executed: {error}")),
    }
}

/// Pipes for the three streams.
fn with_pipes(command: &mut Command, streams: [OwnedFd; 3]) -> Result<Vec<Flow>> {
    let [stdin, stdout, stderr] = streams;
    let (theirs, to) = io::pipe()?;
    command.stdin(theirs);
    let (from, theirs) = io::pipe()?;
    command.stdout(theirs);
    let (errors, theirs) = io::pipe()?;
    command.stderr(theirs);
    let (to, from, errors) = (to.into(), from.into(), errors.into());
    for fd in [&to, &from, &errors] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    Ok(vec![
        Flow::new(stdin, to),
        Flow::new(from, stdout),
        Flow::new(errors, stderr),
    ])
}

/// One terminal for all three streams (pty(7)).
fn with_terminal(
    command: &mut Command,
    streams: [OwnedFd; 3],
) -> Result<(Vec<Flow>, Option<OwnedFd>)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let ours = openpt(flags).context("cannot make a terminal")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags | OpenptFlags::CLOEXEC)?;
    command
        .stdin(Stdio::from(theirs.try_clone()?))
        .stdout(Stdio::from(theirs.try_clone()?))
        .stderr(Stdio::from(theirs));
    rustix::io::ioctl_fionbio(&ours, true)?;
    let [stdin, stdout, _] = streams;
    let copies = (ours.try_clone()?, ours.try_clone()?);
    let flows = vec![Flow::new(stdin, copies.0), Flow::new(copies.1, stdout)];
    Ok((flows, Some(ours)))
}

/// Forwards the streams until the command has ended and all of its output was forwarded; returns
/// its status as a shell would.
fn relay(
    pid: Pid,
    ports: &mut Ports,
    flows: &mut [Flow],
    terminal: Option<&OwnedFd>,
) -> Result<i32> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the command")?;
    let mut ended = None;
    let mut host_is_there = true;
    loop {
        if ended.is_some() && flows.iter().skip(1).all(Flow::is_over) {
            break;
        }
        let interests: Vec<_> = flows.iter().map(Flow::interest).collect();
        let mut fds: Vec<_> = interests
            .iter()
            .flatten()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        if host_is_there {
            fds.push(PollFd::from_borrowed_fd(
                ports.control.as_fd(),
                PollFlags::IN,
            ));
        }
        if ended.is_none() {
            fds.push(PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, Some(&REAP)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the command"),
        }
        let mut told = fds.iter().map(PollFd::revents);
        let told: Vec<_> = interests
            .iter()
            .map(|interest| interest.as_ref().and_then(|_| told.next()))
            .collect();
        for (flow, flags) in flows.iter_mut().zip(told) {
            if let Some(flags) = flags.filter(|flags| !flags.is_empty()) {
                flow.advance(flags);
            }
        }
        if host_is_there {
            match ports.lines() {
                Some(lines) => lines.iter().for_each(|line| resize(line, terminal)),
                None => host_is_there = false,
            }
        }
        while let Ok(Some((one, status))) = wait(WaitOptions::NOHANG) {
            if one == pid {
                ended = Some(status);
                // Kill the processes that it left: they may hold its output open, and would end
                // with the machine anyway.
                kill_all();
            }
        }
    }
    Ok(ended.map_or(255, code))
}

/// Kills every other process.
fn kill_all() {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(pid) = number
            .and_then(Pid::from_raw)
            .filter(|pid| *pid != Pid::INIT)
        {
            // It may have ended, or be a kernel thread.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn code(status: WaitStatus) -> i32 {
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(signal).unwrap_or(255)
}

/// Sets the terminal's size: `size ROWS COLUMNS`.
fn resize(line: &str, terminal: Option<&OwnedFd>) {
    let (Some("size"), Some(terminal)) = (line.split(' ').next(), terminal) else {
        return;
    };
    let numbers: Vec<u16> = line.split(' ').skip(1).flat_map(str::parse).collect();
    if let [ws_row, ws_col] = numbers[..] {
        let size = Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // If this fails, programs only draw for another size.
        let _ = tcsetwinsize(terminal, size);
    }
}

/// The user whose rights the command has (passwd(5)).
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
    shell: PathBuf,
}

impl User {
    /// Finds a user by name or number in the tree; a number needs no entry.
    fn find(wanted: &str) -> Result<Self> {
        let number = wanted.parse().ok();
        // Names of persons may be in another encoding.
        let text = fs::read("/etc/passwd").unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let known = text.lines().filter_map(Self::parse);
        let mut known = known.filter(|user| user.name == wanted || Some(user.uid) == number);
        let mut user = match (known.next(), number) {
            (Some(user), _) => user,
            (None, Some(uid)) => Self {
                name: if uid == 0 { "root" } else { wanted }.to_owned(),
                uid,
                gid: uid,
                home: if uid == 0 { "/root" } else { "/" }.into(),
                shell: PathBuf::new(),
            },
            (None, None) => anyhow::bail!("the tree's /etc/passwd has no user {wanted}"),
        };
        if !user.shell.is_file() {
            let shells = ["/bin/bash", "/bin/sh"].map(PathBuf::from);
            let found = shells.into_iter().find(|shell| shell.is_file());
            user.shell = found.unwrap_or_else(|| "/bin/sh".into());
        }
        Ok(user)
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        Some(Self {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.into(),
            shell: shell.into(),
        })
    }
}
