//go:build linux

package faultfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// look is how often a read that waits looks whether its reader was killed.
const look = 100 * time.Millisecond

// File is one image as the directory shows it. Without a fault it reads as the image does.
type File struct {
	path  string          // immutable: where readers find it
	image *os.File        // immutable
	size  int64           // immutable
	ended <-chan struct{} // immutable: closed when the test ends

	mu      sync.Mutex
	now     faults        // guarded by mu
	changed chan struct{} // guarded by mu: closed, and replaced, when now changes
	reads   int64         // guarded by mu: that have come
	held    int           // guarded by mu: that wait
	at      int64         // guarded by mu: the read, counted as reads counts, that calls then
	then    func()        // guarded by mu
}

// faults are those of one moment. The zero value is a healthy disk. Its slices are never changed.
type faults struct {
	bad   []span        // answered with an error
	hung  []span        // not answered
	delay time.Duration // from a read's coming to its answer
	lost  bool          // no disk: opening and reading are ENXIO
	cut   bool          // short answers
	most  int           // bytes of an answer while cut
}

// span is the range [off, end) of a file.
type span struct {
	off, end int64
	err      syscall.Errno
}

func openFile(path, image string, ended <-chan struct{}) (*File, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{path: path, image: f, size: size, ended: ended, changed: make(chan struct{})}, nil
}

// Path is where the file is.
func (f *File) Path() string { return f.path }

// Loop lays a block device over the file until the test ends, which releases what hangs. The loop
// driver makes EIO of most errors and of no bytes, and asks again for what a short answer lacks; of
// an answer that is no multiple of 512 bytes Linux 6.18 makes wrong bytes.
func (f *File) Loop(t testing.TB) (path string) {
	t.Helper()
	path, detach, err := kernelfs.LoopOver(f.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Release()
		if err := detach(); err != nil {
			t.Error(err)
		}
	})
	return path
}

// Reads is how many reads have come, answered or not. One read of a program is several when it is
// longer than 1 MiB.
func (f *File) Reads() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

// Held is how many reads wait at this moment, because of Hang or Delay.
func (f *File) Held() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// Fail answers reads that touch [off, off+n) with err, beside the ranges that fail already.
func (f *File) Fail(off, n int64, err syscall.Errno) {
	f.set(func(s *faults) { s.bad = append(s.bad[:len(s.bad):len(s.bad)], span{off, off + n, err}) })
}

// FailAll answers every read with err.
func (f *File) FailAll(err syscall.Errno) { f.Fail(0, math.MaxInt64, err) }

// Delay answers every read d after it came, also those that wait already.
func (f *File) Delay(d time.Duration) { f.set(func(s *faults) { s.delay = d }) }

// Hang answers no read until Release, Heal or Lose.
func (f *File) Hang() { f.HangRange(0, math.MaxInt64) }

// HangRange does so for reads that touch [off, off+n), beside the ranges that hang already.
func (f *File) HangRange(off, n int64) {
	f.set(func(s *faults) { s.hung = append(s.hung[:len(s.hung):len(s.hung)], span{off: off, end: off + n}) })
}

// Release ends Hang, HangRange and Delay: the reads that wait are answered as the other faults will.
func (f *File) Release() { f.set(func(s *faults) { s.hung, s.delay = nil, 0 }) }

// Short answers every read with no bytes and no error, as a disk does that was pulled.
func (f *File) Short() { f.Cut(0) }

// Cut answers reads with n bytes at most.
func (f *File) Cut(n int) { f.set(func(s *faults) { s.cut, s.most = true, n }) }

// Lose takes the disk away: what waits, and every read and open from now on, is answered with ENXIO.
func (f *File) Lose() { f.set(func(s *faults) { *s = faults{lost: true} }) }

// Heal takes all faults back, and what After still had to do.
func (f *File) Heal() {
	f.mu.Lock()
	f.then = nil
	f.mu.Unlock()
	f.set(func(s *faults) { *s = faults{} })
}

// After has the n-th read from now, counted from 1, call fault before it is answered itself. It
// replaces an earlier After that has not come to pass.
func (f *File) After(n int64, fault func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.then = f.reads+n, fault
}

func (f *File) set(change func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.now)
	close(f.changed)
	f.changed = make(chan struct{})
}

// state gives the faults of now, and the channel that tells when there are others.
func (f *File) state() (faults, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now, f.changed
}

// read answers a read of n bytes at off by the thread tid.
func (f *File) read(off int64, n, tid uint32) ([]byte, syscall.Errno) {
	f.begin()
	now, err := f.wait(off, off+int64(n), tid)
	if err != 0 {
		return nil, err
	}
	if now.lost {
		return nil, syscall.ENXIO
	}
	if s := touched(now.bad, off, off+int64(n)); s != nil {
		return nil, s.err
	}
	if now.cut {
		n = min(n, uint32(now.most))
	}
	b := make([]byte, n)
	got, failed := f.image.ReadAt(b, off)
	if failed != nil && failed != io.EOF {
		return nil, syscall.EIO
	}
	return b[:got], 0
}

// begin counts a read and does what After wants of it.
func (f *File) begin() {
	f.mu.Lock()
	f.reads++
	var then func()
	if f.then != nil && f.reads >= f.at {
		then, f.then = f.then, nil
	}
	f.mu.Unlock()
	if then != nil {
		then()
	}
}

// wait returns when a read of [off, end) is to be answered, with the faults of that moment.
func (f *File) wait(off, end int64, tid uint32) (faults, syscall.Errno) {
	came := time.Now()
	for waiting := false; ; waiting = true {
		now, changed := f.state()
		left := now.delay - time.Since(came)
		if touched(now.hung, off, end) != nil {
			left = look
		}
		if left <= 0 {
			return now, 0
		}
		if !waiting {
			f.hold(1)
			defer f.hold(-1)
		}
		select {
		case <-changed:
		case <-f.ended:
			return faults{}, syscall.EIO
		case <-time.After(min(left, look)):
			if Killed(tid) {
				return faults{}, syscall.EINTR
			}
		}
	}
}

func (f *File) hold(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held += n
}

// touched gives a span that has a byte in [off, end), nil when none has.
func touched(list []span, off, end int64) *span {
	for i := range list {
		if off < list[i].end && list[i].off < end {
			return &list[i]
		}
	}
	return nil
}

// Killed says whether SIGKILL waits for a thread: it was sent, or another thread ended the process.
func Killed(tid uint32) bool {
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil { // a thread of another PID namespace, or none
		return false
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if mask, ok := strings.CutPrefix(lines.Text(), "SigPnd:"); ok { // hexadecimal, signal s is bit s-1
			pending, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0
		}
	}
	return false
}
