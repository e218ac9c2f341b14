//! The commands of a machine, for a person to run: a shell script that starts the servers, then QEMU,
//! and leaves nothing behind.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::process::{Invocation, quote};
use crate::qemu::{Machine, Share, Wiring};
use crate::serve::{Cache, Owner};
use crate::virtiofsd::{Endpoint, Virtiofsd};

/// A placeholder for the script's own directory, which needs no quotes in a shell; replaced when
/// the text is complete.
const DIR: &str = "/directory-of-the-script";

impl Machine {
    /// The server and QEMU commands of this machine, as a script that a person can run. It makes a
    /// directory of its own for the sockets, runs `prepare`, which may use it as `"$dir"`, and leaves
    /// nothing behind.
    ///
    /// # Errors
    /// The machine's description is wrong, or its server is no virtiofsd.
    pub fn dry_run(&self, prepare: &str) -> Result<String> {
        self.check()?;
        let mut machine = self.clone();
        // A server without a directory is searched in PATH.
        let server = machine.server.as_mut();
        let server = server.filter(|path| path.components().count() > 1);
        let paths = server.into_iter().chain([&mut machine.firmware]);
        for path in paths.chain(&mut machine.qemu).chain(&mut machine.trace) {
            *path = absolute(path)?;
        }
        machine.script(prepare)
    }

    fn script(&self, prepare: &str) -> Result<String> {
        let sockets: Vec<_> = (0..self.shares.len())
            .map(|n| Path::new(DIR).join(format!("fs{n}.sock")))
            .collect();
        // The embedded server would wait for the next QEMU after this one ends, so it is killed.
        // Another server may have ended already.
        let mut text = format!(
            "(\ndir=$(mktemp -d) || exit\n\
             trap 'kill $servers 2>/dev/null; rm -rf \"$dir\"' EXIT\n\
             trap 'exit 130' HUP INT QUIT TERM\n{prepare}"
        );
        let external = self.server.as_deref().map(Virtiofsd::ask).transpose()?;
        for (number, (share, socket)) in self.shares.iter().zip(&sockets).enumerate() {
            let command = match &external {
                Some(server) => {
                    let endpoint = Endpoint::Path(socket);
                    server.invocation(share, &endpoint, self.thread_pool_size)?
                }
                None => self.serve_invocation(share, socket, number)?,
            };
            // A server needs a moment until it listens, and QEMU does not wait for it.
            let socket = quote(socket.as_os_str());
            text.push_str(&format!(
                "{} &\n\
                 servers=\"$servers $!\"\n\
                 while [ ! -S {socket} ] && kill -0 $!; do sleep 0.1; done\n",
                command.shell()
            ));
        }
        let wiring = Wiring {
            sockets,
            qmp: None,
            interactive: true,
        };
        text.push_str(&self.invocation(&wiring).shell());
        text.push_str("\n)\n");
        Ok(text.replace(DIR, "\"$dir\""))
    }

    /// The command that serves a share as the embedded server would.
    fn serve_invocation(&self, share: &Share, socket: &Path, number: usize) -> Result<Invocation> {
        let program = std::env::current_exe().context("cannot find this program's own path")?;
        let mut command = Invocation::new(program);
        command.arg("serve").option("--socket", socket);
        command.option("--tag", &share.tag);
        command.option("--request-queues", self.request_queues.to_string());
        if let Some(threads) = self.thread_pool_size {
            command.option("--thread-pool-size", threads.to_string());
        }
        if let Some(cache) = self.cache.to_possible_value()
            && self.cache != Cache::default()
        {
            command.option("--cache", cache.get_name());
        }
        if self.xattr {
            command.arg("--xattr");
        }
        if let Some(owner) = self.owner.to_possible_value()
            && self.owner != Owner::default()
        {
            command.option("--owner", owner.get_name());
        }
        if let Some(fault) = &self.fault {
            command.option("--fault", fault.to_string());
        }
        if let Some(trace) = &self.trace {
            let mut file = trace.clone().into_os_string();
            if number > 0 {
                // Here each server is a process of its own, with a trace file of its own.
                file.push(format!(".{number}"));
            }
            command.option("--trace", file);
        }
        for dir in &share.dirs {
            command.arg(absolute(dir)?);
        }
        Ok(command)
    }
}

/// The script may be run in another directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context("cannot find the working directory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;

    #[test]
    fn each_server_of_a_dry_run_has_a_trace_of_its_own() {
        let mut machine = Machine::new(Board::X86_64Pc, std::env::current_exe().unwrap());
        machine.shares = vec![Share::new("a", "/"), Share::new("b", "/")];
        machine.trace = Some("/t/trace".into());
        let text = machine.dry_run("").unwrap();
        for option in ["--trace /t/trace ", "--trace /t/trace.1 "] {
            assert_eq!(text.matches(option).count(), 1, "{text}");
        }
    }

    #[test]
    fn the_script_of_a_dry_run_works_in_any_directory() {
        let mut machine = Machine::new(Board::X86_64Pc, "Cargo.toml");
        machine.shares = vec![Share::new("a", "src")];
        machine.disks = vec!["Cargo.toml".into()];
        machine.trace = Some("trace".into());
        machine.owner = Owner::Root;
        let text = machine.dry_run("").unwrap();
        let here = std::env::current_dir().unwrap().display().to_string();
        for name in ["Cargo.toml", "src", "trace"] {
            assert!(text.contains(&format!("{here}/{name}")), "{name}: {text}");
        }
        assert!(text.contains(" --owner root "), "{text}");
    }
}
