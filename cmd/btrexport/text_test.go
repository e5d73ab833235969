package main

import (
	"bytes"
	"io/fs"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestIEC(t *testing.T) {
	for _, c := range []struct {
		n    uint64
		want string
	}{
		{0, "0 B"}, {517, "517 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"}, {12 << 10, "12 KiB"}, {1023 << 10, "1023 KiB"},
		{1<<20 - 1, "1 MiB"}, {1667236, "1.59 MiB"}, {16148070, "15.4 MiB"}, {128 << 20, "128 MiB"}, {1 << 63, "8 EiB"}, {1<<64 - 1, "16 EiB"},
		{10<<20 - 1, "10 MiB"}, {100<<20 - 1, "100 MiB"},
	} {
		if got := iec(c.n); got != c.want {
			t.Errorf("iec(%d) = %q, want %q", c.n, got, c.want)
		}
	}
	if got := size(1<<20, true); got != "1048576" {
		t.Errorf("exact size %q", got)
	}
}

func TestShown(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"vm1.raw", "vm1.raw"}, {"with blank", "with blank"}, {"ünï", "ünï"}, {"", `""`}, {`"quoted"`, `"\"quoted\""`}, {"it's", "it's"},
		{"a\nb", `"a\nb"`}, {"\x1b[31m", `"\x1b[31m"`}, {"\xff", `"\xff"`}, {"left\u202eright", `"left\u202eright"`}, {"del\x7f", `"del\x7f"`},
		{"\ufffd", "\ufffd"},
	} {
		if got := shown(c.name); got != c.want {
			t.Errorf("shown(%q) = %s, want %s", c.name, got, c.want)
		}
	}
}

// TestShownIsHarmless holds what a terminal gets against any name.
func TestShownIsHarmless(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := string(rapid.SliceOf(rapid.Byte()).Draw(t, "name"))
		for _, got := range []string{shown(name), printable(name)} {
			if !harmless(got) || !utf8.ValidString(got) {
				t.Fatalf("%q is shown as %q", name, got)
			}
		}
		if harmless(name) && printable(name) != name {
			t.Fatalf("printable(%q) = %q", name, printable(name))
		}
		if raw := rawName(name); (raw == "") != utf8.ValidString(name) {
			t.Fatalf("rawName(%q) = %q", name, raw)
		}
	})
}

func TestModeString(t *testing.T) {
	for _, c := range []struct {
		mode fs.FileMode
		want string
		kind string
	}{
		{0o644, "-rw-r--r--", "file"},
		{fs.ModeDir | 0o755, "drwxr-xr-x", "dir"},
		{fs.ModeDir | fs.ModeSticky | 0o777, "drwxrwxrwt", "dir"},
		{fs.ModeDir | fs.ModeSticky | 0o770, "drwxrwx--T", "dir"},
		{fs.ModeSetuid | 0o755, "-rwsr-xr-x", "file"},
		{fs.ModeSetuid | fs.ModeSetgid | 0o644, "-rwSr-Sr--", "file"},
		{fs.ModeSymlink | 0o777, "lrwxrwxrwx", "symlink"},
		{fs.ModeNamedPipe | 0o600, "prw-------", "fifo"},
		{fs.ModeSocket, "s---------", "socket"},
		{fs.ModeDevice | 0o660, "brw-rw----", "block"},
		{fs.ModeDevice | fs.ModeCharDevice | 0o666, "crw-rw-rw-", "char"},
		{fs.ModeIrregular, "?---------", "unknown"},
	} {
		if got := modeString(c.mode); got != c.want {
			t.Errorf("mode %v: got %s, want %s", c.mode, got, c.want)
		}
		if got := typeName(c.mode); got != c.kind {
			t.Errorf("mode %v: got type %s, want %s", c.mode, got, c.kind)
		}
	}
}

func TestColumns(t *testing.T) {
	var b bytes.Buffer
	if err := columns(&b, [][]string{{"A", "LONG", "Z"}, {"äöü", "x", ""}, {"1", "2", "3 4"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "A    LONG  Z\näöü  x\n1    2     3 4\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestDuration(t *testing.T) {
	for _, c := range []struct {
		seconds float64
		want    string
	}{{0, "0s"}, {21e-6, "21µs"}, {207.4e-6, "207µs"}, {1.23456e-3, "1.23ms"}, {2.5, "2.5s"}, {0.1234, "123ms"}} {
		if got := duration(c.seconds); got != c.want {
			t.Errorf("duration(%v) = %s, want %s", c.seconds, got, c.want)
		}
	}
}
