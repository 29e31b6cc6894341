// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package host

// NoX32 is about x86-64: no other architecture has the ABI.
func NoX32() bool { return true }
