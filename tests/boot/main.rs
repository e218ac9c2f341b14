//! Boots every board from a directory, with real servers and real kernels.
//!
//! What a cell needs is made or downloaded by `make test`; nothing is skipped when it is missing.

mod commands;
mod embedded;
mod entries;
mod examples;
mod failures;
mod faults;
mod images;
mod lab;
mod linux;
mod menu;
mod tree;

use bootshare_host::Board;
use lab::Server;

/// What every board shows, one test for each.
macro_rules! boards {
    ($($name:ident: $board:ident,)*) => {$(
        mod $name {
            use super::{Board, Server, commands, failures, linux};

            const BOARD: Board = Board::$board;

            #[test]
            fn boots_linux_from_qemus_c_virtiofsd() {
                linux::boots(BOARD, Server::C);
            }

            #[test]
            fn boots_linux_from_virtiofsd_1_14() {
                linux::boots(BOARD, Server::Rust);
            }

            #[test]
            fn boots_linux_from_the_embedded_server() {
                linux::boots(BOARD, Server::Embedded);
            }

            #[test]
            fn lists_its_devices_and_files() {
                commands::list(BOARD);
            }

            #[test]
            fn mounts_two_shares_or_the_one_named() {
                commands::two_shares(BOARD);
            }

            #[test]
            fn without_a_share_says_how_to_add_one() {
                failures::no_share(BOARD);
            }

            #[test]
            fn with_a_wrong_tag_names_the_right_one() {
                failures::wrong_tag(BOARD);
            }

            #[test]
            fn without_a_kernel_says_what_it_looked_for() {
                failures::no_kernel(BOARD);
            }

            #[test]
            fn refuses_an_empty_kernel() {
                failures::empty_kernel(BOARD);
            }

            #[test]
            fn refuses_a_kernel_of_the_other_architecture() {
                failures::foreign_kernel(BOARD);
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

#[test]
fn microvm_refuses_a_legacy_device() {
    failures::legacy_device(Board::X86_64Microvm);
}

#[test]
fn virt_refuses_a_legacy_device() {
    failures::legacy_device(Board::Aarch64Virt);
}

#[test]
fn virt_boots_linux_from_el2_over_mmio() {
    linux::boots_from_el2(Board::Aarch64Virt);
}

#[test]
fn virt_boots_linux_from_el2_over_pci() {
    linux::boots_from_el2(Board::Aarch64VirtPci);
}

#[test]
fn virt_boots_linux_from_el2_from_rom() {
    linux::boots_from_el2(Board::Aarch64VirtRom);
}

#[test]
fn virt_refuses_to_start_at_el3() {
    failures::el3(Board::Aarch64VirtRom);
}

#[test]
fn virt_boots_linux_from_the_rom_image_by_kernel() {
    linux::boots_from_raw_image(Board::Aarch64Virt);
}

#[test]
fn microvm_boots_linux_with_6_gib() {
    linux::boots_with_6_gib(Board::X86_64Microvm, Server::Embedded);
}

#[test]
fn q35_boots_linux_with_6_gib() {
    linux::boots_with_6_gib(Board::X86_64Q35, Server::Rust);
}

#[test]
fn microvm_boots_linux_with_6_gib_from_rom() {
    linux::boots_with_6_gib(Board::X86_64MicrovmRom, Server::Rust);
}

#[test]
fn q35_boots_linux_with_6_gib_from_rom() {
    linux::boots_with_6_gib(Board::X86_64Q35Rom, Server::Rust);
}

#[test]
fn an_x86_64_rom_refuses_options_that_are_too_long() {
    failures::long_options(Board::X86_64MicrovmRom);
}

#[test]
fn an_aarch64_rom_refuses_options_that_are_too_long() {
    failures::long_options(Board::Aarch64VirtRom);
}

#[test]
fn a_rom_refuses_a_chipset_that_it_does_not_know() {
    failures::other_chipset(Board::X86_64Q35Rom);
}

#[test]
fn virt_boots_linux_with_6_gib() {
    linux::boots_with_6_gib(Board::Aarch64VirtPci, Server::Embedded);
}

#[test]
fn microvm_without_acpi_tells_linux_where_its_devices_are() {
    linux::boots_without_acpi(Board::X86_64Microvm);
}

#[test]
fn microvm_without_acpi_tells_linux_where_its_devices_are_from_rom() {
    linux::boots_without_acpi(Board::X86_64MicrovmRom);
}

#[test]
fn x86_64_loads_300_mib_into_1_gib_and_refuses_256_mib() {
    linux::loads_300_mib(Board::X86_64Q35);
}

#[test]
fn aarch64_loads_300_mib_into_1_gib_and_refuses_256_mib() {
    linux::loads_300_mib(Board::Aarch64Virt);
}

#[test]
fn x86_64_walks_an_odd_tree_like_its_host() {
    commands::walk(Board::X86_64Microvm, Server::Rust);
}

#[test]
fn aarch64_walks_an_odd_tree_like_its_host() {
    commands::walk(Board::Aarch64VirtPci, Server::C);
}

#[test]
fn entries_microvm_reports_a_broken_entry_and_boots_the_next() {
    entries::broken_then_good(Board::X86_64Microvm);
}

#[test]
fn entries_virt_reports_a_broken_entry_and_boots_the_next() {
    entries::broken_then_good(Board::Aarch64VirtPci);
}

#[test]
fn entries_boot_the_default_of_extlinux_conf() {
    entries::extlinux(Board::X86_64Q35);
}

#[test]
fn entries_load_five_initrds_as_one() {
    entries::five_initrds(Board::X86_64Microvm);
}

#[test]
fn entries_replace_the_device_tree() {
    entries::device_tree(Board::Aarch64Virt);
}

#[test]
fn entries_of_two_shares_boot_on_q35() {
    entries::of_two_shares(Board::X86_64Q35);
}

#[test]
fn entries_of_two_shares_boot_on_virt() {
    entries::of_two_shares(Board::Aarch64Virt);
}

#[test]
fn entries_are_chosen_by_a_glob() {
    entries::chosen_by_glob(Board::Aarch64Virt);
}

#[test]
fn entries_are_listed_in_the_order_they_are_tried() {
    entries::listed(Board::X86_64Pc);
}

#[test]
fn entries_beyond_64_are_left_out_with_a_warning() {
    entries::too_many(Board::Aarch64Virt);
}

#[test]
fn embedded_refuses_every_change_by_a_linux_guest() {
    embedded::refuses_changes(Board::X86_64Q35);
}

#[test]
fn embedded_keeps_a_linux_guest_in_the_share() {
    embedded::keeps_guests_in(Board::X86_64Q35);
}

#[test]
fn embedded_boots_three_layers() {
    embedded::boots_layers(Board::X86_64Microvm);
}

#[test]
fn embedded_does_wrong_when_asked_to() {
    embedded::faults(Board::X86_64Q35);
}

#[test]
fn embedded_leaves_nothing_open() {
    embedded::leaves_nothing(Board::X86_64Q35);
}

#[test]
fn embedded_walks_an_odd_tree_like_its_host() {
    commands::walk(Board::X86_64Pc, Server::Embedded);
}

#[test]
fn menu_edits_a_command_line_on_microvm() {
    menu::edits_a_command_line(Board::X86_64Microvm);
}

#[test]
fn menu_edits_a_command_line_on_virt() {
    menu::edits_a_command_line(Board::Aarch64Virt);
}

#[test]
fn menu_comes_back_after_a_failure() {
    menu::comes_back_after_a_failure(Board::X86_64Q35);
}

#[test]
fn menu_boots_by_itself_on_microvm() {
    menu::nobody_there(Board::X86_64Microvm);
}

#[test]
fn menu_boots_by_itself_on_virt() {
    menu::nobody_there(Board::Aarch64VirtPci);
}

#[test]
fn menu_of_extlinux_conf() {
    menu::of_extlinux(Board::Aarch64Virt);
}

#[test]
fn shell_boots_an_entry_on_pc() {
    menu::shell_boots_an_entry(Board::X86_64Pc);
}

#[test]
fn shell_boots_an_entry_on_virt() {
    menu::shell_boots_an_entry(Board::Aarch64VirtPci);
}

#[test]
fn shell_comes_after_an_error_on_q35() {
    menu::shell_after_an_error(Board::X86_64Q35);
}

#[test]
fn shell_comes_after_an_error_on_virt() {
    menu::shell_after_an_error(Board::Aarch64Virt);
}

#[test]
fn shell_ends_microvm() {
    menu::ends(Board::X86_64Microvm);
}

#[test]
fn shell_ends_q35() {
    menu::ends(Board::X86_64Q35);
}

#[test]
fn shell_ends_pc() {
    menu::ends(Board::X86_64Pc);
}

#[test]
fn shell_ends_virt() {
    menu::ends(Board::Aarch64Virt);
}

#[test]
fn images_arm64_boots_from_gzip() {
    images::gzipped(Board::Aarch64Virt);
}

#[test]
fn images_arm64_boots_from_zboot() {
    images::zboot(Board::Aarch64VirtPci);
}

#[test]
fn images_vmlinux_is_entered_by_pvh_on_microvm() {
    images::vmlinux(Board::X86_64Microvm);
}

#[test]
fn images_vmlinux_is_entered_by_pvh_on_q35() {
    images::vmlinux(Board::X86_64Q35);
}

#[test]
fn images_a_program_may_belong_where_the_firmware_is() {
    images::program_at_1_mib(Board::X86_64Q35);
}

#[test]
fn images_arm64_enters_a_plain_elf_program() {
    images::arm64_program(Board::Aarch64Virt);
}

#[test]
fn images_x86_64_boots_a_unified_kernel_image() {
    images::unified(Board::X86_64Microvm);
}

#[test]
fn images_arm64_boots_a_unified_kernel_image() {
    images::unified(Board::Aarch64Virt);
}

#[test]
fn images_x86_64_names_what_is_wrong_and_goes_on() {
    images::wrong_on_x86_64(Board::X86_64Microvm);
}

#[test]
fn images_arm64_names_what_is_wrong_and_goes_on() {
    images::wrong_on_arm64(Board::Aarch64Virt);
}

#[test]
fn images_a_tree_from_elsewhere_gets_this_machines_memory_and_seeds() {
    images::tree_from_elsewhere(Board::Aarch64Virt);
}

/// What a failing host makes of a boot.
macro_rules! faults {
    ($($name:ident: $board:ident { $($case:ident: $fault:ident($($server:ident)?);)* })*) => {$(
        mod $name {
            use super::{Board, faults};

            $(#[test]
            fn $case() {
                faults::$fault(Board::$board $(, super::Server::$server)?);
            })*
        }
    )*};
}

faults! {
    faults_microvm: X86_64Microvm {
        server_killed_before_init: killed_before_init();
        server_killed_between_lookup_and_read: killed_before_a_read();
        server_killed_in_a_large_read: killed_while_reading(Rust);
        server_stopped_for_less_than_the_deadline: stopped_for_less_than_the_deadline();
        server_stopped_for_longer: stopped_for_longer();
        server_stopped_for_ever: stopped_for_ever();
        server_stopped_then_killed: stopped_then_killed(C);
        server_late: late(Rust);
        files_change: files_that_change(Rust);
    }
    faults_q35: X86_64Q35 {
        server_killed_before_init: killed_before_init();
        server_killed_after_init: killed_after_init();
        server_killed_between_lookup_and_read: killed_before_a_read();
        server_killed_in_a_large_read: killed_while_reading(C);
        server_stopped_for_less_than_the_deadline: stopped_for_less_than_the_deadline();
        server_stopped_for_longer: stopped_for_longer();
        server_stopped_for_ever: stopped_for_ever();
        server_stopped_then_killed: stopped_then_killed(Rust);
        server_late: late(C);
        files_change: files_that_change(C);
    }
    faults_virt: Aarch64Virt {
        server_killed_between_lookup_and_read: killed_before_a_read();
        server_stopped_for_longer: stopped_for_longer();
    }
    faults_virt_pci: Aarch64VirtPci {
        server_killed_in_a_large_read: killed_while_reading(Rust);
        files_change: files_that_change(Rust);
    }
}

#[test]
fn entries_boot_debians_boot_directory_on_microvm() {
    entries::debian(Board::X86_64Microvm);
}

#[test]
fn entries_boot_debians_boot_directory_on_virt() {
    entries::debian(Board::Aarch64VirtPci);
}

#[test]
fn entries_that_are_wrong_are_named_on_q35() {
    entries::wrong_ones(Board::X86_64Q35);
}

#[test]
fn entries_that_are_wrong_are_named_on_virt() {
    entries::wrong_ones(Board::Aarch64Virt);
}

#[test]
fn entries_load_five_initrds_as_one_on_virt() {
    entries::five_initrds(Board::Aarch64Virt);
}

#[test]
fn menu_comes_by_a_key() {
    menu::hidden(Board::X86_64Microvm);
}

#[test]
fn entries_leave_no_trace_on_two_shares() {
    entries::leave_no_trace(Board::X86_64Microvm);
}
