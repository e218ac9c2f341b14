//! Boots every board from a directory, with real servers and real kernels.
//!
//! `make test` builds or downloads what the tests need. A test fails, and is never skipped, when a
//! part is missing.

mod bridges;
mod commands;
mod distribution;
mod embedded;
mod entries;
mod examples;
mod exits;
mod failures;
mod faults;
mod guards;
mod handoff;
mod images;
mod kernels;
mod kvm;
mod lab;
mod linux;
mod machines;
mod machines_arm;
mod menu;
mod minimal;
mod prepared;
mod qemus;
mod shared;
mod tree;

use bootshare_host::Board;
use bootshare_host::debian::Release;
use lab::Server;

/// Makes one test of each line: the test's name, the case, the board and, if it matters, the server.
macro_rules! cells {
    ($($name:ident: $module:ident::$case:ident($board:ident $(, $server:ident)?);)*) => {$(
        #[test]
        fn $name() {
            $module::$case(Board::$board $(, Server::$server)?);
        }
    )*};
}

/// The tests that every board has to pass.
macro_rules! boards {
    ($($name:ident: $board:ident,)*) => {$(
        mod $name {
            use super::*;

            cells! {
                boots_linux_from_qemus_c_virtiofsd: linux::boots($board, C);
                boots_linux_from_virtiofsd_1_14: linux::boots($board, Rust);
                boots_linux_from_the_embedded_server: linux::boots($board, Embedded);
                lists_its_devices_and_files: commands::list($board);
                mounts_two_shares_or_the_one_named: commands::two_shares($board);
                without_a_share_says_how_to_add_one: failures::no_share($board);
                with_a_wrong_tag_names_the_right_one: failures::wrong_tag($board);
                without_a_kernel_says_what_it_looked_for: failures::no_kernel($board);
                refuses_an_empty_kernel: failures::empty_kernel($board);
                refuses_a_kernel_of_the_other_architecture: failures::foreign_kernel($board);
            }
        }
    )*};
}

boards! {
    x86_64_microvm: X86_64Microvm,
    x86_64_q35: X86_64Q35,
    x86_64_pc: X86_64Pc,
    aarch64_virt: Aarch64Virt,
    aarch64_virt_pci: Aarch64VirtPci,
    x86_64_microvm_rom: X86_64MicrovmRom,
    x86_64_q35_rom: X86_64Q35Rom,
    aarch64_virt_rom: Aarch64VirtRom,
}

/// A board on the newest QEMU, with the kernels of Debian 13 and sid.
macro_rules! newest {
    ($($name:ident: $board:ident, $one:ident, $other:ident;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn boots_linux_of_debian_13() {
                qemus::newest(Board::$board, Server::$one, Release::Trixie);
            }

            #[test]
            fn boots_linux_of_sid() {
                qemus::newest(Board::$board, Server::$other, Release::Sid);
            }
        }
    )*};
}

newest! {
    newest_qemu_x86_64_microvm: X86_64Microvm, Embedded, C;
    newest_qemu_x86_64_q35: X86_64Q35, C, Rust;
    newest_qemu_x86_64_pc: X86_64Pc, Rust, Embedded;
    newest_qemu_aarch64_virt: Aarch64Virt, Embedded, C;
    newest_qemu_aarch64_virt_pci: Aarch64VirtPci, C, Rust;
    newest_qemu_x86_64_microvm_rom: X86_64MicrovmRom, Rust, Embedded;
    newest_qemu_x86_64_q35_rom: X86_64Q35Rom, Embedded, C;
    newest_qemu_aarch64_virt_rom: Aarch64VirtRom, C, Rust;
}

#[test]
fn newest_qemu_boots_linux_of_debian_12_on_microvm() {
    qemus::newest(Board::X86_64Microvm, Server::Rust, Release::Bookworm);
}

#[test]
fn newest_qemu_boots_linux_of_debian_12_on_virt() {
    qemus::newest(Board::Aarch64Virt, Server::Rust, Release::Bookworm);
}

cells! {
    minimal_firmware_boots_microvm: minimal::boots(X86_64Microvm);
    minimal_firmware_boots_virt: minimal::boots(Aarch64Virt);
    minimal_firmware_refuses_the_rest: minimal::refuses_the_rest(X86_64Microvm);
}

cells! {
    microvm_refuses_a_legacy_device: failures::legacy_device(X86_64Microvm);
    virt_refuses_a_legacy_device: failures::legacy_device(Aarch64Virt);
    virt_refuses_to_start_at_el3: failures::el3(Aarch64VirtRom);
    an_x86_64_rom_refuses_options_that_are_too_long: failures::long_options(X86_64MicrovmRom);
    an_aarch64_rom_refuses_options_that_are_too_long: failures::long_options(Aarch64VirtRom);
    a_rom_refuses_a_chipset_that_it_does_not_know: failures::other_chipset(X86_64Q35Rom);
}

