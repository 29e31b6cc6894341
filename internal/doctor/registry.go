// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"

	"github.com/berth-run/berth/internal/image/registry"
)

// checkRegistries asks each registry, and each of its mirrors, for /v2/: it answers, or says that it wants credentials.
func (d *Doctor) checkRegistries(ctx context.Context, r report) {
	for _, name := range d.Registries {
		answers, err := registry.Ping(ctx, d.Config.Registry.ConfigPaths(), name)
		if err != nil {
			r.fail("correct its hosts.toml in "+d.Config.Registry.ConfigPath, "registry %s: %v", name, err)
			continue
		}
		reached := 0
		for _, a := range answers {
			if a.Err == nil {
				reached++
				r.ok("registry %s: %s answers (%s)", name, a.URL, a.Status)
				continue
			}
			r.warn("see the way there: name service, routes, proxy variables of the daemon's unit, certificates", "registry %s: %s: %v", name, a.URL, a.Err)
		}
		if reached == 0 {
			r.fail("images of "+name+" cannot be pulled: see the lines above", "registry %s: none of its %d hosts can be reached", name, len(answers))
		}
	}
}
