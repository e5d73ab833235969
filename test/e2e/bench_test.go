//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The benchmark must go on working: a short round of some of its rows, in which every byte is compared, and
// which says nothing about speed.
func TestBenchmark(t *testing.T) {
	need(t, "nbdkit", "qemu-nbd", "nbdcopy")
	ctx, dir := bounded(t), t.TempDir()
	const rows = `^(plain: (sequential|nbdcopy, 4|4K QD32, 4)|zstd: 4K QD32, cache holds the file|raid5-3-missing-1|raid1-2)`
	cmd := benchmark(ctx, t, dir, "-quick", "-scenario", rows)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, out.Bytes(), progress.Bytes())
	}
	t.Logf("%s", out.Bytes())
	for _, c := range []struct {
		row     string
		servers int
	}{
		{"plain: sequential 256K QD16", 4},
		{"plain: sequential, structured replies", 4},
		{"plain: nbdcopy, 4 connections", 4},
		{"plain: 4K QD32, 4 connections", 4},
		{"plain: sequential, warm", 3},
		{"zstd: 4K QD32, cache holds the file", 4},
		{"raid5-3-missing-1: sequential 256K QD16", 4},
	} {
		if tables, figures := count(out.String(), c.row); tables != 3 || figures != 3*c.servers {
			t.Errorf("%s: got %d figures in %d tables, want %d in 3", c.row, figures, tables, 3*c.servers)
		}
	}
	if tables, _ := count(out.String(), "raid1-2: sequential, slow devices"); tables != 3 && !strings.Contains(out.String(), "left out: raid1-2") {
		t.Error("raid1-2: neither in the tables nor left out with a reason")
	}
	nothingLeft(t, dir)
}

// What is interrupted must clean up as well.
func TestBenchmarkInterrupted(t *testing.T) {
	need(t, "nbdkit", "qemu-nbd")
	ctx, dir := bounded(t), t.TempDir()
	cmd := benchmark(ctx, t, dir, "-size", "32", "-rounds", "1000", "-seconds", "0.1", "-scenario", "^plain: (sequential|4K QD32)$")
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(progress)
	for n := 0; lines.Scan(); n++ {
		if n == 0 { // the filesystem stands, the next server starts
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
		}
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("after SIGINT: got %v, want exit status 1", cmd.ProcessState)
	}
	nothingLeft(t, dir)
}

// benchmark is a command that works in dir. A test that ends early interrupts it.
func benchmark(ctx context.Context, t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	bench := filepath.Join(t.TempDir(), "bench")
	must(ctx, t, "go", "build", "-o", bench, "../bench")
	args = append([]string{"-dir", dir, "-program", program(t, plainBinary), "-seed", fmt.Sprint(chance(t).Uint64())}, args...)
	cmd := exec.CommandContext(ctx, bench, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// count looks for the lines of a row and the figures of servers in them, which stand in the next four columns.
func count(text, row string) (tables, figures int) {
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) < 5 || cells[0] != "| "+row {
			continue
		}
		tables++
		for _, c := range cells[1:5] {
			if strings.ContainsAny(c, "123456789") {
				figures++
			}
		}
	}
	return tables, figures
}

// nothingLeft looks for files, mounts, loop devices and processes of a benchmark that worked in dir.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v, %v", dir, left, err)
	}
	for _, pattern := range []string{"/sys/block/loop*/loop/backing_file", "/proc/self/mounts", "/proc/[0-9]*/cmdline"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(dir)) {
				t.Errorf("%s still names %s: %s", f, dir, bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
			}
		}
	}
}
