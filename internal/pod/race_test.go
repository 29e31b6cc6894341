// SPDX-License-Identifier: Apache-2.0

//go:build race

package pod

func init() { underRace = true }
