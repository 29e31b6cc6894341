// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// seconds is a flag for a time: 30s or 2m, or a bare number of seconds, as crictl takes it. 0 is none.
type seconds struct{ d *time.Duration }

func (s seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, bare := strconv.ParseInt(text, 10, 64); bare == nil {
		if n > int64(math.MaxInt64/time.Second) {
			return fmt.Errorf("%s seconds are too many", text)
		}
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil {
		return errors.New("is no time such as 30s or 2m, and no number of seconds")
	}
	if d < 0 {
		return errors.New("must not be negative")
	}
	*s.d = d
	return nil
}

func (s seconds) String() string {
	if s.d == nil || *s.d == 0 {
		return ""
	}
	return s.d.String()
}

// Type is what the help calls the value.
func (s seconds) Type() string { return "duration" }
