# All builds and tests start here, so that a person and CI run the same commands.

BOARD ?= $(if $(filter aarch64,$(shell uname -m)),aarch64-virt,x86_64-microvm)
ACCEL ?= auto
MEMORY ?= 512
SECONDS ?= 60
ROUNDS ?= 7
# Recipes use these two as shell variables, because they may contain quotation marks.
export APPEND
export SHARE

BOARDS := x86_64-microvm x86_64-q35 x86_64-pc aarch64-virt aarch64-virt-pci \
	x86_64-microvm-rom x86_64-q35-rom aarch64-virt-rom
ifeq ($(filter $(BOARD),$(BOARDS)),)
$(error there is no BOARD $(BOARD): use one of $(BOARDS))
endif

ARCH := $(firstword $(subst -, ,$(BOARD)))
ARCHES := x86_64 aarch64
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOL = "$(TARGET)/$(TOOL_PROFILE)/bootshare-host"
# Tests and recipes use the debug build of the host tool, `make run` one that is as fast as a released one.
TOOL_PROFILE := debug
run: TOOL_PROFILE := tool
# The suffix of the image for QEMU's -bios. The ELF file is for -kernel.
ROM_x86_64 := rom
ROM_aarch64 := bin

# A distribution's own Rust has no bare-metal targets and no linker for them, so `core` is built together with
# the firmware. Evaluated at each use, because the set-up may install rustup.
WITHOUT_RUSTUP = $(if $(shell command -v rustup),,$1)
BARE_CARGO = $(call WITHOUT_RUSTUP,RUSTC_BOOTSTRAP=1 CARGO_TARGET_$(shell echo $* | tr a-z A-Z)_UNKNOWN_NONE_LINKER=ld.lld) cargo $(REMAPPED)
BARE_FLAGS = $(call WITHOUT_RUSTUP,-Zbuild-std=core$(comma)compiler_builtins)
comma := ,

# Panic messages contain the paths of source files. These flags remove the build directory from them, so that the
# images are equal byte for byte wherever they are built. They are added to those of .cargo/config.toml.
REMAP = "--remap-path-prefix=$1=$2"
REMAPPED = --config 'target."cfg(all())".rustflags = [$(call REMAP,$(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src,/crates)$(comma) $(call REMAP,$(CURDIR),/bootshare)]'

# The commit of which a program is built, if git knows it.
COMMIT = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)

# The init of `bootshare-host run` is a static program for musl. rustup has Rust's musl targets, distributions do
# not: without rustup the host tool is built without the command `run`.
STATIC_CARGO = CARGO_TARGET_$(shell echo $* | tr a-z A-Z)_UNKNOWN_LINUX_MUSL_LINKER=rust-lld cargo $(REMAPPED)
EMBEDDED = bootshare-host/embed-firmware$(if $(call WITHOUT_RUSTUP,yes),,$(comma)bootshare-host/embed-init)

# The packages that build for this machine: all but the minimal examples and the boot tests' payload.
HOSTED := $(ARCHES:%=--exclude minimal-%) --exclude bootshare-test-payload

# The boot tests' payload exists for one architecture.
PAYLOAD_x86_64 := -p bootshare-test-payload

# Each feature of the library alone. The comma stands for no feature.
FEATURES := , embedded-io mmio pci boot minimal elf extlinux packed shell uki loader

# Two set-ups at once would compete for apt's lock. cargo is parallel by itself.
.NOTPARALLEL:

