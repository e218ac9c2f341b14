#!/bin/sh
# Prints the Debian archive for mmdebstrap's trees: MIRROR, or the archive from which apt gets this machine's
# Debian release. Prints nothing on other distributions; mmdebstrap then uses its default.
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
