package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sys/unix"
)

const (
	barInterval   = 200 * time.Millisecond // between updates of the bar, and between looks at the rate
	plainInterval = 10 * time.Second       // between lines where there is no terminal, unless BTREXPORT_PROGRESS_INTERVAL
	rateWindow    = 10 * time.Second
	patienceETA   = 3 * time.Second // what a rate says before is guesswork
	narrowest     = 20              // columns of a terminal that a bar fits into
)

// progress tells how far a job is: a bar on a terminal, else a line from time to time, with --json a
// status object; and a line at once on SIGUSR1. It owns the terminal's last line from start to stop.
type progress struct {
	path     atomic.Pointer[string] // what is being read
	every    time.Duration          // between lines or objects; 0: neither those nor a bar
	json     io.Writer              // nil: not --json
	err      io.Writer
	bar      *progressbar.ProgressBar // nil: no terminal
	term     *os.File                 // that the bar is on
	repaired func() int64
	verify   func() (bad int64, copies int) // of verify: blocks found bad, copies read of each; else nil
	signals  chan os.Signal
	quit     chan struct{}
	ended    chan struct{} // nil until start
	stopped  bool
	screen   sync.Mutex // held while something is printed: the bar and what interrupts it share a line

	done  atomic.Uint64
	total uint64 // set by start
	meter meter
}

// newProgress prepares to tell about path. From then on SIGUSR1 does not end the program. Objects go to
// json unless it is nil, all else to standard error.
func (a *app) newProgress(path string, json io.Writer, repaired func() int64) (*progress, error) {
	p := &progress{every: plainInterval, json: json, err: a.err, repaired: repaired,
		signals: make(chan os.Signal, 1), quit: make(chan struct{})}
	p.path.Store(&path)
	if s := os.Getenv("BTREXPORT_PROGRESS_INTERVAL"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return nil, usagef("BTREXPORT_PROGRESS_INTERVAL: %q is no duration (write 30s or 1m; 0 for no progress)", s)
		}
		p.every = d
	}
	if f, ok := a.err.(*os.File); ok && json == nil && p.every > 0 && isTerminal(f) && os.Getenv("TERM") != "dumb" {
		p.term = f
	}
	signal.Notify(p.signals, unix.SIGUSR1)
	if p.term != nil {
		// Else a standard output that nobody reads any more ended the program with the bar on the terminal.
		signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	}
	return p, nil
}

// start begins to tell; total is the bytes that there are to read.
func (p *progress) start(total uint64) {
	p.total = total
	if p.term != nil {
		p.bar = newBar(p.term, total, utf8Locale(os.Getenv))
	}
	p.ended = make(chan struct{})
	p.meter.observe(time.Now(), 0)
	go p.run()
}

// add counts bytes that were read.
func (p *progress) add(n uint64) { p.done.Add(n) }

// aside prints something where the bar is; the bar comes back behind it.
func (p *progress) aside(print func()) {
	p.screen.Lock()
	defer p.screen.Unlock()
	p.clear()
	print()
}

// stop ends it and leaves nothing of the bar. It may be called twice, and when start was not. SIGUSR1 stays
// caught: one that comes late must not end the program.
func (p *progress) stop() {
	if p.stopped {
		return
	}
	p.stopped = true
	close(p.quit)
	if p.ended != nil {
		<-p.ended
	}
	p.clear()
	signal.Reset(unix.SIGPIPE)
}

func (p *progress) run() {
	defer close(p.ended)
	tick := time.NewTicker(barInterval)
	defer tick.Stop()
	told := time.Now()
	for {
		select {
		case <-p.quit:
			return
		case <-p.signals:
			s := p.status(time.Now())
			p.aside(func() { p.tell(s) })
		case now := <-tick.C:
			s := p.status(now)
			switch {
			case p.bar != nil:
				p.draw(&s)
			case p.every > 0 && now.Sub(told) >= p.every:
				told = now
				p.aside(func() { p.tell(s) })
			}
		}
	}
}

func (p *progress) status(now time.Time) status {
	p.meter.observe(now, p.done.Load())
	s := p.meter.status(p.total, p.repaired())
	if p.verify != nil {
		s.verify = true
		s.bad, s.copies = p.verify()
	}
	return s
}

// tell prints a line or an object. A reader that is gone is no reason to end the job.
func (p *progress) tell(s status) {
	if p.json != nil {
		_ = printJSON(p.json, s.object(*p.path.Load()))
		return
	}
	fmt.Fprintln(p.err, s.line(*p.path.Load()))
}

func (p *progress) draw(s *status) {
	width := terminalWidth(p.term)
	if width < narrowest {
		return
	}
	p.screen.Lock()
	defer p.screen.Unlock()
	p.bar.Describe(s.besideBar(width))
	// The last byte is held back, so that the bar does not vanish when all is read and not yet all on the disk.
	_ = p.bar.Set64(min(int64(s.done), p.bar.GetMax64()-1))
	io.WriteString(p.term, "\r") // what others print, ^C among it, stays in this line
}

func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}

// newBar makes the bar, which a total of 0 would break.
func newBar(w *os.File, total uint64, utf8 bool) *progressbar.ProgressBar {
	theme := progressbar.Theme{Saucer: "#", SaucerPadding: "-", BarStart: "[", BarEnd: "]"}
	if utf8 {
		theme = progressbar.ThemeDefault
	}
	return progressbar.NewOptions64(max(int64(total), 1), progressbar.OptionSetWriter(w), progressbar.OptionFullWidth(), progressbar.OptionSetTheme(theme),
		progressbar.OptionSetPredictTime(false), progressbar.OptionUseANSICodes(true), progressbar.OptionClearOnFinish(),
		progressbar.OptionShowDescriptionAtLineEnd())
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalWidth is in columns; 0 when it is not known.
func terminalWidth(f *os.File) int {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(ws.Col)
}
