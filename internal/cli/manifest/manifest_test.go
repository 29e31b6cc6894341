// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// facts are the same for all golden files.
func facts() ContainerFacts {
	return ContainerFacts{Image: "sha256:abc", ImageUser: "", Attempt: 2, PodIPs: []string{"10.1.0.7", "fd00::7"}, HostsFile: "/pods/hosts",
		FirstID: 0x70000000, RecursiveReadOnly: true, VolumeImage: func(ref string) string { return "sha256:of-" + ref },
		VolumePath: func(volume, sub string) (string, error) { return filepath.Join("/pods/volumes", volume, sub), nil }}
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got := converted(t, f)
			golden := strings.TrimSuffix(file, ".yaml") + ".golden.json"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is not what is made now (-update writes it):\n%s", golden, got)
			}
		})
	}
}

func converted(t *testing.T, f *os.File) []byte {
	t.Helper()
	pod, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := pod.Sandbox(SandboxFacts{LogDir: "/logs", FirstID: 0x70000000, HostDNS: &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1"}, Options: []string{"ndots:1", "edns0"}}})
	if err != nil {
		t.Fatal(err)
	}
	all := []proto.Message{sandbox}
	for _, c := range pod.all() {
		config, err := pod.Container(c, facts())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, config)
	}
	var raws []json.RawMessage
	for _, m := range all {
		raw, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, raw)
	}
	// Through json once more: protojson's own spaces are random.
	out, err := json.MarshalIndent(raws, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

const head = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"

// mounted is a pod with one mount of an empty folder.
func mounted(fields string) string {
	return head + "  volumes: [{name: v, emptyDir: {}}]\n  containers: [{name: a, image: i, volumeMounts: [{name: v, mountPath: /x, " + fields + "}]}]\n"
}

func TestRecursiveReadOnlyIfPossibleDependsOnTheHandler(t *testing.T) {
	pod, err := Read(strings.NewReader(mounted("readOnly: true, recursiveReadOnly: IfPossible")))
	if err != nil {
		t.Fatal(err)
	}
	for _, can := range []bool{true, false} {
		f := facts()
		f.RecursiveReadOnly = can
		c, err := pod.Container(&pod.Spec.Containers[0], f)
		if err != nil || c.Mounts[0].RecursiveReadOnly != can || !c.Mounts[0].Readonly {
			t.Errorf("handler can: %v, mount %v, %v", can, c.GetMounts(), err)
		}
	}
}

func TestWhatCannotBeHonouredIsRefusedByName(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "is empty"},
		{"[1]", "is no mapping"},
		{"a: {", "is no YAML"},
		{"apiVersion: apps/v1\nkind: Deployment\n", "is apiVersion apps/v1, kind Deployment: berth runs apiVersion v1, kind Pod"},
		{head + "  containers: [{name: a, image: i}]\n---\n" + head, "has 2 documents"},
		{head + "  containers: [{name: a, image: i, imagee: x}]\n", `unknown field "spec.containers[0].imagee"`},
		{head + "  containers: [{name: a, image: i}]\n  containers: []\n", `key "containers" already set`},
		{head + "  containers: []\n", "spec.containers: is empty"},
		{head + "  containers: [{name: a}]\n", "spec.containers[0].image: is missing"},
		{head + "  containers: [{name: a, image: i}, {name: a, image: i}]\n", `spec.containers[1].name: "a" is used twice`},
		{head + "  containers: [{name: a, image: i, envFrom: [{secretRef: {name: s}}]}]\n", "spec.containers[0].envFrom: is not supported by berth run"},
		{head + "  containers: [{name: a, image: i, env: [{name: X, valueFrom: {configMapKeyRef: {name: m, key: k}}}]}]\n",
			"spec.containers[0].env[0].valueFrom.configMapKeyRef: config maps and secrets need an API server"},
		{head + "  containers: [{name: a, image: i, env: [{name: X, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}]\n",
			`spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: "spec.nodeName" is not one of`},
		{head + "  volumes: [{name: v, secret: {secretName: s}}]\n  containers: [{name: a, image: i}]\n", "spec.volumes[0].secret: is not supported by berth run"},
		{head + "  volumes: [{name: v, hostPath: {path: x}}]\n  containers: [{name: a, image: i}]\n", `spec.volumes[0].hostPath.path: "x" is not absolute`},
		{head + "  containers: [{name: a, image: i, volumeMounts: [{name: v, mountPath: /x}]}]\n", `spec.containers[0].volumeMounts[0].name: there is no volume "v"`},
		{head + "  volumes: [{name: v, emptyDir: {}}]\n  containers: [{name: a, image: i, volumeMounts: [{name: v, mountPath: /x, subPath: ../y}]}]\n",
			`volumeMounts[0].subPath: "../y" must be relative and not lead out of the volume`},
		{head + "  containers: [{name: a, image: i, resources: {limits: {nvidia.com/gpu: 1}}}]\n", "resources.limits.nvidia.com/gpu: only cpu and memory are supported"},
		{head + "  containers: [{name: a, image: i, resources: {limits: {memory: 1Mi}, requests: {memory: 2Mi}}}]\n", "resources.requests.memory: 2Mi is more than the limit of 1Mi"},
		{head + "  restartPolicy: Maybe\n  containers: [{name: a, image: i}]\n", `spec.restartPolicy: "Maybe" is not one of Always, OnFailure, Never`},
		{head + "  hostPID: true\n  shareProcessNamespace: true\n  containers: [{name: a, image: i}]\n", "spec.shareProcessNamespace: cannot be combined with hostPID"},
		{head + "  containers: [{name: a, image: i, ports: [{containerPort: 1, hostPort: 70000}]}]\n", "ports[0].hostPort: 70000 is not between 1 and 65535"},
		{head + "  hostUsers: false\n  hostPID: true\n  containers: [{name: a, image: i}]\n", "spec.hostUsers: false cannot be combined with hostPID or hostIPC"},
		{head + "  volumes: [{name: v, image: {pullPolicy: Never}}]\n  containers: [{name: a, image: i}]\n", "spec.volumes[0].image.reference: is missing"},
		{head + "  volumes: [{name: v, image: {reference: i, pullPolicy: X}}]\n  containers: [{name: a, image: i}]\n", `spec.volumes[0].image.pullPolicy: "X" is not one of`},
		{head + "  volumes: [{name: v, image: {reference: i}, emptyDir: {}}]\n  containers: [{name: a, image: i}]\n", "spec.volumes[0]: is more than one of"},
		{mounted("recursiveReadOnly: Enabled"), "volumeMounts[0].recursiveReadOnly: Enabled wants readOnly: true"},
		{mounted("readOnly: true, recursiveReadOnly: IfPossible, mountPropagation: HostToContainer"), "recursiveReadOnly: IfPossible cannot be combined with mountPropagation"},
		{mounted("readOnly: true, recursiveReadOnly: Perhaps"), `recursiveReadOnly: "Perhaps" is not one of Disabled, IfPossible, Enabled`},
		{head + "  ephemeralContainers: [{name: e, image: i}]\n  containers: [{name: a, image: i}]\n", "spec.ephemeralContainers: is not supported by berth run"},
	} {
		if pod, err := Read(strings.NewReader(c.text)); err == nil {
			t.Errorf("%s\nis taken, want %s: %v", c.text, c.want, pod)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v\nwant %s", c.text, err, c.want)
		}
	}
}