.PHONY: help
help:
	@echo 'make run       boot a directory in QEMU; without SHARE a demo with a real Debian kernel'
	@echo '                 BOARD=    x86_64-microvm, x86_64-q35, x86_64-pc,'
	@echo '                           aarch64-virt, aarch64-virt-pci; with the firmware as ROM'
	@echo '                           x86_64-microvm-rom, x86_64-q35-rom, aarch64-virt-rom'
	@echo '                 SHARE=    the directory to boot'
	@echo '                 APPEND=   firmware options; words after -- go to the kernel'
	@echo '                 MEMORY=   MiB (default $(MEMORY)); TIMEOUT= seconds'
	@echo '                 QEMU=     of which Debian release: bookworm, trixie, sid (default: what is installed)'
	@echo '                 SERVER=   a virtiofsd to use instead of our own; ACCEL= auto (default), tcg, kvm'
	@echo 'make host      the host tool that carries the firmware, to copy anywhere:'
	@echo '                 $(TARGET)/release/bootshare-host'
	@echo 'make release   static programs for any Linux, and packages, in target/release-VERSION'
	@echo 'make test      everything CI runs'
	@echo 'make test-qemus  all boards on QEMU 7.2, 10.0 and 11.1 with Linux 6.1, 6.12 and 7.2'
	@echo 'make test-kvm  seven boards by KVM of Debian 13 and sid; needs no KVM here'
	@echo 'make test-distributions  whole trees of Debian 12, 13 and sid to their login prompts'
	@echo '                 NAMES=    some of those in host/distributions.sh'
	@echo 'make test-release  what make release made, installed, used and removed in clean trees, as root'
	@echo '                 NAMES=    some of those in host/trial.sh'
	@echo 'make test-run  commands in the kernels of Debian 12, 13 and sid, as root and as an ordinary user'
	@echo 'make test-console  100 MiB of console output through a slow reader'
	@echo 'make test-changing  a guest in a tree that the host changes, beside virtiofsd; as root'
	@echo 'make test-environments  the host tool under terminals, services and namespaces'
	@echo 'make firmware  the images, in target/firmware'
	@echo 'make minimal   images that boot by entries and conventional names only: no menu, shell, ...'
	@echo 'make examples  the minimal firmware of examples/, in target/examples'
	@echo 'make fuzz      hostile input for each fuzz target'
	@echo '                 SECONDS=  for each (default $(SECONDS)); TARGETS= wire boot client zstd serve'
	@echo '                 SANITIZER= address (default) or none, five times as fast'
	@echo '                 CASES=    random inputs instead, without measuring coverage; SEED='
	@echo 'make miri      the unit tests, and a share with a hostile device, under Miri'
	@echo 'make mutants   which changes of the client no test notices: hours; the list is in target/mutants.out'
	@echo '                 ONLY=     those whose name matches: src/session, or a regular expression'
	@echo '                 PACKAGE=host  of the host tool in place of the client'
	@echo 'make actions   the workflows that others use, by actionlint'
	@echo 'make licences  the licences of everything that is linked'
	@echo 'make callgrind how many instructions the client takes for a request'
	@echo 'make panics    where the images could panic, against docs/panics.md'
	@echo 'make bench     how fast it is, beside Linux and QEMU itself'
	@echo '                 ROUNDS=   how often (default $(ROUNDS))'
	@echo '                 ONLY=     reads,boots,initrd,trips,growth,root,size; PICTURES= docs for those of the README'
	@echo 'make size      what the images take; the table in docs/size.md'
	@echo 'make doc       the documentation, in $(TARGET)/doc'
	@echo 'make clean     remove target, downloads included'

.PHONY: run
run: setup-run tool firmware-$(ARCH)
ifeq ($(SHARE),)
	$(TOOL) demo --force --parts target/guest --board $(BOARD) target/demo/$(ARCH)
endif
	$(TOOL) boot $(if $(SHARE),"$$SHARE",--demo target/demo/$(ARCH)) --board $(BOARD) \
		$(if $(QEMU),--qemu "$$($(TOOL) qemu --cache target/qemu $(QEMU))") --append "$$APPEND" --memory $(MEMORY) --accel $(ACCEL) \
		$(if $(SERVER),--server "$(SERVER)") $(if $(TIMEOUT),--timeout $(TIMEOUT))

# For work on this tree: this program finds the firmware in target/firmware.
.PHONY: tool
tool: setup-build
	cargo build --profile $(TOOL_PROFILE:debug=dev) -p bootshare-host

