// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// archived is the layer at root in an archive of its own.
func archived(t *testing.T, root string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Archive(t.Context(), root, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestALayerIsTheSameInEachFormWhereverItCameFrom makes each form of each fixture out of each other.
func TestALayerIsTheSameInEachFormWhereverItCameFrom(t *testing.T) {
	all := fixtures()
	// Deep ones cost containerd's archive.Apply the square of their depth, and many tell no more here than few.
	delete(all, "many")
	all["deep"] = []entry{reg(strings.Repeat("d/", 60)+"f", "x")}
	all["named as if compressed"] = []entry{reg("\x1f\x8b", "x"), reg("\x28\xb5\x2f\xfd", "y")}
	for name, files := range all {
		t.Run(name, func(t *testing.T) {
			raw := layerOf(t, files...)
			folder := t.TempDir()
			if _, err := Extract(t.Context(), folder, bytes.NewReader(raw)); err != nil {
				t.Fatal(err)
			}
			want := described(t, folder)
			blob, _ := converted(t, raw)
			for from, root := range map[string]string{"folder": folder, "blob": blob} {
				again := archived(t, root)
				to := t.TempDir()
				r, err := Extract(t.Context(), to, bytes.NewReader(again))
				if err != nil {
					t.Fatalf("%s to folder: %v", from, err)
				}
				at, implied := converted(t, again)
				if len(r.Implied)+len(implied) > 0 {
					t.Errorf("folders without an entry: %q, %q", r.Implied, implied)
				}
				origin := want
				if from == "blob" { // times of folders that no entry names are not the layer's
					origin = described(t, root)
				}
				compare(t, described(t, to), origin)
				compare(t, described(t, at), origin)
			}
		})
	}
}

func TestArchivingEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Archive(ctx, t.TempDir(), io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := Archive(t.Context(), "/no/such/folder", io.Discard); err == nil {
		t.Error("a folder that is not there was archived")
	}
}
