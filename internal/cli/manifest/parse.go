// SPDX-License-Identifier: Apache-2.0

// Package manifest reads a Kubernetes Pod manifest and says in CRI terms what a node would do with it. It is strict: a field that
// nobody knows is an error with its path, and one that Berth does not honour is refused or warned of, never silently ignored. It
// changes nothing; internal/cli/podrun carries it out.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxManifest bounds a manifest; the API server takes no more than 3 MiB.
const maxManifest = 3 << 20

// Pod is a manifest that was understood and can be run.
type Pod struct {
	*corev1.Pod
	// Warnings name the fields that are not honoured, one line each.
	Warnings []string
}

// Read reads one pod, in YAML or JSON.
func Read(r io.Reader) (*Pod, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxManifest {
		return nil, fmt.Errorf("is larger than %d bytes", maxManifest)
	}
	docs := documents(data)
	switch len(docs) {
	case 0:
		return nil, errors.New("is empty")
	case 1:
	default:
		return nil, fmt.Errorf("has %d documents: a pod is one, so run them one by one", len(docs))
	}
	raw, err := yaml.YAMLToJSONStrict(docs[0])
	if err != nil {
		return nil, fmt.Errorf("is no YAML: %w", err)
	}
	return parse(raw)
}

// documents splits a YAML stream at its "---" lines, which cannot stand anywhere else at a line's beginning.
func documents(data []byte) [][]byte {
	var docs [][]byte
	var doc bytes.Buffer
	add := func() {
		if len(bytes.TrimSpace(withoutComments(doc.Bytes()))) > 0 {
			docs = append(docs, bytes.Clone(doc.Bytes()))
		}
		doc.Reset()
	}
	for line := range bytes.Lines(data) {
		if bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || strings.ContainsRune(" \t\r\n", rune(line[3]))) {
			add()
			line = line[3:]
		}
		doc.Write(line)
	}
	add()
	return docs
}

func withoutComments(doc []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(doc) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			kept = append(kept, line...)
		}
	}
	return kept
}

func parse(raw []byte) (*Pod, error) {
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, errors.New("is no mapping: a manifest begins with apiVersion and kind")
	}
	if fields["apiVersion"] != "v1" || fields["kind"] != "Pod" {
		return nil, fmt.Errorf("is apiVersion %v, kind %v: berth runs apiVersion v1, kind Pod", orNone(fields["apiVersion"]), orNone(fields["kind"]))
	}
	pod := &corev1.Pod{}
	strict, err := kjson.UnmarshalStrict(raw, pod)
	if err != nil {
		return nil, err
	}
	if len(strict) > 0 {
		return nil, errors.Join(strict...)
	}
	p := &Pod{Pod: pod}
	if p.Warnings, err = checkFields(fields); err != nil {
		return nil, err
	}
	p.defaults()
	if err := p.validate(); err != nil {
		return nil, err
	}
	return p, nil
}

func orNone(v any) any {
	if v == nil {
		return "(none)"
	}
	return v
}

// uidPattern is what a pod's UID may be here: it becomes the name of a folder.
var uidPattern = regexp.MustCompile(`^[0-9a-zA-Z][-0-9a-zA-Z]{0,62}$`)

// ValidUID tells whether a pod's UID can be the name of a folder.
func ValidUID(uid string) bool { return uidPattern.MatchString(uid) }

func (p *Pod) defaults() {
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	if p.Spec.TerminationGracePeriodSeconds == nil {
		grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
		p.Spec.TerminationGracePeriodSeconds = &grace
	}
	for _, c := range p.all() {
		c.ImagePullPolicy = defaultPolicy(c.ImagePullPolicy, c.Image)
	}
	for i := range p.Spec.Volumes {
		if im := p.Spec.Volumes[i].Image; im != nil {
			im.PullPolicy = defaultPolicy(im.PullPolicy, im.Reference)
		}
	}
}

// all are the init containers, then the others.
func (p *Pod) all() []*corev1.Container {
	var all []*corev1.Container
	for i := range p.Spec.InitContainers {
		all = append(all, &p.Spec.InitContainers[i])
	}
	for i := range p.Spec.Containers {
		all = append(all, &p.Spec.Containers[i])
	}
	return all
}

