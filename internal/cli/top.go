// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
)

// topFlags are the flags of `berth top`.
type topFlags struct {
	sort     string
	interval seconds
	count    int
}

// order is one way to sort.
type order struct {
	name string
	key  byte
	less func(a, b *topRow) int
}

// orders are what top sorts by, the most first; the letters are its keys.
var orders = []order{
	{"cpu", 'c', func(a, b *topRow) int { return cmp.Compare(b.cpu, a.cpu) }},
	{"memory", 'm', func(a, b *topRow) int { return cmp.Compare(b.memory, a.memory) }},
	{"network", 'n', func(a, b *topRow) int { return cmp.Compare(b.rx+b.tx, a.rx+a.tx) }},
	{"restarts", 'r', func(a, b *topRow) int { return cmp.Compare(b.restarts, a.restarts) }},
	{"name", 'a', func(a, b *topRow) int { return cmp.Compare(a.title(), b.title()) }},
}

func (c *CLI) topCommand() *cobra.Command {
	var names []string
	for _, o := range orders {
		names = append(names, o.name)
	}
	l := topFlags{interval: seconds{new(time.Duration)}}
	*l.interval.d = 2 * time.Second
	cmd := &cobra.Command{
		Use:               "top",
		Short:             "Show live what containers use",
		Long:              "Show live what running containers use. Keys: c, m, n, r, a sort by CPU, memory, network, restarts, name; q ends.",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.top(cmd, &l) },
	}
	f := cmd.Flags()
	f.StringVar(&l.sort, "sort", "cpu", "sort by "+strings.Join(names, ", "))
	f.VarP(l.interval, "interval", "d", "how often to look, as 2s or a number of seconds")
	f.IntVarP(&l.count, "count", "n", 0, "look so many times, then end")
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return cmd
}

func (c *CLI) top(cmd *cobra.Command, l *topFlags) error {
	by := slices.IndexFunc(orders, func(o order) bool { return o.name == l.sort })
	switch {
	case by < 0:
		return fmt.Errorf("--sort %q is not one of cpu, memory, network, restarts, name", l.sort)
	case *l.interval.d < 100*time.Millisecond:
		return fmt.Errorf("--interval %s: is shorter than 100ms", *l.interval.d)
	}
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	s := &screen{to: cmd.OutOrStdout()}
	restore := s.open(cmd.InOrStdin())
	defer restore()
	var before *look
	for n := 1; ; n++ {
		now, err := lookAt(cmd.Context(), client)
		if err != nil {
			return err
		}
		if err := s.draw(now, before, by); err != nil {
			return err
		}
		if n == l.count {
			return nil
		}
		if before == nil || now.at.Sub(before.at) > *l.interval.d/2 { // a key brings the next look early: too early for a rate
			before = now
		}
		if !s.wait(cmd.Context(), *l.interval.d, &by) {
			return nil
		}
	}
}

// look is what there is at one instant.
type look struct {
	at   time.Time
	pods map[string]*runtimeapi.PodSandboxStats
	rows []*topRow
}

type topRow struct {
	namespace, pod, name, id string
	sandbox                  string
	cpuNanos, cpuAt          int64
	cpu                      float64 // per cent of one core; negative: not known, which takes two looks
	memory, limit            uint64
	rx, tx                   float64 // bytes a second, of the whole pod; negative: not known
	restarts                 uint32
}

func (r *topRow) title() string { return r.namespace + "/" + r.pod + "/" + r.name }

func lookAt(ctx context.Context, client *criclient.Client) (*look, error) {
	ctx, cancel := client.Read(ctx)
	defer cancel()
	answer, err := client.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, client.Error("top", err)
	}
	l := &look{at: time.Now(), pods: map[string]*runtimeapi.PodSandboxStats{}}
	for _, p := range answer.GetStats() {
		md := p.GetAttributes().GetMetadata()
		l.pods[p.GetAttributes().GetId()] = p
		for _, s := range p.GetLinux().GetContainers() {
			m := s.GetMemory()
			r := &topRow{namespace: md.GetNamespace(), pod: md.GetName(), name: s.GetAttributes().GetMetadata().GetName(), id: s.GetAttributes().GetId(),
				sandbox: p.GetAttributes().GetId(), cpuNanos: int64(s.GetCpu().GetUsageCoreNanoSeconds().GetValue()), cpuAt: s.GetCpu().GetTimestamp(),
				cpu: -1, rx: -1, tx: -1, memory: m.GetWorkingSetBytes().GetValue(), restarts: s.GetAttributes().GetMetadata().GetAttempt()}
			if a := m.GetAvailableBytes(); a != nil {
				r.limit = r.memory + a.GetValue()
			}
			l.rows = append(l.rows, r)
		}
	}
	return l, nil
}

