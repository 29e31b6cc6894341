// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/berth-run/berth/internal/config"
)

// checkRestart finds a daemon that has not heard of an upgrade or of a change to its files.
func (d *Doctor) checkRestart(_ context.Context, r report) {
	if d.client == nil {
		return // checkSocket has told why
	}
	const restart = "restart the daemon (`systemctl restart berth`): pods stay"
	good := true
	if d.Version != "" && d.running != d.Version {
		good = false
		r.warn(restart+"; or use the `berth` that belongs to it", "the daemon is version %s, this program %s", d.running, d.Version)
	}
	if changed := d.changedSince(); len(changed) > 0 {
		good = false
		r.warn(restart+"; for keys that are reloadable (`berth config default`) SIGHUP does", "the daemon does not run with what its files say now: %s", strings.Join(changed, ", "))
	}
	if good {
		r.ok("the daemon has this program's version and runs with the configuration as it is")
	}
}

// changedSince are the keys whose values in the files are not those in force. What the daemon's flags say counts more than files; of a daemon with files elsewhere nothing is said.
func (d *Doctor) changedSince() (keys []string) {
	var inForce struct{ Berth []config.Entry }
	if d.ConfigError != nil || json.Unmarshal([]byte(d.info["config"]), &inForce) != nil {
		return nil
	}
	text, err := json.Marshal(config.Entries(d.Config, d.Origins))
	var files []config.Entry
	if err != nil || json.Unmarshal(text, &files) != nil {
		return nil
	}
	theirs := map[string]config.Entry{}
	for _, e := range inForce.Berth {
		if from := folder(e.Origin); from != "" && d.ConfigDir != "" && from != d.ConfigDir {
			return nil
		}
		theirs[e.Key] = e
	}
	for _, e := range files {
		then, ok := theirs[e.Key]
		if !ok && len(theirs) > 0 && folder(e.Origin) != "" || ok && !reflect.DeepEqual(then.Value, e.Value) && flagless(then.Origin) {
			keys = append(keys, e.Key)
		}
	}
	return keys
}

// flagless tells that a value is not of the command line, nor follows from the state folder, which may be.
func flagless(origin string) bool {
	return !strings.HasPrefix(origin, "flag ") && !strings.HasPrefix(origin, "state: ")
}

// folder is that of the configuration whose file, or drop-in, an origin names.
func folder(origin string) string {
	if !strings.HasPrefix(origin, "/") {
		return ""
	}
	file := origin[:max(0, strings.LastIndexByte(origin, ':'))]
	return strings.TrimSuffix(filepath.Dir(file), "/config.d")
}
