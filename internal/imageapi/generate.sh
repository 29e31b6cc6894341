#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes imagepb/ anew; run by `go generate ./internal/imageapi`. Wants protoc, and protoc-gen-go and protoc-gen-go-grpc on PATH.
set -eu
cri=$(go list -m -f '{{.Dir}}' k8s.io/cri-api)
in=$(mktemp -d)
trap 'rm -rf "$in"' EXIT
# The name under which k8s.io/cri-api has registered its file.
at=staging/src/k8s.io/cri-api/pkg/apis/runtime/v1
mkdir -p "$in/$at"
# An option that protoc before 22 does not know; nothing is generated from this file.
sed 's/ *\[debug_redact = true\]//' "$cri/pkg/apis/runtime/v1/api.proto" >"$in/$at/api.proto"
place=paths=source_relative,M$at/api.proto=k8s.io/cri-api/pkg/apis/runtime/v1
protoc -I proto -I "$in" --go_out=imagepb --go_opt="$place" --go-grpc_out=imagepb --go-grpc_opt="$place" images.proto
