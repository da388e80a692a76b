# The commands of this project; each says what it does and how long its steps took.
.DEFAULT_GOAL := help
.PHONY: help demo test soak bench lint build setup clean-cache

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: ## two machines from nothing: kernel, image, lab, ping, and all gone again
	@tools/demo

test: ## everything that must hold before a change is taken (.ci/run does the same)
	@tools/suites test

soak: ## fuzzing and guest tests again and again, for LABYARD_SOAK_MINUTES (60)
	@tools/suites soak

bench: ## the benches: devices, and boots beside QEMU (docs/benchmarks.md)
	@tools/suites bench

lint: ## format, clippy, documentation
	@tools/suites lint

build: ## the programs, as they are shipped
	@tools/step "release programs" tools/build-release

setup: ## what the machine lacks: packages, toolchain (only looked at), virtme-ng
	@tools/setup

clean-cache: ## remove kernels, images and virtme-ng from the cache folder
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/labyard"
