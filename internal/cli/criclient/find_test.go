// SPDX-License-Identifier: Apache-2.0

package criclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func pod(id, namespace, name, uid string, attempt uint32) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{Id: id, CreatedAt: int64(attempt), Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid, Attempt: attempt}}
}

func container(id, pod, name string, attempt uint32) *runtimeapi.Container {
	return &runtimeapi.Container{Id: id, PodSandboxId: pod, CreatedAt: int64(attempt), Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}}
}

func TestFind(t *testing.T) {
	l := Lists{
		Pods: []*runtimeapi.PodSandbox{pod("aa11", "default", "web", "u1", 0), pod("aa22", "default", "db", "u2", 0), pod("aa33", "default", "db", "u2", 1),
			pod("bb44", "test", "web", "u3", 0), pod("dd", "default", "short", "u4", 0), pod("dd55", "default", "long", "u5", 0)},
		Containers: []*runtimeapi.Container{container("cc11", "aa33", "main", 0), container("cc22", "aa33", "main", 1), container("cc33", "aa11", "side", 0),
			container("cc44", "bb44", "side", 0), container("cc55", "bb44", "aa11", 0)},
	}
	both := Kinds{Pods: true, Containers: true}
	for _, c := range []struct {
		word  string
		kinds Kinds
		want  string // an ID, or what the error says
	}{
		{"aa11", both, "aa11"},                        // an ID wins over a name
		{"aa11", Kinds{Containers: true}, "cc55"},     // unless it is another kind's
		{"db", both, "aa33"},                          // the newest attempt
		{"main", both, "cc22"},                        // of a container too
		{"cc11", both, "cc11"},                        // an older one by its ID
		{"default/web", both, "aa11"},                 // NAMESPACE/NAME
		{"web/side", both, `"web/side" is ambiguous`}, // POD/NAME, but two pods are called web
		{"web", both, `"web" is ambiguous: pod default/web (aa11), pod test/web (bb44)`},
		{"side", both, `"side" is ambiguous: container web/side (cc33), container web/side (cc44)`},
		{"bb", both, "bb44"}, // the beginning of an ID
		{"dd", both, "dd"},   // a whole ID that another begins with
		{"aa", both, `"aa" is ambiguous: pod default/web (aa11), pod default/db (aa22), pod default/db (aa33)`},
		{"web", Kinds{Containers: true}, `container "web": not found`},
		{"cc", Kinds{Pods: true}, `pod "cc": not found`},
		{"", both, "an empty name names nothing"},
	} {
		o, err := l.Find(c.word, c.kinds)
		if err != nil && !strings.HasPrefix(err.Error(), c.want) || err == nil && o.ID() != c.want {
			t.Errorf("%q among %s: %v, %v, want %s", c.word, c.kinds, o, err, c.want)
		}
	}
	if _, err := l.Find("nobody", both); !errors.Is(err, ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	denied := &net.OpError{Op: "dial", Err: fmt.Errorf("connect: %w", fs.ErrPermission)}
	if got, want := unreachable("/s", denied).Error(), "cannot reach berth at /s: permission denied: run as root or join the socket's group"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	c := &Client{Socket: "/s"}
	if c.Error("list", nil) != nil {
		t.Error("nil has become an error")
	}
	for code, is := range map[codes.Code]func(error) bool{codes.NotFound: IsNotFound, codes.DeadlineExceeded: IsDeadline, codes.Unavailable: IsUnavailable} {
		err := fmt.Errorf("outer: %w", c.Error("list pods", status.Error(code, "text")))
		if !is(err) || !strings.Contains(err.Error(), "list pods: ") || strings.Contains(err.Error(), "rpc error") {
			t.Errorf("%s: %v", code, err)
		}
	}
	if got := c.Error("list", status.FromContextError(context.DeadlineExceeded).Err()).Error(); !strings.Contains(got, "--timeout waits longer") {
		t.Errorf("deadline: %s", got)
	}
}
