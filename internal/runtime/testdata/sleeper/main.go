// SPDX-License-Identifier: Apache-2.0

// Sleeper is a program for tests that takes any arguments and does nothing for a minute. Told to delete, it ends.
package main

import (
	"os"
	"slices"
	"time"
)

func main() {
	if !slices.Contains(os.Args, "delete") {
		time.Sleep(time.Minute)
	}
}
