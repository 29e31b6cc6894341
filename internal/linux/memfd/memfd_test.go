// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"fmt"
	"io"
	"os"
	"testing"
)

func TestDataIsReadFromTheStartAndThroughProc(t *testing.T) {
	file, err := New("test", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	data, err := io.ReadAll(file)
	if err != nil || string(data) != "content" {
		t.Fatalf("%q, %v", data, err)
	}
	data, err = os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil || string(data) != "content" {
		t.Fatalf("%q, %v", data, err)
	}
}
