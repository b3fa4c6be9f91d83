# What CI and the README call, and nothing else. Each target is one script or one cargo line.

.PHONY: help demo test check sim lab matrix village bench soak fuzz seeds micro instructions image compose-test setup

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: ## five laptops on one switch without Internet, in namespaces of this machine
	cargo build --quiet --workspace --all-features --bins
	target/debug/netsim demo

test: ## every test, the lab's too (SKIPPED lines say what this machine cannot run)
	scripts/test

seeds: ## the fuzz corpus, written anew from real encodings
	cargo run --quiet --manifest-path fuzz/Cargo.toml --bin seeds

check: ## formatting, lints, layering, documentation, instruction counts, licences
	scripts/check

sim: ## the virtual world: many nodes, virtual time, no privileges; draws docs/eclipse.{md,svg} anew, some minutes
	cargo test -p netsim
	cargo run --quiet -p netsim --example eclipse

lab: ## the real world: the real binary in network namespaces
	MESHD_REQUIRE_LAB=1 scripts/test --lab

matrix: ## every pair of NATs that the kernel can make, three at a time; about six minutes: KINDS=carrier,public WITH=ipv6-only RUNS=1
	cargo build --quiet --workspace --all-features --bins
	target/debug/netsim matrix $(if $(KINDS),--kinds $(KINDS)) $(if $(WITH),--with $(WITH)) --runs $(or $(RUNS),1)

village: ## MEMBERS (30) behind NATs but one look each other up, and again when that one is dead; two to three minutes
	cargo build --quiet --workspace --all-features --bins
	target/debug/netsim village --members $(or $(MEMBERS),30)

bench: ## what the tunnel costs: ROUNDS=3 PEERS=1 QUICK=1 ONLY=tcp,udp,ping,loss,rate,idle,relay CONGESTION=cubic OUT=target/bench
	scripts/bench

soak: ## full load for MINUTES (10) minutes: nothing may grow, stall or get lost
	cargo build --quiet --release --workspace --all-features --bins
	target/release/netsim soak --minutes $(or $(MINUTES),10)

fuzz: ## each fuzz target for FUZZ_SECONDS (60) seconds
	scripts/fuzz

micro: ## how long the pieces of a frame's path take, without any I/O
	cargo bench --quiet -p meshd --no-default-features --bench frame_path

instructions: ## instructions per frame, against benches/instructions.snap
	scripts/instructions

image: ## the container image meshd:latest
	docker build --tag meshd:latest .

compose-test: ## compose.yaml in Docker: six nodes on three networks lose a relay, each other, and their power
	scripts/compose-test

setup: ## install what the tests need (Debian 12, as root)
	scripts/setup
