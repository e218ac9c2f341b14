//! The clock of the boot flow, from the time-stamp counter.

use crate::{
    console,
    counter::timestamp,
    cpuid, exit, kvm_clock,
    rest::Alarm,
    tsc::{self, FINE, Measurement, PIT_HZ, ROUGH, Sample, Scale},
};
use bootshare::{hal, loader::ExitStatus};
use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use x86_64::instructions::port::Port;

/// The assumed frequency in Hz if none is known. Most machines are slower, so that a deadline comes
/// late rather than early.
const ASSUMED_HZ: u64 = 4_000_000_000;

/// The time-stamp counter, which starts at 0 with the machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    scale: Scale,
    hz: Option<u64>,
    /// The PIT against which the frequency was roughly measured.
    pit: Option<Running>,
    alarm: Option<Alarm>,
}

/// A measurement against the PIT's channel 2, which is still counting.
#[derive(Clone, Copy, Debug)]
struct Running {
    start: Sample,
    /// The previous value of its control register.
    control: u8,
}

impl Clock {
    /// Finds the frequency of the counter: from the hypervisor or the CPU, if they know it; else
    /// against the PIT, roughly, within a millisecond; else against the timer of the local APIC;
    /// else from the CPU's nominal frequency (CPUID leaf 0x16).
    pub fn calibrate() -> Self {
        let alarm = Alarm::new();
        let reported = cpuid::tsc_hz().or_else(kvm_clock::tsc_hz);
        let measured = if reported.is_none() {
            measure_roughly()
        } else {
            None
        };
        let (pit, measured) = measured.unzip();
        let hz = reported
            .or(measured)
            .or_else(|| alarm?.while_counting(measure_against_apic))
            .or_else(cpuid::rated_hz);
        if hz.is_none() {
            console::write(
                b"bootshare: warning: the frequency of the time-stamp counter is unknown: \
                times are wrong, and deadlines are late; start QEMU with a PIT (-M pit=on)\n",
            );
        }
        Self {
            scale: Scale::new(hz.unwrap_or(ASSUMED_HZ)),
            hz,
            pit,
            alarm,
        }
    }

    /// The time, as returned by [`now`](hal::Clock::now), when the counter had the value `count`.
    pub fn at(&self, count: u64) -> Duration {
        self.scale.duration(count)
    }

    /// The counter's frequency in kHz, if it is known with the precision that a kernel needs. A
    /// rough measurement becomes more precise with the time since then.
    pub fn khz(&self) -> Option<u64> {
        let mut hz = self.hz?;
        if let Some(Running { start, .. }) = self.pit {
            let mut pit = Pit::new();
            let refined = sample(&mut || pit.look());
            let refined = refined.and_then(|end| tsc::refined(start, end, hz));
            hz = refined.or_else(|| Some(pit.measure(FINE)?.1)).unwrap_or(hz);
        }
        Some(hz / 1000)
    }

    /// Restores the PIT's channel 2 and the local APIC.
    pub fn let_go(&self) {
        if let Some(alarm) = self.alarm {
            alarm.let_go();
        }
        if let Some(Running { control, .. }) = self.pit {
            Pit::new().set_control(control);
        }
    }
}

impl hal::Clock for Clock {
    fn now(&self) -> Duration {
        /// The greatest count that was returned: the counter of a virtual machine may jump back
        /// when the machine moves to another host.
        static LATEST: AtomicU64 = AtomicU64::new(0);

        let count = timestamp();
        let latest = LATEST.fetch_max(count, Ordering::Relaxed).max(count);
        self.at(latest)
    }

    fn rest(&self, at_most: Duration) {
        match self.alarm {
            Some(alarm) => alarm.rest(at_most),
            None => self.relax(),
        }
    }

    fn stop(&self, why: &str) -> ! {
        console::error(format_args!("{why}"));
        exit::exit(ExitStatus::Failure)
    }
}

/// Samples both counters over a millisecond of the PIT, which keeps counting; over a longer time if
/// one sample takes too long. `None` if there is no PIT or the machine was too busy.
fn measure_roughly() -> Option<(Running, u64)> {
    /// On a busy host the virtual machine may be suspended for longer than a sample allows.
    const TRIES: [Measurement; 6] = [ROUGH, ROUGH, ROUGH, FINE, FINE, FINE];

    let mut pit = Pit::new();
    let control = pit.control();
    pit.set_control(control & !0b10 | 0b01);
    let measured = TRIES.into_iter().find_map(|how| pit.measure(how));
    if measured.is_none() {
        pit.set_control(control);
    }
    measured.map(|(start, hz)| (Running { start, control }, hz))
}

