# `make` lists the targets.

CARGO ?= cargo
DIST := dist
PREFIX ?= /usr/local
# What is in the extension and the tool.
SOURCES := Cargo.toml Cargo.lock $(shell find -L src vfs-ext vfs-preload -type f)
# Everything that is installed for tests only.
TEST_ENV := target/test-env

.PHONY: help build install packages demo pictures test test-env test-stores test-large test-crash test-faults test-sqlite test-many test-container simulate lint bench fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## dist/replicated.so (the extension), dist/replicated-preload.so and dist/replicated (the command-line tool)
	$(CARGO) build --release --workspace
	@mkdir -p $(DIST)
	@# New files, not new bytes in the old ones: a process may have those mapped.
	install -m 0755 target/release/libreplicated_ext.so $(DIST)/replicated.so
	install -m 0755 target/release/libreplicated_preload.so $(DIST)/replicated-preload.so
	install -m 0755 target/release/replicated $(DIST)/replicated

# So that `sudo make install` compiles nothing where `make build` has been run: root often has no compiler.
$(DIST)/replicated: $(SOURCES)
	$(MAKE) build

install: $(DIST)/replicated ## the tool, the extension and the C header below PREFIX (/usr/local), with DESTDIR before it
	install -D -m 0755 $(DIST)/replicated $(DESTDIR)$(PREFIX)/bin/replicated
	install -D -m 0644 $(DIST)/replicated.so $(DESTDIR)$(PREFIX)/lib/replicated.so
	install -D -m 0644 $(DIST)/replicated-preload.so $(DESTDIR)$(PREFIX)/lib/replicated-preload.so
	install -D -m 0644 include/replicated.h $(DESTDIR)$(PREFIX)/include/replicated.h

packages: build ## a Python wheel, an npm and a Debian package in dist/packages
	python3 scripts/package.py

demo: build ## write, kill -9, restore, compare: on a folder, then on S3
	$(CARGO) build --release --example demo
	@target/release/examples/demo

pictures: demo ## docs/demo.svg of a run of the demo, docs/performance.svg of the tables in docs/performance.md
	python3 scripts/record-demo.py
	python3 scripts/chart.py

test: test-env ## all tests; installs what they need into target/, and as root on Debian other languages by apt-get
	$(CARGO) build --workspace
	REPLICATED_TEST_ENV=$(abspath $(TEST_ENV)) REPLICATED_TEST_REQUIRE=1 $(CARGO) test --workspace

test-env:
	@REPLICATED_TEST_ENV=$(abspath $(TEST_ENV)) sh scripts/test-env.sh >/dev/null

test-stores: ## stores, copies between them and object lock, against SeaweedFS and Azurite
	sh scripts/test-stores.sh

test-large: ## one transaction of 2 GiB in every way that a commit is captured (needs 16 GiB of disk)
	REPLICATED_TEST_LARGE_MIB=2048 $(CARGO) test --release --test sustained a_large_transaction

test-many: ## 2,000 databases in one process (DATABASES=2000)
	REPLICATED_TEST_DATABASES=$(or $(DATABASES),2000) $(CARGO) test --test many -- --nocapture

test-crash: ## thousands of kills at every step, and of power losses (ROUNDS=200 for each of 46 campaigns, SEED=1)
	REPLICATED_TEST_CRASH_ROUNDS=$(or $(ROUNDS),200) REPLICATED_TEST_SEED=$(or $(SEED),1) $(CARGO) test --test crashes --test power_loss --test processes_crash

simulate: ## hosts, processes, a store and a user against a model (STEPS=100000, SEED=1, WORLD=2000 steps of each world, STORE=folder or s3)
	$(CARGO) build -p replicated-testkit
	target/debug/simulate --steps $(or $(STEPS),100000) --seed $(or $(SEED),1) --world $(or $(WORLD),2000) --store $(or $(STORE),folder) --disasters $(or $(DISASTERS),150) --jobs $(or $(JOBS),6)

test-faults: ## thousands of operations against a store that misbehaves (ROUNDS=20 seeds from SEED=1 on)
	REPLICATED_TEST_ROUNDS=$(or $(ROUNDS),20) REPLICATED_TEST_OPERATIONS=500 REPLICATED_TEST_SEED=$(or $(SEED),1) $(CARGO) test --test campaigns

test-container: ## the image of deploy/container built and started by podman, as root (FLAGS="--base-images make": of Debian's packages)
	bash scripts/test-container.sh $(FLAGS)

test-sqlite: ## SQLite's own test suite with the extension as the default VFS (SHORT=1 for what CI runs, FILES="wal wal2" for some of it)
	bash scripts/test-sqlite.sh $(if $(SHORT),--list tests/sqlite/short.txt) $(FILES)

lint: ## formatter and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: build test-env ## measure against plain SQLite and Litestream; writes docs/performance.md (BENCH="commits restore" for parts, SHORT=1: does it work)
	python3 benches/run.py $(if $(SHORT),--short) $(BENCH)
	$(if $(SHORT),,python3 scripts/chart.py)

fuzz: ## the decoders under libFuzzer, 60 s each (needs cargo-fuzz)
	sh scripts/fuzz.sh

clean: ## remove what was built
	$(CARGO) clean
	rm -rf $(DIST)
