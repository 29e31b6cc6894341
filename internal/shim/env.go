// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const (
	envPrefix = "_BERTH_ENV_"
	// notFound and notExecutable are the exit codes that shells have for them.
	notFound, notExecutable = 127, 126
)

// Env becomes the command with the environment that package spec has put into encoded variables, since config.json cannot carry bytes
// that are not UTF-8. It runs inside the container, as its user and under its confinement, and returns only what went wrong, with an exit code.
func Env(command []string) (int, error) {
	env, err := decodeEnv(os.Environ())
	if err != nil || len(command) == 0 {
		return notExecutable, fmt.Errorf("read environment: %w", errors.Join(err, errNoCommand(command)))
	}
	path, err := lookCommand(command[0], env)
	if err == nil {
		err = syscall.Exec(path, command, env)
	}
	err = fmt.Errorf("run %q: %w", command[0], err)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound, err
	}
	return notExecutable, err
}

func errNoCommand(command []string) error {
	if len(command) == 0 {
		return errors.New("there is no command")
	}
	return nil
}

// decodeEnv puts the encoded environment together. What else is set counts more, since it came later (a terminal's TERM, a plugin's
// variables), but for HOME, which OCI runtimes set where they see none.
func decodeEnv(environ []string) ([]string, error) {
	parts := map[string]string{}
	var others []string
	for _, pair := range environ {
		if n, ok := strings.CutPrefix(pair, envPrefix); ok {
			n, value, _ := strings.Cut(n, "=")
			parts[n] = value
			continue
		}
		others = append(others, pair)
	}
	var text strings.Builder
	for n := range len(parts) {
		part, ok := parts[strconv.Itoa(n)]
		if !ok {
			return nil, fmt.Errorf("part %d is missing", n)
		}
		text.WriteString(part)
	}
	raw, err := base64.StdEncoding.DecodeString(text.String())
	if err != nil {
		return nil, err
	}
	return mergeEnv(strings.Split(string(raw), "\x00"), others), nil
}

func mergeEnv(env, others []string) []string {
	at := map[string]int{}
	for i, pair := range env {
		name, _, _ := strings.Cut(pair, "=")
		at[name] = i
	}
	for _, pair := range others {
		name, _, _ := strings.Cut(pair, "=")
		switch i, found := at[name]; {
		case !found:
			env = append(env, pair)
		case name != "HOME":
			env[i] = pair
		}
	}
	return env
}

// lookCommand finds the program as OCI runtimes do: by the PATH of the environment that it will have.
func lookCommand(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, pair := range env {
		list, ok := strings.CutPrefix(pair, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(list, ":") {
			if dir == "" {
				dir = "."
			}
			path := dir + "/" + name
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", fs.ErrNotExist
}