/// The frequency in Hz, measured over ten milliseconds of the local APIC's timer, which counts down
/// in `left`. The timers of QEMU and KVM count nanoseconds; the unit of others is unknown.
fn measure_against_apic(left: &dyn Fn() -> u32) -> Option<u64> {
    const APIC_TIMER_HZ: u64 = 1_000_000_000;

    if !cpuid::is_tcg() && !cpuid::is_kvm() {
        return None;
    }
    let look = || {
        let before = timestamp();
        let left = left();
        let after = timestamp();
        Sample {
            before,
            left,
            after,
        }
    };
    Some(measure(look, APIC_TIMER_HZ, FINE)?.1)
}

/// The best of a few samples: the one that took the shortest time.
fn sample(look: &mut impl FnMut() -> Sample) -> Option<Sample> {
    (0..8).map(|_| look()).min_by_key(Sample::width)
}

/// Measures the time-stamp counter against a counter of `reference_hz`, which `look` samples.
/// Returns the first sample and the frequency in Hz.
fn measure(
    mut look: impl FnMut() -> Sample,
    reference_hz: u64,
    how: Measurement,
) -> Option<(Sample, u64)> {
    /// The number of time-stamp counts after which a counter that does not change is given up: more
    /// than 10 ms on any CPU.
    const PATIENCE: u64 = 200_000_000;

    let start = sample(&mut look)?;
    loop {
        let now = look();
        let ticks = start.left.saturating_sub(now.left);
        if u64::from(ticks) >= reference_hz / how.per_second {
            break;
        }
        if now.after.saturating_sub(start.after) > PATIENCE {
            return None;
        }
    }
    let end = sample(&mut look)?;
    let hz = tsc::frequency(start, end, reference_hz, how.parts)?;
    Some((start, hz))
}

/// Channel 2 of the PIT, the loudspeaker's: neither an operating system nor a firmware relies on
/// its state.
struct Pit {
    /// The port of its counter.
    channel: Port<u8>,
    /// The port of the mode and command register.
    command: Port<u8>,
    /// System control port B: bit 0 starts the counter, bit 1 connects the loudspeaker. `microvm`
    /// has no such port; its counter always runs.
    control: Port<u8>,
}

impl Pit {
    const fn new() -> Self {
        Self {
            channel: Port::new(0x42),
            command: Port::new(0x43),
            control: Port::new(0x61),
        }
    }

    fn control(&mut self) -> u8 {
        // SAFETY: reading this register changes nothing.
        unsafe { self.control.read() }
    }

    fn set_control(&mut self, value: u8) {
        // SAFETY: the written value differs from the read one in at most two bits, which affect
        // only channel 2 and the loudspeaker.
        unsafe { self.control.write(value) };
    }

    fn command(&mut self, value: u8) {
        // SAFETY: the commands used here select channel 2, which nobody else uses.
        unsafe { self.command.write(value) };
    }

    fn load(&mut self, value: u8) {
        // SAFETY: this sets the counter of channel 2, which nobody else uses.
        unsafe { self.channel.write(value) };
    }

    fn fetch(&mut self) -> u8 {
        // SAFETY: this reads the latched counter of channel 2, which nobody else uses.
        unsafe { self.channel.read() }
    }

    /// Whether the counter has reached zero since it was loaded.
    fn expired(&mut self) -> bool {
        self.command(0b1110_1000); // read back: status of channel 2
        self.fetch() & 1 << 7 != 0
    }

    /// Samples both counters.
    fn look(&mut self) -> Sample {
        let before = timestamp();
        self.command(0b1000_0000); // latch channel 2
        let after = timestamp();
        let left = u16::from_le_bytes([self.fetch(), self.fetch()]);
        Sample {
            before,
            left: left.into(),
            after,
        }
    }

    /// The first sample, and the frequency of the time-stamp counter in Hz.
    fn measure(&mut self, how: Measurement) -> Option<(Sample, u64)> {
        self.command(0b1011_0000); // channel 2, low then high byte, mode 0: count down once
        self.load(0xff);
        self.load(0xff);
        if self.expired() {
            // Without a PIT, every port reads as ones.
            return None;
        }
        let measured = measure(|| self.look(), PIT_HZ, how);
        measured.filter(|_| !self.expired())
    }
}
