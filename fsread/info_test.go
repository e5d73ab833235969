package fsread_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// TestInfo holds what Info says of every readable image against its manifest.
func TestInfo(t *testing.T) {
	for _, name := range fsreadtest.Names(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, name)
			m := img.Manifest
			i, err := open(t, openDevices(t, img.Devices), fsread.Options{}).Usage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var used uint64
			for _, g := range i.Groups {
				used += g.Used
			}
			if used != i.Used { // what the superblock says they come to
				t.Errorf("%d bytes in use by block groups, %d by the superblock", used, i.Used)
			}
			got := fmt.Sprintf("%q %s %s node %d sector %d %v", i.Label, i.FSID, csumOf(i.Checksum), i.NodeSize, i.SectorSize, profilesOf(&i))
			want := fmt.Sprintf("%q %s %s node %d sector %d %v", m.Label, m.UUID, csumOf(m.Csum), m.Nodesize, m.Sectorsize, sorted(m.Profiles))
			if got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
			var devices, wantDevices []string
			for _, d := range i.Devices {
				devices = append(devices, fmt.Sprintf("%d %d missing %v stale %v", d.DevID, d.Size, d.Missing, d.Stale))
				if d.Allocated == 0 || d.Allocated > d.Size {
					t.Errorf("devid %d: %d of %d bytes allocated", d.DevID, d.Allocated, d.Size)
				}
			}
			for _, d := range m.Devices {
				wantDevices = append(wantDevices, fmt.Sprintf("%d %d missing false stale false", d.Devid, d.Size))
			}
			if !slices.Equal(devices, wantDevices) || i.Degraded() {
				t.Errorf("degraded %v, devices\n got %v\nwant %v", i.Degraded(), devices, wantDevices)
			}
		})
	}
}

// csumOf takes the spellings of one algorithm together: xxhash and xxhash64, blake2 and blake2b.
func csumOf(s string) string { return strings.TrimSuffix(strings.TrimSuffix(s, "64"), "b") }

func profilesOf(i *fsread.Info) []string {
	var list []string
	for _, g := range i.Groups {
		list = append(list, strings.ToLower(g.Kind+", "+g.Profile.String()))
	}
	return sorted(list)
}

func sorted(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, strings.ToLower(s))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestCopies reads every copy of some files' sectors where Copies says that it is.
func TestCopies(t *testing.T) {
	for name, copies := range map[string]int{"single": 1, "dup": 2, "raid0-3": 1, "raid1-3": 2, "raid1c3-4": 3, "raid1c4-5": 4, "raid10-4": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, name)
			f := open(t, openDevices(t, img.Devices), fsread.Options{})
			top, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
			if err != nil {
				t.Fatal(err)
			}
			checked := 0
			for _, e := range img.Manifest.Entries {
				if e.Type != "file" || e.Size < 64<<10 {
					continue
				}
				file, err := top.OpenFile(t.Context(), "/"+string(e.Path))
				if err != nil {
					t.Fatal(err)
				}
				if err := file.Extents(t.Context(), 0, func(s fsread.Segment) error {
					if s.Kind != fsread.Plain {
						return nil
					}
					checked++
					return checkCopies(f, file, s, copies, t)
				}); err != nil {
					t.Errorf("%q: %v", e.Path, err)
				}
			}
			if checked == 0 {
				t.Error("no file had plain extents")
			}
		})
	}
}

// checkCopies compares the segment's bytes, as they are read, with each copy, piece by piece.
func checkCopies(f *fsread.FS, file *fsread.File, s fsread.Segment, copies int, t *testing.T) error {
	for in := uint64(0); in < min(s.Len, file.Size()-s.Off); {
		list, err := f.Copies(s.Logical + ondisk.Logical(in))
		if err != nil {
			return err
		}
		if len(list) != copies {
			return fmt.Errorf("offset %d: %d copies, want %d", s.Off+in, len(list), copies)
		}
		n := min(s.Len-in, list[0].Len, file.Size()-s.Off-in)
		want := make([]byte, n)
		if _, err := file.ReadAt(t.Context(), want, s.Off+in); err != nil {
			return err
		}
		for _, c := range list {
			got := make([]byte, n)
			if err := readFrom(c.Name, got, int64(c.Physical)); err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("offset %d: devid %d @%d holds other bytes", s.Off+in, c.DevID, c.Physical)
			}
		}
		in += n
	}
	return nil
}

func readFrom(path string, b []byte, off int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(b, off)
	return err
}
