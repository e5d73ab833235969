//go:build linux

package kernelfs

import (
	"fmt"
	"os"
)

// Subvolume makes a subvolume.
func (t *Tree) Subvolume(name string) {
	t.btrfs("subvolume", "create", t.path(name))
}

// Snapshot makes a snapshot of the subvolume src.
func (t *Tree) Snapshot(src, dst string, readOnly bool) {
	args := []string{"subvolume", "snapshot"}
	if readOnly {
		args = append(args, "-r")
	}
	t.btrfs(append(args, t.path(src), t.path(dst))...)
}

// DeleteSubvolume deletes a subvolume; the kernel cleans it up in the background, WaitDeleted
// waits for that.
func (t *Tree) DeleteSubvolume(name string) {
	t.btrfs("subvolume", "delete", "-c", t.path(name))
}

// WaitDeleted waits until every deleted subvolume is gone from the tree of roots.
func (t *Tree) WaitDeleted() { t.btrfs("subvolume", "sync", t.root) }

// SetDefault makes a subvolume the one that a mount without options shows.
func (t *Tree) SetDefault(name string) {
	t.btrfs("subvolume", "set-default", t.path(name))
}

// Quota turns quota groups on, of the simple kind (Linux 6.7) or of the old one.
func (t *Tree) Quota(simple bool) {
	if !simple {
		t.btrfs("quota", "enable", t.root)
		return
	}
	t.do("enable simple quota", func() error {
		d, err := os.Open(t.root)
		if err != nil {
			return err
		}
		defer d.Close()
		return enableSimpleQuota(int(d.Fd()))
	})
}

// Balance runs a balance with the given filters, for example "-dconvert=raid1,limit=1".
func (t *Tree) Balance(filters ...string) {
	t.btrfs(append(append([]string{"balance", "start", "--force"}, filters...), t.root)...)
}

func (t *Tree) btrfs(args ...string) {
	t.do(fmt.Sprintf("btrfs %v", args), func() error {
		_, err := run(t.ctx, "btrfs", args...)
		return err
	})
}
