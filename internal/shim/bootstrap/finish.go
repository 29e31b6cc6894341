// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/berth-run/berth/internal/linux/sock"
	"github.com/berth-run/berth/internal/shim"
	"github.com/berth-run/berth/internal/shim/wire"
)

// infoLimit bounds what a runtime takes to tell its features.
const infoLimit = 10 * time.Second

// delete takes away what a shim that was killed has left of its container, and prints how that ended. The bundle itself is containerd's to remove.
func (inv invocation) delete(out io.Writer) error {
	bundle := inv.values["bundle"]
	if bundle == "" {
		var err error
		if bundle, err = os.Getwd(); err != nil {
			return err
		}
	}
	if !filepath.IsAbs(bundle) {
		return fmt.Errorf("-bundle %q is not an absolute path", bundle)
	}
	exit, err := shim.DeleteLeftOver(inv.values["id"], bundle)
	if err != nil {
		return err
	}
	if err := clearSocket(bundle); err != nil {
		return err
	}
	_, err = out.Write(wire.Marshal(exit))
	return err
}

// clearSocket removes the socket of the shim that was killed; one that others of a group use stays.
func clearSocket(bundle string) error {
	path, err := os.ReadFile(filepath.Join(bundle, addressName))
	if err == nil {
		err = sock.ClearStale(string(path))
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, sock.ErrServed) {
		return nil
	}
	return err
}

// tell prints what this shim is and what its OCI runtime can do.
func (inv invocation) tell(in io.Reader, out io.Writer) error {
	data, err := readInput(in)
	if err != nil {
		return err
	}
	info := wire.RuntimeInfo{Name: "io.containerd.berth.v1", Version: wire.RuntimeVersion{Version: inv.ourselves}}
	if err := wire.Unmarshal(data, &info.Options); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	options, _, err := shim.RuncOptions(info.Options, "default")
	if err != nil {
		return fmt.Errorf("options: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), infoLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, options.Runtime, "features")
	var features, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &features, &words
	if err := cmd.Run(); err == nil {
		info.Features = wire.Any{TypeURL: "types.containerd.io/opencontainers/runtime-spec/1/features/Features", Value: bytes.TrimSpace(features.Bytes())}
	} else { // older runtimes have no such command
		fmt.Fprintf(os.Stderr, "%s features: %v: %s\n", options.Runtime, err, words.Bytes())
	}
	_, err = out.Write(wire.Marshal(&info))
	return err
}
