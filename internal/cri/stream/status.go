// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// exitError is the end of a command with a code other than 0.
type exitError struct{ code int }

func (e exitError) Error() string { return "command terminated with exit code " + strconv.Itoa(e.code) }

// status is metav1.Status, as far as clients look at it.
type status struct {
	Status  string         `json:"status"`
	Message string         `json:"message,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Details *statusDetails `json:"details,omitempty"`
	Code    int            `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// statusText tells the client how its session ended: as JSON since version 4 of the protocol, before that as a text where it failed.
func statusText(err error, exec, asJSON bool) []byte {
	var exit exitError
	st := status{Status: "Success"}
	switch {
	case errors.As(err, &exit):
		st = status{Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: "command terminated with non-zero exit code: " + exit.Error(),
			Details: &statusDetails{Causes: []statusCause{{Reason: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.code)}}}}
	case err != nil && exec:
		st = status{Status: "Failure", Reason: "InternalError", Code: 500, Message: fmt.Sprintf("error executing command in container: %v", err)}
	case err != nil:
		st = status{Status: "Failure", Reason: "InternalError", Code: 500, Message: fmt.Sprintf("error attaching to container: %v", err)}
	}
	if !asJSON {
		return []byte(st.Message)
	}
	text, err := json.Marshal(st)
	if err != nil {
		return nil // of strings and numbers: it does not happen
	}
	return text
}
