//! Words that the kernel needs on its command line on these machines.
#![forbid(unsafe_code)]

use bootshare::boot::cmdline;
use core::fmt::Write as _;
use heapless::{String, Vec};

/// The number of words that [`Board::payload_words`](bootshare::loader::Board::payload_words) has
/// room for, each of at most 64 bytes.
pub type Words = Vec<String<64>, 16>;

/// QEMU names the devices of `microvm` without ACPI by these words, which it appends to the command
/// line of the kernel that it starts: this firmware.
const MMIO_DEVICE: &str = "virtio_mmio.device=";

/// Under emulation, timer interrupts are late if the host is busy. Linux then concludes that the
/// timer's interrupt is not connected, tries others, and may panic; this word makes it skip the
/// test.
const NO_TIMER_CHECK: &str = "no_timer_check";

/// The words for the kernel: the devices in `command_line`; under emulation also the words that
/// spare Linux measurements of time, with the clock's frequency in kHz, if it is known.
pub fn for_kernel(command_line: &[u8], is_emulated: bool, tsc_khz: Option<u64>) -> Words {
    let mut words = Words::new();
    if let Some(khz) = tsc_khz.filter(|_| is_emulated) {
        let mut word = String::new();
        if write!(word, "tsc_early_khz={khz}").is_ok() {
            _ = words.push(word);
        }
    }
    if is_emulated && let Ok(word) = String::try_from(NO_TIMER_CHECK) {
        _ = words.push(word);
    }
    for word in cmdline::words(command_line) {
        let Ok(word) = str::from_utf8(word) else {
            continue;
        };
        if word.starts_with(MMIO_DEVICE)
            && let Ok(word) = String::try_from(word)
        {
            // `microvm` has 8 slots without ACPI: they all fit.
            _ = words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_devices_of_microvm_are_passed_on_in_their_order() {
        let line = b"bootshare.timeout=1 virtio_mmio.device=512@0xfeb00c00:11 \
                     virtio_mmio.device=512@0xfeb00e00:12";
        assert_eq!(
            for_kernel(line, false, Some(1)),
            [
                "virtio_mmio.device=512@0xfeb00c00:11",
                "virtio_mmio.device=512@0xfeb00e00:12"
            ]
        );
    }

    #[test]
    fn under_emulation_the_words_for_time_come_first() {
        let line = b"virtio_mmio.device=512@0xfeb00e00:12";
        assert_eq!(
            for_kernel(line, true, Some(2_100_000)),
            [
                "tsc_early_khz=2100000",
                "no_timer_check",
                "virtio_mmio.device=512@0xfeb00e00:12"
            ]
        );
        assert_eq!(for_kernel(b"", true, None), ["no_timer_check"]);
    }

    #[test]
    fn other_words_are_not_passed_on() {
        let line =
            b" bootshare.cmd=\"cat virtio_mmio.device=1 /x\" xvirtio_mmio.device=1 \xff\t-- quiet ";
        assert!(for_kernel(line, false, None).is_empty());
    }

    #[test]
    fn too_many_or_too_long_words_are_left_out() {
        let line =
            format!("virtio_mmio.device={} ", "x".repeat(64)) + &"virtio_mmio.device=1 ".repeat(40);
        let words = for_kernel(line.as_bytes(), false, None);
        assert_eq!(words.len(), 16);
        assert!(words.iter().all(|word| word == "virtio_mmio.device=1"));
    }
}
