// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/test/daemon"
)

func TestHooksOfADirectoryRun(t *testing.T) {
	dir := t.TempDir()
	told := filepath.Join(dir, "told")
	program := filepath.Join(dir, "hook")
	if err := os.WriteFile(program, []byte("#!/bin/sh\ncat >"+told+".$1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "told.json")
	text := fmt.Sprintf(`{"version":"1.0.0","hook":{"path":%q,"args":["hook","created"]},"when":{"annotations":{"^example.com/told$":"^yes$"}},"stages":["createRuntime"]}`, program)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	old := fmt.Sprintf(`{"hook":%q,"arguments":["old"],"stages":["createRuntime"],"annotations":["^yes$"]}`, program)
	if err := os.WriteFile(filepath.Join(dir, "old.json"), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	k := node(t, daemon.Spec{Config: fmt.Sprintf("\n[hooks]\ndirs = [%q]\n", dir)})
	p := k.RunPod(k.PodConfig("pod"))
	p.Start(k.Forever("plain"))
	if _, err := os.Stat(told + ".created"); err == nil {
		t.Error("the hook ran for a container that it is not for")
	}
	config := k.Forever("told")
	config.Annotations["example.com/told"] = "yes"
	c := p.Start(config)
	for _, hook := range []string{"created", "old"} {
		if state, err := os.ReadFile(told + "." + hook); err != nil || !strings.Contains(string(state), c.ID) {
			t.Errorf("hook %s was told %q, %v", hook, state, err)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.TryCreate(k.Forever("broken")); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("with a broken file: %v", err)
	}
}
