# podwright: build, try, test and install. `make help` lists the targets.
# Everything that is missing on a Debian machine is installed by .ci/deps, which says so.
SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN     := bin
PREFIX  ?= /usr/local
# Where a kubelet looks with --config-dir, by Kubernetes' documentation; the names must end in .conf.
KUBELET_CONF ?= /etc/kubernetes/kubelet.conf.d/50-podwright.conf
# The SELinux policy module. SELINUX=1 also loads it and labels what is installed (docs/security.md).
SELINUX_MODULE = $(PREFIX)/share/selinux/packages/podwright.cil
SELINUX_PATHS  = $(PREFIX)/bin/podwright $(PREFIX)/libexec/podwright /etc/podwright /run/podwright /var/lib/podwright /usr/lib/cni
# A semantic version, also before the first tag: the kubelet reports one that it cannot parse as "Unknown".
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || \
	echo "v0.0.0-dev+g$$(git describe --always --exclude '*' --dirty=.dirty 2>/dev/null || echo unknown)")
# GOTOOLCHAIN=auto: an older Go fetches the version that go.mod names through the module proxy.
export GOTOOLCHAIN ?= auto
export GOFLAGS ?= -buildvcs=false
GO      ?= go
LDFLAGS := -s -w -X main.version=$(VERSION)
# Where init begins: see runtime/spawn/image.go. Elsewhere than on amd64 it begins as any Go program.
INIT_ENTRY = $(if $(filter x86_64 amd64,$(or $(GOARCH),$(shell uname -m))),-E github.com/podwright/podwright/runtime/spawn.entry)
UNITS := podwright.service podwright-keeper.service podwright.slice podwright-keeper.slice podwright-pods.slice podwright-pods.target
FUZZTIME ?= 30s
PACKAGES := ./...
# The guest is an x86-64 machine, emulated, and there only for machines that are.
GUEST = $(if $(filter x86_64,$(shell uname -m)),vm-core,$(warning vm-core is left out: this is no x86-64 machine))
# Security modules of vm-test's and vm-critest's guests, one after the other.
LSM ?= selinux,apparmor

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps-build
deps-build:
	@.ci/deps build

.PHONY: build
build: deps-build ## Build podwright, podwright-keeper and podwright-init, static, into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS) $(INIT_ENTRY)' -o $(BIN)/podwright-init ./cmd/podwright-init
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/podwright-keeper ./cmd/podwright-keeper
	CGO_ENABLED=1 $(GO) build -trimpath -tags netgo,osusergo -ldflags '$(LDFLAGS) -linkmode external -extldflags "-static"' -o $(BIN)/podwright ./cmd/podwright

.PHONY: build-arm64
build-arm64: deps-build ## Check that keeper and init compile for arm64
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/podwright-init
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/podwright-keeper

.PHONY: demo
demo: ## Run a pod from an image to its exit through crictl, show it, clean up (root)
	@.ci/deps demo
	@$(MAKE) --no-print-directory build
	@test/e2e/demo/run $(BIN)

.PHONY: test
test: ## Everything: house rules, unit, kernel and end-to-end tests, and vm-core (root)
	@.ci/deps test
	@$(MAKE) --no-print-directory lint build build-arm64 test-unit test-kernel e2e $(GUEST)

.PHONY: test-unit
test-unit: ## House rules and tests that need neither root nor a daemon
	$(GO) test -count=1 . ./cmd/... ./cri/... ./runtime/launch/... ./runtime/wire/... ./podsandbox/spec/... ./podsandbox/record/... ./seccompprofiles/... ./manifests/...

.PHONY: test-kernel
test-kernel: ## Tests against this machine's kernel (root)
	$(GO) test -count=1 -p 1 $$($(GO) list ./cni/... ./podsandbox/... ./runtime/... | grep -v -e runtime/launch -e runtime/wire -e podsandbox/spec -e podsandbox/record)

.PHONY: e2e
e2e: build ## End-to-end tests through the socket: crictl, crashes, leaks, critest (root)
	PODWRIGHT_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -p 1 -timeout 40m ./test/e2e/...

.PHONY: vm-smoke
vm-smoke: build ## Boot a guest with cgroup v2 and run one pod in it through crictl
	@test/e2e/vm/smoke $(BIN)

.PHONY: vm-core
vm-core: build ## The quick part of vm-test, with SELinux enforcing: minutes; make test runs it
	@test/e2e/vm/test --set core $(BIN)

.PHONY: vm-test
vm-test: build ## Kernel and end-to-end tests in guests with cgroup v2, systemd, and SELinux or AppArmor; RUN=TestX PACKAGE=./dir LSM=selinux
	@test/e2e/vm/test --set full --lsm $(LSM) $(if $(RUN),--run '$(RUN)') $(if $(PACKAGE),--package $(PACKAGE)) $(BIN)

.PHONY: vm-critest
vm-critest: build ## critest in guests, with SELinux enforcing and with AppArmor; FOCUS=REGEXP LSM=selinux
	@test/e2e/vm/critest --lsm $(LSM) $(if $(FOCUS),--focus '$(FOCUS)') $(BIN)

.PHONY: bench
bench: build ## Measure beside containerd and runc in one run; table and JSON
	@test/e2e/bench/run $(BIN)

.PHONY: lint
lint: deps-build ## gofmt, go vet
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt: $$out"; exit 1; }
	$(GO) vet $(PACKAGES)

.PHONY: fuzz
fuzz: deps-build ## Run every fuzz target for FUZZTIME (30s) each
	@for pkg in $$(grep -rl --include=*_test.go '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$pkg/*_test.go); do \
	    echo "== $$pkg $$f"; $(GO) test $$pkg -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) || exit 1; done; done

.PHONY: install
install: build ## Install binaries below PREFIX (/usr/local), units, and configuration where there is none
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/podwright
	install -m 0755 $(BIN)/podwright $(DESTDIR)$(PREFIX)/bin/podwright
	install -m 0755 $(BIN)/podwright-keeper $(BIN)/podwright-init $(DESTDIR)$(PREFIX)/libexec/podwright/
	install -d -m 0755 $(DESTDIR)/etc/podwright
	test -e $(DESTDIR)/etc/podwright/config.toml || $(BIN)/podwright config default > $(DESTDIR)/etc/podwright/config.toml
	install -d -m 0755 $(DESTDIR)/etc/systemd/system
	install -m 0644 $(UNITS:%=manifests/%) $(DESTDIR)/etc/systemd/system/
	install -D -m 0644 manifests/selinux/podwright.cil $(DESTDIR)$(SELINUX_MODULE)
	test -e $(DESTDIR)/etc/crictl.yaml || install -D -m 0644 manifests/crictl.yaml $(DESTDIR)/etc/crictl.yaml
	test -e $(DESTDIR)$(KUBELET_CONF) || install -D -m 0644 manifests/kubelet-podwright.yaml $(DESTDIR)$(KUBELET_CONF)
	@if [ -n '$(SELINUX)' ]; then set -x; semodule -i $(DESTDIR)$(SELINUX_MODULE) && restorecon -Ri $(SELINUX_PATHS); \
	elif [ -d /sys/fs/selinux ] && [ -z '$(DESTDIR)' ]; then \
	  echo 'SELinux is on: load podwright'"'"'s policy with: semodule -i $(SELINUX_MODULE) && restorecon -Ri $(SELINUX_PATHS)'; fi

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN)
