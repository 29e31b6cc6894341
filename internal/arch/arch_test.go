// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"os"
	"path/filepath"
	"testing"
)

// root is the module's folder, seen from this package.
const root = "../.."

// report fails the test with every violation.
func report(t *testing.T, found []violation) {
	t.Helper()
	for _, v := range found {
		t.Errorf("%s", v)
	}
}

func TestImports(t *testing.T) {
	g, err := loadGraph(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.ours()) < 5 {
		t.Fatalf("go list has found only %v", g.ours())
	}
	t.Run("floors", func(t *testing.T) { report(t, checkFloors(g)) })
	t.Run("private packages", func(t *testing.T) { report(t, checkDoors(g, private)) })
	t.Run("library boundaries", func(t *testing.T) { report(t, checkDoors(g, doors)) })
	t.Run("what must not be linked", func(t *testing.T) { report(t, checkBans(g, bans)) })
}

func TestSourceFiles(t *testing.T) {
	sources, err := loadSources(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 5 {
		t.Fatalf("only %d files found", len(sources))
	}
	t.Run("files", func(t *testing.T) { report(t, checkFiles(sources, longFiles, longFunctions)) })
	t.Run("packages", func(t *testing.T) { report(t, checkPackages(sources)) })
}

// A rule about a package that does not exist under that name would hold nothing.
func TestEntryPointsOfTheBansExist(t *testing.T) {
	for _, b := range bans {
		if b.from == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, b.from)); err != nil {
			t.Errorf("ban of %s: %v", b.lib, err)
		}
	}
}
