package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/configs"
	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/kernelnbd"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// TestClassify is the rule of the exit statuses, case by case.
func TestClassify(t *testing.T) {
	lost := func(causes ...error) *fsread.LostError {
		l := volume.Lost{}
		for _, c := range causes {
			l.Copies = append(l.Copies, &volume.CopyError{Err: c})
		}
		return &fsread.LostError{Ranges: []fsread.LostRange{{Cause: l}}}
	}
	block := func(causes ...error) error { return fmt.Errorf("tree 5: %w", &lost(causes...).Ranges[0].Cause) }
	at := configs.Pos{File: "c.yaml", Line: 3}
	for _, c := range []struct {
		name string
		err  error
		code int
		kind string
	}{
		{"flag", usagef("unknown flag"), 2, "usage"},
		{"usage that wraps a kind", usagef("cp: %w", fsread.ErrIsDir), 2, "usage"},
		{"configuration", at.Errorf("unknown key"), 2, "configuration"},
		{"configuration with a missing path", at.Errorf("%w", &fsread.PathError{Err: fsread.ErrNotExist}), 2, "not-found"},
		{"configuration on bad data", at.Errorf("%w", block(ondisk.ErrChecksum)), 1, "checksum"},
		{"no such device", &devio.OpenError{Err: fs.ErrNotExist}, 2, "device"},
		{"directory as device", &devio.OpenError{Err: devio.ErrKind}, 2, "device"},
		{"device not allowed", &devio.OpenError{Err: syscall.EACCES}, 1, "permission"},
		{"device that fails", &devio.OpenError{Err: syscall.EIO}, 1, "io"},
		{"no btrfs", volume.ErrNoFilesystem, 2, "device"},
		{"two filesystems", volume.ErrDevices, 2, "device"},
		{"missing device", fmt.Errorf("filesystem x: %w", &volume.MissingError{}), 2, "missing-device"},
		{"too few devices for the chunk tree", block(volume.ErrMissing), 2, "missing-device"},
		{"one copy missing, one bad", block(volume.ErrMissing, ondisk.ErrChecksum), 1, "checksum"},
		{"one copy missing, one unreadable", block(volume.ErrMissing, syscall.EIO), 1, "io"},
		{"mounted", fmt.Errorf("x: %w", errMounted), 2, "mounted"},
		{"data lost by checksum", lost(ondisk.ErrChecksum, volume.ErrMissing), 1, "checksum"},
		{"data lost by a missing device", lost(volume.ErrMissing), 1, "lost"},
		{"feature", &ondisk.UnsupportedError{Feature: "zoned"}, 1, "unsupported"},
		{"no NBD driver", fmt.Errorf("attach: %w", kernelnbd.ErrNoDriver), 1, "no-driver"},
		{"no NBD device", kernelnbd.ErrNotDevice, 2, "device"},
		{"NBD device in use", fmt.Errorf("attach: %w", &kernelnbd.InUseError{PID: 7}), 1, "in-use"},
		{"server that wants TLS", kernelnbd.ErrTLS, 2, "usage"},
		{"server to attach that is not there", &kernelnbd.ConnectError{Err: fs.ErrNotExist}, 1, "connect"},
		{"another export than before", kernelnbd.ErrChanged, 1, "changed"},
		{"no such path", &fsread.PathError{Err: fsread.ErrNotExist}, 2, "not-found"},
		{"no such subvolume", noSubvolume(7), 2, "not-found"},
		{"directory", &fsread.PathError{Err: fsread.ErrIsDir}, 2, "is-directory"},
		{"fifo", &fsread.PathError{Err: fsread.ErrNotRegular}, 2, "not-regular"},
		{"link", &fsread.PathError{Err: fsread.ErrLinkLeaves}, 2, "link"},
		{"log that can't be replayed", &fsread.LogError{Subvolume: 5, Err: &ondisk.Error{Item: "x"}}, 1, "corrupt"},
		{"corrupt", &ondisk.Error{Item: "x"}, 1, "corrupt"},
		{"DEST exists", fs.ErrExist, 2, "exists"},
		{"disk full", &writeError{syscall.ENOSPC}, 1, "no-space"},
		{"busy", fmt.Errorf("listen: %w", export.ErrInUse), 1, "in-use"},
		{"unreachable", connectKind{syscall.ENOENT}, 1, "connect"},
		{"interrupted", context.Canceled, 1, "interrupted"},
		{"panic", fmt.Errorf("%w: %v", errInternal, fs.ErrExist), 1, "internal"},
		{"other", errors.New("other"), 1, "io"},
	} {
		if code, kind := classify(c.err); code != c.code || kind != c.kind {
			t.Errorf("%s: got %d %s, want %d %s", c.name, code, kind, c.code, c.kind)
		}
	}
}

