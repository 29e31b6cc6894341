// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"encoding/base64"
	"net/url"
	"strings"

	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// minSecret is the shortest text that is looked for: replacing shorter ones would only garble the message.
const minSecret = 4

// nothing replaces nothing.
var nothing = strings.NewReplacer()

// secretsOf finds the credentials in a request. They are kept out of what is logged and answered even where a library has put them
// into an error text: the kubelet copies that text into events that many may read.
func secretsOf(req any) *strings.Replacer {
	pull, ok := req.(interface {
		GetAuth() *runtimeapi.AuthConfig
	})
	if !ok || pull.GetAuth() == nil {
		return nothing
	}
	auth := pull.GetAuth()
	secrets := []string{auth.Password, auth.Auth, auth.IdentityToken, auth.RegistryToken}
	if decoded, err := base64.StdEncoding.DecodeString(auth.Auth); err == nil {
		_, password, _ := strings.Cut(string(decoded), ":")
		secrets = append(secrets, strings.TrimRight(password, "\x00"))
	}
	if auth.Password != "" {
		secrets = append(secrets, base64.StdEncoding.EncodeToString([]byte(auth.Username+":"+auth.Password)))
	}
	var pairs []string
	for _, s := range secrets {
		if len(s) < minSecret {
			continue
		}
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s)} {
			pairs = append(pairs, form, "[redacted]")
		}
	}
	return strings.NewReplacer(pairs...)
}

// redact takes the secrets out of a status error's text. Details go with a changed text: they may hold the same.
func redact(err error, secrets *strings.Replacer) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	if text := secrets.Replace(s.Message()); text != s.Message() {
		return status.Error(s.Code(), text)
	}
	return err
}
