// SPDX-License-Identifier: Apache-2.0

package registry

import "net/http"

// harmless are the headers that a host which a registry redirects to gets.
var harmless = []string{"Accept", "Accept-Encoding", "Range", "User-Agent"}

// stripped takes from a request that was redirected to another host what is for the first one only: credentials, and the headers of
// hosts.toml. net/http does so for Authorization, unless just the port is another one or the host is below the first.
func stripped(r *http.Request) *http.Request {
	if r.Response == nil || r.Response.Request == nil || asked(r).URL.Host == r.URL.Host {
		return r
	}
	r = r.Clone(r.Context())
	kept := http.Header{}
	for _, k := range harmless {
		if v, ok := r.Header[k]; ok {
			kept[k] = v
		}
	}
	r.Header = kept
	return r
}

// asIs asks for content as it is: the resolver takes encodings, which win nothing for layers, and of which zstd takes what memory the sender likes.
func asIs(r *http.Request) *http.Request {
	if r.Header.Get("Accept-Encoding") == "" {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Set("Accept-Encoding", "identity")
	return r
}

// asked is the request that led to r by redirects.
func asked(r *http.Request) *http.Request {
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request
	}
	return r
}
