// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

func TestASandboxLivesStopsAndGoes(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{})
	begin := time.Now()
	p := k.RunPod(k.PodConfig("web"))
	s := p.Status()
	equal(t, "state", s.State, cri.PodSandboxState_SANDBOX_READY)
	equal(t, "name", s.Metadata.Name, "web")
	equal(t, "uid", s.Metadata.Uid, p.Config.Metadata.Uid)
	if at := time.Unix(0, s.CreatedAt); at.Before(begin.Add(-time.Second)) || at.After(time.Now()) {
		t.Errorf("created at %s, test began at %s", at, begin)
	}
	if !maps.Equal(s.Labels, p.Config.Labels) || !maps.Equal(s.Annotations, p.Config.Annotations) {
		t.Errorf("labels %v and annotations %v did not come back as sent", s.Labels, s.Annotations)
	}
	ip := s.Network.Ip
	if !strings.HasPrefix(ip, k.D.Subnet4) {
		t.Errorf("IP is %q, want one of %s0/24", ip, k.D.Subnet4)
	}
	for range 2 { // stopping again is fine
		p.Stop()
		s = p.Status()
		equal(t, "state after stop", s.State, cri.PodSandboxState_SANDBOX_NOTREADY)
	}
	for range 2 {
		p.Remove()
	}
	_, err := k.D.Runtime.PodSandboxStatus(k.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	wantError(t, err, notFound, p.ID)
}

func TestUnknownSandboxesStopAndGoWithoutError(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{NoNetwork: true})
	id := strings.Repeat("0f", 32)
	_, err := k.D.Runtime.StopPodSandbox(k.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: id})
	equal(t, "stop sandbox", err, nil)
	_, err = k.D.Runtime.RemovePodSandbox(k.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: id})
	equal(t, "remove sandbox", err, nil)
	_, err = k.D.Runtime.StopContainer(k.Ctx(), &cri.StopContainerRequest{ContainerId: id})
	equal(t, "stop container", err, nil)
	_, err = k.D.Runtime.RemoveContainer(k.Ctx(), &cri.RemoveContainerRequest{ContainerId: id})
	equal(t, "remove container", err, nil)
}

func TestRemovingARunningSandboxTakesItsContainers(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("busy"))
	c := p.Start(k.Forever("main"))
	p.Create(k.Forever("never-started"))
	if _, err := k.D.Runtime.RemovePodSandbox(k.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Fatal(err)
	}
	_, err := k.D.Runtime.ContainerStatus(k.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	wantError(t, err, notFound, c.ID)
	r, err := k.D.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{})
	if n := len(kubelet.Must(k, r, err).Containers); n != 0 {
		t.Errorf("%d containers are left", n)
	}
}

func TestSandboxesAndContainersAreFiltered(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config := func(name, colour string) *cri.PodSandboxConfig {
		c := k.PodConfig(name)
		c.Labels["colour"] = colour
		return c
	}
	a, b := k.RunPod(config("a", "red")), k.RunPod(config("b", "blue"))
	ca, cb := a.Start(k.Forever("c")), b.Create(k.Forever("c"))
	b.Stop()
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	for name, f := range map[string]struct {
		filter *cri.PodSandboxFilter
		want   []string
	}{
		"no filter":        {nil, []string{a.ID, b.ID}},
		"id":               {&cri.PodSandboxFilter{Id: b.ID}, []string{b.ID}},
		"start of an id":   {&cri.PodSandboxFilter{Id: a.ID[:13]}, []string{a.ID}},
		"unknown id":       {&cri.PodSandboxFilter{Id: strings.Repeat("1", 64)}, nil},
		"ready":            {&cri.PodSandboxFilter{State: ready}, []string{a.ID}},
		"label":            {&cri.PodSandboxFilter{LabelSelector: map[string]string{"colour": "blue"}}, []string{b.ID}},
		"label and state":  {&cri.PodSandboxFilter{State: ready, LabelSelector: map[string]string{"colour": "blue"}}, nil},
		"label other case": {&cri.PodSandboxFilter{LabelSelector: map[string]string{"colour": "Blue"}}, nil},
	} {
		r, err := k.D.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{Filter: f.filter})
		var got []string
		for _, p := range kubelet.Must(k, r, err).Items {
			got = append(got, p.Id)
		}
		sameSet(t, "sandboxes by "+name, got, f.want)
	}
	running := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
	for name, f := range map[string]struct {
		filter *cri.ContainerFilter
		want   []string
	}{
		"no filter":  {nil, []string{ca.ID, cb.ID}},
		"id":         {&cri.ContainerFilter{Id: ca.ID}, []string{ca.ID}},
		"sandbox":    {&cri.ContainerFilter{PodSandboxId: b.ID}, []string{cb.ID}},
		"running":    {&cri.ContainerFilter{State: running}, []string{ca.ID}},
		"label":      {&cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.container.name": "c"}}, []string{ca.ID, cb.ID}},
		"both apart": {&cri.ContainerFilter{PodSandboxId: b.ID, State: running}, nil},
	} {
		r, err := k.D.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{Filter: f.filter})
		var got []string
		for _, c := range kubelet.Must(k, r, err).Containers {
			got = append(got, c.Id)
		}
		sameSet(t, "containers by "+name, got, f.want)
	}
}

