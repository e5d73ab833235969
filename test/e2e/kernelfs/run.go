//go:build linux

package kernelfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Usable returns nil if this process can make filesystems here, else what is missing.
func Usable() error {
	if os.Geteuid() != 0 {
		return errors.New("kernelfs: needs root for loop devices and mounts")
	}
	for _, tool := range []string{"mkfs.btrfs", "btrfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("kernelfs: %w", err)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("kernelfs: %w", err)
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("kernelfs: %w", err)
	}
	// A kernel with btrfs as a module lists it only once that is loaded; mount would load it.
	if !bytes.Contains(known, []byte("\tbtrfs\n")) {
		if err := exec.Command("modprobe", "btrfs").Run(); err != nil {
			return fmt.Errorf("kernelfs: kernel without btrfs: %w", err)
		}
	}
	return nil
}

// run executes a command in the C locale and returns its standard output; the error holds the
// command line and what it wrote to standard error.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(msg.String()))
	}
	return out.String(), nil
}
