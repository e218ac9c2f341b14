#!/bin/sh
# Prints the archive of Debian from which trees are made, for mmdebstrap: MIRROR, or the one from which apt gets this
# machine's Debian release. Prints nothing on another distribution, where mmdebstrap knows Debian's own archive.
set -eu
if [ -n "${MIRROR:-}" ]; then
    echo "$MIRROR"
    exit
fi
# shellcheck source=/dev/null
. /etc/os-release
[ "${ID:-}" = debian ] || exit 0
# It prints 'ARCHIVE/dists/SUITE/InRelease'.
apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/$VERSION_CODENAME/InRelease'.*|\1|p" | head -n 1
