// SPDX-License-Identifier: Apache-2.0

// Package imageapi holds the protocol of berth.v1.Images: what operators do with a node's images, served beside the CRI. It is shared by
// the daemon, where cri/operator serves it, and the command line, so it belongs to neither.
package imageapi

// The stubs use the CRI's own AuthConfig and ImageSpec, so that a pull's credentials are kept out of the log by the same code. Needed: protoc,
// protoc-gen-go (google.golang.org/protobuf, of the version in go.mod) and protoc-gen-go-grpc (google.golang.org/grpc/cmd, see the Makefile) on PATH.

//go:generate ./generate.sh
