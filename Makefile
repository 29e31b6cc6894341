# SPDX-License-Identifier: Apache-2.0
# `make` builds, `make test` tests, `make demo` shows, `make help` tells the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := all

GO ?= go
PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= /etc/systemd/system
FUZZTIME ?= 10s
VERSION ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null || echo v0.1.0-dev)

# Pods need root; who is not gets it for the tests and the demo only.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$$PATH")

# A git checkout that belongs to someone else (CI, sudo) makes go's own version stamp fail; ours is VERSION.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

# nri_no_wasm: NRI plugins are processes here; an interpreter for those that are not would add 2.6 MB.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -tags nri_no_wasm -ldflags "-s -w -X main.version=$(VERSION)"

UNIT := ./internal/... ./cmd/... ./test/leak/... ./test/registry/... ./test/vm
INTEGRATION := ./test/integration/...
FAULT := ./test/fault/...

.PHONY: all
all: build ## build everything into bin/ (the default)

.PHONY: build
build: bin/berth bin/berth-shim bin/containerd-shim-berth-v1 bin/runc bin/cni/.built

# Ours are built each time: go knows best what has changed, and is fast when nothing has.
.PHONY: bin/berth bin/berth-shim bin/containerd-shim-berth-v1
bin/berth bin/berth-shim bin/containerd-shim-berth-v1:
	$(BUILD) -o $@ ./cmd/$(@F)

# What comes from other projects is pinned with its checksums by the modules in tools/, and built when those change.
# runc is linked as its own releases are (static, position-independent); without debug data, for it copies itself at each start.
bin/runc: tools/runc/go.mod tools/runc/go.sum
	@pkg-config --exists libseccomp || { echo "bin/runc needs libseccomp's development files: run 'make deps' first" >&2; exit 1; }
	CGO_ENABLED=1 $(GO) build -C tools/runc -trimpath -buildmode=pie -tags "seccomp netgo osusergo urfave_cli_no_docs" \
		-ldflags "-s -w -linkmode external -extldflags -static-pie" -o $(CURDIR)/$@ github.com/opencontainers/runc
	@touch $@

CNI_VERSION = $$($(GO) list -C tools/cni -m -f '{{.Version}}' github.com/containernetworking/plugins)

bin/cni/.built: tools/cni/go.mod tools/cni/go.sum
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -C tools/cni -trimpath \
		-ldflags "-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$(CNI_VERSION)" -o $(CURDIR)/$(@D)/ tool
	@touch $@

bin/tools/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	CGO_ENABLED=0 $(GO) build -C tools/lint -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

.PHONY: deps
deps: ## install the system packages that build and tests need (Debian, Ubuntu), or name them
	hack/deps.sh

.PHONY: lint
lint: bin/tools/golangci-lint ## lint everything
	bin/tools/golangci-lint config verify
	bin/tools/golangci-lint run

.PHONY: fmt
fmt: bin/tools/golangci-lint ## format the Go files as lint wants them
	bin/tools/golangci-lint fmt

# One after the other: tests of one machine's kernel must not see each other's pods.
.PHONY: test
test: ## run all tests; installs what is missing
	$(MAKE) deps
	$(MAKE) build
	$(MAKE) test-unit
	$(MAKE) test-integration
	$(MAKE) test-fault

# The packages' tests one after the other: many start processes and wait for them, which the race detector makes slow enough. All is built before.
.PHONY: test-unit
test-unit: ## unit tests, with the race detector
	$(AS_ROOT) env CGO_ENABLED=1 $(GO) build -race $(UNIT)
	$(AS_ROOT) env CGO_ENABLED=1 $(GO) test -race -p 1 -timeout 10m $(UNIT)

.PHONY: test-integration
test-integration: build ## the real daemon with real runc, CNI and registry
	$(AS_ROOT) $(GO) test -count=1 -p 1 -timeout 20m $(INTEGRATION)

.PHONY: test-streams
test-streams: build ## the stream tests in full size: 1 GiB, 200 sessions, 10,000 execs, 100 loops (half an hour)
	$(AS_ROOT) env BERTH_TEST_STREAM_MIB=1024 BERTH_TEST_SESSIONS=200 BERTH_TEST_EXECS=10000 BERTH_TEST_LOOPS=100 $(GO) test -v -count=1 -timeout 60m \
		-run 'TestMuchThrough|TestManySessionsAtOnce|TestManyExecsLeaveNothing|PortForward|TestAReset' ./test/integration

.PHONY: test-registry
test-registry: ## registries that misbehave, full disks, kills in the middle of pulls: all of it, in full size (ten minutes)
	$(AS_ROOT) env BERTH_TEST_REGISTRY=full $(GO) test -v -count=1 -timeout 40m -run 'Misbehav|Bombs|Documents|Sizes|Slow|FillsUp|Kill|AtOnce|TimeLimit|120Layers' \
		./internal/image ./internal/image/registry ./internal/image/layer

