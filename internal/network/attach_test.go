// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/netns"
)

var ctx = context.Background()

func TestAttachTellsEachPluginWhatItDeclaredToBeCapableOf(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16", "fd00::5/64"))
	n.plugin("second", passing)
	n.write("10-pods.conflist", twoPlugins("1.0.0"))
	net := n.start()
	a := sandbox("aa11")
	a.DNS = DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}}
	a.PortMappings = []PortMapping{{HostPort: 0, ContainerPort: 80}, {HostPort: 8080, ContainerPort: 80, Protocol: "TCP"},
		{HostPort: 53, ContainerPort: 5353, Protocol: "UDP", HostIP: "127.0.0.1"}}
	a.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "1M"}
	r, err := net.Attach(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	n.wantCalls("first ADD", "second ADD")
	if fmt.Sprint(r.IPs) != "[10.1.0.5 fd00::5]" || r.Network != "pods" || len(r.Interfaces) != 2 || r.Interfaces[1].MAC != "aa:bb:cc:dd:ee:ff" ||
		fmt.Sprint(r.Interfaces[1].IPs) != "[10.1.0.5/16 fd00::5/64]" {
		t.Errorf("result %+v", r)
	}
	wantJSON(t, n.read("first.ADD.conf"), `{"cniVersion":"1.0.0","name":"pods","type":"first","capabilities":{"dns":true},
		"runtimeConfig":{"dns":{"servers":["10.0.0.10"],"searches":["svc"],"options":null}}}`)
	var second struct {
		RuntimeConfig map[string]json.RawMessage
		PrevResult    struct{ IPs []any }
	}
	if err := json.Unmarshal([]byte(n.read("second.ADD.conf")), &second); err != nil {
		t.Fatal(err)
	}
	if len(second.RuntimeConfig) != 1 || len(second.PrevResult.IPs) != 2 {
		t.Errorf("the second plugin got %s", n.read("second.ADD.conf"))
	}
	wantJSON(t, string(second.RuntimeConfig["portMappings"]), `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},
		{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"127.0.0.1"}]`)
	env := n.read("first.ADD.env")
	for _, want := range []string{"CNI_CONTAINERID=aa11\n", "CNI_IFNAME=eth0\n", "CNI_PATH=" + n.bin + "\n",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=aa11;K8S_POD_UID=u-1\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("the plugin's environment has no %q:\n%s", want, env)
		}
	}
	if !strings.Contains(n.log.String(), "capability=bandwidth") {
		t.Error("nothing tells that nobody limits the bandwidth")
	}
}

func wantJSON(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if err := errors.Join(json.Unmarshal([]byte(got), &g), json.Unmarshal([]byte(want), &w)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(g) != fmt.Sprint(w) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPluginsDoNotGetWhatSystemdMeansForTheDaemon(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("PATH", "")
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.write("1.conf", `{"name":"pods","type":"first","cniVersion":"1.0.0"}`)
	if _, err := n.start().Attach(ctx, sandbox("a")); err != nil {
		t.Fatal(err)
	}
	env := n.read("first.ADD.env")
	if strings.Contains(env, "NOTIFY_SOCKET") || strings.Contains(env, "LISTEN_FDS") || !strings.Contains(env, "PATH=/usr/local/sbin:") {
		t.Error(env)
	}
}

func TestAttachRefusesBadRequestsBeforeAnyPluginRuns(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.write("1.conf", `{"name":"pods","type":"first"}`)
	net := n.start()
	for _, c := range []struct {
		spoil func(*Attachment)
		want  string
	}{
		{func(a *Attachment) { a.ID = "" }, "sandbox ID"},
		{func(a *Attachment) { a.ID = "../x" }, "sandbox ID"},
		{func(a *Attachment) { a.ID = strings.Repeat("a", 200) }, "200 bytes"},
		{func(a *Attachment) { a.ID = "a-b" }, "dash"},
		{func(a *Attachment) { a.Name = "x;K8S_POD_UID=y" }, "the pod's name"},
		{func(a *Attachment) { a.Namespace = "a=b" }, "the pod's namespace"},
		{func(a *Attachment) {
			a.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "icmp"}}
		}, `protocol "icmp"`},
		{func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 65536, ContainerPort: 80}} }, "host port 65536"},
		{func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: -1, ContainerPort: 80}} }, "host port -1"},
		{func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 0}} }, "container port 0"},
		{func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 80, HostIP: "here"}} }, "host IP"},
		{func(a *Attachment) { a.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "fast"} }, "egress-bandwidth"},
		{func(a *Attachment) { a.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "1"} }, "1k to 1P"},
	} {
		a := sandbox("aa11")
		c.spoil(&a)
		_, err := net.Attach(ctx, a)
		wantError(t, err, c.want)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%v is not ErrInvalid", err)
		}
	}
	n.wantCalls()
	n.wantNothingCached(net)
	if err := net.Detach(ctx, Attachment{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("detaching nobody: %v", err)
	}
}

