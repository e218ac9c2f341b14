//! Tests of the client with real servers: one suite runs with the request handlers of virtiofsd and of
//! fuse-backend-rs, and with the host tool's embedded server.

mod directories;
mod files;
mod links;
mod paths;
mod rig;
mod sessions;
mod walk;

/// Makes each function a test for each server.
macro_rules! on_each_server {
    ($($module:ident :: $name:ident),* $(,)?) => {
        mod virtiofsd {
            $(#[test] fn $name() { crate::$module::$name(crate::rig::Server::Virtiofsd); })*
        }
        mod fuse_backend {
            $(#[test] fn $name() { crate::$module::$name(crate::rig::Server::FuseBackend); })*
        }
        mod embedded {
            $(#[test] fn $name() { crate::$module::$name(crate::rig::Server::Embedded); })*
        }
    };
}

on_each_server! {
    files::sizes_around_a_page_and_a_chunk,
    files::whole_files_and_missing_ones,
    files::odd_offsets_and_sizes,
    files::every_chunk_size_and_depth,
    files::answers_in_any_order,
    files::several_at_once,
    files::sparse_files_beyond_four_gibibytes,
    files::offsets_beyond_the_largest_file,
    files::a_file_that_shrinks,
    files::a_file_that_grows,
    files::a_file_that_changes_while_it_is_read,
    files::a_file_that_vanishes,
    files::a_file_that_is_replaced,
    files::hard_links_are_one_file,
    files::attributes_are_the_hosts,
    files::only_regular_files_are_opened,
    files::embedded_io,
    files::many_files_open_at_once,
    files::without_permission,
    directories::small_ones,
    directories::a_thousand_entries,
    directories::a_listing_left_early,
    directories::a_directory_that_changes,
    directories::a_directory_that_vanishes,
    directories::names_of_any_bytes,
    directories::names_of_255_bytes,
    directories::work_by_names,
    links::relative_and_absolute,
    links::through_directories,
    links::chains,
    links::loops_and_dangling,
    links::targets_of_any_bytes,
    links::parents_of_links,
    links::reading_targets,
    paths::slashes_and_dots,
    paths::errors,
    paths::lengths_and_depths,
    paths::as_the_kernel_resolves,
    sessions::mount_and_unmount,
    sessions::again_and_again,
    sessions::nothing_is_left_behind,
    sessions::figures,
    sessions::served_by_threads,
    sessions::a_device_that_polls,
    walk::a_tree_of_packages,
}
