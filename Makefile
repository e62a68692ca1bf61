# Every tool is pinned in tools.mod; the first run of one builds it.
GO      ?= go
TOOL    := $(GO) tool -modfile=tools.mod
BUF     ?= $(TOOL) buf
TELL    := .ci/tell
VERSION ?= $(shell git describe --tags --match 'v*' 2>/dev/null || echo v0.1.0-dev)
ARCHES  ?= amd64 arm64
FUZZTIME ?= 20s
SOAKTIME ?= 10m
STEPS ?= 10000
ROUNDS ?= 1
SUITE ?= bookworm
SEED ?= 0
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help demo test test-systemd conformance browser formats lint build generate fuzz soak random package clean

help: ## this list
	@echo "make what?"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## etcd, five backends, the agent and traffic on this terminal, with failures on purpose
	$(GO) run ./cmd/lbdemo

test: ## every test, with the race detector, and the simulation's goals without it; needs Go and a C compiler
	$(TELL) sh -c 'CGO_ENABLED=1 $(GO) test -race -timeout 20m ./...; raced=$$?; $(GO) test ./cmd/lbbench/sim && exit $$raced'

test-systemd: ## what callers see of a reload, restart, upgrade, kill, ... in a booted systemd, as root; ROUNDS=5 is the long form, SUITE=trixie a newer systemd, also for the packages' own tests
	LBAGENT_TEST_ALL=1 $(TELL) $(GO) test -run='^TestLoad$$$(if $(filter-out bookworm,$(SUITE)),|^TestPackages$$/^install)' -v -count=1 -timeout=60m ./packaging -load=$(ROUNDS) -suite=$(SUITE)

conformance: ## h2spec, gRPC's interop tests, and clients of other makers through the agent
	cd cmd/lbagent/e2e && LBAGENT_CONFORMANCE=1 LBAGENT_TEST_ALL=1 $(CURDIR)/$(TELL) $(GO) test -timeout 20m -run '^TestConformance$$'

browser: ## the page on admin.listen in a real Chromium: live, by keyboard, narrow, dark, with axe-core, with hostile names, with 100,000 backends
	cd cmd/lbagent/e2e && LBAGENT_BROWSER=1 LBAGENT_TEST_ALL=1 $(CURDIR)/$(TELL) $(GO) test -timeout 10m -count=1 -run '^TestBrowser$$'

formats: ## service lists written and read with the libraries of the projects that the formats come from
	cd agent/discovery/format/realtest && $(GO) vet . && $(CURDIR)/$(TELL) $(GO) test -timeout 5m -count=1 .

lint: ## vet, golangci-lint, and buf lint
	$(GO) vet ./...
	$(TOOL) golangci-lint run ./...
	$(BUF) lint

build: ## bin/lbagent
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/lbagent ./cmd/lbagent

generate: ## the Go code of the .proto files
	$(BUF) generate

fuzz: ## every fuzz target, FUZZTIME=20s each
	@grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do \
		sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file" | while read -r target; do \
			echo "== $$file $$target"; \
			$(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=50x "$$(dirname "$$file")" </dev/null || exit 1; \
		done || exit 1; \
	done

soak: ## SOAKTIME=10m of mixed load while backends are killed, hung, removed and returned; every failed call is judged
	$(GO) test -run='^TestSoak$$' -v -count=1 -timeout=1h ./cmd/lbagent/e2e -soak=$(SOAKTIME)

random: ## STEPS=10000 of everything that can happen to an etcd of three members and to the agent's lists and registrations; SEED= repeats a run
	$(GO) test -run='^TestRandom$$' -v -count=1 -timeout=3h ./agent/discovery -steps=$(STEPS) -seed=$(SEED)

package: ## dist/*.deb and dist/*.rpm, with checksums and bills of materials, for ARCHES="amd64 arm64"
	GO='$(GO)' VERSION='$(VERSION)' ARCHES='$(ARCHES)' LDFLAGS='$(LDFLAGS)' packaging/build.sh

clean: ## removes bin/ and dist/
	rm -rf bin dist
