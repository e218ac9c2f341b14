//! The whole client with a device that lies.
//!
//! An input contains a program for the client, the properties of the device, and a script with its treatment of
//! each request. After the end of the script, the device behaves correctly.

mod device;
mod program;

use crate::source::Source;
use bootshare::Options;
use bootshare_test_device::{TestHal, raw::Balance};
use device::Plan;
use program::{Runner, check_error};
use std::time::Duration;

/// Mounts, runs a program and unmounts.
pub fn client(input: &[u8]) {
    let mut source = Source::new(input);
    let mut program = Source::new(source.short_bytes());
    let goodbye = !source.flag();
    // 0 means the usual value.
    let or = |value: u8, usual: u32| match value {
        0 => usual,
        value => value.into(),
    };
    let options = Options::default()
        .with_deadline(Duration::from_millis(200 + u64::from(source.u8())))
        .with_chunk_size(or(source.u8(), 128) * 32)
        .with_depth(or(source.u8(), 16) as usize);
    let plan = Plan::read(&mut source);
    let (device, hostile) = plan.device(source.rest());

    match device.mount(options) {
        Ok(share) => {
            assert_eq!(share.protocol().0, 7);
            let honest = || hostile.was_honest();
            let mut runner = Runner::new(&share, &honest);
            while !program.is_empty() {
                runner.step(&mut program);
            }
            drop(runner);
            if goodbye {
                let connected = share.is_connected();
                let ended = share.unmount();
                if let Err(error) = ended {
                    check_error(&error, &[]);
                }
                if hostile.was_honest() {
                    assert!(connected);
                    assert_eq!(ended, Ok(()));
                    let balance = device.log(|log| log.at_destroy.last().copied());
                    assert_eq!(balance, Some(Balance::default()));
                }
            }
        }
        Err(error) => {
            assert!(!hostile.was_honest(), "{error}");
            check_error(&error, &[]);
        }
    }
    assert!(!device.is_live(), "the device is reset");
    assert_eq!(TestHal::pages(), 0, "all DMA pages are free");
    device.log(|log| {
        assert_eq!(log.faults, Vec::<String>::new());
        if hostile.was_honest() {
            assert_eq!(log.misuse, Vec::<String>::new());
        }
    });
}
