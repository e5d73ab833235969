package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoThrottle is why a row with slow devices is left out.
var errNoThrottle = errors.New("the blkio controller of cgroup v1 is not there to slow devices down")

// throttle holds devices to a rate. It uses cgroup v1, whose root group has limits: the kernel's own threads, which
// read for btrfs, are in the root group.
type throttle struct {
	files []string
	devs  []string // "major:minor"
}

const throttleFile = "blkio.throttle.read_bps_device"

// newThrottle slows each device down to rate bytes a second, in the root group and in that of this process.
func newThrottle(devices []string, rate float64) (*throttle, error) {
	t := new(throttle)
	for _, g := range blkioGroups() {
		if f := filepath.Join(g, throttleFile); isThere(f) {
			t.files = append(t.files, f)
		}
	}
	if len(t.files) == 0 {
		return nil, errNoThrottle
	}
	for _, d := range devices {
		var st unix.Stat_t
		if err := unix.Stat(d, &st); err != nil {
			return nil, errors.Join(fmt.Errorf("stat %s: %w", d, err), t.close())
		}
		dev := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		t.devs = append(t.devs, dev)
		for _, f := range t.files {
			if err := writeFile(f, fmt.Sprintf("%s %.0f", dev, rate)); err != nil {
				return nil, errors.Join(err, t.close())
			}
		}
	}
	return t, nil
}

// close takes the limits away.
func (t *throttle) close() error {
	var errs []error
	for _, dev := range t.devs {
		for _, f := range t.files {
			errs = append(errs, writeFile(f, dev+" 0"))
		}
	}
	return errors.Join(errs...)
}

// blkioGroups are the directories of the controller's root group and of this process's group.
func blkioGroups() []string {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	root := ""
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[2] == "cgroup" && hasWord(f[3], "blkio") {
			root = f[1]
		}
	}
	if root == "" {
		return nil
	}
	groups := []string{root}
	own, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && hasWord(f[1], "blkio") && f[2] != "/" {
			groups = append(groups, filepath.Join(root, f[2]))
		}
	}
	return groups
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// writeFile writes to a file of the kernel's, which is not created.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
