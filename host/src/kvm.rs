//! A trial of KVM: even if its device exists, it may be unable to run a guest.

use std::fs;

use anyhow::{Context, Result, anyhow, ensure};
use kvm_ioctls::Kvm;
use rustix::io::Errno;

use crate::board::{Arch, Board};

/// KVM's interface has not changed its version since Linux 2.6.22 (KVM_GET_API_VERSION).
const VERSION: i32 = 12;

/// Creates a virtual machine with one processor.
///
/// # Errors
/// KVM cannot run a guest here; the error says what to do.
pub fn check() -> Result<()> {
    let kvm = Kvm::new().map_err(|error| anyhow!("{}", remedy(error.errno())))?;
    let version = kvm.get_api_version();
    ensure!(
        version == VERSION,
        "KVM speaks version {version} of its interface, not {VERSION}: update Linux"
    );
    let made = kvm.create_vm().and_then(|vm| vm.create_vcpu(0));
    made.map_err(|error| {
        anyhow!(
            "KVM cannot create a virtual machine ({error}): does another hypervisor use the \
             processor, or is this a virtual machine without nested virtualisation?"
        )
    })?;
    if Board::of_this_machine().arch() == Arch::X86_64 {
        let info = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let mut words = info.split_ascii_whitespace();
        // Without hardware virtualization KVM runs the firmware, but Linux may hang.
        ensure!(
            words.any(|word| word == "vmx" || word == "svm"),
            "/dev/kvm exists, but the processor has neither vmx nor svm: is this a virtual machine without \
             nested virtualisation?"
        );
    }
    Ok(())
}

/// What to do when /dev/kvm cannot be opened.
fn remedy(errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    let remedy = match Errno::from_raw_os_error(errno) {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => {
            "enable virtualisation in the machine's own firmware, `modprobe kvm_intel` or kvm_amd; \
             in a container, pass it with --device /dev/kvm"
        }
        Errno::ACCESS => "join its group, `sudo usermod -aG kvm $USER`, and log in again",
        Errno::PERM => "a container has to be started with --device /dev/kvm",
        _ => "see the kernel's log",
    };
    format!("cannot open /dev/kvm ({error}): {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_why_kvm_cannot_be_used_has_its_remedy() {
        for (errno, remedy_has) in [
            (libc::ENOENT, "modprobe kvm_intel"),
            (libc::ENODEV, "modprobe kvm_intel"),
            (libc::EACCES, "usermod -aG kvm"),
            (libc::EPERM, "a container has to be started with"),
            (libc::EIO, "see the kernel's log"),
        ] {
            let text = remedy(errno);
            assert!(text.contains(remedy_has), "{text}");
            assert!(text.contains(&format!("os error {errno}")), "{text}");
        }
    }
}
