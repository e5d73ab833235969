//go:build linux

package golden

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Each recipe has its package and manifest in the repository, made with the options that the
// recipe states now, and each package a recipe.
func TestRepositoryMatchesSpecs(t *testing.T) {
	var names []string
	for _, s := range Specs() {
		names = append(names, s.Name)
		m, err := fsreadtest.ReadManifest("../../../../testdata/images", s.Name)
		if err != nil {
			t.Error(err)
			continue
		}
		if !slices.Equal(m.Mkfs, s.Args()) || m.MountOptions != s.Mount || m.Note != s.Note {
			t.Errorf("%s: the manifest is older than the recipe: %q %q %q", s.Name, m.Mkfs, m.MountOptions, m.Note)
		}
	}
	slices.Sort(names)
	got := fsreadtest.Names(t)
	slices.Sort(got)
	if !slices.Equal(got, names) {
		t.Errorf("images: got %q, want %q", got, names)
	}
}

// What the images are for must be in them.
func TestImagesHoldWhatTheyAreFor(t *testing.T) {
	for _, c := range []struct {
		name     string
		level    int
		profiles []string
		devids   []uint64
	}{
		{"deep", 2, []string{"Data, single"}, []uint64{1}},
		{"devid-gap", 0, []string{"Data, RAID0"}, []uint64{1, 3, 4}},
		{"converted", 0, []string{"Data, RAID0", "Data, RAID1"}, []uint64{1, 2, 3}},
		{"raid0-raid1c3", 0, []string{"Data, RAID0", "Metadata, RAID1C3"}, []uint64{1, 2, 3}},
		{"raid10-5", 0, []string{"Data, RAID10", "Metadata, RAID10"}, []uint64{1, 2, 3, 4, 5}},
		{"mixed", 0, []string{"Data+Metadata, single"}, []uint64{1}},
		{"seed", 1, []string{"Data, RAID1", "Data, single"}, []uint64{1, 2, 3}},
		{"seed-nested", 1, []string{"Data, single"}, []uint64{1, 2, 3, 4}},
	} {
		m, err := fsreadtest.ReadManifest("../../../../testdata/images", c.name)
		if err != nil {
			t.Error(err)
			continue
		}
		if m.FSTreeLevel < c.level {
			t.Errorf("%s: fs tree of level %d, want at least %d", c.name, m.FSTreeLevel, c.level)
		}
		for _, p := range c.profiles {
			if !slices.Contains(m.Profiles, p) {
				t.Errorf("%s: profiles %q, want %q among them", c.name, m.Profiles, p)
			}
		}
		var devids []uint64
		for _, d := range m.Devices {
			devids = append(devids, d.Devid)
		}
		if !slices.Equal(devids, c.devids) {
			t.Errorf("%s: devids %d, want %d", c.name, devids, c.devids)
		}
	}
}

// Every profile with parity, over every number of devices up to six: rows enough for three rotations, whose
// number of data columns is that of the devices less the parities, and directories of several leaves.
func TestParityImages(t *testing.T) {
	for _, c := range []struct {
		name, profile     string
		devices, parities int
		nodesize          uint32
	}{
		{"raid5-2", "RAID5", 2, 1, 16384},
		{"raid5", "RAID5", 3, 1, 16384},
		{"raid5-4", "RAID5", 4, 1, 4096},
		{"raid5-5", "RAID5", 5, 1, 16384},
		{"raid5-6", "RAID5", 6, 1, 65536},
		{"raid6-3", "RAID6", 3, 2, 16384},
		{"raid6", "RAID6", 4, 2, 16384},
		{"raid6-5", "RAID6", 5, 2, 4096},
		{"raid6-6", "RAID6", 6, 2, 16384},
	} {
		m, err := fsreadtest.ReadManifest("../../../../testdata/images", c.name)
		if err != nil {
			t.Error(err)
			continue
		}
		if len(m.Devices) != c.devices || m.Nodesize != c.nodesize || m.FSTreeLevel < 1 {
			t.Errorf("%s: %d devices, nodesize %d, fs tree of level %d", c.name, len(m.Devices), m.Nodesize, m.FSTreeLevel)
		}
		if want := []string{"Data, " + c.profile, "System, " + c.profile, "Metadata, " + c.profile}; !slices.Equal(m.Profiles, want) {
			t.Errorf("%s: profiles %q, want %q", c.name, m.Profiles, want)
		}
		row := int64(c.devices-c.parities) * 64 << 10
		for path, rows := range map[string]int{"rotations": 3 * c.devices, "nocow": c.devices} {
			i := slices.IndexFunc(m.Entries, func(e fsreadtest.Entry) bool { return string(e.Path) == path })
			if i < 0 || m.Entries[i].Size < int64(rows)*row || m.Entries[i].NoCOW != (path == "nocow") {
				t.Errorf("%s: entry %d for %s, want one of %d rows of %d bytes", c.name, i, path, rows, row)
			}
		}
	}
}

