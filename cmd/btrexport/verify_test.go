package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// verifyRig is the sample over fault devices, and a verifyJob on it.
type verifyRig struct {
	*verifyJob
	devs     []*faultdev.Dev
	fs       *fsread.FS
	out, err notes
}

func newVerifyRig(t *testing.T, asJSON bool) *verifyRig {
	t.Helper()
	dir, err := filepath.Abs("sample")
	if err != nil {
		t.Fatal(err)
	}
	img := fsreadtest.LoadFrom(t, dir, "sample")
	r := &verifyRig{}
	var devs []volume.Device
	for _, p := range img.Devices {
		q, err := devio.Open(p, devio.Options{})
		if err != nil {
			t.Fatal(err)
		}
		d := faultdev.New(q)
		r.devs, devs = append(r.devs, d), append(devs, d)
	}
	if r.fs, err = fsread.Open(t.Context(), devs, fsread.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.fs.Close(); err != nil {
			t.Error(err)
		}
		if n := r.fs.Pool().Lent(); n != 0 {
			t.Errorf("%d buffers still lent", n)
		}
	})
	a := &app{out: &r.out, err: &r.err, json: asJSON}
	r.verifyJob = &verifyJob{a: a, stats: &verifyStats{}}
	if r.p, err = a.newProgress("/", a.objects(false), func() int64 { return 0 }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.p.stop)
	r.p.verify = func() (int64, int) { return r.bad.Load(), int(r.copies.Load()) }
	if r.sv, err = r.fs.SubvolumeByID(t.Context(), ondisk.TreeFS); err != nil {
		t.Fatal(err)
	}
	r.run = r.fs.NewVerification(fsread.VerifyOptions{Progress: r.progress})
	return r
}

// place gives every copy of the n-th plain block of a file of the sample.
func (r *verifyRig) place(t *testing.T, path string, n int) (off uint64, copies []volume.Copy) {
	t.Helper()
	f, err := r.sv.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Extents(t.Context(), 0, func(s fsread.Segment) error {
		for in := uint64(0); s.Kind == fsread.Plain && in < s.Len && copies == nil; in, n = in+4096, n-1 {
			if n == 0 {
				off = s.Off + in
				copies, err = r.fs.Copies(s.Logical + ondisk.Logical(in))
			}
		}
		return err
	}); err != nil || len(copies) != 2 {
		t.Fatalf("%s has copies %v, error %v", path, copies, err)
	}
	return off, copies
}

// TestVerifyInterrupted stops at a device that hangs: the summary says where, and all that was found until then.
func TestVerifyInterrupted(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		r := newVerifyRig(t, asJSON)
		_, bad := r.place(t, "/@images/clone.raw", 3)
		r.devs[bad[0].DevID-1].Corrupt(faultdev.Range(bad[0].Physical, 4096))
		off, copies := r.place(t, "/@images/plain.raw", 7)
		hang := r.devs[copies[1].DevID-1].Hang(faultdev.Range(copies[1].Physical, 4096))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.verifyJob.verify(ctx, []string{"/@images/clone.raw", "/@images/plain.raw"}) }()
		waitFor(t, hang.Fired)
		cancel()
		if err := <-done; !errors.As(err, new(exitStatus)) {
			t.Errorf("got %v, want an exit status", err)
		}
		hang.Remove()
		r.devs[copies[1].DevID-1].Release()
		got := r.out.String()
		if !asJSON {
			m := regexp.MustCompile(`\ninterrupted at /@images/plain.raw offset (\d+): what follows was not read\nnothing is lost so far; .*\n$`).FindStringSubmatch(got)
			if m == nil || !strings.Contains(got, "/@images/clone.raw  BAD COPY") {
				t.Errorf("got\n%s", got)
			}
			continue
		}
		lines := strings.Split(strings.TrimSpace(got), "\n")
		var s verifySummary
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
			t.Fatal(err)
		}
		if s.Interrupted == nil || s.Interrupted.Path != "/@images/plain.raw" || s.Interrupted.Offset > off || s.Files != 2 || s.BadFiles != 1 || s.Result != "bad" {
			t.Errorf("got %+v, the device hangs at %d", s, off)
		}
	}
}

