//! The commands of a machine, for a person to run: a shell script that starts the servers, then QEMU,
//! and leaves nothing behind.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{Invocation, quote};
use crate::qemu::{Machine, Share, Wiring};
use crate::virtiofsd::{Endpoint, Virtiofsd};

impl Machine {
    /// The server and QEMU commands of this machine for a person to run, sockets under `dir`.
    ///
    /// # Errors
    /// The machine's description is wrong, or its server is no virtiofsd.
    pub fn dry_run(&self, dir: &Path) -> Result<String> {
        self.check()?;
        let sockets: Vec<_> = (0..self.shares.len())
            .map(|n| dir.join(format!("bootshare-fs{n}.sock")))
            .collect();
        let mut text = String::new();
        let external = self.server.as_deref().map(Virtiofsd::ask).transpose()?;
        for (number, (share, socket)) in self.shares.iter().zip(&sockets).enumerate() {
            let command = match &external {
                Some(server) => {
                    let endpoint = Endpoint::Path(socket);
                    server.invocation(share, &endpoint, self.thread_pool_size)?
                }
                None => self.serve_invocation(share, socket, number)?,
            };
            // A server listens a moment after its start, and QEMU does not wait for it; the C
            // server leaves its socket behind.
            let socket = quote(socket.as_os_str());
            text.push_str(&format!(
                "rm -f {socket}\n{} &\n\
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
        text.push('\n');
        if !wiring.sockets.is_empty() {
            // Ours would wait for the next QEMU.
            let end = if external.is_none() {
                "kill $servers\n"
            } else {
                ""
            };
            let remove = remove(&wiring.sockets).shell();
            text.push_str(&format!("status=$?\n{end}{remove}\n(exit $status)\n"));
        }
        Ok(text)
    }

    /// The command that serves a share as the embedded server would.
    fn serve_invocation(&self, share: &Share, socket: &Path, number: usize) -> Result<Invocation> {
        let program = std::env::current_exe().context("cannot tell our own path")?;
        let mut command = Invocation::new(program);
        command.arg("serve").option("--socket", socket);
        command.option("--tag", &share.tag);
        command.option("--request-queues", self.request_queues.to_string());
        if let Some(threads) = self.thread_pool_size {
            command.option("--thread-pool-size", threads.to_string());
        }
        if let Some(fault) = &self.fault {
            command.option("--fault", fault.to_string());
        }
        if let Some(trace) = &self.trace {
            let mut file = trace.clone().into_os_string();
            if number > 0 {
                // Each server is a program here, and has a file of its own.
                file.push(format!(".{number}"));
            }
            command.option("--trace", file);
        }
        for dir in &share.dirs {
            command.arg(std::path::absolute(dir).context("cannot tell the working directory")?);
        }
        Ok(command)
    }
}

/// Removes the sockets.
fn remove(sockets: &[PathBuf]) -> Invocation {
    let mut remove = Invocation::new("rm");
    remove.arg("-f");
    for socket in sockets {
        // The Rust virtiofsd leaves a file with its process number, too.
        remove.arg(socket).arg(socket.with_extension("sock.pid"));
    }
    remove
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
        let text = machine.dry_run(Path::new("/tmp")).unwrap();
        for option in ["--trace /t/trace ", "--trace /t/trace.1 "] {
            assert_eq!(text.matches(option).count(), 1, "{text}");
        }
    }
}