cells! {
    without_a_status_a_failure_halts_microvm: exits::without_a_status(X86_64Microvm);
    without_a_status_a_failure_halts_q35: exits::without_a_status(X86_64Q35);
    without_a_status_a_failure_halts_pc: exits::without_a_status(X86_64Pc);
    without_a_status_a_failure_halts_a_microvm_rom: exits::without_a_status(X86_64MicrovmRom);
    without_a_status_a_failure_halts_a_q35_rom: exits::without_a_status(X86_64Q35Rom);
    without_a_status_a_failure_halts_virt: exits::without_a_status(Aarch64Virt);
    without_a_status_a_failure_halts_virt_at_el2: exits::at_el2(Aarch64Virt);
    a_failure_is_a_panic_on_virt: exits::by_a_panic(Aarch64Virt);
    a_failure_is_a_panic_on_virt_with_pci: exits::by_a_panic(Aarch64VirtPci);
    a_slow_reader_gets_the_last_line_of_microvm: exits::keeps_the_last_line(X86_64Microvm);
    a_slow_reader_gets_the_last_line_of_a_q35_rom: exits::keeps_the_last_line(X86_64Q35Rom);
    a_slow_reader_gets_the_last_line_of_virt: exits::keeps_the_last_line(Aarch64Virt);
    a_slow_reader_gets_the_last_line_of_a_32_bit_cpu: exits::keeps_the_last_line_of_32_bits(X86_64Q35);
}

cells! {
    virt_boots_linux_from_el2_over_mmio: linux::boots_from_el2(Aarch64Virt);
    virt_boots_linux_from_el2_over_pci: linux::boots_from_el2(Aarch64VirtPci);
    virt_boots_linux_from_el2_from_rom: linux::boots_from_el2(Aarch64VirtRom);
    virt_boots_linux_from_the_rom_image_by_kernel: linux::boots_from_raw_image(Aarch64Virt);
    microvm_boots_linux_with_6_gib: linux::boots_with_6_gib(X86_64Microvm, Embedded);
    q35_boots_linux_with_6_gib: linux::boots_with_6_gib(X86_64Q35, Rust);
    microvm_boots_linux_with_6_gib_from_rom: linux::boots_with_6_gib(X86_64MicrovmRom, Rust);
    q35_boots_linux_with_6_gib_from_rom: linux::boots_with_6_gib(X86_64Q35Rom, Rust);
    virt_boots_linux_with_6_gib: linux::boots_with_6_gib(Aarch64VirtPci, Embedded);
    microvm_without_acpi_tells_linux_where_its_devices_are: linux::boots_without_acpi(X86_64Microvm);
    microvm_without_acpi_tells_linux_where_its_devices_are_from_rom: linux::boots_without_acpi(X86_64MicrovmRom);
    x86_64_loads_300_mib_into_1_gib_and_refuses_256_mib: linux::loads_300_mib(X86_64Q35);
    aarch64_loads_300_mib_into_1_gib_and_refuses_256_mib: linux::loads_300_mib(Aarch64Virt);
}

cells! {
    bridges_of_q35: bridges::found(X86_64Q35);
    bridges_of_q35_from_rom: bridges::found(X86_64Q35Rom);
    bridges_of_pc: bridges::found(X86_64Pc);
    bridges_of_virt: bridges::found(Aarch64VirtPci);
    bridges_of_virt_from_rom: bridges::found(Aarch64VirtRom);
    bridges_are_linux_own_afterwards_on_q35: bridges::boots_linux(X86_64Q35);
    bridges_are_linux_own_afterwards_on_q35_from_rom: bridges::boots_linux(X86_64Q35Rom);
    bridges_are_linux_own_afterwards_on_pc: bridges::boots_linux(X86_64Pc);
    bridges_are_linux_own_afterwards_on_virt: bridges::boots_linux(Aarch64VirtPci);
    bridges_of_a_second_root_on_q35: bridges::second_root(X86_64Q35);
    bridges_of_a_second_root_on_q35_from_rom: bridges::second_root(X86_64Q35Rom);
}

cells! {
    x86_64_walks_an_odd_tree_like_its_host: commands::walk(X86_64Microvm, Rust);
    aarch64_walks_an_odd_tree_like_its_host: commands::walk(Aarch64VirtPci, C);
    embedded_walks_an_odd_tree_like_its_host: commands::walk(X86_64Pc, Embedded);
}

