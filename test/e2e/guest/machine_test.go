//go:build linux

package guest

import (
	"bufio"
	"context"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// said is what a guest has said: lines "@KEY VALUE" of its console, by key.
type said map[string]string

// boot runs a guest until it powers off. A key in react calls its function when the guest says it.
func boot(ctx context.Context, t *testing.T, initramfs string, react map[string]func(), args ...string) said {
	t.Helper()
	k, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat([]string{"-accel", "tcg,thread=multi", "-smp", "2", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-kernel", k.image, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1"}, args)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", all...)
	cmd.Stderr = t.Output()
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := listen(t, console, react)
	if err := cmd.Wait(); err != nil || ctx.Err() != nil {
		t.Fatalf("QEMU: %v %v", err, ctx.Err())
	}
	if _, ok := s["end"]; !ok {
		t.Fatal("the guest ended before its script")
	}
	return s
}

// listen reads the console to its end and shows it in the test's log.
func listen(t *testing.T, console io.Reader, react map[string]func()) said {
	t.Helper()
	s := make(said)
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r ")
		t.Log("guest: " + line)
		i := strings.IndexByte(line, '@') // the console's first line holds what QEMU's firmware leaves
		if i < 0 {
			continue
		}
		key, value, _ := strings.Cut(line[i+1:], " ")
		s[key] = value
		if f := react[key]; f != nil {
			f()
		}
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
	return s
}

// check compares what the guest said.
func (s said) check(t *testing.T, want map[string]string) {
	t.Helper()
	for key, v := range want {
		if got, ok := s[key]; !ok || got != v {
			t.Errorf("%s: got %q (said: %t), want %q", key, got, ok, v)
		}
	}
}
