#!/bin/sh
# Makes the crates' packages in the registry's format and builds each of them, together with an example that
# uses the library's package. Then it publishes them, unless the option `--dry-run` is given.
#
# The host tool's package contains the firmware images, which are not in the repository. They are copied to
# host/images for this, with the commit they were built from. host/build.rs refuses a package without images, or
# with images of another commit.
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
    echo "package: bootshare-host is left out: its init needs rustup, and its images need a commit" >&2
fi

# The images are not tracked by git, so cargo considers the tree changed.
cargo package --quiet --allow-dirty "$@"

# Build an example against the library's package, like a firmware in another repository.
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
# shellcheck disable=SC2086 # a list of words: options that build `core` without rustup
${BARE_FLAGS:+env RUSTC_BOOTSTRAP=1} cargo check --quiet --manifest-path "$library/Cargo.toml" \
    -p minimal-x86_64 --target x86_64-unknown-none --target-dir "$example/target" $BARE_FLAGS

[ -n "$option" ] || cargo publish --allow-dirty "$@"
