//! Time, from the time-stamp counter.

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

/// What is assumed when nothing tells the frequency, in Hz. Most machines are slower: a deadline
/// then comes late rather than early.
const ASSUMED_HZ: u64 = 4_000_000_000;

/// The time-stamp counter, which starts at 0 with the machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    scale: Scale,
    hz: Option<u64>,
    /// The PIT that this frequency was roughly measured against.
    pit: Option<Running>,
    alarm: Option<Alarm>,
}

/// The PIT's channel 2 counts.
#[derive(Clone, Copy, Debug)]
struct Running {
    start: Sample,
    /// Its control register before.
    control: u8,
}

impl Clock {
    /// Finds the counter's frequency: from the hypervisor or the CPU, which know it; roughly, but
    /// in a millisecond, against the PIT; against the local APIC's timer; from the CPU's name plate.
    pub fn calibrate() -> Self {
        let alarm = Alarm::new();
        let told = cpuid::tsc_hz().or_else(kvm_clock::tsc_hz);
        let measured = if told.is_none() {
            measure_roughly()
        } else {
            None
        };
        let (pit, measured) = measured.unzip();
        let hz = told
            .or(measured)
            .or_else(|| alarm?.while_counting(measure_against_apic))
            .or_else(cpuid::rated_hz);
        if hz.is_none() {
            console::write(
                b"bootshare: warning: nothing tells how fast the clock runs: \
                  times are wrong, and deadlines late; start QEMU with a PIT (-M pit=on)\n",
            );
        }
        Self {
            scale: Scale::new(hz.unwrap_or(ASSUMED_HZ)),
            hz,
            pit,
            alarm,
        }
    }

    /// When the counter was at `count`, as [`now`](hal::Clock::now) tells time.
    pub fn at(&self, count: u64) -> Duration {
        self.scale.duration(count)
    }

    /// The counter's frequency in kHz, if it is known, as exact as a kernel wants it. What was
    /// measured roughly has become better with the time that went by since.
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

    /// Leaves the PIT's channel 2 and the local APIC as they were.
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
        /// The latest count that was told: a virtual machine's counter may jump back when it
        /// moves to another host.
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

/// Counts for a millisecond of the PIT, which goes on counting; for longer if a look at it takes
/// too long for that. `None` if there is none, or the machine was too busy.
fn measure_roughly() -> Option<(Running, u64)> {
    /// A machine with other work may be away for longer than a sample can bear.
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

/// The frequency in Hz, in ten milliseconds of the local APIC's timer, which counts down in `left`.
/// QEMU's and KVM's count nanoseconds; of others this is not known.
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

/// The best of a few looks: the one that took the shortest time.
fn sample(look: &mut impl FnMut() -> Sample) -> Option<Sample> {
    (0..8).map(|_| look()).min_by_key(Sample::width)
}

/// Measures the time-stamp counter against the counter of `reference_hz` that `look` looks at: where
/// it started, and the frequency in Hz.
fn measure(
    mut look: impl FnMut() -> Sample,
    reference_hz: u64,
    how: Measurement,
) -> Option<(Sample, u64)> {
    /// Time-stamp counts before giving up on a counter that does not move: more than 10 ms of
    /// any CPU.
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

/// Channel 2 of the PIT, which no operating system and no firmware keeps: the loudspeaker's.
struct Pit {
    /// Its counter.
    channel: Port<u8>,
    /// The mode and command register.
    command: Port<u8>,
    /// System control port B: bit 0 lets the counter run, bit 1 connects the loudspeaker.
    /// `microvm` has no such port, and a counter that always runs.
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
        // SAFETY: what is written differs from what was read in two bits at most, which concern
        // channel 2 and the loudspeaker only.
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

    /// One look at both counters.
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

    /// Where it started to count, and the time-stamp counter's frequency in Hz.
    fn measure(&mut self, how: Measurement) -> Option<(Sample, u64)> {
        self.command(0b1011_0000); // channel 2, low then high byte, mode 0: count down once
        self.load(0xff);
        self.load(0xff);
        if self.expired() {
            // Without a PIT, everything reads as ones.
            return None;
        }
        let measured = measure(|| self.look(), PIT_HZ, how);
        measured.filter(|_| !self.expired())
    }
}
