package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMeter drives a meter by a clock of its own.
func TestMeter(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	type look struct {
		at   float64
		done uint64
	}
	const mib = 1 << 20
	for _, c := range []struct {
		name  string
		looks []look // the first one at 0
		rate  float64
		left  time.Duration // of 100 MiB
	}{
		{"just started", []look{{0, 0}}, 0, -1},
		{"too early to say", []look{{0, 0}, {2.9, 29 * mib}}, 10 * mib, -1},
		{"after 3 s", []look{{0, 0}, {3, 30 * mib}}, 10 * mib, 7 * time.Second},
		{"the last 10 s alone", []look{{0, 0}, {5, 50 * mib}, {10, 60 * mib}, {15, 65 * mib}, {20, 70 * mib}}, mib, 30 * time.Second},
		{"many looks", func() (l []look) {
			for i := range 301 { // 20 s at 2 MiB/s, 40 s at 1 MiB/s
				l = append(l, look{float64(i) / 5, uint64(min(i, 100)*2*mib/5 + max(0, i-100)*mib/5)})
			}
			return l
		}(), mib, 20 * time.Second},
		{"stands still", []look{{0, 0}, {1, 50 * mib}, {20, 50 * mib}, {40, 50 * mib}}, 0, -1},
		{"one look in a long time", []look{{0, 0}, {60, 60 * mib}}, mib, 40 * time.Second},
		{"all read", []look{{0, 0}, {10, 100 * mib}}, 10 * mib, 0},
	} {
		var m meter
		for _, l := range c.looks {
			m.observe(at(l.at), l.done)
		}
		last := c.looks[len(c.looks)-1]
		s := m.status(100*mib, 0)
		if d := s.rate - c.rate; d > 1 || d < -1 || (s.left-c.left).Abs() > 10*time.Millisecond || s.elapsed != at(last.at).Sub(start) || s.done != last.done {
			t.Errorf("%s: %.0f bytes a second, %v left, %v elapsed; want %.0f, %v", c.name, s.rate, s.left, s.elapsed, c.rate, c.left)
		}
		if n := len(m.marks); n > 53 {
			t.Errorf("%s: %d marks are kept", c.name, n)
		}
	}
}

func TestStatusText(t *testing.T) {
	early := status{done: 1, total: 1 << 30, left: -1}
	half := status{done: 512 << 20, total: 1 << 30, rate: 640 << 20, left: 65 * time.Second, elapsed: 9 * time.Second, repaired: 3}
	end := status{done: 7, total: 7, left: 0}
	verify := status{done: 7, total: 7, left: 0, verify: true, bad: 5, copies: 2}
	for _, c := range []struct {
		s     status
		width int
		line  string
		bar   string
	}{
		{early, 80, "/f: 0%, 1 B of 1 GiB, 0 B/s", "     1 B/1 GiB       0 B/s           "},
		{half, 80, "/f: 50%, 512 MiB of 1 GiB, 640 MiB/s, 1:05 left, 3 blocks repaired", " 512 MiB/1 GiB   640 MiB/s  ETA 1:05   3 repaired"},
		{half, 60, "/f: 50%, 512 MiB of 1 GiB, 640 MiB/s, 1:05 left, 3 blocks repaired", " 512 MiB/1 GiB   640 MiB/s  ETA 1:05 "},
		{half, 50, "/f: 50%, 512 MiB of 1 GiB, 640 MiB/s, 1:05 left, 3 blocks repaired", " 512 MiB/1 GiB   640 MiB/s"},
		{half, 40, "/f: 50%, 512 MiB of 1 GiB, 640 MiB/s, 1:05 left, 3 blocks repaired", " 512 MiB/1 GiB"},
		{half, 30, "/f: 50%, 512 MiB of 1 GiB, 640 MiB/s, 1:05 left, 3 blocks repaired", ""},
		{end, 80, "/f: 100%, 7 B of 7 B, 0 B/s, 0:00 left", "     7 B/7 B       0 B/s  flushing "},
		{verify, 90, "/f: 100%, 7 B of 7 B, 0 B/s, 0:00 left, 2 copies, 5 bad blocks", "     7 B/7 B       0 B/s  ETA 0:00   5 bad  2 copies"},
	} {
		if got := c.s.line("/f"); got != c.line {
			t.Errorf("got %q, want %q", got, c.line)
		}
		if got := c.s.besideBar(c.width); got != c.bar {
			t.Errorf("%d columns: got %q, want %q", c.width, got, c.bar)
		}
	}
}