.PHONY: test-fault
test-fault: build ## kill -9 at every journal write, then recovery
	$(AS_ROOT) $(GO) test -count=1 -p 1 -timeout 20m $(FAULT)

bin/gvisor/containerd-shim-runsc-v1: tools/gvisor/go.mod tools/gvisor/go.sum hack/gvisor.sh
	@mkdir -p $(@D)
	GO="$(GO)" hack/gvisor.sh $(@D)
	@touch $@

bin/containerd/containerd-shim-runc-v2: test/bench/containerd/go.mod test/bench/containerd/go.sum
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -C test/bench/containerd -trimpath -ldflags "-s -w" -o $(CURDIR)/$(@D)/ \
		github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	@touch $@

bin/crun/crun: hack/crun.sh
	hack/deps.sh crun
	@mkdir -p $(@D)
	hack/crun.sh $(@D)

.PHONY: test-handlers
test-handlers: build bin/crun/crun bin/gvisor/containerd-shim-runsc-v1 bin/containerd/containerd-shim-runc-v2 ## pods of every kind of runtime handler that is here; docs/runtime-classes.md
	$(AS_ROOT) $(GO) test -count=1 -p 1 -timeout 30m -parallel 64 ./test/handlers/...

.PHONY: test-monitoring
test-monitoring: build ## contrib/monitoring: rules with promtool, dashboards with a real Prometheus and a real daemon
	hack/deps.sh monitoring
	promtool check rules contrib/monitoring/berth.rules.yml
	promtool test rules contrib/monitoring/berth.rules.test.yml
	$(AS_ROOT) $(GO) test -count=1 -timeout 10m ./test/monitoring

.PHONY: critest
critest: build ## the CRI validation suite: CRITEST=/path/to/critest [FIXTURES=host:port for its images] [CRITEST_FLAGS=…]
	@test -x "$(CRITEST)" || { echo "make critest CRITEST=/path/to/critest: build it from kubernetes-sigs/cri-tools with 'make critest'" >&2; exit 1; }
	$(AS_ROOT) env CRITEST="$(abspath $(CRITEST))" FIXTURES="$(FIXTURES)" CRITEST_FLAGS="$(CRITEST_FLAGS)" \
		$(GO) test -count=1 -v -timeout 30m ./test/conformance

.PHONY: test-vm
test-vm: ## in a virtual machine with cgroup v2, systemd and AppArmor; VMFLAGS="-run cgroup -v"; CRITEST and FIXTURES as for critest
	hack/deps.sh vm
	$(MAKE) build
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/tools/vm ./test/vm
	$(AS_ROOT) env CRITEST="$(CRITEST)" FIXTURES="$(FIXTURES)" CRITEST_FLAGS="$(CRITEST_FLAGS)" bin/tools/vm $(VMFLAGS)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@grep -rlE '^func Fuzz' --include='*_test.go' internal test | while read -r file; do \
		grep -oE '^func Fuzz[A-Za-z0-9_]*' "$$file" | cut -c6- | while read -r target; do \
			echo "== $$target, $$(dirname "$$file")"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" </dev/null; \
		done; \
	done

.PHONY: bench
bench: deps build ## compare with containerd; see docs/benchmarks.md
	$(AS_ROOT) $(GO) run ./test/bench $(BENCHFLAGS)

.PHONY: demo
demo: ## install, build and show a pod's whole life
	$(MAKE) deps
	$(MAKE) build
	$(AS_ROOT) bin/berth demo

# The programs live in a folder of their own, so that no other runc on the machine is touched; berth finds the rest beside itself.
.PHONY: install
install: build ## install into PREFIX (/usr/local) with the systemd unit
	install -d $(DESTDIR)$(PREFIX)/lib/berth/cni $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR)
	install -m 0755 bin/berth bin/berth-shim bin/containerd-shim-berth-v1 bin/runc $(DESTDIR)$(PREFIX)/lib/berth/
	install -m 0755 $$(find bin/cni -type f -perm -u+x) $(DESTDIR)$(PREFIX)/lib/berth/cni/
	ln -sfn ../lib/berth/berth $(DESTDIR)$(PREFIX)/bin/berth
	sed 's|@PREFIX@|$(PREFIX)|' packaging/berth.service >$(DESTDIR)$(UNITDIR)/berth.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/berth.service

.PHONY: generate
generate: ## make the generated code anew (wants protoc: Debian package protobuf-compiler)
	@command -v protoc >/dev/null || { echo "protoc is missing: install protobuf-compiler" >&2; exit 1; }
	@mkdir -p bin/tools
	CGO_ENABLED=0 $(GO) build -o bin/tools/ google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
	GOBIN=$(CURDIR)/bin/tools CGO_ENABLED=0 $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	PATH=$(CURDIR)/bin/tools:$$PATH $(GO) generate ./internal/...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sort | awk -F ':.*## ' '{ printf "  %-18s %s\n", $$1, $$2 }'