cells! {
    entries_microvm_reports_a_broken_entry_and_boots_the_next: entries::broken_then_good(X86_64Microvm);
    entries_virt_reports_a_broken_entry_and_boots_the_next: entries::broken_then_good(Aarch64VirtPci);
    entries_boot_the_default_of_extlinux_conf: entries::extlinux(X86_64Q35);
    entries_load_five_initrds_as_one: entries::five_initrds(X86_64Microvm);
    entries_replace_the_device_tree: entries::device_tree(Aarch64Virt);
    entries_of_two_shares_boot_on_q35: entries::of_two_shares(X86_64Q35);
    entries_of_two_shares_boot_on_virt: entries::of_two_shares(Aarch64Virt);
    entries_are_chosen_by_a_glob: entries::chosen_by_glob(Aarch64Virt);
    entries_are_listed_in_the_order_they_are_tried: entries::listed(X86_64Pc);
    entries_beyond_64_are_left_out_with_a_warning: entries::too_many(Aarch64Virt);
    entries_boot_debians_boot_directory_on_microvm: entries::debian(X86_64Microvm);
    entries_boot_debians_boot_directory_on_virt: entries::debian(Aarch64VirtPci);
    entries_of_fedoras_root_tree_boot: entries::fedora(X86_64Microvm);
    entries_of_armbians_boot_directory_boot: entries::armbian(Aarch64Virt);
    entries_that_fail_lead_to_no_other_kernel: entries::never_another_kernel(X86_64Q35);
    entries_that_are_wrong_are_named_on_q35: entries::wrong_ones(X86_64Q35);
    entries_that_are_wrong_are_named_on_virt: entries::wrong_ones(Aarch64Virt);
    entries_load_five_initrds_as_one_on_virt: entries::five_initrds(Aarch64Virt);
    entries_leave_no_trace_on_two_shares: entries::leave_no_trace(X86_64Microvm);
}

cells! {
    embedded_refuses_every_change_by_a_linux_guest: embedded::refuses_changes(X86_64Q35);
    embedded_keeps_a_linux_guest_in_the_share: embedded::keeps_guests_in(X86_64Q35);
    embedded_boots_three_layers: embedded::boots_layers(X86_64Microvm);
    microvm_reads_kernel_and_initrd_together: embedded::reads_all_files_at_once(X86_64Microvm);
    virt_reads_kernel_and_initrd_together: embedded::reads_all_files_at_once(Aarch64Virt);
    embedded_does_wrong_when_asked_to: embedded::faults(X86_64Q35);
    embedded_leaves_nothing_open: embedded::leaves_nothing(X86_64Q35);
    embedded_is_asked_nothing_twice_with_cache_always: embedded::asks_nothing_twice(X86_64Q35);
}

cells! {
    menu_edits_a_command_line_on_microvm: menu::edits_a_command_line(X86_64Microvm);
    menu_edits_a_command_line_on_virt: menu::edits_a_command_line(Aarch64Virt);
    menu_comes_back_after_a_failure: menu::comes_back_after_a_failure(X86_64Q35);
    menu_boots_by_itself_on_microvm: menu::nobody_there(X86_64Microvm);
    menu_boots_by_itself_on_virt: menu::nobody_there(Aarch64VirtPci);
    menu_of_extlinux_conf: menu::of_extlinux(Aarch64Virt);
    shell_boots_an_entry_on_pc: menu::shell_boots_an_entry(X86_64Pc);
    shell_boots_an_entry_on_virt: menu::shell_boots_an_entry(Aarch64VirtPci);
    shell_comes_after_an_error_on_q35: menu::shell_after_an_error(X86_64Q35);
    shell_comes_after_an_error_on_virt: menu::shell_after_an_error(Aarch64Virt);
    shell_ends_microvm: menu::ends(X86_64Microvm);
    shell_ends_q35: menu::ends(X86_64Q35);
    shell_ends_pc: menu::ends(X86_64Pc);
    shell_ends_virt: menu::ends(Aarch64Virt);
    menu_comes_by_a_key: menu::hidden(X86_64Microvm);
}

cells! {
    images_arm64_boots_from_gzip: images::gzipped(Aarch64Virt);
    images_arm64_boots_from_zboot: images::zboot(Aarch64VirtPci);
    images_arm64_boots_from_zboot_in_zstd: images::zstd_zboot(Aarch64Virt);
    images_arm64_boots_from_frames_of_zstd: images::zstd_frames(Aarch64VirtPci);
    images_vmlinux_is_entered_by_pvh_on_microvm: images::vmlinux(X86_64Microvm);
    images_vmlinux_is_entered_by_pvh_on_q35: images::vmlinux(X86_64Q35);
    images_a_program_may_belong_where_the_firmware_is: images::program_at_1_mib(X86_64Q35);
    images_arm64_enters_a_plain_elf_program: images::arm64_program(Aarch64Virt);
    images_x86_64_boots_a_unified_kernel_image: images::unified(X86_64Microvm);
    images_arm64_boots_a_unified_kernel_image: images::unified(Aarch64Virt);
    images_the_device_tree_for_this_machine_is_in_an_image: images::tree_in_image(Aarch64Virt);
    images_x86_64_names_what_is_wrong_and_goes_on: images::wrong_on_x86_64(X86_64Microvm);
    images_arm64_names_what_is_wrong_and_goes_on: images::wrong_on_arm64(Aarch64Virt);
    images_a_tree_from_elsewhere_gets_this_machines_memory_and_seeds: images::tree_from_elsewhere(Aarch64Virt);
}

