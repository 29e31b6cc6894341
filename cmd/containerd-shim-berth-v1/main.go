// SPDX-License-Identifier: Apache-2.0

// As in cmd/berth-shim.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command containerd-shim-berth-v1 is berth-shim for containerd, which starts it for the runtime io.containerd.berth.v1. It is a program of its own
// because all of a program's pages that are near to one in use count for each process: what only containerd needs would cost every pod of Berth's.
package main

import (
	"os"

	"github.com/berth-run/berth/internal/shim/bootstrap"
)

// version is set by the build.
var version = "dev"

func main() { os.Exit(bootstrap.Main(os.Args[1:], version)) }
