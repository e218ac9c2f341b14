#!/bin/sh
# Runs a program of the unpacked packages around this file, the one with the same name as this file, with the
# packages' own loader, libraries, modules and ROMs.
for loader in "${0%/*}"/usr/lib/*-linux-gnu/ld-linux-*; do
    lib=${loader%/*}
    usr=${lib%/lib/*}
    case ${0##*/} in
    qemu-system-*)
        QEMU_MODULE_DIR=$lib/qemu exec "$loader" --library-path "$lib" "$usr/bin/${0##*/}" \
            -L "$usr/share/qemu" -L "$usr/share/seabios" -L "$usr/lib/ipxe/qemu" "$@"
        ;;
    *) exec "$loader" --library-path "$lib" "$usr/lib/qemu/${0##*/}" "$@" ;;
    esac
done
