// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

const (
	helperTime = 10 * time.Second
	// maxHelperAnswer is more than any credentials have.
	maxHelperAnswer = 64 << 10
	helperPrefix    = "docker-credential-"
	// noCredentials is what helpers print, and fail, when they have none (docker-credential-helpers, credentials.ErrCredentialsNotFound).
	noCredentials = "credentials not found in native keychain"
	// tokenUser is the user name with which helpers mark a secret as an identity token.
	tokenUser = "<token>"
)

// helperName keeps what a file says from being a path.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// bounded keeps the beginning of what a program writes.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxHelperAnswer + 1 - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// ask runs a credential helper, docker-credential-NAME in PATH; nil when it has none for the server. Its words are in no error: they may be secrets.
func (c *Client) ask(ctx context.Context, helper, server string) (*Auth, error) {
	if !helperName.MatchString(helper) {
		return nil, fmt.Errorf("%q is not a credential helper's name", helper)
	}
	program, err := exec.LookPath(helperPrefix + helper)
	if err != nil {
		return nil, fmt.Errorf("credential helper: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.HelperTime)
	defer cancel()
	cmd := exec.CommandContext(limited, program, "get")
	cmd.Stdin, cmd.WaitDelay = strings.NewReader(server), time.Second
	var out bounded
	cmd.Stdout = &out
	err = cmd.Run()
	switch {
	case limited.Err() != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("credential helper %s: no answer in %s: %w", program, c.cfg.HelperTime, ErrUnavailable)
	case err != nil && strings.Contains(out.String(), noCredentials):
		return nil, nil
	case err != nil:
		return nil, errors.Join(fmt.Errorf("credential helper %s: %w", program, err), ErrUnavailable)
	case out.Len() > maxHelperAnswer:
		return nil, fmt.Errorf("credential helper %s: answer is too long: %w", program, ErrUnavailable)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.Bytes(), &answer) != nil || answer.Secret == "" {
		return nil, fmt.Errorf("credential helper %s: answer is not understood: %w", program, ErrUnavailable)
	}
	if answer.Username == tokenUser {
		return &Auth{IdentityToken: answer.Secret}, nil
	}
	return &Auth{Username: answer.Username, Password: answer.Secret}, nil
}
