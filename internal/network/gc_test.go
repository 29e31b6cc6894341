// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var discard = slog.New(slog.DiscardHandler)

func (n *node) attached(net *Network, ids ...string) {
	n.t.Helper()
	for _, id := range ids {
		if _, err := net.Attach(ctx, sandbox(id)); err != nil {
			n.t.Fatal(err)
		}
	}
	n.calls()
}

func TestGCReleasesWhatEarlierDaemonsLeft(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing)
	n.write("1.conflist", twoPlugins("1.1.0"))
	n.attached(n.start(), "kept", "lost")
	net := n.start()
	n.attached(net, "mine") // not among the kept, but of this daemon's life
	if err := net.GC(ctx, []string{"kept", "new"}); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("second DEL", "first DEL", "first GC", "second GC")
	if env := n.read("first.DEL.env"); !strings.Contains(env, "CNI_CONTAINERID=lost\n") {
		t.Error(env)
	}
	conf := n.read("first.GC.conf")
	const valid = `[{"containerID":"kept","ifname":"eth0"},{"containerID":"mine","ifname":"eth0"},{"containerID":"new","ifname":"eth0"}]`
	if !strings.Contains(conf, `"cni.dev/valid-attachments":`+valid) {
		t.Error(conf)
	}
	if ids, err := net.Cached(ctx); err != nil || fmt.Sprint(ids) != "[kept mine]" {
		t.Errorf("cached %v, %v", ids, err)
	}
}

func TestGCGoesOnAfterAFailure(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing)
	n.write("1.conflist", twoPlugins("1.1.0"))
	n.attached(n.start(), "a", "b")
	n.plugin("second", `[ $CNI_CONTAINERID$CNI_COMMAND != aDEL ] || exit 1; [ $CNI_COMMAND != GC ] || exit 7`)
	net := n.start()
	wantError(t, net.GC(ctx, nil), "detach a from network pods", "exit status 1", "second GC", "exit status 7")
	if ids, err := net.Cached(ctx); err != nil || fmt.Sprint(ids) != "[a]" {
		t.Errorf("cached %v, %v", ids, err)
	}
	if conf := n.read("first.GC.conf"); !strings.Contains(conf, `"containerID":"a"`) {
		t.Errorf("what is still to be released is declared garbage: %s", conf)
	}
}

func TestGCVerbIsLeftOutWhereItIsUnknownOrUnwanted(t *testing.T) {
	for what, text := range map[string]string{
		"old specification": twoPlugins("1.0.0"),
		"disabled":          strings.Replace(twoPlugins("1.1.0"), `"name"`, `"disableGC":true,"name"`, 1),
	} {
		n := newNode(t)
		n.plugin("first", "")
		n.plugin("second", "")
		n.write("1.conflist", text)
		if err := n.start().GC(ctx, nil); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		n.wantCalls()
	}
}

func TestGCDoesNotTouchANetworkThatAnotherRuntimeUses(t *testing.T) {
	n := newNode(t)
	n.plugin("first", "")
	n.plugin("second", "")
	n.write("1.conflist", twoPlugins("1.1.0"))
	entry := filepath.Join(n.cfg.ForeignCacheDirs[0], "results", "pods-cc-eth0")
	n.write(entry, `{"kind":"cniCacheV1","containerId":"cc","ifName":"eth0","networkName":"pods"}`)
	net := n.start()
	if err := net.GC(ctx, nil); err != nil {
		t.Fatal(err)
	}
	n.wantCalls()
	n.write(entry, `{"kind":"cniCacheV1","containerId":"cc","ifName":"eth0","networkName":"others"}`)
	if err := net.GC(ctx, nil); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("first GC", "second GC")
}

// TestGCAndAttachKeepApart: an address that is being given while GC runs would be taken for garbage.
func TestGCAndAttachKeepApart(t *testing.T) {
	n := newNode(t)
	slow := "sleep 0.5; echo \"done $CNI_COMMAND\" >> " + n.dir + "/calls\n"
	n.plugin("first", slow+answering("10.1.0.5/16"))
	n.write("1.conflist", `{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"first"}]}`)
	net := n.start()
	collected := make(chan error, 1)
	go func() { collected <- net.GC(ctx, nil) }()
	n.said("calls", "first GC")
	if _, err := net.Attach(ctx, sandbox("aa")); err != nil {
		t.Error(err)
	}
	if err := <-collected; err != nil {
		t.Error(err)
	}
	n.wantCalls("first GC", "done GC", "first ADD", "done ADD")

	attached := make(chan error, 1)
	go func() { _, err := net.Attach(ctx, sandbox("bb")); attached <- err }()
	n.said("calls", "first ADD")
	if err := errors.Join(net.GC(ctx, nil), <-attached); err != nil {
		t.Error(err)
	}
	if calls := n.calls(); slices.Contains(calls, "first GC") {
		t.Errorf("GC ran during an ADD: %q", calls)
	}
}

func TestUnfinishedCacheFilesAreSweptAtStart(t *testing.T) {
	n := newNode(t)
	n.write(filepath.Join(n.cfg.CacheDir, "results", "pods-aa-eth0.new"), "{")
	n.wantNothingCached(n.start())
}
