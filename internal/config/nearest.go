// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"
	"strings"
)

// didYouMean is the end of an error text: the candidate that got was probably meant to be, or nothing.
func didYouMean(got string, candidates []string) string {
	best, least := "", 1+max(2, len(got)/4)
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if d := distance(got, c); d < least && d < len(got) {
			best, least = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", best)
}

// meantKey is didYouMean for a whole key: a right name in the wrong table is nearer than any misspelling.
func meantKey(path []string) string {
	var candidates []string
	for _, k := range keys {
		want := strings.Split(k.path, ".")
		if len(want) == 3 && len(path) > 1 {
			want[1] = path[1]
		}
		for n := 1; n <= len(want); n++ {
			if name := strings.Join(want[:n], "."); !slices.Contains(candidates, name) {
				candidates = append(candidates, name)
			}
		}
	}
	if text := didYouMean(strings.Join(path, "."), candidates); text != "" {
		return text
	}
	var same []string
	for _, c := range candidates {
		if _, leaf := cutLast(c); leaf == path[len(path)-1] && !strings.Contains(c, anyName) {
			same = append(same, c)
		}
	}
	if len(same) == 1 {
		return fmt.Sprintf(", did you mean %q?", same[0])
	}
	return ""
}

// maxCompared bounds what distance looks at: its work grows with the square.
const maxCompared = 128

// distance counts the edits between a and b: a byte more, less or other, or two neighbours swapped.
func distance(a, b string) int {
	if len(a) > maxCompared || len(b) > maxCompared {
		return maxCompared
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			other := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				other++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, other)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
