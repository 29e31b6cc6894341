// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func idleOps(stage func() string) *ops {
	return &ops{object: "container c", stage: stage, work: &inFlight{}, log: slog.New(slog.DiscardHandler)}
}

// An answer that comes with the deadline is not read any more.
func TestACallerIsAnsweredBeforeItsDeadline(t *testing.T) {
	for patience, early := range map[time.Duration]time.Duration{2 * time.Minute: time.Second, 10 * time.Second: time.Second / 2, 0: 0, -time.Second: 0} {
		synctest.Test(t, func(t *testing.T) {
			o := idleOps(func() string { return "network for 1s" })
			release := make(chan struct{})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			begin := time.Now()
			err := o.do(ctx, "CreateContainer", func(context.Context) error { <-release; return nil })
			if !errors.Is(err, ErrInFlight) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "in stage network for 1s") {
				t.Errorf("%s: got %v", patience, err)
			}
			if got, want := time.Since(begin), max(patience-early, 0); got != want {
				t.Errorf("%s: answered after %s, want %s", patience, got, want)
			}
			close(release)
			if err := o.do(t.Context(), "CreateContainer", func(context.Context) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatIsDoneOutsideOfAllStepsIsToldToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stage := ""
		o := idleOps(func() string { return stage })
		begun, release := make(chan struct{}), make(chan struct{})
		done := make(chan error)
		go func() {
			done <- o.do(t.Context(), "CreateContainer", func(context.Context) error {
				o.doing("volume /v")
				close(begun)
				<-release
				return nil
			})
		}()
		<-begun
		time.Sleep(3 * time.Second)
		if cur, ok := o.current(); !ok || cur.Stage != "volume /v for 3s" {
			t.Errorf("got %+v", cur)
		}
		stage = "rootfs for 1s" // roll-back, for example
		if cur, _ := o.current(); cur.Stage != stage {
			t.Errorf("got %+v", cur)
		}
		stage = ""
		o.doing("")
		if cur, _ := o.current(); cur.Stage != "" {
			t.Errorf("got %+v", cur)
		}
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
		o.doing("nothing is in flight")
		if cur, ok := o.current(); ok {
			t.Errorf("got %+v", cur)
		}
	})
}

// hungSpecs look at a volume that does not answer until open is closed.
type hungSpecs struct {
	fakeSpecs
	reached, open chan struct{}
}

func (h hungSpecs) Container(r SpecRequest) (ContainerSpec, error) {
	r.Doing("volume /v")
	h.reached <- struct{}{}
	<-h.open
	r.Doing("volume /other") // nobody's business any more
	return h.fakeSpecs.Container(r)
}

func TestAVolumeThatDoesNotAnswerDoesNotKeepItsPod(t *testing.T) {
	n := newNode(t, newWorld(), t.TempDir())
	hung := hungSpecs{reached: make(chan struct{}), open: make(chan struct{})}
	n.parts.Specs = hung
	for name, end := range map[string]func(context.Context, string) error{"stop": n.StopSandbox, "remove": n.RemoveSandbox} {
		config := podConfig()
		config.Metadata.Name = name
		s, err := n.RunSandbox(t.Context(), config, "")
		if err != nil {
			t.Fatal(err)
		}
		created := make(chan error, 1)
		go func() {
			_, err := n.CreateContainer(t.Context(), s, containerConfig("c"))
			created <- err
		}()
		<-hung.reached
		if err := end(t.Context(), s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-created; !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "is being stopped") {
			t.Errorf("%s: the creation ended with %v", name, err)
		}
		if err := n.RemoveSandbox(t.Context(), s); err != nil {
			t.Error(err)
		}
	}
	n.mustBeEmpty(t)
	if left := n.abandoned.Load(); left != 2 {
		t.Errorf("%d are left to themselves", left)
	}
	close(hung.open)
	for n.abandoned.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestWhatIsWaitedForToItsEndIsGivenUpOnlyBeforeItBegins(t *testing.T) {
	o := idleOps(func() string { return "" })
	release := make(chan struct{})
	other := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		other <- o.do(t.Context(), "other", func(context.Context) error { close(begun); <-release; return nil })
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := o.doToEnd(ctx, "own", func(context.Context) error { t.Error("it has begun"); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("while another is in flight: %v", err)
	}
	close(release)
	if err := <-other; err != nil {
		t.Error(err)
	}
	if err := o.doToEnd(ctx, "own", func(context.Context) error { t.Error("it has begun"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	ended := false
	err = o.doToEnd(ctx, "own", func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond)
		ended = true
		return nil
	})
	if err != nil || !ended {
		t.Errorf("ended %v, %v", ended, err)
	}
}
