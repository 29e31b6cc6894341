// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// tomlBlock is an example in a page.
var tomlBlock = regexp.MustCompile("(?s)```toml\n(.*?)```")

// TestExamplesOfThePagesAreValid: every key that docs/runtime-classes.md names is there, and takes that value.
func TestExamplesOfThePagesAreValid(t *testing.T) {
	page, err := os.ReadFile("../../docs/runtime-classes.md")
	if err != nil {
		t.Fatal(err)
	}
	handlers := 0
	for _, block := range tomlBlock.FindAllSubmatch(page, -1) {
		text := string(block[1])
		if strings.HasPrefix(text, "[plugins.") {
			continue // containerd's
		}
		c, _ := load(t, write(t, map[string]string{"config.toml": "version = 1\n" + text}))
		handlers += len(c.Runtimes) - 1
	}
	if handlers < 6 {
		t.Errorf("%d handlers in the examples", handlers)
	}
}