.PHONY: host
host: setup-build firmware init
	BOOTSHARE_COMMIT=$(COMMIT) cargo build --release -p bootshare-host --features $(EMBEDDED)
	@echo 'made $(TARGET)/release/bootshare-host'

.PHONY: firmware
firmware: $(ARCHES:%=firmware-%)

.PHONY: $(ARCHES:%=firmware-%)
$(ARCHES:%=firmware-%): firmware-%: setup-build tool
	$(BARE_CARGO) build --profile firmware -p bootshare-qemu-$* --target $*-unknown-none $(BARE_FLAGS)
	@mkdir -p target/firmware
	@# An equal file keeps its time, so that cargo does not rebuild the host tool, which contains it.
	@install -C "$(TARGET)/$*-unknown-none/firmware/bootshare-qemu-$*" target/firmware/bootshare-$*.elf
	@$(TOOL) rom target/firmware/bootshare-$*.elf target/firmware/bootshare-$*.$(ROM_$*)

# The boot flow without its optional features: see docs/size.md.
.PHONY: minimal
minimal: $(ARCHES:%=minimal-%)

.PHONY: $(ARCHES:%=minimal-%)
$(ARCHES:%=minimal-%): minimal-%: setup-build
	$(BARE_CARGO) build --profile firmware -p bootshare-qemu-$* --no-default-features --target $*-unknown-none $(BARE_FLAGS)
	@mkdir -p target/firmware
	@install -C "$(TARGET)/$*-unknown-none/firmware/bootshare-qemu-$*" target/firmware/bootshare-minimal-$*.elf

# The first process of a machine in which `bootshare-host run` runs a command.
.PHONY: init
init: $(ARCHES:%=init-%)

.PHONY: $(ARCHES:%=init-%)
$(ARCHES:%=init-%): init-%: setup-build
	$(if $(call WITHOUT_RUSTUP,yes),@echo 'without rustup there is no init of $*: bootshare-host run will not work',$(STATIC_CARGO) build --profile init -p bootshare-init --target $*-unknown-linux-musl)
	$(if $(call WITHOUT_RUSTUP,yes),,@install -CD -m 644 "$(TARGET)/$*-unknown-linux-musl/init/bootshare-init" target/firmware/init-$*)

.PHONY: examples
examples: $(ARCHES:%=examples-%)

.PHONY: $(ARCHES:%=examples-%)
$(ARCHES:%=examples-%): examples-%: setup-build
	$(BARE_CARGO) build --profile firmware -p minimal-$* --target $*-unknown-none $(BARE_FLAGS)
	@mkdir -p target/examples
	@cp "$(TARGET)/$*-unknown-none/firmware/minimal-$*" target/examples/minimal-$*.elf

# The payload of the boot tests that prints the state of its machine.
.PHONY: payload
payload: setup-build
	$(BARE_CARGO) build --profile firmware -p bootshare-test-payload --target x86_64-unknown-none $(BARE_FLAGS)
	@install -CD "$(TARGET)/x86_64-unknown-none/firmware/bootshare-test-payload" target/payload/x86_64.elf

TESTED = --workspace $(HOSTED) --features bootshare/loader,$(EMBEDDED)

# More tests at once than processors, because many wait: for a deadline, or for a server that is stopped. The same
# packages and features in both lines, so that nothing is built twice.
.PHONY: test
test: export RUST_TEST_THREADS ?= $(shell expr $$(nproc) + 2)
test: setup-test lint package firmware minimal init examples payload
	@# What failed, and why, is told once more at the end: the whole output has thousands of lines.
	@passed=$$(mktemp -u target/passed.XXXXXX); \
	{ cargo test $(TESTED) --no-fail-fast 2>&1 && touch "$$passed"; } | tee target/test.log; \
	if ! rm "$$passed" 2>/dev/null; then \
		echo 'The failures, from target/test.log:'; \
		grep -aA3 -e "^thread .* panicked at" -e '^error' target/test.log; exit 1; \
	fi
	@if [ "$$(id -u)" = 0 ]; then \
		cargo test $(TESTED) --tests trusted_ -- --ignored 2>&1 | tee target/root.log; \
		grep -q 'test result: ok. [1-9]' target/root.log; \
	else echo 'not tested, because it needs root: layers with trusted attributes.'; fi

