// SPDX-License-Identifier: Apache-2.0

// Package runtime is the daemon's client of shims: it starts one for each pod, finds it again after a restart,
// speaks containerd's Task v3 and berth's own small service to it, and clears up after one that is gone. It
// also knows the configured OCI runtimes, which it never runs itself but for `--version`, `features`
// and `delete`. Package pod uses it through interfaces of its own, daemon builds it.
package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/singleflight"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

// DefaultHandler answers to the empty name, too, unless Config says otherwise.
const DefaultHandler = "runc"

// Config is what a Runtime is built from.
type Config struct {
	// ShimPath is the berth-shim binary: an absolute path, or a name to look up in PATH.
	ShimPath string
	// StateDir holds what a reboot clears: <StateDir>/pods/<sandbox> and the OCI runtimes' own state.
	StateDir string
	// Handlers are the OCI runtimes by the name that a pod's runtime class uses.
	Handlers map[string]Handler
	// Default is the handler for pods that name none; empty: DefaultHandler.
	Default string
}

// Handler is one configured OCI runtime.
type Handler struct {
	Name string
	// Path is its binary: an absolute path, or a name to look up in PATH.
	Path string
	// Root is its --root; empty: <StateDir>/<Name>.
	Root string
	// Args come first on its command line.
	Args []string
	// SystemdCgroup passes --systemd-cgroup.
	SystemdCgroup bool
	// Native tells that a container's processes are processes of this kernel (runc, crun; not gVisor), so
	// that they can be signalled without an exec of the runtime.
	Native bool
	// SandboxContainer: it wants a container of its own for each pod, which the others join (gVisor, Kata).
	SandboxContainer bool
	// Foreign: Path is berth-shim, which drives Program, a containerd shim or runsc, that Args name.
	Foreign bool
	// Program is looked for like Path; empty: Path is all there is.
	Program string
	// Sandboxed: Program is runsc, which reaches ports inside its sandboxes by `port-forward`.
	Sandboxed bool
	// EntersNoUserNamespace: it has user namespaces of its own making only (gVisor), and a pod's is there before it.
	EntersNoUserNamespace bool
}

// Runtime starts and finds shims. It is safe for concurrent use; calls about one and the same sandbox's
// start and end are the caller's to serialise.
type Runtime struct {
	shimPath string
	stateDir string
	handlers map[string]Handler
	fallback string // the handler that answers to ""
	cgroups  *cgroup.Hierarchies
	moves    cgroup.Anticipation
	log      *slog.Logger

	probing  singleflight.Group // by binary and question
	forwards sync.Once          // before the first connection to a port in a sandbox

	mu      sync.Mutex
	probes  map[string]probe
	watches map[*watch]struct{}
	closed  bool
}

// New checks that every binary that the configuration names is there and can be run.
func New(cfg Config, log *slog.Logger) (*Runtime, error) {
	cgroups, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	if !filepath.IsAbs(cfg.StateDir) {
		return nil, fmt.Errorf("runtime: state folder %q is not an absolute path", cfg.StateDir)
	}
	r := &Runtime{stateDir: cfg.StateDir, handlers: make(map[string]Handler, len(cfg.Handlers)), fallback: cfg.Default,
		cgroups: cgroups, log: log, probes: make(map[string]probe), watches: make(map[*watch]struct{})}
	if r.fallback == "" {
		r.fallback = DefaultHandler
	}
	var problems []error
	if r.shimPath, err = findBinary(cfg.ShimPath); err != nil {
		problems = append(problems, fmt.Errorf("shim: %w (set path in [shim])", err))
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Handlers)) {
		h := cfg.Handlers[name]
		h.Name = name
		if err := r.addHandler(h); err != nil {
			problems = append(problems, err)
		}
	}
	if _, ok := cfg.Handlers[r.fallback]; !ok {
		problems = append(problems, fmt.Errorf("default handler %q is not configured (add [runtimes.%s])", r.fallback, r.fallback))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("runtime: %w", err)
	}
	return r, nil
}

func (r *Runtime) addHandler(h Handler) error {
	if err := validID(h.Name); err != nil {
		return fmt.Errorf("handler %q: %w", h.Name, err)
	}
	path, err := findBinary(h.Path)
	if err != nil {
		return fmt.Errorf("handler %q: %w (set path in [runtimes.%s])", h.Name, err, h.Name)
	}
	h.Path = path
	if h.Program != "" {
		if h.Program, err = findBinary(h.Program); err != nil {
			return fmt.Errorf("handler %q: %w (set path in [runtimes.%s])", h.Name, err, h.Name)
		}
	}
	if h.Root == "" {
		h.Root = filepath.Join(r.stateDir, h.Name)
	}
	r.handlers[h.Name] = h
	return nil
}

// findBinary returns the absolute path of an executable file.
func findBinary(name string) (string, error) {
	if name == "" {
		return "", errors.New("no path is configured")
	}
	path, err := exec.LookPath(name)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("%s is not in PATH", name)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s does not exist", name)
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("%s is not executable", name)
	case err != nil:
		return "", fmt.Errorf("look for %s: %w", name, err)
	}
	return filepath.Abs(path)
}

// validID keeps a name to one path element that is no option either.
func validID(id string) error {
	if id == "" || strings.HasPrefix(id, ".") || strings.HasPrefix(id, "-") || strings.ContainsAny(id, "/\x00") || len(id) > 128 {
		return fmt.Errorf("%w: %q cannot name a folder", ErrInvalid, id)
	}
	return nil
}

// Handlers returns the configured handlers, sorted by name, the default one first.
func (r *Runtime) Handlers() []Handler {
	list := slices.Collect(maps.Values(r.handlers))
	slices.SortFunc(list, func(a, b Handler) int {
		if (a.Name == r.fallback) != (b.Name == r.fallback) {
			if a.Name == r.fallback {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}

// Handler returns a handler by name; "" is the default one. ErrNoHandler lists those that there are.
func (r *Runtime) Handler(name string) (Handler, error) {
	if name == "" {
		name = r.fallback
	}
	h, ok := r.handlers[name]
	if !ok {
		return Handler{}, fmt.Errorf("%w: %q is not among %s", ErrNoHandler, name,
			strings.Join(slices.Sorted(maps.Keys(r.handlers)), ", "))
	}
	return h, nil
}

// Close stops watching the shims that this Runtime started. They go on; a new daemon finds them.
func (r *Runtime) Close() {
	r.mu.Lock()
	r.closed = true
	watches := slices.Collect(maps.Keys(r.watches))
	r.mu.Unlock()
	for _, w := range watches {
		w.close()
	}
}

// podDir is the sandbox's state folder.
func (r *Runtime) podDir(sandbox string) string {
	return filepath.Join(r.stateDir, "pods", sandbox)
}

// makeDir makes a folder for root's eyes only, whatever the umask. Others may be let through one that is there: the root of a user namespace.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o066 == 0 {
		return err
	}
	return os.Chmod(dir, 0o700)
}
