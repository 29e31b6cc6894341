// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"
	"time"
)

func TestRemoteSnapshotters(t *testing.T) {
	dir := write(t, map[string]string{"config.toml": "version = 1\n[images]\nsnapshotter = \"stargz\"\n[snapshotters.stargz]\naddress = \"/run/s.sock\"\n" +
		"[snapshotters.nydus]\naddress = \"/run/n.sock\"\ntimeout = \"5s\"\n"})
	c, o := load(t, dir)
	if c.Images.Snapshotter != "stargz" || *c.Snapshotters["stargz"] != (Snapshotter{"/run/s.sock", 30 * time.Second}) ||
		*c.Snapshotters["nydus"] != (Snapshotter{"/run/n.sock", 5 * time.Second}) {
		t.Errorf("got %+v %+v", c.Images, c.Snapshotters)
	}
	if text, err := Show(c, o, "text"); err != nil || !strings.Contains(text, "[snapshotters.nydus]\naddress = \"/run/n.sock\"") {
		t.Errorf("%v: %s", err, text)
	}
	for text, says := range map[string]string{
		"[images]\nsnapshotter = \"stargs\"\n[snapshotters.stargz]\naddress = \"/s\"\n": "there is no [snapshotters.stargs]",
		"[snapshotters.stargz]\ntimeout = \"5s\"\n":                                     "snapshotters.stargz.address",
		"[snapshotters.erofs]\naddress = \"/s\"\n":                                      "of its own",
		"[snapshotters.stargz]\naddress = \"run/s\"\n":                                  "absolute path",
	} {
		dir := write(t, map[string]string{"config.toml": "version = 1\n" + text})
		_, _, err := Load(Options{File: dir + "/config.toml"})
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}
