//go:build linux

// Package guest runs a Debian kernel in QEMU, by software emulation, against our server on this host: our own
// attach and nbd-client put an export at /dev/nbdN there, also as a service of systemd, and a machine boots from an
// image inside a btrfs. And our program reads there from devices that the guest's kernel lets fail.
//
//	kernel_test.go     a kernel package of Debian's, and the modules that the guest needs
//	initramfs_test.go  the guest's first filesystem: busybox, our binary, a script
//	machine_test.go    QEMU, and what the guest says on its serial console
//	server_test.go     our server, which can be killed and started again
//
// It needs BTREXPORT_E2E=1, qemu-system-x86_64, busybox-static and an apt that downloads; the boot test needs
// root too. Without them it skips; with CI=true it fails. BTREXPORT_GUEST_KERNEL names a directory where the
// kernel's package is kept from run to run.
package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// What every test shares is made by the first that needs it; TestMain removes it.
var (
	workDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "btrexport-guest-") })
	binary  = sync.OnceValues(buildStatic)
	kernel  = sync.OnceValues(findKernel)
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	status := m.Run()
	if dir, err := workDir(); err == nil {
		_ = os.RemoveAll(dir)
	}
	return status
}

// need skips a test that was not asked for or can't be done here. With CI=true only the former skips.
func need(t *testing.T, tools ...string) {
	t.Helper()
	if os.Getenv("BTREXPORT_E2E") != "1" {
		t.Skip("runs a guest in QEMU: set BTREXPORT_E2E=1")
	}
	var err error
	if runtime.GOARCH != "amd64" {
		err = errors.New("the guest is an amd64 machine with our own binary in it")
	}
	for _, tool := range append(tools, "qemu-system-x86_64", "busybox", "dpkg", "apt-get") {
		_, missing := exec.LookPath(tool)
		err = errors.Join(err, missing)
	}
	if err == nil {
		_, err = kernel()
	}
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// buildStatic builds the program as the Dockerfile does.
func buildStatic() (string, error) {
	dir, err := workDir()
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "btrexport")
	cmd := exec.Command("go", "build", "-o", out, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=e2e", "../../../cmd/btrexport")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%q: %w\n%s", cmd.Args, err, text)
	}
	return out, nil
}

func program(t *testing.T) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// bounded is a context that ends long after the test should have.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// must is the standard output of a command that must succeed.
func must(ctx context.Context, t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out.Bytes(), errOut.Bytes())
	}
	return out.String()
}
