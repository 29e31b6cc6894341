// SPDX-License-Identifier: Apache-2.0

package shimapi

// The stubs are ttrpc-only: containerd publishes its Task v3 package with gRPC stubs in it, and linking
// gRPC costs every pod 0.4 MB. So task/ is generated from containerd's unchanged runtime/task/v3/shim.proto
// with another import path. Needed: protoc, and protoc-gen-go (google.golang.org/protobuf) and
// protoc-gen-go-ttrpc (github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc) of the versions in go.mod on PATH.
//
// A program must not link task/ and containerd's own package of the same proto file: the protobuf
// registry refuses the second.

//go:generate ./generate.sh
