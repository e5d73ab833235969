package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestAnswerIn: a process that does not answer is not waited for, and says nothing.
func TestAnswerIn(t *testing.T) {
	for _, c := range []struct {
		script, want string
		wait         time.Duration
	}{
		{"printf 'a\\n:4\\n'", "a\n:4\n", patience},
		{"printf 'half a wo'; exit 1", ":4\n", patience},
		{"printf 'half a wo'; exec sleep 600", ":4\n", 50 * time.Millisecond},
	} {
		if got := string(answerIn(exec.Command("sh", "-c", c.script), c.wait)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.script, got, c.want)
		}
	}
	if got := string(answerIn(exec.Command("/nonexistent"), patience)); got != ":4\n" {
		t.Errorf("no program: got %q", got)
	}
}

func TestDevicesIn(t *testing.T) {
	sys := t.TempDir()
	for _, name := range []string{"sda", "sda1", "nvme0n1", "ram0", "cciss!c0d0"} {
		if err := os.Mkdir(filepath.Join(sys, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for word, want := range map[string][]string{"/dev/": {"/dev/cciss/c0d0", "/dev/nvme0n1", "/dev/sda", "/dev/sda1"}, "/dev/sd": {"/dev/sda", "/dev/sda1"}, "disk": nil, "": nil} {
		if got, _ := devicesIn(sys, word); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", word, got, want)
		}
	}
}