func sameSet(t *testing.T, what string, got, want []string) {
	t.Helper()
	set := func(list []string) string {
		m := map[string]bool{}
		for _, s := range list {
			m[s] = true
		}
		return fmt.Sprint(m)
	}
	if len(got) != len(want) || set(got) != set(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestAPodHasTwoFamiliesOfAddressesAndReachesOthers(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	server := k.RunPod(k.PodConfig("server"))
	server.Start(k.Shell("main", `mkdir /tmp/w && echo hello >/tmp/w/index.html && exec httpd -f -p 80 -h /tmp/w`))
	n := server.Status().Network
	if len(n.AdditionalIps) != 1 || net.ParseIP(n.AdditionalIps[0].Ip) == nil || !strings.Contains(n.AdditionalIps[0].Ip, ":") {
		t.Fatalf("additional IPs are %v, want one of IPv6", n.AdditionalIps)
	}
	client := k.RunPod(k.PodConfig("client")).Start(k.Forever("main"))
	for _, host := range []string{n.Ip, "[" + n.AdditionalIps[0].Ip + "]"} {
		equal(t, "page from "+host, client.Exec(`for i in $(seq 50); do wget -qO- http://`+host+`/ 2>/dev/null && exit; sleep 0.1; done; exit 1`), "hello")
	}
	contains(t, "lo of a pod", client.Exec("ip addr show lo"), "127.0.0.1/8", "::1/128", "UP")
	if body, err := fetch(net.JoinHostPort(n.Ip, "80")); err != nil || body != "hello\n" {
		t.Errorf("from the host: %q, %v", body, err)
	}
}

// fetch reads a page by hand: an HTTP client would keep the connection.
func fetch(address string) (string, error) {
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(context.Background(), "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n")
	data, err := io.ReadAll(conn)
	_, body, _ := strings.Cut(string(data), "\r\n\r\n")
	return body, err
}

func TestAMappedPortIsReachableUntilThePodStops(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	port := freePort(t)
	c := k.PodConfig("mapped")
	c.PortMappings = []*cri.PortMapping{
		{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: int32(port)},
		{Protocol: cri.Protocol_TCP, ContainerPort: 81, HostPort: 0}, // a kubelet sends those too
	}
	p := k.RunPod(c)
	p.Start(k.Shell("main", `mkdir /tmp/w && echo mapped >/tmp/w/index.html && exec httpd -f -p 80 -h /tmp/w`))
	for _, host := range []string{"127.0.0.1", hostIP(t)} {
		address := fmt.Sprintf("%s:%d", host, port)
		kubelet.Eventually(t, 5*time.Second, func() string {
			if body, err := fetch(address); body != "mapped\n" {
				return fmt.Sprintf("page of %s: %q, %v", address, body, err)
			}
			return ""
		})
	}
	p.Stop()
	if body, err := fetch(fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		t.Errorf("port still answers after the stop: %q", body)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// hostIP is an address of this machine that is not loopback and no bridge of a test.
func hostIP(t *testing.T) string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		addresses, _ := l.Addrs()
		for _, a := range addresses {
			if ip, _, _ := net.ParseCIDR(a.String()); ip.To4() != nil && !ip.IsLoopback() && !strings.HasPrefix(l.Name, "bt") {
				return ip.String()
			}
		}
	}
	t.Fatal("the machine has no address")
	return ""
}

func TestHostnameAndResolvConfAreThePods(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("named")).Start(k.Forever("main"))
	equal(t, "hostname", c.Exec("hostname"), "named")
	equal(t, "/etc/hostname", c.Exec("cat /etc/hostname"), "named")
	equal(t, "resolv.conf", c.Exec("cat /etc/resolv.conf"), "search svc.test\nnameserver 10.0.0.10\noptions ndots:5")
	config := k.PodConfig("default-dns")
	config.DnsConfig = nil
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	c = k.RunPod(config).Start(k.Forever("main"))
	equal(t, "resolv.conf without a DNS config", c.Exec("cat /etc/resolv.conf"), strings.TrimSpace(string(host)))
}

func TestNamespacesAreThePodsOrTheHosts(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	pod, container, host := cri.NamespaceMode_POD, cri.NamespaceMode_CONTAINER, cri.NamespaceMode_NODE
	for name, c := range map[string]struct {
		opts     *cri.NamespaceOption
		hostKeys []string // namespaces that are the host's
	}{
		"own":          {&cri.NamespaceOption{Network: pod, Pid: container, Ipc: pod}, nil},
		"host-network": {&cri.NamespaceOption{Network: host, Pid: container, Ipc: pod}, []string{"net"}},
		"host-pid":     {&cri.NamespaceOption{Network: pod, Pid: host, Ipc: pod}, []string{"pid"}},
		"host-ipc":     {&cri.NamespaceOption{Network: pod, Pid: container, Ipc: host}, []string{"ipc"}},
		"host-all":     {&cri.NamespaceOption{Network: host, Pid: host, Ipc: host}, []string{"net", "pid", "ipc"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := k.For(t)
			config := k.PodConfig(name)
			config.Linux.SecurityContext.NamespaceOptions = c.opts
			if c.opts.Network == host {
				config.Hostname = ""
			}
			p := k.RunPod(config)
			if s := p.Status(); c.opts.Network == host {
				equal(t, "IP", s.GetNetwork().GetIp(), "")
			} else if s.GetNetwork().GetIp() == "" {
				t.Error("no IP")
			}
			spec := k.Forever("main")
			spec.Linux.SecurityContext.NamespaceOptions = c.opts
			made := p.Start(spec)
			for _, ns := range []string{"net", "pid", "ipc", "uts", "mnt"} {
				mine, err := os.Readlink("/proc/self/ns/" + ns)
				if err != nil {
					t.Fatal(err)
				}
				want := strings.Contains(strings.Join(c.hostKeys, " "), ns) || ns == "uts" && c.opts.Network == host
				equal(t, ns+" namespace is the host's", made.Exec("readlink /proc/self/ns/"+ns) == mine, want)
			}
			if c.opts.Network == host {
				name, _ := os.Hostname()
				equal(t, "hostname", made.Exec("hostname"), name)
			}
		})
	}
}

func TestASharedPIDNamespaceHasAPauseThatReaps(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config := k.PodConfig("shared")
	shared := &cri.NamespaceOption{Pid: cri.NamespaceMode_POD}
	config.Linux.SecurityContext.NamespaceOptions = shared
	p := k.RunPod(config)
	spec := func(name string) *cri.ContainerConfig {
		c := k.Forever(name)
		c.Linux.SecurityContext.NamespaceOptions = shared
		return c
	}
	a, b := p.Start(spec("a")), p.Start(spec("b"))
	equal(t, "PID namespace of a is b's", a.Exec("readlink /proc/self/ns/pid"), b.Exec("readlink /proc/self/ns/pid"))
	if !onContainerd() {
		contains(t, "PID 1", a.Exec(`tr '\0' ' ' </proc/1/cmdline`), "pause")
	}
	a.Exec("(sleep 0.05 &) ; true") // its parent is gone: PID 1 must reap it
	kubelet.Eventually(t, 3*time.Second, func() string {
		if out := a.Exec(`cat /proc/[0-9]*/stat 2>/dev/null | grep ') Z ' || true`); out != "" && !onContainerd() {
			return "zombies: " + out
		}
		return ""
	})
	b.Stop(5)
	equal(t, "a runs on", a.Status().State, cri.ContainerState_CONTAINER_RUNNING)
	equal(t, "b's exit code", b.WaitExit().ExitCode, 0)
}

func TestSysctlsAreThePodsOwn(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	config := k.PodConfig("tuned")
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "42", "kernel.shm_rmid_forced": "1"}
	c := k.RunPod(config).Start(k.Forever("main"))
	equal(t, "net sysctl", c.Exec("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "42")
	equal(t, "ipc sysctl", c.Exec("cat /proc/sys/kernel/shm_rmid_forced"), "1")
}

func TestTwoSandboxesDifferInEachPartOfTheirMetadata(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{})
	config := k.PodConfig("twin")
	first := k.RunPod(config)
	first.Stop()
	second := proto.Clone(config).(*cri.PodSandboxConfig)
	second.Metadata.Attempt = 1
	p := k.RunPod(second)
	if p.ID == first.ID {
		t.Error("attempt 1 is the sandbox of attempt 0")
	}
	equal(t, "attempt", p.Status().Metadata.Attempt, 1)
}

func TestConcurrentStopsAndRemovesJoin(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("contended"))
	c := p.Start(k.Shell("main", "trap '' TERM; sleep 1000"))
	errs := make(chan error)
	calls := []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := k.D.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 1})
			return err
		},
		func(ctx context.Context) error {
			_, err := k.D.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
			return err
		},
		func(ctx context.Context) error {
			_, err := k.D.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
			return err
		},
	}
	if onContainerd() {
		calls = calls[:2]
	}
	ctx := k.Ctx()
	for range 3 {
		for _, call := range calls {
			go func() { errs <- call(ctx) }()
		}
	}
	for range 3 * len(calls) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestNetworkReadyFollowsTheConfigurationFolder(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{NoNetwork: true})
	within := func(ready bool) {
		t.Helper()
		begin := time.Now()
		ctx, cancel := context.WithTimeout(k.Ctx(), 5*time.Second)
		defer cancel()
		if err := k.D.WaitNetwork(ctx, ready); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("network ready %v took %s, want at most a second", ready, took)
		}
	}
	within(false)
	_, err := k.TryRunPod(k.PodConfig("early"))
	wantError(t, err, failures, "network", k.D.ConfDir)
	if err := k.D.WriteConflist(k.D.Conflist()); err != nil {
		t.Fatal(err)
	}
	within(true)
	k.RunPod(k.PodConfig("late")).Remove()
	path := filepath.Join(k.D.ConfDir, "10-test.conflist")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if !onContainerd() { // it keeps what it loaded
		within(false)
	}
}