BOOTS = -p bootshare --features loader --test boot

# Each board on the QEMUs of three Debian releases with all of their kernels: some ten minutes.
.PHONY: test-qemus
test-qemus: setup-test firmware
	cargo test $(BOOTS) qemus:: -- --ignored

# QEMU emulates KVM. `make test` boots two boards of each architecture by that of Debian 13.
.PHONY: test-kvm
test-kvm: setup-test firmware
	cargo test $(BOOTS) kvm_ -- --ignored --nocapture

# Ten minutes and 4 GB. mmdebstrap makes the trees once.
.PHONY: test-distributions
test-distributions: setup-distributions host
	host/distributions.sh boot "$(TARGET)/release/bootshare-host" $(NAMES)

# As root, after make release: clean trees of Debian 12, 13 and sid, an ordinary user, busybox alone.
.PHONY: test-release
test-release: setup-distributions
	host/trial.sh $(NAMES)

# Twelve kernels, two users, two trees, all exit statuses: half an hour, and 4 GB for trees.
.PHONY: test-run
test-run: setup-distributions host
	tests/run.sh "$(TARGET)/release/bootshare-host"

# The reader stops for 100 s in each of ten runs: half an hour.
.PHONY: test-console
test-console: setup-test host
	tests/console.sh "$(TARGET)/release/bootshare-host"

# Three runs on each of four file systems, a minute each.
.PHONY: test-changing
test-changing: setup-changing host
	cargo build --release -p bootshare-host --features $(EMBEDDED) --example changes
	tests/changing.sh "$(TARGET)/release/bootshare-host" "$(TARGET)/release/examples/changes" target/virtiofsd/bin/virtiofsd

.PHONY: test-environments
test-environments: setup-test host
	tests/environments.sh "$(TARGET)/release/bootshare-host"

