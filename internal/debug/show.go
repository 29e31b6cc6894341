// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/telemetry"
)

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(value) // the client is gone
}

// operation is a request that is not answered yet, or, with work set, what is done to a pod, which goes on when the caller has left.
type operation struct {
	Method    string    `json:"method"`
	Object    string    `json:"object,omitempty"`
	Work      bool      `json:"work,omitempty"`
	Stage     string    `json:"stage,omitempty"`
	Since     time.Time `json:"since"`
	AgeMillis int64     `json:"age_ms"`
}

func operations(calls *telemetry.Calls, pods *pod.Manager) []operation {
	out := []operation{}
	for _, c := range calls.List() {
		out = append(out, operation{Method: c.Method, Object: c.Object.String(), Since: c.Since.UTC(), AgeMillis: time.Since(c.Since).Milliseconds()})
	}
	for _, w := range pods.Operations() {
		out = append(out, operation{w.Kind, w.Object, true, w.Stage, w.Since.UTC(), time.Since(w.Since).Milliseconds()})
	}
	return out
}

// sandbox and container are what the state shows: no environment, no annotations, nothing that may be a secret.
type sandbox struct {
	ID, Namespace, Name, UID, Handler string
	Ready                             bool
	CreatedAt, StoppedAt              int64
	Why, CgroupParent, Netns          string
	IPs                               []string
	Containers                        []container
}

type container struct {
	ID, Name, State, Reason          string
	PID                              int
	ExitCode                         int32
	CreatedAt, StartedAt, FinishedAt int64
	ImageID, CgroupsPath             string
}

func state(m *pod.Manager) []sandbox {
	of := map[string][]container{}
	for _, c := range m.Containers() {
		of[c.SandboxID] = append(of[c.SandboxID], container{ID: c.ID, Name: c.Config.GetMetadata().GetName(), State: c.State.String(), Reason: c.Reason, PID: c.PID,
			ExitCode: c.ExitCode, CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ImageID: c.ImageID, CgroupsPath: c.CgroupsPath})
	}
	out := []sandbox{}
	for _, s := range m.Sandboxes() {
		md := s.Config.GetMetadata()
		shown := sandbox{ID: s.ID, Namespace: md.GetNamespace(), Name: md.GetName(), UID: md.GetUid(), Handler: s.Handler, Ready: s.Ready, CreatedAt: s.CreatedAt,
			StoppedAt: s.StoppedAt, Why: s.Why, CgroupParent: s.CgroupParent, Netns: s.Netns, Containers: of[s.ID]}
		for _, ip := range s.IPs {
			shown.IPs = append(shown.IPs, ip.String())
		}
		out = append(out, shown)
	}
	return out
}

func setLevel(w http.ResponseWriter, r *http.Request, set func(string) error) {
	const longest = 16
	raw, err := io.ReadAll(io.LimitReader(r.Body, longest))
	if err == nil {
		err = set(strings.TrimSpace(string(raw)))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}
