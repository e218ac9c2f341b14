//! The features of the CPU, from CPUID.

use crate::{tables::Abilities, tsc};
use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

/// The first leaf for hypervisors: the first of a range of leaves that no CPU implements.
const HYPERVISOR: u32 = 0x4000_0000;
/// Leaf with the time-stamp counter's frequency in kHz, by VMware's convention.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// The leaf with KVM's features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// The signature of KVM.
const KVM: &[u8; 12] = b"KVMKVMKVM\0\0\0";
/// The signatures of the hypervisors that follow this convention.
const WITH_TIMING: [&[u8; 12]; 2] = [KVM, b"VMwareVMware"];
/// The signature of QEMU's emulator.
const TCG: &[u8; 12] = b"TCGTCGTCGTCG";

/// A leaf, if the CPU has it.
fn leaf(leaf: u32) -> Option<CpuidResult> {
    (__cpuid(leaf & 0xc000_0000).eax >= leaf).then(|| __cpuid_count(leaf, 0))
}

/// The features that the page tables use (leaves 0x80000001 and 0x80000008).
pub fn abilities() -> Abilities {
    let features = leaf(0x8000_0001).map_or(0, |leaf| leaf.edx);
    let address_bits = leaf(0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff);
    Abilities {
        gigabyte_pages: features & 1 << 26 != 0,
        no_execute: features & 1 << 20 != 0,
        physical_end: 1 << address_bits.clamp(32, 52),
    }
}

/// Whether there is a local APIC.
pub fn has_apic() -> bool {
    leaf(1).is_some_and(|leaf| leaf.edx & 1 << 9 != 0)
}

/// The hypervisor's signature, if the CPU reports a hypervisor.
fn hypervisor() -> Option<[u8; 12]> {
    if __cpuid(1).ecx & 1 << 31 == 0 {
        return None;
    }
    let CpuidResult { ebx, ecx, edx, .. } = __cpuid(HYPERVISOR);
    let mut signature = [0; 12];
    for (place, register) in signature.chunks_exact_mut(4).zip([ebx, ecx, edx]) {
        place.copy_from_slice(&register.to_le_bytes());
    }
    Some(signature)
}

/// Whether this is QEMU's emulator.
pub fn is_tcg() -> bool {
    hypervisor().as_ref() == Some(TCG)
}

/// Whether this is KVM.
pub fn is_kvm() -> bool {
    hypervisor().as_ref() == Some(KVM)
}

/// Whether KVM has the clock of [`kvm_clock`](crate::kvm_clock) with its newer registers.
pub fn has_kvm_clock() -> bool {
    const CLOCKSOURCE2: u32 = 1 << 3;
    is_kvm() && leaf(KVM_FEATURES).is_some_and(|leaf| leaf.eax & CLOCKSOURCE2 != 0)
}

/// The exact frequency of the time-stamp counter in Hz, from the hypervisor or the CPU.
pub fn tsc_hz() -> Option<u64> {
    from_hypervisor().or_else(from_crystal)
}

fn from_hypervisor() -> Option<u64> {
    let signature = hypervisor()?;
    if !WITH_TIMING.contains(&&signature) {
        return None;
    }
    tsc::plausible(u64::from(leaf(HYPERVISOR_TIMING)?.eax) * 1000)
}

/// Leaf 0x15: the counter runs EBX / EAX times as fast as a crystal of ECX Hz.
fn from_crystal() -> Option<u64> {
    let CpuidResult { eax, ebx, ecx, .. } = leaf(0x15)?;
    let hz = (u64::from(ecx) * u64::from(ebx)).checked_div(eax.into())?;
    tsc::plausible(hz)
}

/// Leaf 0x16: the CPU's nominal frequency in Hz, which is close to that of the time-stamp counter.
pub fn rated_hz() -> Option<u64> {
    tsc::plausible(u64::from(leaf(0x16)?.eax & 0xffff) * 1_000_000)
}
