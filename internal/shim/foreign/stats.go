// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// stats asks the foreign shim what a container uses.
func (c *command) stats() error {
	var answer wire.StatsResponse
	err := c.connected(func(shim *client) error {
		return shim.call(callLimit, "Stats", &wire.ProcessRequest{ID: c.id}, &answer)
	})
	if err != nil {
		return err
	}
	f, err := answer.Figures()
	if err != nil {
		return fmt.Errorf("shim: stats: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(shimapi.TaskUsage(f))
}

// statsOCI asks an OCI runtime by its command `events --stats`, as runc has it.
func (c *command) statsOCI() error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	args := append(slices.Clone(c.ociOptions), "--root", c.root)
	if c.systemd {
		args = append(args, "--systemd-cgroup")
	}
	out, err := output(ctx, exec.CommandContext(ctx, c.oci, append(args, "events", "--stats", c.id)...))
	if err != nil {
		return fmt.Errorf("%s events: %w", c.oci, err)
	}
	u, err := parseEvent(out)
	if err != nil {
		return fmt.Errorf("%s events: %w", c.oci, err)
	}
	return json.NewEncoder(os.Stdout).Encode(u)
}

// parseEvent reads runc's event of the type "stats".
func parseEvent(out []byte) (shimapi.TaskUsage, error) {
	var event struct {
		Type string `json:"type"`
		Data struct {
			CPU struct {
				Usage struct {
					Total uint64 `json:"total"`
				} `json:"usage"`
			} `json:"cpu"`
			Memory struct {
				Usage struct{ Usage, Limit uint64 } `json:"usage"`
				Raw   map[string]uint64             `json:"raw"`
			} `json:"memory"`
			PIDs struct {
				Current uint64 `json:"current"`
			} `json:"pids"`
		} `json:"data"`
	}
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&event); err != nil {
		return shimapi.TaskUsage{}, err
	}
	if event.Type != "stats" {
		return shimapi.TaskUsage{}, fmt.Errorf("an event of the type %q", event.Type)
	}
	d := event.Data
	return shimapi.TaskUsage{CPU: d.CPU.Usage.Total, Memory: d.Memory.Usage.Usage, MemoryLimit: d.Memory.Usage.Limit,
		InactiveFile: d.Memory.Raw["total_inactive_file"], Tasks: d.PIDs.Current}, nil
}
