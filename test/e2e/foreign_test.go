//go:build linux

package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// foreignTools are the clients of others that checkForeign runs.
var foreignTools = []string{"nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "qemu-nbd"}

// checkForeign reads one export with libnbd's and QEMU's tools.
func (s *server) checkForeign(ctx context.Context, t *testing.T, rng *rand.Rand, f served) {
	t.Helper()
	uri, out := s.uri(f.name), filepath.Join(t.TempDir(), "out")
	if got, want := strings.TrimSpace(must(ctx, t, "nbdinfo", "--size", uri)), strconv.Itoa(len(f.want)); got != want {
		t.Errorf("%s: nbdinfo --size: got %s, want %s", f.path, got, want)
	}
	must(ctx, t, "nbdinfo", "--is", "read-only", uri)
	must(ctx, t, "nbdinfo", "--can", "multi-conn", uri)
	s.checkCopies(ctx, t, f, out)
	if len(f.want) > 0 {
		s.checkQEMU(ctx, t, f, out)
		s.checkQEMUReads(ctx, t, rng, f)
	}
}

// checkCopies copies an export with nbdcopy, over four connections, with and without extents.
func (s *server) checkCopies(ctx context.Context, t *testing.T, f served, out string) {
	t.Helper()
	for _, options := range [][]string{
		{"--connections=4"},
		{"--connections=4", "--no-extents", "--requests=16"},
		{"--connections=4", "--no-extents", "--request-size=32768"},
		{"--synchronous"},
	} {
		must(ctx, t, "nbdcopy", append(options, s.uri(f.name), out)...)
		sameFile(t, fmt.Sprintf("%s: nbdcopy %q", f.path, options), out, f.want)
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
}

// checkQEMU compares and converts.
func (s *server) checkQEMU(ctx context.Context, t *testing.T, f served, out string) {
	t.Helper()
	var info struct {
		Size int `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(must(ctx, t, "qemu-img", "info", "--output=json", s.uri(f.name))), &info); err != nil {
		t.Fatal(err)
	}
	// QEMU pads an odd size with zeroes to a multiple of 512.
	padded := append(slices.Clip(f.want), make([]byte, -len(f.want)&511)...)
	if info.Size != len(padded) {
		t.Errorf("%s: qemu-img info: got a size of %d, want %d", f.path, info.Size, len(padded))
	}
	must(ctx, t, "qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", "8", "-W", s.uri(f.name), out)
	sameFile(t, f.path+": qemu-img convert", out, padded)
	if err := os.WriteFile(out, f.want, 0o600); err != nil {
		t.Fatal(err)
	}
	must(ctx, t, "qemu-img", "compare", "-f", "raw", "-F", "raw", out, s.uri(f.name))
}

// checkQEMUReads lets qemu-io print random unaligned ranges.
func (s *server) checkQEMUReads(ctx context.Context, t *testing.T, rng *rand.Rand, f served) {
	t.Helper()
	args := []string{"-r", "-f", "raw"}
	var want []string
	for range 20 {
		off, n := randomRange(rng, len(f.want), 600)
		args = append(args, "-c", fmt.Sprintf("read -v %d %d", off, n))
		want = append(want, hex.EncodeToString(f.want[off:off+n]))
	}
	out := must(ctx, t, "qemu-io", append(args, s.uri(f.name))...)
	got := dumps(out)
	if len(got) != len(want) {
		t.Fatalf("%s: qemu-io %q: got %d dumps, want %d\n%s", f.path, args, len(got), len(want), out)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s: qemu-io %q:\ngot  %s\nwant %s", f.path, args[2*i+4], got[i], want[i])
		}
	}
}

// dumps joins the hexadecimal columns of each dump that qemu-io printed: lines of an offset, a
// colon, up to 16 bytes and their text. Another line ends a dump.
func dumps(out string) []string {
	var list []string
	var dump strings.Builder
	for line := range strings.Lines(out) {
		head, rest, ok := strings.Cut(line, ":  ")
		if _, err := strconv.ParseUint(head, 16, 64); ok && err == nil && len(head) >= 8 {
			columns, _, _ := strings.Cut(rest, "  ")
			dump.WriteString(strings.ReplaceAll(columns, " ", ""))
			continue
		}
		if dump.Len() > 0 {
			list = append(list, dump.String())
			dump.Reset()
		}
	}
	return list
}

// checkList wants every export, by name, in the lists that foreign clients get.
func (s *server) checkList(ctx context.Context, t *testing.T, files []served) {
	t.Helper()
	var info struct {
		Exports []struct {
			Name string `json:"export-name"`
			Size int    `json:"export-size"`
		} `json:"exports"`
	}
	text := must(ctx, t, "nbdinfo", "--list", "--json", "nbd+unix:///?socket="+s.socket)
	if err := json.Unmarshal([]byte(text), &info); err != nil {
		t.Fatalf("nbdinfo --list --json: %v\n%s", err, text)
	}
	got := make(map[string]int)
	for _, e := range info.Exports {
		got[e.Name] = e.Size
	}
	for _, f := range files {
		if size, ok := got[f.name]; !ok || size != len(f.want) {
			t.Errorf("nbdinfo --list: export %q: got size %d (listed: %v), want %d", f.name, size, ok, len(f.want))
		}
	}
	if len(got) != len(files) {
		t.Errorf("nbdinfo --list: got %d exports, want %d", len(got), len(files))
	}
	if text := must(ctx, t, "qemu-nbd", "-L", "-k", s.socket); !strings.Contains(text, fmt.Sprintf("exports available: %d", len(files))) {
		t.Errorf("qemu-nbd -L: got\n%s\nwant %d exports", text, len(files))
	}
}