cells! {
    prepared_linux_has_a_random_address_on_microvm: prepared::at_a_random_address(X86_64Microvm);
    prepared_linux_boots_after_a_lost_reply_on_q35: prepared::after_a_lost_reply(X86_64Q35);
    prepared_linux_boots_on_virt: prepared::of_arm64(Aarch64Virt);
}

// The state of the machine in which a payload starts.
cells! {
    microvm_hands_a_payload_no_interrupt_by_pvh: handoff::by_pvh(X86_64Microvm);
    microvm_hands_a_payload_no_interrupt_as_linux: handoff::as_linux(X86_64Microvm);
    microvm_hands_a_payload_no_interrupt_from_rom: handoff::as_linux(X86_64MicrovmRom);
    q35_hands_a_payload_no_interrupt_by_pvh: handoff::by_pvh(X86_64Q35);
    q35_hands_a_payload_no_interrupt_as_linux: handoff::as_linux(X86_64Q35);
    q35_hands_a_payload_no_interrupt_from_rom: handoff::by_pvh(X86_64Q35Rom);
    pc_hands_a_payload_no_interrupt_as_linux: handoff::as_linux(X86_64Pc);
    q35_hands_a_payload_no_interrupt_in_x2apic_mode: handoff::in_x2apic_mode(X86_64Q35);
    microvm_hands_linux_no_tick_of_the_pit: handoff::ticks_before_linux_is_ready(X86_64Microvm);
    microvm_guards_its_stacks_and_page_0: guards::are_not_mapped(X86_64Microvm);
    q35_guards_its_stacks_and_page_0_in_rom: guards::are_not_mapped(X86_64Q35Rom);
    virt_guards_its_stack: guards::are_not_mapped(Aarch64Virt);
    virt_is_left_to_its_payload_as_it_was: machines_arm::leaves_the_state_as_it_was(Aarch64Virt);
}

// Boots from a host that fails.

mod faults_microvm {
    use super::*;

    cells! {
        server_killed_before_init: faults::killed_before_init(X86_64Microvm);
        server_killed_between_lookup_and_read: faults::killed_before_a_read(X86_64Microvm);
        server_killed_in_a_large_read: faults::killed_while_reading(X86_64Microvm, Rust);
        server_stopped_for_less_than_the_deadline: faults::stopped_for_less_than_the_deadline(X86_64Microvm);
        server_stopped_for_longer: faults::stopped_for_longer(X86_64Microvm);
        server_stopped_for_ever: faults::stopped_for_ever(X86_64Microvm);
        server_stopped_then_killed: faults::stopped_then_killed(X86_64Microvm, C);
        server_late: faults::late(X86_64Microvm, Rust);
        files_change: faults::files_that_change(X86_64Microvm, Rust);
    }
}

mod faults_q35 {
    use super::*;

    cells! {
        server_killed_before_init: faults::killed_before_init(X86_64Q35);
        server_killed_after_init: faults::killed_after_init(X86_64Q35);
        server_killed_between_lookup_and_read: faults::killed_before_a_read(X86_64Q35);
        server_killed_in_a_large_read: faults::killed_while_reading(X86_64Q35, C);
        server_stopped_for_less_than_the_deadline: faults::stopped_for_less_than_the_deadline(X86_64Q35);
        server_stopped_for_longer: faults::stopped_for_longer(X86_64Q35);
        server_stopped_for_ever: faults::stopped_for_ever(X86_64Q35);
        server_stopped_then_killed: faults::stopped_then_killed(X86_64Q35, Rust);
        server_late: faults::late(X86_64Q35, C);
        files_change: faults::files_that_change(X86_64Q35, C);
    }
}

mod faults_virt {
    use super::*;

    cells! {
        server_killed_between_lookup_and_read: faults::killed_before_a_read(Aarch64Virt);
        server_stopped_for_longer: faults::stopped_for_longer(Aarch64Virt);
    }
}

mod faults_virt_pci {
    use super::*;

    cells! {
        server_killed_in_a_large_read: faults::killed_while_reading(Aarch64VirtPci, Rust);
        files_change: faults::files_that_change(Aarch64VirtPci, Rust);
    }
}
