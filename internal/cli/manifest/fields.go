// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// verdict is what becomes of a field that a manifest has.
type verdict int

const (
	refused  verdict = iota // it would change what the pod does, and must not be left out
	honoured                // with all that is below it
	inside                  // its own fields are looked at
	harmless                // it changes nothing on one node without an API server
	warned                  // it is left out, and said so
)

type rule struct {
	verdict verdict
	// why is what the user reads.
	why string
	// unless are values that ask for nothing: what kubectl prints as defaults.
	unless []any
}

const (
	noScheduler = "there is no scheduler: the pod runs here"
	noServer    = "there is no API server: the pod gets no token"
	noProbes    = "probes are not run: a container counts as healthy as long as it runs"
	noHooks     = "lifecycle hooks are not run"
	noSources   = "config maps and secrets need an API server"
)

// rules has every field of a pod that is not refused, and those that are refused with a reason of their own. Init containers go by
// the rules of containers.
var rules = func() map[string]rule {
	all := map[string]rule{
		"spec.subdomain":                     {warned, "there is no cluster DNS that knows it", nil},
		"spec.activeDeadlineSeconds":         {warned, "it is not enforced: stop the pod with `berth stop`", nil},
		"spec.nodeSelector":                  {warned, noScheduler, nil},
		"spec.affinity":                      {warned, noScheduler, nil},
		"spec.schedulingGates":               {warned, noScheduler, nil},
		"spec.readinessGates":                {warned, noProbes, nil},
		"spec.serviceAccountName":            {warned, noServer, []any{"default"}},
		"spec.serviceAccount":                {warned, noServer, []any{"default"}},
		"spec.imagePullSecrets":              {warned, noSources + ": pull the image with `berth pull --creds-stdin` first", nil},
		"spec.setHostnameAsFQDN":             {refused, "", []any{false}},
		"spec.volumes[].emptyDir.sizeLimit":  {warned, "it is not enforced", nil},
		"spec.containers[].envFrom":          {refused, noSources, nil},
		"spec.containers[].restartPolicy":    {refused, "sidecars (init containers that go on) are not supported", nil},
		"spec.containers[].livenessProbe":    {warned, noProbes, nil},
		"spec.containers[].readinessProbe":   {warned, noProbes, nil},
		"spec.containers[].startupProbe":     {warned, noProbes, nil},
		"spec.containers[].resources.claims": {refused, "dynamic resources need an API server", nil},

		"spec.containers[].lifecycle.postStart":      {warned, noHooks, nil},
		"spec.containers[].lifecycle.preStop":        {warned, noHooks, nil},
		"spec.containers[].terminationMessagePath":   {warned, "nobody reads the message", []any{"/dev/termination-log"}},
		"spec.containers[].terminationMessagePolicy": {warned, "nobody reads the message", []any{"File"}},
	}
	add := func(v verdict, prefix, names string) {
		for name := range strings.FieldsSeq(names) {
			all[prefix+name] = rule{verdict: v}
		}
	}
	add(honoured, "", "apiVersion kind")
	add(harmless, "", "status")
	add(inside, "", "metadata spec spec.containers spec.volumes spec.volumes[].emptyDir spec.os spec.securityContext")
	add(honoured, "metadata.", "name namespace uid labels annotations")
	add(harmless, "metadata.", "creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName generation managedFields ownerReferences resourceVersion selfLink")
	add(honoured, "spec.", "restartPolicy terminationGracePeriodSeconds dnsPolicy dnsConfig hostNetwork hostPID hostIPC shareProcessNamespace hostUsers hostname hostAliases runtimeClassName os.name")
	add(harmless, "spec.", "nodeName schedulerName tolerations topologySpreadConstraints priority priorityClassName preemptionPolicy automountServiceAccountToken enableServiceLinks overhead")
	add(honoured, "spec.securityContext.", "runAsUser runAsGroup runAsNonRoot supplementalGroups supplementalGroupsPolicy fsGroup sysctls seccompProfile appArmorProfile seLinuxOptions")
	add(harmless, "spec.securityContext.", "fsGroupChangePolicy seLinuxChangePolicy")
	add(honoured, "spec.volumes[].", "name hostPath emptyDir.medium image")
	add(honoured, "spec.containers[].", "name image imagePullPolicy command args workingDir env ports stdin stdinOnce tty resources.limits resources.requests lifecycle.stopSignal")
	add(harmless, "spec.containers[].", "resizePolicy")
	add(inside, "spec.containers[].", "resources lifecycle volumeMounts securityContext")
	add(honoured, "spec.containers[].volumeMounts[].", "name readOnly recursiveReadOnly mountPath subPath mountPropagation")
	add(honoured, "spec.containers[].securityContext.", "capabilities privileged runAsUser runAsGroup runAsNonRoot readOnlyRootFilesystem allowPrivilegeEscalation procMount seccompProfile appArmorProfile seLinuxOptions")
	return all
}()

// checkFields goes through the manifest as it was written: what it says, not what a Go type happens to keep of it.
func checkFields(doc map[string]any) (warnings []string, err error) {
	c := &fieldCheck{}
	c.fields("", "", doc)
	return c.warnings, errors.Join(c.errs...)
}

type fieldCheck struct {
	warnings []string
	errs     []error
}

// fields looks at a mapping: path is where it stands, pattern the same in the words of the rules.
func (c *fieldCheck) fields(path, pattern string, m map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if !unset(m[name]) {
			c.field(join(path, name), join(pattern, name), m[name])
		}
	}
}

func (c *fieldCheck) field(path, pattern string, v any) {
	pattern = strings.Replace(pattern, "spec.initContainers", "spec.containers", 1)
	r := rules[pattern]
	if slices.ContainsFunc(r.unless, func(u any) bool { return u == v }) {
		return
	}
	switch r.verdict {
	case inside:
		c.below(path, pattern, v)
	case warned:
		c.warnings = append(c.warnings, path+" is ignored: "+r.why)
	case refused:
		why := r.why
		if why == "" && strings.HasPrefix(pattern, "spec.volumes[].") {
			why = "only emptyDir, hostPath and image volumes are"
		}
		if why != "" {
			why = ": " + why
		}
		c.errs = append(c.errs, fmt.Errorf("%s: is not supported by berth run%s", path, why))
	}
}

func (c *fieldCheck) below(path, pattern string, v any) {
	switch v := v.(type) {
	case map[string]any:
		c.fields(path, pattern, v)
	case []any:
		for i, e := range v {
			if m, ok := e.(map[string]any); ok {
				c.fields(fmt.Sprintf("%s[%d]", path, i), pattern+"[]", m)
			}
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// unset tells that a field is written down and empty.
func unset(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