func TestBandwidthLimitsGetABurst(t *testing.T) {
	b, err := bandwidthOf(map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "5k"})
	if err != nil || b != (Bandwidth{IngressRate: 10_000_000, EgressRate: 5000}) {
		t.Errorf("%+v, %v", b, err)
	}
	if got := fmt.Sprint(b.argument()); got != "map[egressBurst:4294967295 egressRate:5000 ingressBurst:4294967295 ingressRate:10000000]" {
		t.Error(got)
	}
	if got := fmt.Sprint(Bandwidth{EgressRate: 7, EgressBurst: 9}.argument()); got != "map[egressBurst:9 egressRate:7]" {
		t.Error(got)
	}
}

func TestDetachUsesWhatTheSandboxWasAttachedWith(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing)
	n.write("10-pods.conflist", twoPlugins("1.0.0"))
	a := sandbox("aa11")
	a.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	if _, err := n.start().Attach(ctx, a); err != nil {
		t.Fatal(err)
	}
	n.calls()
	if err := os.Remove(filepath.Join(n.cfg.ConfDir, "10-pods.conflist")); err != nil {
		t.Fatal(err)
	}
	net := n.start() // another daemon, without any configuration
	if err := net.Detach(ctx, Attachment{ID: "aa11"}); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("second DEL", "first DEL")
	for _, want := range []string{`"hostPort":8080`, `"prevResult":{`, "10.1.0.5/16", `"name":"pods"`} {
		if conf := n.read("second.DEL.conf"); !strings.Contains(conf, want) {
			t.Errorf("DEL was not told of %s: %s", want, conf)
		}
	}
	if env := n.read("second.DEL.env"); !strings.Contains(env, "K8S_POD_NAME=web") || !strings.Contains(env, "CNI_NETNS=\n") {
		t.Errorf("environment of DEL:\n%s", env)
	}
	n.wantNothingCached(net)
	if err := net.Detach(ctx, Attachment{ID: "aa11"}); err != nil {
		t.Errorf("again: %v", err)
	}
	n.wantCalls()
}