DOCUMENTED := -p bootshare -p bootshare-test-device -p bootshare-zstd -p bootshare-host --features bootshare/loader
SCRIPTS := .ci/run tests/*.sh host/*.sh host/src/*.sh fuzz/run.sh benches/src/*.sh examples/ci/*.sh

.PHONY: lint
lint: setup-test firmware init $(ARCHES:%=lint-%)
	cargo fmt --all --check
	shellcheck $(SCRIPTS)
	cargo clippy $(TESTED) --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps $(DOCUMENTED)
	set -e; for features in $(FEATURES); do \
		cargo clippy --quiet -p bootshare --no-default-features --features $$features -- -D warnings; \
	done

# Static programs for any Linux, and packages of them. Builds of the same commit are equal byte for byte.
.PHONY: release
release: setup-release firmware init $(ARCHES:%=static-%)
	@TOOL=$(TOOL) TARGET="$(TARGET)" COMMIT=$(COMMIT) host/release.sh

.PHONY: $(ARCHES:%=static-%)
$(ARCHES:%=static-%): static-%: firmware init
	BOOTSHARE_COMMIT=$(COMMIT) $(STATIC_CARGO) build --locked --profile dist -p bootshare-host --features $(EMBEDDED) --target $*-unknown-linux-musl

# Makes the packages for the registry and builds each one; nothing is published.
.PHONY: package
package: setup-build firmware init
	TARGET="$(TARGET)" COMMIT=$(COMMIT) BARE_FLAGS='$(BARE_FLAGS)' host/package.sh --dry-run

# For the owner: publishes the packages.
.PHONY: publish
publish: setup-build firmware init
	TARGET="$(TARGET)" COMMIT=$(COMMIT) BARE_FLAGS='$(BARE_FLAGS)' host/package.sh

.PHONY: $(ARCHES:%=lint-%)
$(ARCHES:%=lint-%): lint-%: setup-test
	$(BARE_CARGO) clippy -p bootshare-qemu-$* -p minimal-$* $(PAYLOAD_$*) -p bootshare --features bootshare/loader --target $*-unknown-none $(BARE_FLAGS) -- -D warnings
	$(BARE_CARGO) clippy -p bootshare-qemu-$* --no-default-features --target $*-unknown-none $(BARE_FLAGS) -- -D warnings

.PHONY: fuzz
fuzz: setup-fuzz
	@fuzz/run.sh "$(SECONDS)" $(TARGETS)

# virtio-drivers converts addresses to pointers, which needs permissive provenance. The replay reads the corpus from
# disk, which needs no isolation. If a device never confirms its reset, its memory is leaked on purpose.
.PHONY: miri
miri: export MIRIFLAGS = -Zmiri-permissive-provenance -Zmiri-disable-isolation
miri: setup-miri
	cargo +nightly miri test -p bootshare --lib --features loader
	MIRIFLAGS="$$MIRIFLAGS -Zmiri-ignore-leaks" \
		cargo +nightly miri test -p bootshare-tests --no-default-features --test hostile
	cargo +nightly miri test -p bootshare-fuzz

# docs/mutants.md lists the surviving mutants with the reasons. cargo-mutants changes a copy of the sources.
.PHONY: mutants
mutants: export PATH := $(PATH):$(CURDIR)/target/cargo-mutants/bin
mutants: setup-mutants
	cargo mutants --output target $(if $(PACKAGE),--package bootshare-$(PACKAGE) --config .cargo/mutants-$(PACKAGE).toml) \
		$(if $(ONLY),--re '$(ONLY)')

.PHONY: actions
actions: setup-actions
	examples/ci/actionlint.sh

.PHONY: licences
licences: export PATH := $(CURDIR)/target/cargo-deny/bin:$(PATH)
licences: setup-licences
	cargo deny check licenses bans sources

# The client is compiled with the firmware's profile.
.PHONY: callgrind
callgrind: setup-callgrind
	@cargo run -q --profile firmware -p bootshare-tests --no-default-features --example callgrind

# Relocations show the calls. Outlined code would have no place in the sources.
.PHONY: panics
panics: $(ARCHES:%=panics-%)
	@cargo run -q -p bootshare-host --example panics -- docs/panics.md $(foreach a,$(ARCHES),"$(TARGET)/$a-unknown-none/panics/bootshare-qemu-$a")

.PHONY: $(ARCHES:%=panics-%)
# The program that reads the image needs the real paths of the sources.
$(ARCHES:%=panics-%): REMAPPED =
$(ARCHES:%=panics-%): panics-%: setup-build
	@$(BARE_CARGO) rustc -q --profile panics -p bootshare-qemu-$* --target $*-unknown-none $(BARE_FLAGS) \
		-- -Clink-arg=--emit-relocs -Cllvm-args=-enable-machine-outliner=never

# Compared with its peers in one run. Tables, raw numbers and plots are in target/bench.
.PHONY: bench
bench: setup-bench firmware
	cargo run --release -p bootshare-bench -- --rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY)) \
		$(if $(PICTURES),--pictures $(PICTURES))

.PHONY: size
size: tool firmware minimal
	@$(TOOL) size $(ARCHES:%=target/firmware/bootshare-%.elf)
	@cargo run -q -p bootshare-host --example sizes -- docs/size.md $(foreach a,$(ARCHES),$a=target/firmware/bootshare-$a.elf "$a minimal=target/firmware/bootshare-minimal-$a.elf")

.PHONY: doc
doc: setup-build
	cargo doc --no-deps $(DOCUMENTED)

.PHONY: clean
clean:
	rm -rf target
	@[ -z "$(CARGO_TARGET_DIR)" ] || echo 'kept, because others may use it: $(CARGO_TARGET_DIR)'

# Each installs the packages that its purpose needs and that are missing.
SETUPS := setup-distributions setup-build setup-run setup-test setup-bench setup-changing setup-fuzz setup-miri setup-mutants setup-licences setup-callgrind setup-release setup-actions
.PHONY: $(SETUPS)
$(SETUPS): setup-%:
	@host/setup.sh $*
