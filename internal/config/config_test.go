// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// write makes a configuration folder; names are relative to it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t testing.TB, dir string, overrides ...Override) (*Config, Origins) {
	t.Helper()
	c, o, err := Load(Options{File: filepath.Join(dir, "config.toml"), Overrides: overrides})
	if err != nil {
		t.Fatal(err)
	}
	return c, o
}

func TestDefaultsAreValid(t *testing.T) {
	if p := Validate(Defaults()); len(p) > 0 {
		t.Fatal(p)
	}
}

func TestDefaultsNamesThatOthersBuildOn(t *testing.T) {
	c := Defaults()
	for _, got := range [][2]string{
		{c.Root, "/var/lib/berth"}, {c.State, "/run/berth"}, {c.Socket, "/run/berth/berth.sock"},
		{c.Runtimes["runc"].Root, "/run/berth/runc"}, {c.NRI.Socket, "/var/run/nri/nri.sock"},
		{c.Registry.ConfigPath, "/etc/berth/certs.d"}, {c.Network.ConfDir, "/etc/cni/net.d"},
	} {
		if got[0] != got[1] {
			t.Errorf("default %q, want %q", got[0], got[1])
		}
	}
	if len(c.Hooks.Dirs) > 0 || c.NRI.Enable || len(c.NRI.RequiredPlugins)+len(c.NRI.Reject) > 0 || c.NRI.TolerateMissing != "" {
		t.Errorf("hooks and plugins are on by default: %+v, %+v", c.Hooks, c.NRI)
	}
}

// commented is a setting of the default file that is switched off.
var commented = regexp.MustCompile(`(?m)^#([a-z_]+ = )`)

func TestDefaultFileShowsExactlyTheDefaults(t *testing.T) {
	for name, text := range map[string]string{
		"as it is":             Default(),
		"with every key on":    commented.ReplaceAllString(Default(), "$1"),
		"the effective values": mustShow(t, Defaults()),
	} {
		t.Run(name, func(t *testing.T) {
			c, o := load(t, write(t, map[string]string{"config.toml": text}))
			if !reflect.DeepEqual(c, Defaults()) {
				t.Errorf("got %+v, want %+v", c, Defaults())
			}
			set := 0
			for _, from := range o {
				if from != "default" {
					set++
				}
			}
			if want := map[bool]int{true: 1, false: len(o)}[name == "as it is"]; set != want {
				t.Errorf("%d keys are set by the file, want %d", set, want)
			}
		})
	}
}

