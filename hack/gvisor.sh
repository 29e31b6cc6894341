#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds gVisor's runsc and its containerd shim, as tools/gvisor pins them, into the folder $1.
#
# The shim gives itself the OOM score -999 and does not start where the kernel refuses that, which it does without CAP_SYS_RESOURCE, as on
# many test machines. There, the shim is built to ask for 0; all else of it is as it is published.
set -euo pipefail

out=$(realpath "$1")
go=${GO:-go}
cd "$(dirname "$0")/../tools/gvisor"
export CGO_ENABLED=0

version=$($go list -m -f '{{.Version}}' gvisor.dev/gvisor)
$go build -trimpath -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" -o "$out/runsc" gvisor.dev/gvisor/runsc

if (echo -999 >/proc/self/oom_score_adj) 2>/dev/null; then
	$go build -trimpath -ldflags "-s -w" -o "$out/containerd-shim-runsc-v1" gvisor.dev/gvisor/shim
	exit
fi
src=$(mktemp -d)
trap 'rm -rf "$src"' EXIT
cp -r --no-preserve=mode "$($go list -m -f '{{.Dir}}' gvisor.dev/gvisor)" "$src/gvisor"
sed -i 's/^\toomScoreMax = -999$/\toomScoreMax = 0/' "$src/gvisor/pkg/shim/v1/manager.go"
grep -q 'oomScoreMax = 0' "$src/gvisor/pkg/shim/v1/manager.go"
cp go.mod go.sum "$src/"
$go mod edit -replace "gvisor.dev/gvisor=$src/gvisor" "$src/go.mod"
$go build -modfile "$src/go.mod" -trimpath -ldflags "-s -w" -o "$out/containerd-shim-runsc-v1" gvisor.dev/gvisor/shim
