// SPDX-License-Identifier: Apache-2.0

// Package arch has only tests: they hold ARCHITECTURE.md's floors and library boundaries and the rules for source files over the whole
// module. Nobody imports it.
package arch