func TestDetachNamesTheNamespaceOnlyWhileItIsThere(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.write("1.conf", `{"name":"pods","type":"first"}`)
	net := n.start()
	pin := filepath.Join(n.dir, "ns")
	if err := netns.Create(netns.Request{Pins: map[netns.Kind]string{netns.Net: pin}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Remove(pin) })
	for _, given := range []string{pin, "", pin + "-gone"} { // the cache knows it too
		a := sandbox("aa11")
		a.NetnsPath = pin
		if _, err := net.Attach(ctx, a); err != nil {
			t.Fatal(err)
		}
		a.NetnsPath = given
		if err := net.Detach(ctx, a); err != nil {
			t.Fatal(err)
		}
		if env := n.read("first.DEL.env"); !strings.Contains(env, "CNI_NETNS="+pin+"\n") {
			t.Errorf("with %q, environment of DEL:\n%s", given, env)
		}
	}
	if _, err := net.Attach(ctx, Attachment{ID: "aa11", NetnsPath: pin}); err != nil {
		t.Fatal(err)
	}
	if err := netns.Remove(pin); err != nil {
		t.Fatal(err)
	}
	n.write(pin, "") // a file that is no namespace, as a crash can leave
	if err := net.Detach(ctx, Attachment{ID: "aa11", NetnsPath: pin}); err != nil {
		t.Fatal(err)
	}
	if env := n.read("first.DEL.env"); !strings.Contains(env, "CNI_NETNS=\n") {
		t.Errorf("environment of DEL:\n%s", env)
	}
}

func TestMissingPluginDoesNotKeepTheOthersFromReleasing(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing)
	n.write("10-pods.conflist", twoPlugins("1.0.0"))
	net := n.start()
	if _, err := net.Attach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	n.calls()
	second := filepath.Join(n.bin, "second")
	if err := os.Rename(second, second+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := net.Detach(ctx, Attachment{ID: "aa11"})
		wantError(t, err, "second", n.bin)
		if !errors.Is(err, ErrPluginNotFound) {
			t.Errorf("%v is not ErrPluginNotFound", err)
		}
		n.wantCalls("first DEL")
	}
	if ids, err := net.Cached(ctx); err != nil || fmt.Sprint(ids) != "[aa11]" {
		t.Errorf("cached %v, %v", ids, err)
	}
	if err := os.Rename(second+".away", second); err != nil {
		t.Fatal(err)
	}
	if err := net.Detach(ctx, Attachment{ID: "aa11"}); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("second DEL", "first DEL")
	n.wantNothingCached(net)
}

func TestPluginThatStaysMissingIsGivenUp(t *testing.T) {
	n := newNode(t)
	n.cfg.MissingGrace = 300 * time.Millisecond
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing)
	n.write("10-pods.conflist", twoPlugins("1.0.0"))
	net := n.start()
	if _, err := net.Attach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.bin, "second")); err != nil {
		t.Fatal(err)
	}
	if err := net.Detach(ctx, Attachment{ID: "aa11"}); err == nil {
		t.Error("given up at once")
	}
	time.Sleep(n.cfg.MissingGrace)
	n.plugin("first", "exit 1")
	if err := net.Detach(ctx, Attachment{ID: "aa11"}); err == nil {
		t.Error("given up although a plugin that is there failed")
	}
	n.plugin("first", "")
	if err := n.start().Detach(ctx, Attachment{ID: "aa11"}); err != nil { // the time counts across restarts
		t.Error(err)
	}
	n.wantNothingCached(net)
	if !strings.Contains(n.log.String(), "given up") {
		t.Error("nothing tells of it")
	}
}

func TestHalfDoneAttachIsReleasedWithWhatItCameTo(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", `[ $CNI_COMMAND != ADD ] || { echo oops >&2; echo '{"code":105,"msg":"no room","details":"at all"}'; exit 1; }`)
	n.write("10-pods.conflist", twoPlugins("1.0.0"))
	net := n.start()
	_, err := net.Attach(ctx, sandbox("aa11"))
	wantError(t, err, "network pods", "plugin second ADD after", "no room; at all", "code 105", "oops")
	var failed *PluginError
	if !errors.As(err, &failed) || failed.Plugin != "second" || failed.Verb != "ADD" || failed.Code != 105 {
		t.Errorf("%#v", failed)
	}
	_, err = net.Attach(ctx, sandbox("aa11"))
	if !errors.Is(err, ErrAttached) {
		t.Errorf("attaching on top: %v", err)
	}
	n.calls()
	if err := net.Detach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("second DEL", "first DEL")
	if conf := n.read("second.DEL.conf"); !strings.Contains(conf, "10.1.0.5/16") {
		t.Errorf("DEL was not told what the first plugin gave: %s", conf)
	}
	n.wantNothingCached(net)
}