func mustShow(t *testing.T, c *Config) string {
	t.Helper()
	text, err := Show(c, Origins{}, "text")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestEveryFieldHasAKeyOfItsOwn(t *testing.T) {
	seen := map[any]string{}
	c := Defaults()
	c.remote("stargz") // there is none by default
	for _, f := range c.fields() {
		if f.doc == "" || f.check == nil {
			t.Errorf("%s has no comment or no check", f.name)
		}
		seen[f.name] = f.name
	}
	want := countLeaves(reflect.TypeFor[Config]())
	if len(seen) != want {
		t.Errorf("%d keys for %d fields of Config", len(seen), want)
	}
}

func countLeaves(ty reflect.Type) int {
	switch ty.Kind() {
	case reflect.Struct:
		n := 0
		for i := range ty.NumField() {
			n += countLeaves(ty.Field(i).Type)
		}
		return n
	case reflect.Map, reflect.Pointer:
		return countLeaves(ty.Elem())
	}
	return 1
}

func TestLaterFilesWinTablesMergeListsReplace(t *testing.T) {
	dir := write(t, map[string]string{
		"config.toml":          "version = 1\nstate = \"/run/b\"\n[network]\nconf_dir = \"/a\"\nbin_dirs = [\"/x\", \"/y\"]\n[runtimes.kata]\npath = \"/k\"\n",
		"config.d/20-b.toml":   "version = 1\nnetwork = { conf_dir = \"/c\" }\nruntimes.kata.root = \"/kr\"\n",
		"config.d/10-a.toml":   "version = 1\n[network]\nconf_dir = \"/b\"\nbin_dirs = [\"/z\"]\nadd_timeout = \"1m30s\"\n",
		"config.d/30-off.conf": "this is not read",
		"config.d/.40.toml":    "nor is this",
		"config.d/50-e.toml":   "# only a comment\n\n",
	})
	c, o := load(t, dir, Override{Key: "root", Value: "/over", Origin: "flag --root"})
	if c.Network.ConfDir != "/c" || !slices.Equal(c.Network.BinDirs, []string{"/z"}) || c.Network.AddTimeout != 90*time.Second {
		t.Errorf("network: %+v", c.Network)
	}
	want := newRuntime()
	want.Path, want.Root = "/k", "/kr"
	if !reflect.DeepEqual(c.Runtimes["kata"], want) {
		t.Errorf("kata: %+v", c.Runtimes["kata"])
	}
	for key, want := range map[string]string{
		"network.conf_dir": dir + "/config.d/20-b.toml:2", "network.bin_dirs": dir + "/config.d/10-a.toml:4",
		"state": dir + "/config.toml:2", "socket": "state: " + dir + "/config.toml:2", "root": "flag --root",
		"runtimes.kata.root": dir + "/config.d/20-b.toml:3", "log.level": "default", "runtimes.kata.type": "default",
		"runtimes.runc.root": "state: " + dir + "/config.toml:2",
	} {
		if o[key] != want {
			t.Errorf("origin of %s: %q, want %q", key, o[key], want)
		}
	}
	if c.Socket != "/run/b/berth.sock" || c.Runtimes["runc"].Root != "/run/b/runc" || c.Root != "/over" {
		t.Errorf("derived: %+v", c)
	}
}

func TestNoFileAtAllIsTheDefaults(t *testing.T) {
	if _, err := os.Stat(filepath.Dir(File)); err == nil {
		t.Skip("this machine has a configuration of its own")
	}
	c, _, err := Load(Options{})
	if err != nil || !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestFileAskedForByNameMustExist(t *testing.T) {
	_, _, err := Load(Options{File: filepath.Join(t.TempDir(), "none.toml")})
	if !errors.As(err, &Problems{}) || !strings.Contains(err.Error(), "none.toml: no such file") {
		t.Errorf("got %v", err)
	}
}

// Each case is the text after "version = 1" of a file and what must be said about it; its first line is line 2.
func TestMistakesAreNamedWithTheirPlace(t *testing.T) {
	cases := []struct{ name, text, want string }{
		{"misspelled key", "[network]\nconf_dirr = \"/x\"", `:3: unknown key "network.conf_dirr", did you mean "network.conf_dir"?`},
		{"misspelled table", "[netwrok]\nconf_dir = \"/x\"", `:2: unknown key "netwrok", did you mean "network"?`},
		{"dotted key", "log.levle = \"info\"", `:2: unknown key "log.levle", did you mean "log.level"?`},
		{"inline table", "cgroup = { driver = \"auto\", parentt = \"x\" }", `:2: unknown key "cgroup.parentt", did you mean "cgroup.parent"?`},
		{"right key in the wrong table", "conf_dir = \"/x\"", `:2: unknown key "conf_dir", did you mean "network.conf_dir"?`},
		{"key of a runtime", "[runtimes.kata]\npaht = \"/x\"", `:3: unknown key "runtimes.kata.paht", did you mean "runtimes.kata.path"?`},
		{"nothing near", "[plugins.\"io.containerd.cri.v1.runtime\"]\nx = 1", `:2: unknown key "plugins"`},
		{"key below a value", "log.level.x = 1", `:2: log.level: must be a string, not a table`},
		{"table as value", "network = 3", `:2: network: must be a table, [network], not the integer 3`},
		{"table written as a list", "[[network]]\nconf_dir = \"/x\"", `:2: network: must be a table, [network], not a list`},
		{"integer for string", "root = 3", `:2: root: must be a string, not the integer 3`},
		{"string for integer", "[registry]\n\nmax_concurrent_downloads = \"3\"", `:4: registry.max_concurrent_downloads: must be an integer, not the string "3"`},
		{"integer for duration", "[network]\nadd_timeout = 60", `:3: network.add_timeout: must be a duration in quotes such as "60s", not the integer 60`},
		{"duration without unit", "[network]\nadd_timeout = \"60\"", `:3: network.add_timeout: "60" is not a duration: write a number with its unit, such as "500ms", "60s" or "2m"`},
		{"duration out of range", "[network]\nadd_timeout = \"0s\"", `:3: network.add_timeout: 0s is out of range: 1s to 1h`},
		{"integer out of range", "[exec]\nsync_output_limit = 16777217", `:3: exec.sync_output_limit: 16777217 is out of range: 1 to 16777216`},
		{"string in list of another type", "[network]\nbin_dirs = [\"/x\", 3]", `:3: network.bin_dirs: each element must be a string, not the integer 3`},
		{"relative path", "state = \"run\"", `:2: state: "run" is not an absolute path`},
		{"unclean path", "state = \"/run//x/\"", `:2: state: "/run//x/" is not a clean path: write "/run/x"`},
		{"one of", "[log]\nlevel = \"inof\"", `:3: log.level: "inof" is not one of debug, info, warn, error, did you mean "info"?`},
		{"runtime name", "[runtimes.Kata]\npath = \"/x\"", `:2: runtimes.Kata: "Kata" is not a runtime handler's name: lower-case letters, digits and -, at most 63`},
		{"default runtime", "default_runtime = \"rucn\"", `:2: default_runtime: there is no [runtimes.rucn], did you mean "runc"?`},
		{"state in root", "root = \"/x\"\nstate = \"/x/y\"", `:3: state: "/x/y" and root "/x" must not be one inside the other`},
		{"unknown adjustment", "[nri]\nreject = [\"hook\"]", `:3: nri.reject: "hook" is not one of hooks, namespaces, sysctls, seccomp_runtime_default, seccomp_unconfined, seccomp_localhost, did you mean "hooks"?`},
		{"required without NRI", "[nri]\nrequired_plugins = [\"quota\"]", `:3: nri.required_plugins: are required, but nri.enable is false`},
		{"bool", "[nri]\nenable = \"no\"", `:3: nri.enable: must be true or false, not the string "no"`},
		{"cgroup", "[cgroup]\nparent = \"../x\"", `:3: cgroup.parent: "../x" is not a cgroup's path`},
		{"pattern of a pinned image", "[images]\npinned = [\"docker.io/[x\"]", `:3: images.pinned: "docker.io/[x" is not a pattern: syntax error in pattern`},
		{"empty pinned image", "[images]\npinned = [\"\"]", `:3: images.pinned: "" is not a reference`},
		{"date", "root = 2020-01-01", `:2: root: must be a string, not a date or time`},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(write(t, map[string]string{"config.toml": "version = 1\n" + tc.text + "\n"}), "config.toml")
			_, _, err := Load(Options{File: file})
			if err == nil || err.Error() != file+tc.want {
				t.Errorf("got  %v\nwant %s%s", err, file, tc.want)
			}
		})
	}
}

