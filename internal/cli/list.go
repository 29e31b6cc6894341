// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
)

// listing are the flags that lists share. They are crictl's.
type listing struct {
	quiet, noTrunc, latest bool
	last                   int
	format                 string
	id, state              string
	name, namespace        string
	labels                 []string
}

func (l *listing) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&l.quiet, "quiet", "q", false, "print only IDs")
	f.BoolVar(&l.noTrunc, "no-trunc", false, "print whole IDs")
	f.StringVarP(&l.format, "output", "o", "table", "table, wide, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

func (l *listing) filterFlags(cmd *cobra.Command, states string) {
	f := cmd.Flags()
	f.StringVar(&l.id, "id", "", "only the one with this ID, or a beginning of it")
	f.StringVar(&l.name, "name", "", "only names that match this regular expression")
	f.StringVarP(&l.state, "state", "s", "", "only this state: "+states)
	names := strings.FieldsFunc(strings.ReplaceAll(states, " or ", ","), func(r rune) bool { return r == ',' || r == ' ' })
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	f.StringArrayVar(&l.labels, "label", nil, "only those with this label, KEY=VALUE; may be repeated")
	f.BoolVarP(&l.latest, "latest", "l", false, "only the newest")
	f.IntVarP(&l.last, "last", "n", 0, "only the newest N")
}

// matcher is what of a list is shown.
type matcher struct {
	id              string
	name, namespace *regexp.Regexp
	labels          map[string]string
}

func (l *listing) matcher() (matcher, error) {
	m := matcher{id: l.id, labels: map[string]string{}}
	var err error
	if m.name, err = regexp.Compile(l.name); err != nil {
		return matcher{}, fmt.Errorf("--name: %w", err)
	}
	if m.namespace, err = regexp.Compile(l.namespace); err != nil {
		return matcher{}, fmt.Errorf("--namespace: %w", err)
	}
	for _, label := range l.labels {
		key, value, ok := strings.Cut(label, "=")
		if !ok || key == "" {
			return matcher{}, fmt.Errorf("--label %q: must be KEY=VALUE", label)
		}
		m.labels[key] = value
	}
	if l.last < 0 {
		return matcher{}, fmt.Errorf("--last %d: must not be negative", l.last)
	}
	return m, nil
}

func (m matcher) match(id, name, namespace string, labels map[string]string) bool {
	for key, value := range m.labels {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return strings.HasPrefix(id, m.id) && m.name.MatchString(name) && m.namespace.MatchString(namespace)
}

// newest sorts a list, the newest first, and cuts it.
func newest[T interface{ GetCreatedAt() int64 }](l *listing, all []T) []T {
	slices.SortStableFunc(all, func(a, b T) int { return int(max(-1, min(1, b.GetCreatedAt()-a.GetCreatedAt()))) })
	n := len(all)
	if l.latest {
		n = min(n, 1)
	}
	if l.last > 0 {
		n = min(n, l.last)
	}
	return all[:n]
}

// shown is an ID as the list shows it.
func (l *listing) shown(id string) string {
	if l.noTrunc {
		return id
	}
	return criclient.Short(id)
}

func (l *listing) check() (output.Format, error) {
	f := output.Format(l.format)
	return f, f.Check(output.Table, output.Wide, output.JSON, output.YAML)
}

// printIDs prints one ID a line, whole: scripts hand them on.
func printIDs[T interface{ GetId() string }](cmd *cobra.Command, all []T) error {
	for _, e := range all {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), e.GetId()); err != nil {
			return err
		}
	}
	return nil
}
