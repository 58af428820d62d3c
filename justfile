# The recipes of this project. `./just <recipe>` installs what is missing and then runs them;
# `just <recipe>` does where nothing is missing.

set ignore-comments

export CARGO_TARGET_DIR := justfile_directory() / "target"

# One release build serves everything: what runs under emulation has to be optimised anyway.
cargo_flags := "--release --locked"
bin := CARGO_TARGET_DIR / "x86_64-unknown-linux-gnu/release"

# `cycles=1000` as well as `--cycles 1000` reaches the harness.
option := '(^|\s)([a-z][a-z-]*=)'
flag := '${1}--${2}'

# show this list
default:
    @just --justfile {{ justfile() }} --list --unsorted

# the main job: suspend and resume a real guest 300 times (`cycles=1000` for more), with a verdict; `kvm=intel` on kvm_intel
e2e *options: build
    {{ bin }}/mctl-e2e cycles {{ replace_regex(options, option, flag) }}

# the same cycles with each fix switched off on its own; the bug where all are
e2e-matrix *options: build leaky
    {{ bin }}/mctl-e2e matrix {{ replace_regex(options, option, flag) }}

# the main job and every test on real guests, on each kind of KVM that can be had here: hours, and one page to send to others
proof *options: build leaky
    cargo build {{ cargo_flags }} --workspace --bins --tests
    cargo test {{ cargo_flags }} --workspace --test promises --no-run --message-format json >{{ CARGO_TARGET_DIR }}/promises.json
    {{ bin }}/mctl-e2e proof --tests {{ CARGO_TARGET_DIR }}/promises.json {{ replace_regex(options, option, flag) }}

# the release before this one, by its commit: with it machines are exchanged
release_before := "v0.1.0"
commit_before := "a76c0fc90ec65aa9cc99cd23f62736057e666457"
folder_before := CARGO_TARGET_DIR / "upgrade" / release_before

# running and suspended machines go from the release before to this one, back to it, and here again
upgrade *options: build
    git cat-file -e {{ commit_before }} || { echo 'this clone has no history: git fetch --unshallow --tags' >&2; exit 1; }
    mkdir -p {{ folder_before }}/source
    git archive {{ commit_before }} | tar -x -C {{ folder_before }}/source
    cd {{ folder_before }}/source && cargo build {{ cargo_flags }} --target-dir {{ folder_before }}/build \
        -p cli -p supervisor -p vmm -p guest-init -p rootfs --bins
    {{ bin }}/mctl-e2e upgrade --before {{ folder_before }}/build/x86_64-unknown-linux-gnu/release {{ replace_regex(options, option, flag) }}

# what boot, suspend and resume cost: two runs, the ledger of cost, ratios (`--accept REASON` writes the ledger)
bench *options: build
    cargo bench --locked --package vmm --bench restore
    {{ bin }}/mctl-e2e bench {{ replace_regex(options, option, flag) }}

# every check and every test, those on real guests and a short main job included; what CI runs
test: fmt lint leaky
    # Always the whole workspace: cargo would build many crates again, with other features, for a part of it.
    cargo build {{ cargo_flags }} --workspace --bins --tests
    # The main job chains more cycles than the promise of twenty, which wants one attempt in each.
    # `require`: tests that need KVM and can run neither here nor in the virtual KVM host fail.
    MCTL_KVM_TESTS=require cargo test {{ cargo_flags }} --workspace -- --skip twenty_cycles
    # In virtual time they do not disturb each other.
    {{ bin }}/mctl-e2e bench --boots 5 --cycles 40 --repeats 0 --output {{ CARGO_TARGET_DIR }}/bench & ledger=$!; \
        {{ just_executable() }} --justfile {{ justfile() }} cycles-on-intel >{{ CARGO_TARGET_DIR }}/cycles-on-intel.log 2>&1 & intel=$!; \
        {{ bin }}/mctl-e2e cycles --output {{ CARGO_TARGET_DIR }}/e2e; verdict=$?; \
        wait $intel; intel=$?; cat {{ CARGO_TARGET_DIR }}/cycles-on-intel.log; \
        wait $ledger && [ $intel = 0 ] && exit $verdict