func TestSyntaxErrorsHaveLineAndColumn(t *testing.T) {
	for text, want := range map[string]string{
		"version = 1\nroot = \n":                `config\.toml:2:\d+: .+`,
		"version = 1\nroot = \"/a\"\nroot = 3":  `config\.toml:3:\d+: .*root.*`,
		"version = 1\n[log]\n[cgroup]\n[log]\n": `config\.toml:4:\d+: .*log.*`,
		"version = 1\nroot = \"a\xff\"":         `config\.toml:2:\d+: .+`,
	} {
		file := filepath.Join(write(t, map[string]string{"config.toml": text}), "config.toml")
		_, _, err := Load(Options{File: file})
		if err == nil || !regexp.MustCompile(want).MatchString(err.Error()) || strings.Contains(err.Error(), "toml: ") {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestVersionIsRequiredInEachFile(t *testing.T) {
	for text, want := range map[string]string{
		"root = \"/x\"\n":                   `:1: no version: write version = 1 at the top of the file`,
		"\nversion = 2\nfrom_later = true":  `:2: version: this berth reads version 1 of the format, not the integer 2`,
		"version = \"1\"":                   `:1: version: this berth reads version 1 of the format, not the string "1"`,
		"[plugins]\n[plugins.cri]\nx = 1\n": `:1: no version: write version = 1 at the top of the file`,
	} {
		dir := write(t, map[string]string{"config.toml": "version = 1", "config.d/a.toml": text})
		_, _, err := Load(Options{File: filepath.Join(dir, "config.toml")})
		if want := dir + "/config.d/a.toml" + want; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestAllProblemsAreReported(t *testing.T) {
	dir := write(t, map[string]string{
		"config.toml":     "version = 1\nrot = \"/x\"\n[log]\nlevel = 3\nfromat = \"text\"\n",
		"config.d/a.toml": "version = 1\nx = \n",
		"config.d/b.toml": "version = 1\n[exec]\nsync_output_limit = -1\n",
	})
	_, _, err := Load(Options{File: filepath.Join(dir, "config.toml"), Overrides: []Override{{"state", "run", "flag --state"}}})
	var all Problems
	if !errors.As(err, &all) || len(all) != 6 {
		t.Fatalf("got %d problems: %v", len(all), err)
	}
	if want := `flag --state: state: "run" is not an absolute path`; all[5].Error() != want {
		t.Errorf("got %v, want %s", all[5], want)
	}
	var one Problem
	if !errors.As(err, &one) || one.Line != 2 {
		t.Errorf("first problem: %+v", one)
	}
}

func TestUnreadableAndHugeFilesAreProblems(t *testing.T) {
	dir := write(t, map[string]string{"config.toml": strings.Repeat("#\n", maxFile)})
	if _, _, err := Load(Options{File: dir + "/config.toml"}); err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes") {
		t.Errorf("got %v", err)
	}
	if err := os.Mkdir(dir+"/dir.toml", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(Options{File: dir + "/dir.toml"}); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("got %v", err)
	}
}

func TestSocketOfALongStateFolder(t *testing.T) {
	_, _, err := Load(Options{File: write(t, map[string]string{"config.toml": ""}) + "/config.toml",
		Overrides: []Override{{"state", "/" + strings.Repeat("x", 100), "flag --state"}}})
	if err == nil || !strings.Contains(err.Error(), "state: flag --state: socket: ") || !strings.Contains(err.Error(), "too long for a socket") {
		t.Errorf("got %v", err)
	}
}

func TestShowHasValueAndOrigin(t *testing.T) {
	dir := write(t, map[string]string{"config.toml": "version = 1\n[log]\nlevel = \"debug\"\n"})
	c, o := load(t, dir)
	text := mustShowWith(t, c, o, "text")
	if !regexp.MustCompile(`(?m)^level = "debug" +# ` + dir + `/config.toml:3$`).MatchString(text) {
		t.Errorf("text:\n%s", text)
	}
	var entries []Entry
	if err := json.Unmarshal([]byte(mustShowWith(t, c, o, "json")), &entries); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Key == "network.add_timeout" })
	if i < 0 || entries[i].Value != "1m" || entries[i].Origin != "default" {
		t.Errorf("json: %+v", entries)
	}
	if _, err := Show(c, o, "xml"); err == nil {
		t.Error("format xml is accepted")
	}
}

func mustShowWith(t *testing.T, c *Config, o Origins, format string) string {
	t.Helper()
	text, err := Show(c, o, format)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestReloadablePartsWhatARunningDaemonTakes(t *testing.T) {
	old, changed := Defaults(), Defaults()
	changed.Log.Level, changed.Registry.ConfigPath = "debug", "/x"
	changed.Root = "/y"
	changed.Runtimes["kata"] = newRuntime()
	changed.Runtimes["kata"].Root, changed.Runtimes["kata"].Privileged = "/run/berth/kata", false
	reload, restart := Reloadable(old, changed)
	if !slices.Equal(reload, []string{"log.level", "registry.config_path"}) {
		t.Errorf("reloadable: %v", reload)
	}
	wrong := len(restart) < 4 || restart[0] != "root" || !slices.Contains(restart, "runtimes.kata.type")
	for _, key := range restart[1:] {
		wrong = wrong || !strings.HasPrefix(key, "runtimes.kata.")
	}
	if wrong {
		t.Errorf("need a restart: %v", restart)
	}
	if _, restart = Reloadable(changed, old); !slices.Contains(restart, "runtimes.kata.root") {
		t.Errorf("a runtime taken away needs a restart: %v", restart)
	}
	if a, b := Reloadable(old, Defaults()); len(a)+len(b) > 0 {
		t.Errorf("no change: %v %v", a, b)
	}
}

func TestCgroupDriverAutoFollowsSystemd(t *testing.T) {
	for _, tc := range []struct {
		driver  string
		systemd bool
		want    string
	}{{"auto", true, "systemd"}, {"auto", false, "cgroupfs"}, {"cgroupfs", true, "cgroupfs"}, {"systemd", false, "systemd"}} {
		if got := (Cgroup{Driver: tc.driver}).EffectiveDriver(tc.systemd); got != tc.want {
			t.Errorf("%+v: got %s", tc, got)
		}
	}
}

func TestDistanceCountsEditsAndSwaps(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"kitten", "sitting", 3}, {strings.Repeat("x", 5000), "x", maxCompared}} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("distance(%.9q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

// FuzzText: no text makes the loader panic, and what it accepts is valid and shows as a file with the same meaning.
func FuzzText(f *testing.F) {
	f.Add("version = 1\n[log]\nlevel = \"info\"\n[network]\nbin_dirs = [\"/x\"]\nadd_timeout = \"1m\"")
	f.Add("version = 1\nruntimes = {a = {path=\"/x\"}}\n[[log]]")
	f.Add("version = 1\nlog = {level = \"de\\u0062ug\"}\nstate=\"/run/x\"")
	read := func(text string) (*Config, error) {
		l := loader{cfg: base(), origins: Origins{}}
		l.text("config.toml", []byte(text))
		c, _, err := l.finish()
		return c, err
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := read(text)
		if err != nil {
			return
		}
		if p := Validate(c); len(p) > 0 {
			t.Fatalf("the loader accepted what Validate refuses: %v", p)
		}
		again, err := read(mustShow(t, c))
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("shown and read again: %+v, %v; was %+v", again, err, c)
		}
	})
}

// Who is used to YAML leaves the quotes away: the library alone says "unexpected character U+0064 'd'".
func TestAValueWithoutQuotesIsAnsweredWithWhatToWrite(t *testing.T) {
	for _, value := range []string{"debug", "/opt/cni", "True", "yes"} {
		dir := write(t, map[string]string{"config.toml": "version = 1\n[log]\nlevel = " + value + "\n"})
		_, _, err := Load(Options{File: filepath.Join(dir, "config.toml")})
		if err == nil || !strings.Contains(err.Error(), "config.toml:3:9: ") || !strings.Contains(err.Error(), `a text stands in quotes, as "debug"`) {
			t.Errorf("%s: %v", value, err)
		}
	}
}
