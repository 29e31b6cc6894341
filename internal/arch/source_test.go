// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const spdx = "// SPDX-License-Identifier: Apache-2.0"

// source is one Go file as the rules see it.
type source struct {
	path      string
	generated bool
	test      bool
	spdx      bool
	pkg       string
	comment   bool
	lines     int
	functions []function
}

type function struct {
	name  string
	lines int
}

// loadSources parses every Go file of the module at root, whatever its build tags; other modules inside it are not ours.
func loadSources(root string) ([]source, error) {
	var all []source
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return skipFolder(root, p, e.Name())
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		s, err := parseSource(filepath.ToSlash(rel), text)
		all = append(all, s)
		return err
	})
	return all, err
}

func skipFolder(root, p, name string) error {
	if p == root {
		return nil
	}
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "vendor" {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}

func parseSource(name string, text []byte) (source, error) {
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, name, text, parser.ParseComments)
	if err != nil {
		return source{}, fmt.Errorf("parse %s: %w", name, err)
	}
	s := source{
		path: name, generated: ast.IsGenerated(f), test: strings.HasSuffix(name, "_test.go"), pkg: f.Name.Name, comment: f.Doc != nil,
		spdx: strings.HasPrefix(string(text), spdx+"\n"), lines: strings.Count(string(text), "\n"),
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			lines := files.Position(fn.Body.Rbrace).Line - files.Position(fn.Body.Lbrace).Line - 1
			s.functions = append(s.functions, function{functionName(fn), lines})
		}
	}
	return s, nil
}

// functionName is "F" or "T.M".
func functionName(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return fn.Name.Name
	}
	receiver := fn.Recv.List[0].Type
	for {
		switch t := receiver.(type) {
		case *ast.StarExpr:
			receiver = t.X
		case *ast.IndexExpr:
			receiver = t.X
		case *ast.IndexListExpr:
			receiver = t.X
		case *ast.Ident:
			return t.Name + "." + fn.Name.Name
		default:
			return fn.Name.Name
		}
	}
}

// checkFiles holds each file to the rules for files.
func checkFiles(sources []source, longFiles, longFunctions map[string]string) []violation {
	var found []violation
	stale := map[string]string{}
	for name := range longFiles {
		stale[name] = "longFiles"
	}
	for name := range longFunctions {
		stale[name] = "longFunctions"
	}
	for _, s := range sources {
		if s.generated {
			continue
		}
		if !s.spdx {
			found = append(found, violation{s.path, "does not begin with the licence line", "the first line of a Go file is " + spdx,
				"scanners read the licence of a file off it"})
		}
		if s.test {
			continue
		}
		if s.lines > maxFileLines {
			delete(stale, s.path)
			if longFiles[s.path] == "" {
				found = append(found, violation{s.path, fmt.Sprintf("has %d lines", s.lines), fmt.Sprintf("a file has at most %d lines", maxFileLines),
					"split it by noun; a table may stand in longFiles with its reason"})
			}
		}
		for _, f := range s.functions {
			if f.lines <= maxFunctionLines {
				continue
			}
			name := s.path + ":" + f.name
			delete(stale, name)
			if longFunctions[name] == "" {
				found = append(found, violation{name, fmt.Sprintf("has %d lines", f.lines), fmt.Sprintf("a function has at most %d lines", maxFunctionLines),
					"what carries the product must be readable in one look; a table may stand in longFunctions with its reason"})
			}
		}
	}
	for _, name := range sortedKeys(stale) {
		found = append(found, violation{name, "is excepted in " + stale[name] + " without need", "exceptions are needed",
			"the next reader would take it for still too long"})
	}
	return found
}

// checkPackages holds each folder to the rules for packages.
func checkPackages(sources []source) []violation {
	type pkg struct{ name, commentIn, doubled string }
	packages := map[string]*pkg{}
	// A package of tests only has its comment in a test file.
	onlyTests := map[string]bool{}
	for _, s := range sources {
		dir := path.Dir(s.path)
		if _, seen := onlyTests[dir]; !seen {
			onlyTests[dir] = true
		}
		onlyTests[dir] = onlyTests[dir] && s.test
	}
	for _, s := range sources {
		dir := path.Dir(s.path)
		if s.test && !onlyTests[dir] {
			continue
		}
		p := packages[dir]
		if p == nil {
			p = &pkg{name: strings.TrimSuffix(s.pkg, "_test")}
			packages[dir] = p
		}
		switch {
		case s.generated && p.name != "":
			// A generated package is described by what it is generated from.
			if p.commentIn == "" {
				p.commentIn = "generated"
			}
		case s.comment && (p.commentIn == "" || p.commentIn == "generated"):
			p.commentIn = s.path
		case s.comment:
			p.doubled = s.path
		}
	}
	var found []violation
	for _, dir := range sortedKeys(packages) {
		p := packages[dir]
		if slices.Contains(badNames, p.name) || slices.Contains(badNames, path.Base(dir)) {
			found = append(found, violation{dir, "is called " + p.name, "a package is named for the thing it gives",
				"a name that fits everything gathers everything"})
		}
		if p.commentIn == "" {
			found = append(found, violation{dir, "has no package comment", "each package has one comment",
				"it says what the package is for and who may use it"})
		}
		if p.doubled != "" {
			found = append(found, violation{dir, "has package comments in " + p.commentIn + " and " + p.doubled, "each package has one comment",
				"two drift apart"})
		}
	}
	return found
}