// What shows in single entries: names beyond what an inode's leaf item holds, the ext4 that was, files that
// are inline only where sectors are large.
func TestEntriesThatImagesAreFor(t *testing.T) {
	for _, c := range []struct {
		name, path string
		size       int64
		nlink      uint64
		sector     uint32
	}{
		{"extref", "links/file", 5000, 701, 4096},
		{"ext4", "ext2_saved/image", kernelfs.MinDevice, 1, 4096},
		{"ext4", "zoo/prealloc-all", 200000, 1, 4096},
		{"seed", "only-in-sprout-0", 300001, 1, 4096},
		{"seed-nested", "only-in-sprout-1", 300001, 1, 4096},
		{"metadata-uuid", "after", 5000, 1, 4096},
		{"quota", "snap/file", 300000, 1, 4096},
		{"simple-quota", "snap/file", 300000, 1, 4096},
		{"sector16k", "size-16385", 16385, 1, 16384},
		{"sector64k", "sub/link", 12000, 2, 65536},
	} {
		m, err := fsreadtest.ReadManifest("../../../../testdata/images", c.name)
		if err != nil {
			t.Error(err)
			continue
		}
		i := slices.IndexFunc(m.Entries, func(e fsreadtest.Entry) bool { return string(e.Path) == c.path })
		if i < 0 || m.Entries[i].Size != c.size || m.Entries[i].Nlink != c.nlink || m.Sectorsize != c.sector {
			t.Errorf("%s: entry %d for %s and sectors of %d, want one of %d bytes, %d links and sectors of %d", c.name, i, c.path, m.Sectorsize, c.size, c.nlink, c.sector)
		}
	}
}

// The budget of the repository.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		pattern string
		most    int64
	}{
		{"../../../../testdata/images/*", 6 << 20},
		{"../../../../cmd/btrexport/sample/sample.tar.zst", 128 << 10},
	} {
		files, err := filepath.Glob(c.pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, error %v", c.pattern, len(files), err)
		}
		var sum int64
		for _, path := range files {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			sum += info.Size()
		}
		if sum > c.most {
			t.Errorf("%s: %d bytes, want at most %d", c.pattern, sum, c.most)
		}
	}
}

// A built image verifies; the same image with a manifest that says otherwise does not.
func TestBuildAndVerify(t *testing.T) {
	if os.Getenv("BTREXPORT_E2E") != "1" {
		t.Skip("makes filesystems on loop devices as root: set BTREXPORT_E2E=1")
	}
	if err := kernelfs.Usable(); err != nil {
		t.Skip(err)
	}
	work, dir := t.TempDir(), t.TempDir()
	for _, s := range Specs() {
		if !slices.Contains([]string{"seed-nested", "metadata-uuid", "ext4", "simple-quota", "sector64k", "log"}, s.Name) {
			continue // one of each way in which an image comes about is enough
		}
		if err := s.Build(t.Context(), work, dir); err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), s.Name, work, dir); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "log.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), `"size":20000`, `"size":20001`, 1)
	if changed == string(text) {
		t.Fatal("the replayed log shows no file of 20000 bytes")
	}
	if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), "log", work, dir); err == nil {
		t.Error("a manifest with a wrong size passed")
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("left in the work directory: %v, error %v", left, err)
	}
}
