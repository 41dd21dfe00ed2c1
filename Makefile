# Kiseki. `make run` starts a node, `make test` is the whole gate; `make help` lists the rest.
#
# make run [KISEKI_DIR=.kiseki] [S3_PORT=9000] [ADMIN_PORT=9090] [S3_TLS=on|off]
# make cluster [KISEKI_DIR=.kiseki] [NODES=6] [RACKS=0], make cluster-stop

KISEKI_DIR ?= .kiseki
S3_PORT ?= 9000
ADMIN_PORT ?= 9090
S3_TLS ?= on
NODES ?= 6
RACKS ?= 0
SECONDS ?= 60
ROUNDS ?= 1
SEED ?= 1
COLD_STARTS ?=
TARGETS ?=
BENCH_OPTIONS ?=
PREFIX ?= /usr/local
DESTDIR ?=

# s3s declares a later compiler than it needs; harmless on newer ones.
CARGO_FLAGS := --release --ignore-rust-version
CARGO := cargo
SERVER := target/release/kiseki-server

.PHONY: help run build init test check clippy fmt docs tidy unit client-test bench bench-smoke fuzz test-nvme deps test-deps install man kiseki-bench fence-test cluster cluster-stop cluster-test faults

help:
	@echo 'make run        build, make $(KISEKI_DIR) ready, serve S3 on port $(S3_PORT) in the foreground'
	@echo 'make cluster    NODES=6 nodes on this machine (in RACKS=3 racks), in the background; make cluster-stop (docs/cluster.md)'
	@echo 'make cluster-test  three nodes join, serve, are killed one by one and all at once (ROUNDS=1: longer); a short make faults'
	@echo 'make faults     faults against real nodes under a checked history, for SECONDS=3600 (SEED=1, COLD_STARTS=40; docs/faults.md)'
	@echo 'make test       the whole gate: fmt, clippy, tests, docs, tidy, real clients'
	@echo 'make build      server and command line tools'
	@echo 'make check      the gate without real clients'
	@echo 'make bench      every published figure, measured in one run and recorded below perf/runs (BENCH_OPTIONS=--quick, perf/README.md)'
	@echo 'make kiseki-bench  the program alone (docs/bench.md)'
	@echo 'make fence-test takes each guard out once and sees its test fail (docs/fence-test.md)'
	@echo 'make fuzz       fresh inputs for every parser, each for SECONDS=60 (docs/fuzzing.md)'
	@echo 'make test-nvme  NVMe drives in an emulated machine: function, faults, resets, power cuts (LONG=1: more kinds of machines)'
	@echo 'make install    programs, completions, manual pages below PREFIX=$(PREFIX) (DESTDIR= for packages)'
	@echo 'make man        manual pages into target/man'
	@echo 'make bench-smoke  every verb of kiseki-bench for a second'

deps:
	@scripts/deps.sh build

test-deps:
	@scripts/deps.sh build test

build: deps
	$(CARGO) build $(CARGO_FLAGS) -p kiseki-server -p kiseki-cli

init: build
	@$(SERVER) init --dir "$(KISEKI_DIR)"

run: init
	@exec $(SERVER) run --dir "$(KISEKI_DIR)" --s3-port $(S3_PORT) --admin-port $(ADMIN_PORT) --s3-tls $(S3_TLS)

cluster: build
	@scripts/cluster.py up "$(KISEKI_DIR)" --nodes $(NODES) --racks $(RACKS)

cluster-stop:
	@scripts/cluster.py down "$(KISEKI_DIR)"

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy $(CARGO_FLAGS) --workspace --all-targets

# kiseki-bench on its own: its client needs tokio's runtime, and with that feature tokio wakes the waiters of a watch
# channel in random order. Built in one go, openraft gets it too, and no run of the simulator repeats.
unit:
	$(CARGO) test $(CARGO_FLAGS) --workspace --exclude kiseki-bench --no-fail-fast
	$(CARGO) test $(CARGO_FLAGS) -p kiseki-bench

docs:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(CARGO_FLAGS) --workspace --no-deps

tidy:
	$(CARGO) run -q $(CARGO_FLAGS) -p xtask -- check
	scripts/fence_test.py --check

check: deps fmt clippy unit docs tidy

client-test: build
	scripts/client-test.sh

cluster-test: build
	scripts/client-test.sh cluster --rounds $(ROUNDS)

# An hour unless SECONDS is given: its default above is that of other targets.
faults: test-deps build
	scripts/client-test.sh faults --seed $(SEED) $(if $(COLD_STARTS),--cold-starts $(COLD_STARTS),--seconds $(if $(filter file,$(origin SECONDS)),3600,$(SECONDS)))

kiseki-bench: deps
	$(CARGO) build $(CARGO_FLAGS) -p kiseki-bench

bench: build kiseki-bench
	$(CARGO) bench --ignore-rust-version --no-run -p kiseki-benches
	perf/run.py $(BENCH_OPTIONS)

install: build kiseki-bench
	scripts/install.sh "$(PREFIX)" "$(DESTDIR)"

man: build kiseki-bench
	mkdir -p target/man
	for program in kiseki kiseki-devctl kiseki-server kiseki-bench; do target/release/$$program man target/man || exit 1; done

bench-smoke: build kiseki-bench
	scripts/bench-smoke.sh

fuzz: deps
	$(CARGO) build $(CARGO_FLAGS) -p kiseki-fuzz
	target/release/kiseki-fuzz $(TARGETS) --seconds $(SECONDS)

fence-test: deps
	scripts/fence_test.py

test-nvme: build
	@scripts/nvme-test.sh $(if $(LONG),--long)

test: test-deps
	@scripts/gate.sh
