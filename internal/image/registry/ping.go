// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"time"

	"github.com/distribution/reference"
)

// pingTime bounds one host's answer.
const pingTime = 5 * time.Second

// Answer is what one host of a registry says to GET /v2/.
type Answer struct {
	URL string
	// Status is HTTP's, such as "401 Unauthorized": a registry that wants credentials is there.
	Status string
	Err    error
}

// Ping asks a registry and its mirrors, in the order of hosts.toml, whether they are there, without credentials. An error is one of the
// configuration.
func Ping(ctx context.Context, certsDirs []string, domain string) ([]Answer, error) {
	name, err := reference.ParseNormalizedNamed(domain + "/ping")
	if err != nil || reference.Domain(name) != domain {
		return nil, fmt.Errorf("%q is no registry's name", domain)
	}
	c := New(Config{StallTimeout: pingTime, UserAgent: "berth"}, slog.New(slog.DiscardHandler))
	s, err := c.Session(ctx, Request{Name: name, CertsDirs: certsDirs})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var answers []Answer
	for _, h := range s.hosts {
		a := Answer{URL: h.Scheme + "://" + path.Join(h.Host, h.Path) + "/"}
		a.Status, a.Err = ping(ctx, h.Client, a.URL)
		answers = append(answers, a)
	}
	return answers, nil
}

func ping(ctx context.Context, client *http.Client, url string) (status string, err error) {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusNotFound {
		return resp.Status, fmt.Errorf("it answers %s", resp.Status)
	}
	return resp.Status, nil
}
