//go:build linux

package guest

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// metaPackage depends on the newest kernel of Debian's for virtual machines: small, with virtio, nbd and ext4.
const metaPackage = "linux-image-cloud-amd64"

// wanted are the modules that every guest loads; what these need comes along.
var wanted = []string{"virtio_pci", "virtio_net", "virtio_blk", "nbd"}

// bootable is an unpacked kernel.
type bootable struct {
	image string // the path of vmlinuz
	root  string // the directory that holds lib/modules
}

// findKernel unpacks Debian's kernel, downloaded unless BTREXPORT_GUEST_KERNEL holds its package.
func findKernel() (*bootable, error) {
	dir, err := workDir()
	if err != nil {
		return nil, err
	}
	kept := os.Getenv("BTREXPORT_GUEST_KERNEL")
	if kept == "" {
		kept = filepath.Join(dir, "deb")
	}
	deb, err := kernelPackage(kept)
	if err != nil {
		return nil, fmt.Errorf("kernel for the guest: %w", err)
	}
	root := filepath.Join(dir, "kernel")
	if text, err := exec.Command("dpkg", "-x", deb, root).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("dpkg -x %s: %w\n%s", deb, err, text)
	}
	images, err := filepath.Glob(root + "/boot/vmlinuz-*")
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s: kernels %q %w", deb, images, err)
	}
	return &bootable{image: images[0], root: root}, nil
}

var realPackage = regexp.MustCompile(`(?m)^ *Depends: (linux-image-[0-9]\S*)$`)

// kernelPackage returns the .deb in dir, or downloads it into it.
func kernelPackage(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	find := func() string {
		if found, _ := filepath.Glob(dir + "/linux-image-*.deb"); len(found) > 0 {
			return found[len(found)-1]
		}
		return ""
	}
	if deb := find(); deb != "" {
		return deb, nil
	}
	var errs error
	for _, update := range []bool{false, true} { // apt's lists may be missing, or older than the mirror
		if update {
			if text, err := exec.Command("apt-get", "update", "-q").CombinedOutput(); err != nil {
				errs = errors.Join(errs, fmt.Errorf("apt-get update: %w\n%s", err, text))
			}
		}
		out, err := exec.Command("apt-cache", "depends", metaPackage).Output()
		name := realPackage.FindSubmatch(out)
		if err != nil || name == nil {
			errs = errors.Join(errs, fmt.Errorf("apt knows no kernel behind %s: %w", metaPackage, err))
			continue
		}
		cmd := exec.Command("apt-get", "download", "-q", string(name[1]))
		cmd.Dir = dir
		text, err := cmd.CombinedOutput()
		if deb := find(); err == nil && deb != "" {
			return deb, nil
		}
		errs = errors.Join(errs, fmt.Errorf("apt-get download %s: %w\n%s", name[1], err, text))
	}
	return "", errs
}

// inOrder returns the paths of modules below root and of all that they need, in the order in which they can
// be loaded. What is built into the kernel has no file.
func inOrder(root string, names []string) ([]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(root+"/lib/modules", func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var list []string
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		path, found := files[name]
		if !found || seen[name] {
			return nil
		}
		seen[name] = true
		needs, err := dependencies(path)
		for _, n := range needs {
			err = errors.Join(err, add(n))
		}
		list = append(list, path)
		return err
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// dependencies reads a module's own list: "depends=a,b" among the strings of its section .modinfo.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s: no .modinfo", path)
	}
	b, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for s := range strings.SplitSeq(string(b), "\x00") {
		if list, ok := strings.CutPrefix(s, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
