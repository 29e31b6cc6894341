// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	planFile  = "plan.json"
	suiteFile = "critest"
)

// makePayload makes the guest's second disk: this program, the plan, the test binaries, and of the repository what tests read:
// bin, packaging, go.mod and each package's testdata.
func makePayload(ctx context.Context, work string, steps []step, suite string) (disk string, err error) {
	repo, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(repo, "go.mod")); err != nil {
		return "", fmt.Errorf("not in the repository: %w", err)
	}
	tree := filepath.Join(work, "payload")
	if err := os.MkdirAll(tree+"/repo", 0o755); err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	for from, to := range map[string]string{
		self: "vm", filepath.Join(repo, "go.mod"): "repo/go.mod", filepath.Join(repo, "bin", "berth"): "repo/bin/berth",
		filepath.Join(repo, "bin", "berth-shim"): "repo/bin/berth-shim", filepath.Join(repo, "bin", "runc"): "repo/bin/runc",
	} {
		if err := copyFile(from, filepath.Join(tree, to)); err != nil {
			return "", fmt.Errorf("fill payload: %w", err)
		}
	}
	if suite != "" {
		if err := copyFile(suite, filepath.Join(tree, suiteFile)); err != nil {
			return "", fmt.Errorf("fill payload: %w", err)
		}
	}
	dirs := []string{"bin/cni", "packaging"}
	if slices.ContainsFunc(steps, func(s step) bool { return s.Package == "test/handlers/containerd" }) {
		dirs = append(dirs, "bin/containerd")
		if err := copyFile(filepath.Join(repo, "bin/containerd-shim-berth-v1"), filepath.Join(tree, "repo/bin/containerd-shim-berth-v1")); err != nil {
			return "", fmt.Errorf("fill payload: %w", err)
		}
	}
	for _, dir := range dirs {
		if err := copyTree(filepath.Join(repo, dir), filepath.Join(tree, "repo", dir)); err != nil {
			return "", fmt.Errorf("fill payload: %w", err)
		}
	}
	if err := command(ctx, "make", "install", "DESTDIR="+filepath.Join(tree, "install")); err != nil {
		return "", fmt.Errorf("fill payload: %w", err)
	}
	for _, s := range steps {
		if err := addTests(ctx, repo, tree, s); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(steps)
	if err == nil {
		err = os.WriteFile(filepath.Join(tree, planFile), text, 0o644)
	}
	if err != nil {
		return "", fmt.Errorf("write plan: %w", err)
	}
	disk = filepath.Join(work, "payload.img")
	return disk, makeDisk(ctx, tree, disk, 2<<30, "^has_journal")
}

// addTests compiles the step's tests and makes the folder that they run in.
func addTests(ctx context.Context, repo, tree string, s step) error {
	if s.Package == "" {
		return nil
	}
	binary := filepath.Join(tree, s.binary())
	if _, err := os.Stat(binary); err == nil {
		return nil // of an earlier step
	}
	fmt.Printf("compiling the tests of %s\n", s.Package)
	err := command(ctx, "env", "CGO_ENABLED=0", "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", binary, "./"+s.Package)
	if err != nil {
		return fmt.Errorf("compile the tests of %s: %w", s.Package, err)
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%s has no tests: %w", s.Package, err)
	}
	home := filepath.Join(tree, "repo", s.Package)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	err = copyTree(filepath.Join(repo, s.Package, "testdata"), home+"/testdata")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func copyTree(from, to string) error {
	if _, err := os.Stat(from); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(from))
}

func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode().Perm())
}

// homeOf is the folder of a step's package on the payload disk.
func homeOf(mount string, s step) string {
	return filepath.Join(mount, "repo", strings.TrimPrefix(s.Package, "./"))
}
