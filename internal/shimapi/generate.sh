#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes shimpb/ and task/ anew; run by `go generate ./internal/shimapi`. Wants protoc, protoc-gen-go and
# protoc-gen-go-ttrpc (of the versions in go.mod) on PATH.
set -eu
protoc -I proto --go_out=shimpb --go_opt=paths=source_relative \
	--go-ttrpc_out=shimpb --go-ttrpc_opt=paths=source_relative shim.proto

api=$(go list -m -f '{{.Dir}}' github.com/containerd/containerd/api)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
place=paths=source_relative,Mruntime/task/v3/shim.proto=github.com/berth-run/berth/internal/shimapi/task
protoc -I "$api" --go_out="$out" --go_opt="$place" \
	--go-ttrpc_out="$out" --go-ttrpc_opt="$place" runtime/task/v3/shim.proto
cp "$out"/runtime/task/v3/*.go task/