func TestEach(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	both := fmt.Errorf("%w and %w", a, b)
	got := each(errors.Join(errors.Join(a, both), c))
	if want := []error{a, both, c}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestReport(t *testing.T) {
	var b bytes.Buffer
	a := &app{err: &b}
	err := errors.Join(&fsread.PathError{Path: "/a\x1b[2J", Err: fsread.ErrIsDir}, errors.New("two\nlines"))
	if got := a.report(err); got != exitUsage {
		t.Errorf("status %d, want %d", got, exitUsage)
	}
	want := "btrexport: /a\\x1b[2J: is a directory (name a regular file, or use ls)\nbtrexport: two\\nlines\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	b.Reset()
	if got := a.report(fmt.Errorf("run: %w", exitStatus(42))); got != 42 || b.Len() > 0 {
		t.Errorf("status of another program: got %d and %q, want 42 and nothing", got, &b)
	}
}

// TestPanic holds that a panic is told in one line.
func TestPanic(t *testing.T) {
	var b bytes.Buffer
	if got := run([]string{"version"}, nil, nil, &b); got != exitFailed {
		t.Errorf("status %d, want %d", got, exitFailed)
	}
	if got := b.String(); !strings.HasPrefix(got, "btrexport: internal error: ") || strings.Count(got, "\n") != 1 {
		t.Errorf("got %q", got)
	}
}

func TestNewLogger(t *testing.T) {
	for _, c := range []struct {
		level, format string
		journal       bool
		want          string // a regular expression
	}{
		{"info", "text", true, `^level=WARN msg=m\n$`},
		{"info", "text", false, `^time=\S+ level=WARN msg=m\n$`},
		{"WARN", "json", true, `^{"level":"WARN","msg":"m"}\n$`},
		{"debug", "json", false, `^{"time":"[^"]+","level":"WARN","msg":"m"}\n$`},
		{"error", "text", true, `^$`},
	} {
		var b bytes.Buffer
		log, err := newLogger(&b, c.level, c.format, c.journal)
		if err != nil {
			t.Fatal(err)
		}
		log.Warn("m")
		if !regexp.MustCompile(c.want).MatchString(b.String()) {
			t.Errorf("%+v: got %q", c, &b)
		}
	}
}

func TestSplitDevices(t *testing.T) {
	for in, want := range map[string][]string{"": nil, ":": nil, "a": {"a"}, "a:b,c:": {"a", "b,c"}} {
		if got := splitDevices(in); !slices.Equal(got, want) {
			t.Errorf("splitDevices(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestLabelOrUUID(t *testing.T) {
	for in, want := range map[string]string{"": "u", "tank": "tank", "a b": "a b", "bad\xff": "u", "line\n": "u"} {
		if got := labelOrUUID(in, "u"); got != want {
			t.Errorf("labelOrUUID(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAsksJSON(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{{nil, false}, {[]string{"ls", "--json"}, true}, {[]string{"ls", "--", "--json"}, false}, {[]string{"--json=true"}, true}, {[]string{"--jsonx"}, false}} {
		if got := asksJSON(c.args); got != c.want {
			t.Errorf("%q: got %v, want %v", c.args, got, c.want)
		}
	}
}
