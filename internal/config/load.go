// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxFile bounds a file: a configuration of a megabyte is a mistake, and the daemon reads it as root.
const maxFile = 1 << 20

// fromDefault is the origin of a value that nobody has set.
const fromDefault = "default"

// Options says where the configuration is.
type Options struct {
	// File is the file that was asked for by name and so must exist; empty: File, which may be missing.
	File string
	// Overrides are stronger than every file; a later one wins.
	Overrides []Override
}

// Override is one value from the command line.
type Override struct {
	// Key is the key as the file would have it, "log.level".
	Key   string
	Value string
	// Origin is where it comes from, "flag --root".
	Origin string
}

// Origins says where the effective value of each key came from: "default", "FILE:LINE", an Override's Origin, or
// "state: …" where it follows from the state folder's.
type Origins map[string]string

// Load reads the file and its drop-ins, applies the overrides and checks everything. Later files win; tables merge, lists replace. Its
// error is of type Problems and has all that is wrong, not just the first.
func Load(o Options) (*Config, Origins, error) {
	l := loader{cfg: base(), origins: Origins{}}
	files, err := o.files()
	if err != nil {
		return nil, nil, Problems{{Text: err.Error()}}
	}
	for _, f := range files {
		l.file(f)
	}
	for _, ov := range o.Overrides {
		l.override(ov)
	}
	return l.finish()
}

// files lists what there is to read, in the order of reading.
func (o Options) files() ([]string, error) {
	main, required := o.File, true
	if main == "" {
		main, required = File, false
	}
	var files []string
	switch _, err := os.Stat(main); {
	case err == nil:
		files = append(files, main)
	case required || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	dropIns, err := os.ReadDir(filepath.Join(filepath.Dir(main), "config.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for _, e := range dropIns { // os.ReadDir sorts by name
		if name := e.Name(); !e.IsDir() && strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			files = append(files, filepath.Join(filepath.Dir(main), "config.d", name))
		}
	}
	return files, nil
}

// loader gathers values and problems over all files.
type loader struct {
	cfg      *Config
	origins  Origins
	problems Problems
}

// finish fills in what nobody has set and checks the whole.
func (l *loader) finish() (*Config, Origins, error) {
	derive(l.cfg, l.origins)
	for _, f := range l.cfg.fields() {
		if _, set := l.origins[f.name]; !set {
			l.origins[f.name] = fromDefault
		}
	}
	l.together()
	if len(l.problems) > 0 {
		return nil, nil, l.problems
	}
	return l.cfg, l.origins, nil
}

func (l *loader) file(name string) {
	data, err := readBounded(name)
	if err != nil {
		l.problems = append(l.problems, Problem{File: name, Text: err.Error()})
		return
	}
	l.text(name, data)
}

// text takes over one file's text.
func (l *loader) text(name string, data []byte) {
	doc, err := parse(name, data)
	var syntax Problem
	if errors.As(err, &syntax) {
		l.problems = append(l.problems, syntax)
		return
	}
	if len(doc.values) == 0 {
		return
	}
	// The keys of another version may mean something else: say only that.
	switch v, ok := doc.values["version"]; {
	case !ok:
		l.problems = append(l.problems, Problem{File: name, Line: 1, Text: fmt.Sprintf("no version: write version = %d at the top of the file", Version)})
		return
	case v != int64(Version):
		l.problems = append(l.problems, Problem{File: name, Line: doc.line([]string{"version"}), Key: "version",
			Text: fmt.Sprintf("this berth reads version %d of the format, not %s", Version, kindOf(v))})
		return
	}
	l.table(name, doc, nil, doc.values)
}

// table takes over one table of a file, in the order of its lines.
func (l *loader) table(file string, doc document, prefix []string, values map[string]any) {
	paths := make([][]string, 0, len(values))
	for name := range values {
		paths = append(paths, append(slices.Clone(prefix), name))
	}
	slices.SortFunc(paths, func(a, b []string) int {
		if d := doc.line(a) - doc.line(b); d != 0 {
			return d
		}
		return strings.Compare(a[len(a)-1], b[len(b)-1])
	})
	for _, path := range paths {
		v, line := values[path[len(path)-1]], doc.line(path)
		if sub, problem := l.set(path, v, fmt.Sprintf("%s:%d", file, line)); problem != nil {
			problem.File, problem.Line = file, line
			l.problems = append(l.problems, *problem)
		} else if sub != nil {
			l.table(file, doc, path, sub)
		}
	}
}

// set gives the key at path its value. Where path is a table it returns what is in it.
func (l *loader) set(path []string, v any, origin string) (map[string]any, *Problem) {
	name := strings.Join(path, ".")
	k, free, table := find(path)
	sub, isTable := v.(map[string]any)
	switch {
	case k == nil && !table:
		return nil, &Problem{Text: fmt.Sprintf("unknown key %q%s", name, meantKey(path))}
	case table && !isTable:
		return nil, &Problem{Key: name, Text: fmt.Sprintf("must be a table, [%s], not %s", name, kindOf(v))}
	}
	if free != "" {
		if err := handler(free); err != nil {
			return nil, &Problem{Key: name, Text: err.Error()}
		}
		l.cfg.add(path[0], free)
	}
	if table {
		return sub, nil
	}
	// Into a scratch copy first: a value that is refused must not take part in the checks of the whole.
	scratch := k.at(&Config{Runtimes: map[string]*Runtime{}, Snapshotters: map[string]*Snapshotter{}}, free)
	if err := assign(scratch, v); err != nil {
		return nil, &Problem{Key: name, Text: err.Error()}
	}
	if err := k.check(value(scratch)); err != nil {
		return nil, &Problem{Key: name, Text: err.Error()}
	}
	if err := assign(k.at(l.cfg, free), v); err != nil {
		return nil, &Problem{Key: name, Text: err.Error()}
	}
	l.origins[name] = origin
	return nil, nil
}

func (l *loader) override(o Override) {
	if _, problem := l.set(strings.Split(o.Key, "."), o.Value, o.Origin); problem != nil {
		problem.File = o.Origin
		l.problems = append(l.problems, *problem)
	}
}

// together checks the values against each other. A value that was refused has left its default behind, which can clash with
// others: so only when everything else is right.
func (l *loader) together() {
	if len(l.problems) > 0 {
		return
	}
	for _, p := range Validate(l.cfg) {
		p.File, p.Line = origin(l.origins[p.Key])
		l.problems = append(l.problems, p)
	}
}

// origin parts "FILE:LINE". A default comes from no file.
func origin(from string) (file string, line int) {
	if from == fromDefault {
		return "", 0
	}
	i := strings.LastIndexByte(from, ':')
	if i > 0 {
		if _, err := fmt.Sscanf(from[i:], ":%d", &line); err == nil {
			return from[:i], line
		}
	}
	return from, 0
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	return data, nil
}
