//go:build linux

// Package e2e drives the built binary as its users do, against filesystems that the running kernel
// makes at random, and compares every byte and every name with what the kernel shows: served to
// libnbd, QEMU, nbd-client and our own client, listed, copied, with copies ruined, with devices that
// are in use or fail, under load and while it is told to stop.
//
// It needs root and BTREXPORT_E2E=1, or every test skips. BTREXPORT_SEED repeats a run's choices,
// BTREXPORT_IO_ENGINE is the I/O engine of the fault tests, else chosen by chance. BTREXPORT_E2E_ROUNDS multiplies its
// work. With CI=true what is missing fails, but for /dev/fuse and packages that Debian's mirror does not have.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// What every test shares is made by the first that needs it; TestMain removes the binaries.
var (
	workDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "btrexport-e2e-") })
	seed    = sync.OnceValues(readSeed)

	plainBinary  = sync.OnceValues(func() (string, error) { return build("plain", nil) })
	raceBinary   = sync.OnceValues(func() (string, error) { return build("race", []string{"CGO_ENABLED=1"}, "-race") })
	staticBinary = sync.OnceValues(func() (string, error) {
		// As the Dockerfile does.
		return build("static", []string{"CGO_ENABLED=0"}, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=e2e")
	})
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	s, err := seed()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("e2e: BTREXPORT_SEED=%d BTREXPORT_E2E_ROUNDS=%d\n", s, rounds())
	status := m.Run()
	if dir, err := workDir(); err == nil {
		_ = os.RemoveAll(dir)
	}
	return status
}

func readSeed() (uint64, error) {
	text := os.Getenv("BTREXPORT_SEED")
	if text == "" {
		return uint64(time.Now().UnixNano()), nil
	}
	s, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("BTREXPORT_SEED: %w", err)
	}
	return s, nil
}

// rounds is how often the work of a test is done; 1 unless the environment says more.
func rounds() int {
	n, err := strconv.Atoi(os.Getenv("BTREXPORT_E2E_ROUNDS"))
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// need skips a test that was not asked for or can't be done here. With CI=true only the former skips.
func need(t *testing.T, tools ...string) {
	t.Helper()
	if os.Getenv("BTREXPORT_E2E") != "1" {
		t.Skip("drives the binary on loop devices as root: set BTREXPORT_E2E=1")
	}
	err := kernelfs.Usable()
	for _, tool := range tools {
		_, missing := exec.LookPath(tool)
		err = errors.Join(err, missing)
	}
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// bounded is a context that ends long after the test should have.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// chance is the random source of one test: the run's seed and the test's name decide it.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	s, err := seed()
	if err != nil {
		t.Fatal(err)
	}
	h := fnv.New64a()
	h.Write([]byte(t.Name()))
	return rand.New(rand.NewPCG(s, h.Sum64()))
}

// build compiles the program with more flags and environment than usual.
func build(name string, env []string, flags ...string) (string, error) {
	dir, err := workDir()
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "btrexport-"+name)
	args := append(append([]string{"build", "-o", out}, flags...), "../../cmd/btrexport")
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %v: %w\n%s", args, err, text)
	}
	return out, nil
}

// program is the path of a built binary.
func program(t *testing.T, made func() (string, error)) string {
	t.Helper()
	path, err := made()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// outcome is how a command ended.
type outcome struct {
	status      int // -1: by a signal
	out, errOut string
}

// run runs a command to its end; only one that does not start or does not end fails the test.
func run(ctx context.Context, t *testing.T, name string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // ours then says where it hangs
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = 10 * time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if cmd.ProcessState == nil || ctx.Err() != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, errors.Join(err, ctx.Err()), errOut.Bytes())
	}
	return outcome{status: cmd.ProcessState.ExitCode(), out: out.String(), errOut: errOut.String()}
}

// must is the standard output of a command that must succeed.
func must(ctx context.Context, t *testing.T, name string, args ...string) string {
	t.Helper()
	o := run(ctx, t, name, args...)
	if o.status != 0 {
		t.Fatalf("%s %q: exit status %d, want 0\n%s%s", name, args, o.status, o.out, o.errOut)
	}
	return o.out
}