# ten cycles on kvm_intel, where Bochs is there: too few for a verdict, enough for what is checked in each
[private]
cycles-on-intel:
    if {{ bin }}/mctl-kvm-host doctor --kvm intel >/dev/null 2>&1; then \
        {{ bin }}/mctl-e2e cycles --kvm intel --cycles 10 --checks-only --output {{ CARGO_TARGET_DIR }}/e2e-intel; \
    else \
        {{ bin }}/mctl-kvm-host doctor 2>&1 | grep '^virtual host intel'; echo 'the ten cycles on kvm_intel are left out'; \
    fi

# the quick half of `test`: no real guests
check: fmt lint
    cargo test {{ cargo_flags }} --workspace --exclude e2e
    cargo test {{ cargo_flags }} --package e2e --lib --bins --test tidy

# our API as public clients and schemathesis see it, for longer: `./just contract 600 7`
contract seconds="60" seed="1":
    cargo build {{ cargo_flags }} --package supervisor --bins --examples
    MCTL_CONTRACT_SECONDS={{ seconds }} MCTL_CONTRACT_SEED={{ seed }} cargo test {{ cargo_flags }} --package supervisor --test contract -- --nocapture

# random requests under random hardships: deaths, power failures, a full disk, no descriptors (`just soak 3600 50`; a third word is the seed of one to repeat)
soak seconds="300" machines="24" seed="":
    cargo build {{ cargo_flags }} --package supervisor --example fake_vmm
    MCTL_SOAK_SECONDS={{ seconds }} MCTL_SOAK_MACHINES={{ machines }} {{ if seed != "" { "MCTL_SOAK_SEED=" + trim_start_match(seed, "seed=") } else { "" } }} \
        cargo test {{ cargo_flags }} --package supervisor --test nothing_lost -- --nocapture soak

# fuzz targets under cargo-fuzz, guided by coverage: `./just fuzz vsock 600`; `./just fuzz all 600 4` is each of them, four at once
fuzz target="all" seconds="60" jobs="1":
    fuzz/run {{ CARGO_TARGET_DIR }}/fuzz {{ target }} {{ seconds }} {{ jobs }}

# formatting as rustfmt has it
fmt:
    cargo fmt --all --check

# clippy, warnings are errors
lint:
    cargo clippy {{ cargo_flags }} --workspace --all-targets -- -D warnings

# the rules about the tree: who imports whom, how long files are
tidy:
    cargo test {{ cargo_flags }} --package e2e --test tidy

# what should pass before a push
prepush: test

# all binaries
build:
    cargo build {{ cargo_flags }} --workspace --bins

# the test image's init, which leaks one socket per resume; never to be released
leaky:
    cargo build {{ cargo_flags }} --workspace --features guest-init/leaky --bin guest-init-leaky

# programs that leak one of each kind on purpose, never to be released: every leak must be found
leaks *options: build
    cargo build {{ cargo_flags }} --workspace --features guest-init/leaks,supervisor/leaks,vmm/leaks \
        --bin guest-init-with-leaks --bin mctl-supervisor-with-leaks --bin mctl-vmm-with-leaks
    # Programs look for each other in their own folder.
    mkdir -p {{ CARGO_TARGET_DIR }}/leaks
    cd {{ bin }} && cp kvm-host-init mctl mctl-e2e mctl-rootfs {{ CARGO_TARGET_DIR }}/leaks
    for name in guest-init mctl-supervisor mctl-vmm; do \
        cp {{ bin }}/$name-with-leaks {{ CARGO_TARGET_DIR }}/leaks/$name; done
    {{ CARGO_TARGET_DIR }}/leaks/mctl-e2e leaks {{ replace_regex(options, option, flag) }}

# the guest image, put where a supervisor on this host looks for it
images *options: build
    {{ bin }}/mctl-rootfs build {{ options }}

# a supervisor on this host, for machines of your own (needs hardware KVM)
run *options: images
    {{ bin }}/mctl-supervisor {{ options }}

# a virtual KVM host with a supervisor in it, for hosts without hardware KVM
kvm-host *options: build
    {{ bin }}/mctl-rootfs build --output {{ CARGO_TARGET_DIR }}/images
    {{ bin }}/mctl-kvm-host run --image {{ CARGO_TARGET_DIR }}/images/default {{ options }}

# what this host can do, and what to do about what it cannot
doctor: build
    {{ bin }}/mctl doctor

# the API documentation of all crates
doc:
    cargo doc {{ cargo_flags }} --workspace --no-deps
