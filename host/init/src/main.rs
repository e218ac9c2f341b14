//! The first program of a machine that `bootshare-host run` starts: it makes the share the root file system, runs
//! the command there, forwards its input and output, and reports how it ended.
//!
//! It is linked statically and is in an initial RAM file system with `/config`, its configuration, and `/modules`.
//! It communicates with the host through four named ports of a virtio console (virtio 1.2, section 5.3): the
//! command's three standard streams, and `control`, with lines of text. This program sends `stage NAME`, `failed
//! WHY`, `unstarted STATUS WHY`, or `ended STATUS BYTES BYTES` with the sizes of both outputs. The host sends `size
//! ROWS COLUMNS` for its terminal, and `bye` when it has received everything.

mod command;
mod config;
mod loopback;
mod ports;
mod relay;
mod root;

use anyhow::{Context, Result};
use rustix::system::{RebootCommand, init_module, reboot};

use config::Config;
use ports::Ports;

fn main() {
    let mut ports = None;
    if let Err(error) = run(&mut ports) {
        // Always printed to the console, because there may be no port.
        eprintln!("bootshare-init: error: {error:#}");
        if let Some(ports) = &mut ports {
            ports.tell(&format!("failed {error:#}"));
            ports.wait_for_bye();
        }
    }
    // The host ends the machine when it sees this.
    eprintln!("bootshare-init: done");
    let _ = reboot(RebootCommand::PowerOff);
    let _ = reboot(RebootCommand::Restart);
}

fn run(place: &mut Option<Ports>) -> Result<()> {
    root::mount_kernels()?;
    let config = Config::read()?;
    for name in &config.modules {
        load(name).with_context(|| format!("cannot load the module {name}"))?;
    }
    let ports = place.insert(Ports::open()?);
    ports.tell("stage init");
    root::make(&config)?;
    // Commands can run in a kernel without a network.
    let _ = loopback::start();
    ports.tell("stage mounted");
    if let Some(init) = &config.init {
        ports.tell("stage handed over");
        return Err(command::replace_by(init)).with_context(|| format!("cannot start {init:?}"));
    }
    command::run(&config, ports)
}

fn load(name: &str) -> Result<()> {
    let bytes = std::fs::read(format!("/modules/{name}"))?;
    match init_module(&bytes, c"") {
        // EEXIST: the module is built in, although the kernel's list does not contain it.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