// validate finds before any side effect what could only fail half-way.
func (p *Pod) validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if p.Name == "" {
		bad("metadata.name", "is missing")
	} else if why := validation.IsDNS1123Subdomain(p.Name); len(why) > 0 {
		bad("metadata.name", "%q: %s", p.Name, why[0])
	}
	if why := validation.IsDNS1123Label(p.Namespace); len(why) > 0 {
		bad("metadata.namespace", "%q: %s", p.Namespace, why[0])
	}
	if p.UID != "" && !ValidUID(string(p.UID)) {
		bad("metadata.uid", "%q is not made of letters, digits and dashes", p.UID)
	}
	switch p.Spec.RestartPolicy {
	case corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever:
	default:
		bad("spec.restartPolicy", "%q is not one of Always, OnFailure, Never", p.Spec.RestartPolicy)
	}
	if g := *p.Spec.TerminationGracePeriodSeconds; g < 0 {
		bad("spec.terminationGracePeriodSeconds", "%d is negative", g)
	}
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		bad("spec.os.name", "%q is not linux", p.Spec.OS.Name)
	}
	if len(p.Spec.Containers) == 0 {
		bad("spec.containers", "is empty")
	}
	if p.OwnUsers() && (p.Spec.HostPID || p.Spec.HostIPC) {
		bad("spec.hostUsers", "false cannot be combined with hostPID or hostIPC")
	}
	if p.Spec.HostPID && p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace {
		bad("spec.shareProcessNamespace", "cannot be combined with hostPID")
	}
	errs = append(errs, p.validateVolumes()...)
	errs = append(errs, p.validateContainers()...)
	if _, err := p.Sandbox(SandboxFacts{}); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p *Pod) validateContainers() []error {
	var errs []error
	seen := map[string]bool{}
	for _, c := range p.all() {
		field := p.Field(c)
		switch why := validation.IsDNS1123Label(c.Name); {
		case c.Name == "":
			errs = append(errs, fmt.Errorf("%s.name: is missing", field))
		case len(why) > 0:
			errs = append(errs, fmt.Errorf("%s.name: %q: %s", field, c.Name, why[0]))
		case seen[c.Name]:
			errs = append(errs, fmt.Errorf("%s.name: %q is used twice", field, c.Name))
		}
		seen[c.Name] = true
		if c.Image == "" {
			errs = append(errs, fmt.Errorf("%s.image: is missing", field))
		}
		if err := validPolicy(c.ImagePullPolicy); err != nil {
			errs = append(errs, fmt.Errorf("%s.imagePullPolicy: %w", field, err))
		}
		// The same conversion as later, with values that stand for those that are not known yet.
		_, err := p.Container(c, ContainerFacts{Image: c.Image, PodIPs: []string{"0.0.0.0"},
			VolumePath: func(volume, _ string) (string, error) { return "/" + volume, nil }, VolumeImage: func(ref string) string { return ref }, dry: true})
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Field is where a container stands in the manifest.
func (p *Pod) Field(c *corev1.Container) string {
	for i := range p.Spec.InitContainers {
		if c == &p.Spec.InitContainers[i] {
			return fmt.Sprintf("spec.initContainers[%d]", i)
		}
	}
	for i := range p.Spec.Containers {
		if c == &p.Spec.Containers[i] {
			return fmt.Sprintf("spec.containers[%d]", i)
		}
	}
	return "spec.containers[?]"
}

// Hostname is what the pod is called inside; a host network pod has the host's.
func (p *Pod) Hostname() string {
	name := p.Spec.Hostname
	if name == "" {
		name = p.Name
	}
	const longest = 63 // of a host name in Linux
	return strings.TrimRight(name[:min(len(name), longest)], "-.")
}

// kubernetesLabels are what tools that look at containers from outside go by.
func (p *Pod) kubernetesLabels() map[string]string {
	return map[string]string{"io.kubernetes.pod.name": p.Name, "io.kubernetes.pod.namespace": p.Namespace, "io.kubernetes.pod.uid": string(p.UID)}
}

// stopSignal turns "SIGUSR1" into the CRI's number.
func stopSignal(c *corev1.Container) (runtimeapi.Signal, error) {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, nil
	}
	name := strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(string(*c.Lifecycle.StopSignal))
	s, ok := runtimeapi.Signal_value["SIGNAL_"+name]
	if !ok {
		return 0, fmt.Errorf("lifecycle.stopSignal: %q is no signal", *c.Lifecycle.StopSignal)
	}
	return runtimeapi.Signal(s), nil
}