func TestClock(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0:00", 9900 * time.Millisecond: "0:09", 750 * time.Second: "12:30", 7384 * time.Second: "2:03:04",
		100*time.Hour - 1: "99:59:59", 100 * time.Hour: "4 days"} {
		if got := clock(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestUTF8Locale(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want bool
	}{
		{nil, false}, {map[string]string{"LANG": "C"}, false}, {map[string]string{"LANG": "de_DE.UTF-8"}, true},
		{map[string]string{"LANG": "C.utf8", "LC_ALL": "C"}, false}, {map[string]string{"LANG": "C", "LC_CTYPE": "C.utf8"}, true},
	} {
		if got := utf8Locale(func(name string) string { return c.env[name] }); got != c.want {
			t.Errorf("%v: got %v", c.env, got)
		}
	}
}

// notes is a buffer that two goroutines share.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

func startProgress(t *testing.T, a *app, w io.Writer) *progress {
	t.Helper()
	p, err := a.newProgress("/f", w, func() int64 { return 2 })
	if err != nil {
		t.Fatal(err)
	}
	p.start(1000)
	p.add(250)
	return p
}

// TestProgressLines waits for lines and for objects where there is no terminal, and for SIGUSR1.
func TestProgressLines(t *testing.T) {
	t.Setenv("BTREXPORT_PROGRESS_INTERVAL", "1ms")
	var text, objects notes
	p := startProgress(t, &app{err: &text}, nil)
	waitFor(t, func() bool { return strings.Count(text.String(), "\n") >= 2 })
	p.stop()
	p.stop()
	if got := text.String(); !regexp.MustCompile(`^(/f: 25%, 250 B of 1000 B, \S+ \S*B/s, 2 blocks repaired\n)+$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
	p = startProgress(t, &app{err: &text}, &objects)
	waitFor(t, func() bool { return strings.Count(objects.String(), "\n") >= 2 })
	p.stop()
	var s statusJSON
	if err := json.Unmarshal([]byte(strings.Split(objects.String(), "\n")[0]), &s); err != nil || s.MessageType != "status" || s.Path != "/f" ||
		s.Done != 250 || s.Total != 1000 || s.Repaired != 2 || s.Left != nil {
		t.Errorf("%+v, error %v", s, err)
	}

	t.Setenv("BTREXPORT_PROGRESS_INTERVAL", "0")
	var asked notes
	p = startProgress(t, &app{err: &asked}, nil)
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return asked.String() != "" })
	p.stop()
	if got := asked.String(); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "/f: 25%") {
		t.Errorf("asked once: got %q", got)
	}
	p, err := (&app{err: &asked}).newProgress("/f", nil, func() int64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	p.stop() // without a start
}

// TestProgressBar looks at a terminal while the bar is on it, and after.
func TestProgressBar(t *testing.T) {
	for _, c := range []struct {
		locale, want string
	}{
		{"C.UTF-8", `^  25% \|█+ +\|     250 B/1000 B +\S+ \S*B/s +2 repaired $`},
		{"C", `^  25% \[#+-+\]     250 B/1000 B +\S+ \S*B/s +2 repaired $`},
	} {
		t.Setenv("LC_ALL", c.locale)
		t.Setenv("TERM", "xterm")
		t.Setenv("BTREXPORT_PROGRESS_INTERVAL", "")
		out, term := openTerminal(t, 80)
		p := startProgress(t, &app{err: term}, nil)
		if p.term == nil {
			t.Fatal("no terminal")
		}
		waitFor(t, func() bool { return regexp.MustCompile(c.want).MatchString(screen(out.String())[0]) })
		p.stop()
		fmt.Fprintln(term, "the end")
		waitFor(t, func() bool { return strings.HasSuffix(out.String(), "the end\r\n") })
		if got := screen(out.String()); len(got) != 2 || got[0] != "the end" || got[1] != "" {
			t.Errorf("%s: left on the terminal: %q", c.locale, got)
		}
	}
	t.Setenv("TERM", "dumb")
	_, term := openTerminal(t, 80)
	p := startProgress(t, &app{err: term}, nil)
	defer p.stop()
	if p.term != nil {
		t.Error("a bar on a terminal that can't move its cursor")
	}
}

// openTerminal gives a new terminal and what is printed on it.
func openTerminal(t *testing.T, columns uint16) (*notes, *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo terminals here:", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	term, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { term.Close() })
	if err := unix.IoctlSetWinsize(int(term.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	out := &notes{}
	go io.Copy(out, master) // ends when both sides are closed
	return out, term
}

// screen shows output as a terminal does that knows \r, \n and to erase in a line, and nothing else.
func screen(s string) []string {
	lines, at := [][]rune{nil}, 0
	for s != "" {
		line := &lines[len(lines)-1]
		switch {
		case strings.HasPrefix(s, "\x1b[2K"):
			*line, s = make([]rune, 0), s[4:]
			continue
		case strings.HasPrefix(s, "\x1b[0K"):
			*line, s = (*line)[:min(at, len(*line))], s[4:]
			continue
		}
		r := []rune(s)[0]
		s = s[len(string(r)):]
		switch r {
		case '\r':
			at = 0
		case '\n':
			lines = append(lines, nil)
		default:
			for len(*line) <= at {
				*line = append(*line, ' ')
			}
			(*line)[at] = r
			at++
		}
	}
	var out []string
	for _, l := range lines {
		out = append(out, string(l))
	}
	return out
}
