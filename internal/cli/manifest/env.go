// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// env are the container's variables in their order; one that names an earlier one as $(NAME) gets its value.
func (p *Pod) env(c *corev1.Container, f ContainerFacts) ([]*runtimeapi.KeyValue, error) {
	var all []*runtimeapi.KeyValue
	known := map[string]string{}
	for i, e := range c.Env {
		field := fmt.Sprintf("env[%d]", i)
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			return nil, fmt.Errorf("%s.name: %q is no name of a variable", field, e.Name)
		}
		value := expand(e.Value, known)
		if e.ValueFrom != nil {
			var err error
			if value, err = p.valueFrom(e, f); err != nil {
				return nil, fmt.Errorf("%s.%w", field, err)
			}
		}
		known[e.Name] = value
		all = append(all, &runtimeapi.KeyValue{Key: e.Name, Value: []byte(value)})
	}
	return all, nil
}

func environment(env []*runtimeapi.KeyValue) map[string]string {
	known := map[string]string{}
	for _, kv := range env {
		known[kv.GetKey()] = string(kv.GetValue())
	}
	return known
}

func (p *Pod) valueFrom(e corev1.EnvVar, f ContainerFacts) (string, error) {
	from := e.ValueFrom
	switch {
	case e.Value != "":
		return "", errors.New("valueFrom: value is set too")
	case from.ConfigMapKeyRef != nil:
		return "", errors.New("valueFrom.configMapKeyRef: " + noSources)
	case from.SecretKeyRef != nil:
		return "", errors.New("valueFrom.secretKeyRef: " + noSources)
	case from.FieldRef == nil:
		return "", errors.New("valueFrom: only fieldRef is supported by berth run")
	}
	value, ok := p.fieldRef(from.FieldRef.FieldPath, f)
	if !ok {
		return "", fmt.Errorf("valueFrom.fieldRef.fieldPath: %q is not one of metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], "+
			"metadata.annotations['KEY'], status.podIP, status.podIPs", from.FieldRef.FieldPath)
	}
	return value, nil
}

func (p *Pod) fieldRef(path string, f ContainerFacts) (string, bool) {
	switch path {
	case "metadata.name":
		return p.Name, true
	case "metadata.namespace":
		return p.Namespace, true
	case "metadata.uid":
		return string(p.UID), true
	case "status.podIP":
		if len(f.PodIPs) == 0 {
			return "", true
		}
		return f.PodIPs[0], true
	case "status.podIPs":
		return strings.Join(f.PodIPs, ","), true
	}
	for prefix, values := range map[string]map[string]string{"metadata.labels['": p.Labels, "metadata.annotations['": p.Annotations} {
		if key, ok := strings.CutPrefix(path, prefix); ok {
			if key, ok = strings.CutSuffix(key, "']"); ok {
				return values[key], true
			}
		}
	}
	return "", false
}

func expandAll(texts []string, known map[string]string) []string {
	out := make([]string, 0, len(texts))
	for _, t := range texts {
		out = append(out, expand(t, known))
	}
	return out
}

// expand replaces $(NAME) by the variable's value. $$ is a dollar sign; a name that is not known is left as it is.
func expand(text string, known map[string]string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, after, closed := strings.Cut(strings.TrimPrefix(rest, "("), ")")
		switch {
		case strings.HasPrefix(rest, "$"):
			b.WriteByte('$')
			text = rest[1:]
		case !strings.HasPrefix(rest, "(") || !closed:
			b.WriteByte('$')
			text = rest
		default:
			if value, ok := known[name]; ok {
				b.WriteString(value)
			} else {
				b.WriteString("$(" + name + ")")
			}
			text = after
		}
	}
}
