// SPDX-License-Identifier: Apache-2.0

package shimapi

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// maxFactSize bounds what is read back: a fact is a few hundred bytes.
const maxFactSize = 64 << 10

// ExitFact is how a container's init ended. It is on disk before anybody is told, so a shim that is
// killed right afterwards takes nothing with it.
type ExitFact struct {
	ID string `json:"id"`
	// PID is the init's process id in the host's PID namespace.
	PID int `json:"pid"`
	// ExitCode is what the process returned, or 128+Signal.
	ExitCode uint32 `json:"exit_code"`
	// Signal is the number of the signal that ended the process, 0 if none did.
	Signal    int       `json:"signal"`
	ExitedAt  time.Time `json:"exited_at"`
	StartedAt time.Time `json:"started_at"`
	// OOMKilled tells that the kernel killed a process of the container's cgroup for want of memory.
	OOMKilled bool `json:"oom_killed"`
	// LogBytesDropped counts bytes of output that the log file did not take (ENOSPC, EIO).
	LogBytesDropped uint64 `json:"log_bytes_dropped"`
}

// InitFact identifies a container's init beyond the reuse of its pid.
type InitFact struct {
	// PID is the init's process id in the host's PID namespace.
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat: clock ticks since boot.
	StartTime uint64 `json:"start_time"`
}

// WriteExitFact puts the fact into the bundle, atomically.
func WriteExitFact(bundle string, fact ExitFact) error {
	// By hand, since the shim has no other use for encoding/json in a pod's common life, and each pod would pay
	// for its tables.
	out := appendString(append(make([]byte, 0, 512), `{"id":`...), fact.ID)
	out = strconv.AppendInt(append(out, `,"pid":`...), int64(fact.PID), 10)
	out = strconv.AppendUint(append(out, `,"exit_code":`...), uint64(fact.ExitCode), 10)
	out = strconv.AppendInt(append(out, `,"signal":`...), int64(fact.Signal), 10)
	out = fact.ExitedAt.AppendFormat(append(out, `,"exited_at":"`...), time.RFC3339Nano)
	out = fact.StartedAt.AppendFormat(append(out, `","started_at":"`...), time.RFC3339Nano)
	out = strconv.AppendBool(append(out, `","oom_killed":`...), fact.OOMKilled)
	out = strconv.AppendUint(append(out, `,"log_bytes_dropped":`...), fact.LogBytesDropped, 10)
	return writeFact(bundle, ExitFactName, append(out, "}\n"...))
}

// ReadExitFact returns the bundle's exit fact. The error is fs.ErrNotExist as long as the container
// has not ended (or has never run).
func ReadExitFact(bundle string) (ExitFact, error) {
	var fact ExitFact
	err := readFact(bundle, ExitFactName, &fact)
	return fact, err
}

// WriteInitFact puts the fact into the bundle, atomically.
func WriteInitFact(bundle string, fact InitFact) error {
	out := strconv.AppendInt(append(make([]byte, 0, 128), `{"pid":`...), int64(fact.PID), 10)
	out = strconv.AppendUint(append(out, `,"start_time":`...), fact.StartTime, 10)
	return writeFact(bundle, InitFactName, append(out, "}\n"...))
}

// appendString quotes what is not plain ASCII with the package that knows how.
func appendString(out []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(text) // a string always has an encoding
			return append(out, quoted...)
		}
	}
	return append(append(append(out, '"'), text...), '"')
}

// ReadInitFact returns the bundle's init fact. The error is fs.ErrNotExist if no init was started.
func ReadInitFact(bundle string) (InitFact, error) {
	var fact InitFact
	err := readFact(bundle, InitFactName, &fact)
	return fact, err
}

// writeFact renames a complete file into place. There is no fsync: the state folder does not outlive
// the kernel, and a rename is seen whole by every process.
func writeFact(bundle, name string, data []byte) error {
	temp := filepath.Join(bundle, "."+name)
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return fmt.Errorf("write fact: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(bundle, name)); err != nil {
		return fmt.Errorf("write fact: %w", err)
	}
	return nil
}

func readFact(bundle, name string, fact any) error {
	file, err := os.Open(filepath.Join(bundle, name))
	if err != nil {
		return fmt.Errorf("read fact: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFactSize))
	if err != nil {
		return fmt.Errorf("read fact: %w", err)
	}
	if err := json.Unmarshal(data, fact); err != nil {
		return fmt.Errorf("decode %s: %w", file.Name(), err)
	}
	return nil
}
