#!/bin/sh
# Makes the packages of the crates as the registry takes them, and builds each from what was packed, an
# example against the library's as well. `host/package.sh --dry-run` sends nothing; without the option
# they are published.
#
# The host tool's package has the firmware images in it, which no repository has: they lie in
# host/images while it is made, with the commit they are of. host/build.rs refuses a package without
# them, and one whose commit is another.
set -eu
cd "$(dirname "$0")/.."
option=${1-}
: "${TARGET:=target}" "${COMMIT=}" "${BARE_FLAGS=}"

die() {
    echo "package: error: $*" >&2
    exit 1
}

if [ -z "$option" ]; then
    case $COMMIT in
    '') die "the commit is unknown: publish from a clone" ;;
    *-dirty) die "the tree differs from the commit $COMMIT: commit, then publish" ;;
    esac
fi

images=host/images
trap 'rm -rf "$images"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$images"
mkdir "$images"
set -- -p bootshare-zstd -p bootshare -p bootshare-test-device
if [ -n "$COMMIT" ] && [ -e target/firmware/init-x86_64 ]; then
    cp target/firmware/bootshare-*.* target/firmware/init-* "$images"
    echo "$COMMIT" >"$images/COMMIT"
    set -- "$@" -p bootshare-host
else
    echo "package: without bootshare-host, whose init needs rustup, and its images a commit" >&2
fi

# The images are no files of git's, which cargo takes for a change of the tree.
cargo package --quiet --allow-dirty "$@"

# The library's package beside an example, as a firmware of somebody else's has it.
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
example=$TARGET/package/example
rm -rf "$example"
mkdir -p "$example"
for crate in bootshare bootshare-zstd; do
    tar -C "$example" -xf "$TARGET/package/$crate-$version.crate"
done
library=$example/bootshare-$version
mkdir "$library/examples"
cp -r examples/minimal-x86_64 "$library/examples"
{
    echo '[workspace]'
    echo 'members = ["examples/minimal-x86_64"]'
    awk '/^\[/ { keep = /^\[workspace\.(package|lints)/ } keep' Cargo.toml
    echo '[patch.crates-io]'
    echo "bootshare-zstd = { path = \"../bootshare-zstd-$version\" }"
} >>"$library/Cargo.toml"
# shellcheck disable=SC2086 # a list of words: what builds `core` where there is no rustup
${BARE_FLAGS:+env RUSTC_BOOTSTRAP=1} cargo check --quiet --manifest-path "$library/Cargo.toml" \
    -p minimal-x86_64 --target x86_64-unknown-none --target-dir "$example/target" $BARE_FLAGS

[ -n "$option" ] || cargo publish --allow-dirty "$@"
