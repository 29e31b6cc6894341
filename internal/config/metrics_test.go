// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"
)

func TestMetricsStayWithThoseWhoMaySeeThem(t *testing.T) {
	for name, c := range map[string]struct {
		m    Metrics
		want string
	}{
		"off":                         {Metrics{}, ""},
		"loopback":                    {Metrics{Address: "127.0.0.1:9464"}, ""},
		"loopback, six":               {Metrics{Address: "[::1]:9464"}, ""},
		"a socket with debugging":     {Metrics{Address: "unix:///run/berth/metrics.sock", Debug: true}, ""},
		"TLS":                         {Metrics{Address: "10.0.0.1:9464", CertFile: "/c", KeyFile: "/k"}, ""},
		"TLS for clients, debugging":  {Metrics{Address: "10.0.0.1:9464", CertFile: "/c", KeyFile: "/k", ClientCAFile: "/a", Debug: true}, ""},
		"all the world":               {Metrics{Address: "0.0.0.0:9464"}, "metrics.address"},
		"half a pair":                 {Metrics{Address: "10.0.0.1:9464", CertFile: "/c"}, "metrics.cert_file"},
		"a CA without a certificate":  {Metrics{Address: "127.0.0.1:1", ClientCAFile: "/a"}, "metrics.client_ca_file"},
		"TLS on a socket":             {Metrics{Address: "unix:///run/m", CertFile: "/c", KeyFile: "/k"}, "metrics.cert_file"},
		"debugging for all users":     {Metrics{Address: "127.0.0.1:9464", Debug: true}, "metrics.debug"},
		"debugging for all with cert": {Metrics{Address: "127.0.0.1:9464", CertFile: "/c", KeyFile: "/k", Debug: true}, "metrics.debug"},
	} {
		got := validateMetrics(c.m)
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || got[0].Key != c.want) {
			t.Errorf("%s: got %v, want %q", name, got, c.want)
		}
	}
	for _, address := range []string{"localhost:9464", ":9464", "9464", "unix://relative", "http://127.0.0.1:1", "unix:///" + strings.Repeat("x", 200)} {
		if metricsAddress(address) == nil {
			t.Errorf("%q is taken", address)
		}
	}
}
