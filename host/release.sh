#!/bin/sh
# Packs the static programs that `make release` has built, into target/release-VERSION: programs, archives,
# Debian and RPM packages, lists of their contents, and SHA256SUMS.
#
# The result is reproducible from the commit: all times are that of the commit, and no file contains a path or
# name of this machine or depends on the order of its files. MAINTAINER, in the form 'Name <address>', becomes
# the maintainer of the Debian package; the default is the author of the commit.
set -eu
export LC_ALL=C TZ=UTC
umask 022
cd "$(dirname "$0")/.."
: "${TOOL:?this is a part of make release}" "${TARGET:?}" "${COMMIT:?the commit is unknown: make releases in a clone}"

say() { echo "release: $*" >&2; }

version=$("$TOOL" --version | sed -n '1s/.* //p')
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
maintainer=${MAINTAINER:-$(git log -1 --format='%an <%ae>')}
stage=target/stage
out=target/release-$version
PATH=$PWD/target/cargo-deb/bin:$PWD/target/cargo-generate-rpm/bin:$PWD/target/cargo-cyclonedx/bin:$PATH

rm -rf "$stage" "$out"
mkdir -p "$stage/bin" "$out"

# Prints the packages that are linked into a program, as `NAME VERSION LICENCE`: `linked PACKAGE TARGET`.
linked() {
    cargo tree --locked -e normal,no-proc-macro --prefix none -f '{p} {l}' -p "$1" --target "$2" |
        sed -n '/ (\//d; /(\*)$/d; s/ v/ /p'
}

# Prints all packages in the program of an architecture, including those in the firmware and the inits.
carried() {
    {
        linked bootshare-host "$1-unknown-linux-musl"
        for arch in x86_64 aarch64; do
            linked "bootshare-qemu-$arch" "$arch-unknown-none"
            linked bootshare-init "$arch-unknown-linux-musl"
        done
    } | sort -u
}

# Prints each licence text once, with the packages that have it.
licences() {
    texts=$(mktemp -d)
    sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
    carried "$1" | while read -r name number licence; do
        for source in "$sources"/*/"$name-$number"; do [ ! -d "$source" ] || break; done
        find "$source" -maxdepth 1 -type f | sort | grep -iE '/(licen[sc]e|copying|notice|copyright)[^/]*$' >"$texts/files" ||
            case $licence in
            *Apache-2.0*) echo LICENSE-APACHE >"$texts/files" ;;
            *)
                say "error: $name $number ($licence) comes without the text of its licence"
                exit 1
                ;;
            esac
        while read -r file; do
            digest=$(sha256sum "$file" | cut -d ' ' -f 1)
            cp "$file" "$texts/$digest.text"
            echo "$name $number ($licence)" >>"$texts/$digest.names"
        done <"$texts/files"
    done
    cat <<END
bootshare-host is licensed under MIT or Apache-2.0, at your choice. It has in it Rust's standard library
(MIT or Apache-2.0; rust-standard-library.html beside this file), the C library musl, and the packages below.

musl

END
    sed 's/^Copyright.*/Copyright (c) 2005-2020 Rich Felker, et al./' LICENSE-MIT
    # Sorted by the packages' names.
    for names in "$texts"/*.names; do
        echo "$(head -n 1 "$names") $names"
    done | sort | sed 's/.* //' | while read -r names; do
        printf '\n----------------------------------------------------------------\n\n'
        sort -u "$names"
        echo
        cat "${names%.names}.text"
    done
    rm -r "$texts"
}

# A CycloneDX list of a package of the workspace and everything that is linked into it.
components() {
    cargo cyclonedx --quiet --manifest-path "$1/Cargo.toml" --target "$3" --format json --spec-version 1.5 --no-build-deps \
        --override-filename bootshare-release
    sed "s|$PWD|/bootshare|g" "$1/bootshare-release.json" >"$stage/$2.cdx.json"
    find . -name target -prune -o -name bootshare-release.json -exec rm {} +
}

say "manual pages, completions, licences"
shares=$stage/share
documents=$shares/doc/bootshare
mkdir -p "$documents"
"$TOOL" man "$shares/man/man1"
for file in bash:bash-completion/completions/bootshare-host zsh:zsh/site-functions/_bootshare-host \
    fish:fish/vendor_completions.d/bootshare-host.fish; do
    path=$shares/${file#*:}
    mkdir -p "${path%/*}"
    "$TOOL" completions "${file%%:*}" >"$path"
done
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE docs/firmware.md docs/host-tool.md docs/run.md "$documents"
cp "$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html" "$documents/rust-standard-library.html"

# Debian systems already have the Apache License, and its policy forbids another copy in this file.
{
    echo "It has in it what is listed, with its licences, in /usr/share/doc/bootshare/LICENCES.txt. Its own licence"
    echo "is either the Apache License 2.0 (/usr/share/common-licenses/Apache-2.0), or, at your choice:"
    echo
    cat LICENSE-MIT
} >"$stage/copyright"
gzip -9nc CHANGELOG.md >"$stage/changelog.gz"
cat >"$stage/changelog" <<END
bootshare ($version-1) unstable; urgency=medium

  * What is new is in /usr/share/doc/bootshare/changelog.gz.

 -- $maintainer  $(date -R -d "@$SOURCE_DATE_EPOCH")
END

for arch in x86_64 aarch64; do
    target=$arch-unknown-linux-musl
    name=bootshare-$version-$arch-linux
    say "$name"
    licences "$arch" >"$documents/LICENCES.txt"
    components host "$name" "$target"
    cp "$stage/$name.cdx.json" "$out"
    tree=$stage/$name
    mkdir "$tree"
    cp -r "$shares" "$tree"
    install -D "$TARGET/$target/dist/bootshare-host" "$tree/bin/bootshare-host"
    cp "$tree/bin/bootshare-host" "$out/bootshare-host-$version-$arch-linux"
    tar -C "$stage" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner \
        --mode=go=u,go-w --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
        zstd -q -19 -T1 -o "$out/$name.tar.zst"
    # The program is static on purpose, so that it runs on any Linux; lintian mistakes a static
    # position-independent program for a library. There is no Debian bug for the first version to close.
    case $arch in
    x86_64) static=shared-library-lacks-prerequisites ;;
    *) static=statically-linked-binary ;;
    esac
    cat >"$stage/overrides" <<END
bootshare: $static [usr/bin/bootshare-host]
bootshare: empty-field Depends
bootshare: initial-upload-closes-no-bugs [usr/share/doc/bootshare/changelog.Debian.gz:1]
END
    cargo deb -q -p bootshare-host --locked --no-build --no-strip --profile dist --target "$target" \
        --maintainer "$maintainer" -o "$out"
    cargo generate-rpm -p host --profile dist --target "$target" --source-date "$SOURCE_DATE_EPOCH" \
        --payload-compress zstd -o "$out"
done
for arch in x86_64 aarch64; do
    components "boards/qemu-$arch" "bootshare-firmware-$version-$arch" "$arch-unknown-none"
    components host/init "bootshare-init-$version-$arch" "$arch-unknown-linux-musl"
    cp "$stage/bootshare-firmware-$version-$arch.cdx.json" "$stage/bootshare-init-$version-$arch.cdx.json" "$out"
done

if command -v lintian >/dev/null; then
    say "lintian"
    lintian --fail-on error,warning "$out"/*.deb
fi

(cd "$out" && sha256sum -- * >../SHA256SUMS && mv ../SHA256SUMS .)
say "made $out"