// TestVerifyUnreadable tells a block that a device can't read, and one that is lost.
func TestVerifyUnreadable(t *testing.T) {
	r := newVerifyRig(t, false)
	off, copies := r.place(t, "/@images/plain.raw", 7)
	r.devs[copies[1].DevID-1].Fail(faultdev.Range(copies[1].Physical, 4096), syscall.EIO)
	lostOff, lost := r.place(t, "/@images/plain.raw", 20)
	for _, c := range lost {
		r.devs[c.DevID-1].Corrupt(faultdev.Range(c.Physical, 4096))
	}
	err := r.verifyJob.verify(t.Context(), []string{"/@images/plain.raw"})
	if !errors.As(err, new(exitStatus)) {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{
		fmt.Sprintf(`/@images/plain\.raw  BAD COPY  offset %d length 4096: devid %d @%d input/output error; devid %d good`, off, copies[1].DevID, copies[1].Physical, copies[0].DevID),
		fmt.Sprintf(`/@images/plain\.raw  LOST  offset %d length 4096: devid %d @%d crc32c is \w+, want \w+; devid %d @%d crc32c is \w+, want \w+`,
			lostOff, lost[0].DevID, lost[0].Physical, lost[1].DevID, lost[1].Physical),
		`/@images/plain\.raw: 2 bad blocks, 1 unreadable, 4096 bytes lost`,
		`1 file, \S+ KiB, 2 copies of each read: 1 file has bad copies, 1 file lost data`,
		`devid \d \(\S+\): 2 bad blocks of \d+, 1 unreadable`,
		`data is lost: 4096 bytes in 1 file; next: .*`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(r.out.String()) {
			t.Errorf("want %s in\n%s", want, r.out.String())
		}
	}
}

// TestFileWalk meets every file once: by its first name, whatever else is named.
func TestFileWalk(t *testing.T) {
	_, sv := openImage(t, fsreadtest.Load(t, "namespaces"))
	all := map[dirID]bool{}
	count := 0
	failed := func(path string, err error) {
		if !errors.Is(err, ondisk.ErrCorrupt) && !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	walk := newFileWalk(sv, failed)
	var first string
	if err := walk.each(t.Context(), []string{"/"}, func(path string, _ *fsread.File) error {
		n, err := sv.ResolveLink(t.Context(), path)
		if err != nil {
			return err
		}
		if first == "" {
			first = path
		}
		if all[nodeID(n)] {
			t.Errorf("%q is met twice", path)
		}
		all[nodeID(n)] = true
		count++
		return nil
	}); err != nil || count == 0 {
		t.Fatalf("%d files, error %v", count, err)
	}
	again := 0
	walk = newFileWalk(sv, failed)
	if err := walk.each(t.Context(), []string{"/", first, "/", first}, func(string, *fsread.File) error { again++; return nil }); err != nil || again != count || walk.names < 2 {
		t.Errorf("named twice: %d files, %d other names, error %v; want %d", again, walk.names, err, count)
	}
	err := newFileWalk(sv, failed).each(t.Context(), []string{first, "/nosuch"}, func(string, *fsread.File) error {
		t.Error("began, though a path is wrong")
		return nil
	})
	if !errors.Is(err, fsread.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestRangeLine words what is wrong.
func TestRangeLine(t *testing.T) {
	at := func(dev devio.DevID, phys devio.Physical, state volume.State, err error) volume.CopyState {
		return volume.CopyState{Copy: volume.Copy{DevID: dev, Physical: phys, Missing: state == volume.Missing}, State: state, Err: err}
	}
	bad := errors.New("crc32c is 1, want 2")
	parity := at(3, 7, volume.Bad, volume.ErrParityWrong)
	parity.Parity = "Q"
	unjudged := at(3, 7, volume.NotJudged, errors.New("parity not judged"))
	unjudged.Parity = "P"
	for _, c := range []struct {
		b    fsread.BadRange
		want string
	}{
		{fsread.BadRange{Copies: []volume.CopyState{at(1, 5, volume.Good, nil), at(2, 6, volume.Bad, bad)}}, "BAD COPY  offset 0 length 4096: devid 2 @6 crc32c is 1, want 2; devid 1 good"},
		{fsread.BadRange{Copies: []volume.CopyState{at(1, 5, volume.Bad, bad), at(1, 6, volume.Good, nil)}}, "BAD COPY  offset 0 length 4096: devid 1 @5 crc32c is 1, want 2; devid 1 @6 good"},
		{fsread.BadRange{Lost: true, Copies: []volume.CopyState{at(1, 5, volume.Bad, bad), at(2, 6, volume.Missing, volume.ErrMissing)}}, "LOST  offset 0 length 4096: devid 1 @5 crc32c is 1, want 2; devid 2 missing"},
		{fsread.BadRange{Repair: true, Copies: []volume.CopyState{at(1, 5, volume.Unreadable, syscall.EIO)}}, "BAD COPY  offset 0 length 4096: devid 1 @5 input/output error; can be rebuilt or read by another try"},
		{fsread.BadRange{Err: volume.ErrParityWrong, Copies: []volume.CopyState{parity}}, "BAD PARITY  offset 0 length 4096: devid 3 Q @7 parity does not match its row"},
		{fsread.BadRange{Copies: []volume.CopyState{unjudged}}, "NOT JUDGED  offset 0 length 4096: devid 3 P @7 parity not judged"},
		{fsread.BadRange{Copies: []volume.CopyState{at(1, 5, volume.Differs, volume.ErrDiffers), at(2, 6, volume.Differs, volume.ErrDiffers)}},
			"COPIES DIFFER  offset 0 length 4096: devid 1 @5 " + volume.ErrDiffers.Error() + "; devid 2 @6 " + volume.ErrDiffers.Error()},
		{fsread.BadRange{Lost: true, Err: volume.ErrUnmapped}, "LOST  offset 0 length 4096: no chunk maps this address"},
	} {
		c.b.Len = 4096
		if got := rangeLine("/f", &c.b); got != "/f  "+c.want {
			t.Errorf("got  %s\nwant /f  %s", got, c.want)
		}
	}
}