func TestOldSpecificationHasNoPreviousResultInDel(t *testing.T) {
	n := newNode(t)
	n.plugin("first", `[ $CNI_COMMAND != ADD ] || echo '{"ip4":{"ip":"10.1.0.5/16"}}'`)
	n.write("1.conf", `{"name":"pods","type":"first","cniVersion":"0.2.0"}`)
	net := n.start()
	r, err := net.Attach(ctx, sandbox("aa11"))
	if err != nil || fmt.Sprint(r.IPs) != "[10.1.0.5]" {
		t.Fatal(r, err)
	}
	if err := net.Check(ctx, sandbox("aa11")); err != nil {
		t.Errorf("CHECK, which 0.2.0 has not: %v", err)
	}
	if err := net.Detach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("first ADD", "first DEL")
	if conf := n.read("first.DEL.conf"); strings.Contains(conf, "prevResult") {
		t.Error(conf)
	}
}

func TestResultWithoutAddressIsAnError(t *testing.T) {
	for text, want := range map[string]string{
		`{"cniVersion":"1.0.0"}`: "no IP address",
		`{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"/x"}],"ips":[{"address":"10.0.0.1/8","interface":0}]}`: "no IP address",
		`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/8","interface":3}]}`:                                               "interface number 3 of 0",
		`{"cniVersion":"9.0.0"}`: "9.0.0",
		`null`:                   "no IP address",
		`[1]`:                    "not a CNI result",
		`hello`:                  "not a CNI result",
		``:                       "not a CNI result",
	} {
		n := newNode(t)
		n.plugin("first", fmt.Sprintf("[ $CNI_COMMAND != ADD ] || printf '%%s' '%s'", text))
		n.write("1.conf", `{"name":"pods","type":"first","cniVersion":"1.0.0"}`)
		net := n.start()
		_, err := net.Attach(ctx, sandbox("aa11"))
		wantError(t, err, want, "pods")
		if err := net.Detach(ctx, sandbox("aa11")); err != nil {
			t.Error(err)
		}
		n.wantNothingCached(net)
	}
}

func TestUnreadableCacheEntryFallsBackToTodaysConfiguration(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.write("1.conf", `{"name":"my-pods","type":"first"}`)
	net := n.start()
	path := filepath.Join(n.cfg.CacheDir, "results", "my-pods-aa11-eth0")
	for _, text := range []string{"", "{", `{"kind":"other"}`, `{"kind":"cniCacheV1","containerId":"../../etc","networkName":"x","ifName":"eth0"}`,
		`{"kind":"cniCacheV1","containerId":"aa11","networkName":"my-pods","ifName":"eth0","config":"e30="}`} {
		n.write(path, text)
		if err := net.Detach(ctx, sandbox("aa11")); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		n.wantCalls("first DEL")
		n.wantNothingCached(net)
	}
	n.write(filepath.Join(n.cfg.CacheDir, "results", "other-aa11-eth0"), "{")
	wantError(t, net.Detach(ctx, sandbox("aa11")), "other", "cannot be read")
}

func TestCheckAsksEveryPluginAndNamesTheUnhappyOne(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing)
	n.write("10-pods.conflist", twoPlugins("0.4.0"))
	net := n.start()
	wantError(t, net.Check(ctx, sandbox("aa11")), "not attached")
	if _, err := net.Attach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	n.calls()
	if err := net.Check(ctx, sandbox("aa11")); err != nil {
		t.Error(err)
	}
	n.wantCalls("first CHECK", "second CHECK")
	n.plugin("second", `echo '{"code":11,"msg":"rule is gone"}'; exit 1`)
	wantError(t, net.Check(ctx, sandbox("aa11")), "second CHECK", "rule is gone")
}
