//! Launches QEMU boards that boot from a host directory with Bootshare.