func TestWhatIsLeftOutIsWarnedOf(t *testing.T) {
	pod, err := Read(strings.NewReader(head + "  nodeSelector: {a: b}\n  tolerations: [{operator: Exists}]\n" +
		"  containers: [{name: a, image: i, livenessProbe: {exec: {command: [x]}}, lifecycle: {preStop: {exec: {command: [x]}}}}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "spec.containers[0].lifecycle.preStop is ignored: " + noHooks + "\nspec.containers[0].livenessProbe is ignored: " + noProbes +
		"\nspec.nodeSelector is ignored: " + noScheduler
	if got := strings.Join(pod.Warnings, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestRunAsNonRootLooksAtTheImagesUser(t *testing.T) {
	pod, err := Read(strings.NewReader(head + "  securityContext: {runAsNonRoot: true}\n  containers: [{name: a, image: i}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	seven, zero := int64(7), int64(0)
	for _, c := range []struct {
		uid  *int64
		user string
		want string
	}{{&seven, "", ""}, {&zero, "", "would run as root"}, {nil, "", "would run as root"}, {nil, "nobody", `the image's user "nobody" is a name`}, {nil, "12", ""}} {
		f := facts()
		f.ImageUID, f.ImageUser = c.uid, c.user
		_, err := pod.Container(&pod.Spec.Containers[0], f)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(head + "  containers: [{name: a, image: i}]\n"))
	full, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Fuzz(func(t *testing.T, text []byte) {
		pod, err := Read(bytes.NewReader(text))
		if err != nil {
			return
		}
		// What was taken can be carried out.
		if _, err := pod.Sandbox(SandboxFacts{}); err != nil {
			t.Errorf("sandbox: %v", err)
		}
		if len(pod.Spec.Containers) == 0 {
			t.Error("a pod without containers was taken")
		}
	})
}
