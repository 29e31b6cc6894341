// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"os"

	"github.com/berth-run/berth/internal/daemon"
)

// Main is the program: the command line with the daemon behind `berth serve`. It returns the exit code.
func Main(version string) int {
	return New(Options{
		Version: version,
		Serve: func(ctx context.Context, f ServeFlags) error {
			return daemon.Run(ctx, daemon.Flags{Config: f.Config, Root: f.Root, State: f.State, Socket: f.Socket, Version: version})
		},
	}).Run(context.Background(), os.Args[1:])
}
