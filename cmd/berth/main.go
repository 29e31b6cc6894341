// SPDX-License-Identifier: Apache-2.0

// Command berth is the daemon and its command line.
package main

import (
	"os"

	"github.com/berth-run/berth/internal/cli"
)

// version is set by the build.
var version = "dev"

func main() { os.Exit(cli.Main(version)) }
