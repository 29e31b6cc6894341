#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the build, the tests and the demo need from the system: `make deps`. Does nothing where all is there; on other
# systems than Debian and Ubuntu it says what is missing. `hack/deps.sh vm`, `hack/deps.sh crun` and `hack/deps.sh monitoring` are
# for `make test-vm`, `make test-handlers` and `make test-monitoring`, too.
set -euo pipefail

# A need is "what proves it|its Debian package|what it is for".
# Proofs: a program's name, static:NAME for one that needs no library, header:NAME or archive:NAME as the C compiler finds them.
needs=(
	"git|git|fetching modules, versions"
	"make|make|building"
	"gcc|gcc|building runc and the race detector"
	"header:stdlib.h|libc6-dev|building runc and the race detector"
	"pkg-config|pkg-config|building runc"
	"header:seccomp.h|libseccomp-dev|building runc with seccomp"
	"archive:libseccomp.a|libseccomp-dev|linking runc statically"
	"iptables|iptables|CNI's bridge and portmap plugins"
	"ip|iproute2|looking at networks in tests"
	"static:busybox|busybox-static|the images that tests and demo make"
	"mke2fs|e2fsprogs|small disks in tests"
)
if [ "${1:-}" = vm ]; then
	needs+=(
		"debootstrap|debootstrap|making the machine's disk"
		"mke2fs|e2fsprogs|making the machine's disk"
		"qemu-system-x86_64|qemu-system-x86|running the machine"
	)
fi
if [ "${1:-}" = crun ]; then
	needs+=("patchelf|patchelf|running Debian trixie's crun elsewhere")
fi
if [ "${1:-}" = monitoring ]; then
	needs+=("promtool|prometheus|testing rules and dashboards")
fi

has() {
	case $1 in
	header:*) echo "#include <${1#*:}>" | gcc -E -x c - >/dev/null 2>&1 ;;
	static:*) has "${1#*:}" && ! ldd "$(command -v "${1#*:}")" >/dev/null 2>&1 ;;
	archive:*) [ -e "$(gcc -print-file-name="${1#*:}" 2>/dev/null)" ] ;;
	*) PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 ;;
	esac
}

# missing prints the needs that are not met.
missing() {
	local need
	for need in "${needs[@]}"; do
		has "${need%%|*}" || echo "$need"
	done
}

# packages prints the Debian packages of the needs on stdin, each once.
packages() { cut -d'|' -f2 | sort -u; }

root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Go is not installed from here: Debian's is too old to fetch the version that go.mod asks for.
check_go() {
	if ! command -v go >/dev/null 2>&1; then
		echo "deps: go is missing: install Go 1.26 or newer from https://go.dev/dl/" >&2
		return 1
	fi
	if ! GOTOOLCHAIN=local go version | grep -Eq 'go(1\.(2[1-9]|[3-9][0-9])|[2-9])'; then
		echo "deps: $(GOTOOLCHAIN=local go version) is too old: install Go 1.26 or newer from https://go.dev/dl/" >&2
		return 1
	fi
}

install() {
	local -a want
	mapfile -t want < <(missing | packages)
	echo "deps: installing ${want[*]}"
	export DEBIAN_FRONTEND=noninteractive
	local -a apt=(apt-get -o DPkg::Lock::Timeout=300 -q -y --no-install-recommends)
	# The lists of a fresh image are empty, those of an old one name files that are gone: then fetch them, and only then.
	if ! root "${apt[@]}" install "${want[@]}"; then
		root apt-get -o DPkg::Lock::Timeout=300 -q update
		root "${apt[@]}" install "${want[@]}"
	fi
}

main() {
	check_go
	[ -n "$(missing)" ] || return 0
	if command -v apt-get >/dev/null 2>&1; then
		install
	fi
	local left
	left=$(missing)
	[ -n "$left" ] || return 0
	echo "deps: missing on this system; install what gives them and run make again:" >&2
	while IFS='|' read -r proof package purpose; do
		printf '  %-22s for %s (Debian: %s)\n' "${proof#*:}" "$purpose" "$package" >&2
	done <<<"$left"
	return 1
}

main