// rates fills in what takes two looks.
func (l *look) rates(before *look) {
	if before == nil {
		return
	}
	old := map[string]*topRow{}
	for _, r := range before.rows {
		old[r.id] = r
	}
	for _, r := range l.rows {
		if o := old[r.id]; o != nil && r.cpuAt > o.cpuAt && r.cpuNanos >= o.cpuNanos {
			r.cpu = float64(r.cpuNanos-o.cpuNanos) / float64(r.cpuAt-o.cpuAt) * 100
		}
		r.rx, r.tx = networkRate(before.pods[r.sandbox], l.pods[r.sandbox])
	}
}

func networkRate(before, now *runtimeapi.PodSandboxStats) (rx, tx float64) {
	a, b := before.GetLinux().GetNetwork(), now.GetLinux().GetNetwork()
	seconds := float64(b.GetTimestamp()-a.GetTimestamp()) / 1e9
	if a == nil || b == nil || seconds <= 0 {
		return -1, -1
	}
	grown := func(a, b uint64) float64 { return float64(max(b, a)-a) / seconds }
	return grown(a.GetDefaultInterface().GetRxBytes().GetValue(), b.GetDefaultInterface().GetRxBytes().GetValue()),
		grown(a.GetDefaultInterface().GetTxBytes().GetValue(), b.GetDefaultInterface().GetTxBytes().GetValue())
}

// screen is the terminal, or whatever the output is.
type screen struct {
	to   io.Writer
	keys chan byte
	live bool
	fd   int
}

// open takes over the terminal where there is one; the function returned gives it back.
func (s *screen) open(in io.Reader) (restore func()) {
	out, isFile := s.to.(*os.File)
	if !isFile || !term.IsTerminal(int(out.Fd())) {
		return func() {}
	}
	s.live, s.fd = true, int(out.Fd())
	fmt.Fprint(s.to, "\x1b[?1049h\x1b[?25l") // the other screen, no cursor
	back := func() { fmt.Fprint(s.to, "\x1b[?25h\x1b[?1049l") }
	keyboard, isFile := in.(*os.File)
	if !isFile || !term.IsTerminal(int(keyboard.Fd())) {
		return back
	}
	state, err := term.MakeRaw(int(keyboard.Fd()))
	if err != nil {
		return back
	}
	s.keys = make(chan byte)
	go func() { // it ends with the program, which is waiting for a key then
		var b [1]byte
		for {
			if n, err := keyboard.Read(b[:]); err != nil || n == 0 {
				return
			}
			s.keys <- b[0]
		}
	}()
	return func() {
		_ = term.Restore(int(keyboard.Fd()), state) // nothing better can be done
		back()
	}
}

const (
	defaultWidth  = 80
	defaultHeight = 24
	ctrlC         = 3
)

func (s *screen) draw(now, before *look, by int) error {
	now.rates(before)
	slices.SortStableFunc(now.rows, func(a, b *topRow) int {
		return cmp.Or(orders[by].less(a, b), cmp.Compare(a.title(), b.title()), cmp.Compare(a.id, b.id))
	})
	rows := output.Head("NAMESPACE", "POD", "CONTAINER", "CPU %", "MEM", "LIMIT", "RX/s", "TX/s", "RESTARTS")
	shown := now.rows
	width, height := defaultWidth, defaultHeight
	if s.live {
		if w, h, err := term.GetSize(s.fd); err == nil && w > 0 && h > 0 {
			width, height = w, h
		}
		shown = shown[:min(len(shown), max(0, height-4))]
	}
	for _, r := range shown {
		limit := ""
		if r.limit > 0 {
			limit = output.Memory(r.limit)
		}
		cpu := "" // printed as what is not known
		if r.cpu >= 0 {
			cpu = fmt.Sprintf("%.1f", r.cpu)
		}
		rows.Add(r.namespace, r.pod, r.name, cpu, output.Memory(r.memory), limit, rate(r.rx), rate(r.tx), strconv.FormatUint(uint64(r.restarts), 10))
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s  %d pods, %d containers, by %s\n", now.at.Format(time.TimeOnly), len(now.pods), len(now.rows), orders[by].name)
	if err := rows.Print(&text); err != nil {
		return err
	}
	frame := text.String()
	if s.live {
		frame = "\x1b[H\x1b[2J" + strings.ReplaceAll(cut(frame, width), "\n", "\r\n") // a raw terminal does not return the carriage
	}
	_, err := io.WriteString(s.to, frame)
	return err
}

// cut shortens each line to width: one that went on below would push the head off the screen.
func cut(text string, width int) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if letters := []rune(line); len(letters) > width {
			lines[i] = string(letters[:max(0, width-1)]) + "…"
		}
	}
	return strings.Join(lines, "\n")
}

func rate(bytes float64) string {
	if bytes < 0 {
		return ""
	}
	return output.Size(uint64(bytes))
}

// wait waits for the next look; false: the user has enough.
func (s *screen) wait(ctx context.Context, interval time.Duration, by *int) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(interval):
		return true
	case key := <-s.keys:
		if key == 'q' || key == ctrlC {
			return false
		}
		for i, o := range orders {
			if o.key == key {
				*by = i
			}
		}
		return true
	}
}
