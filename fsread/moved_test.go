package fsread

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// TestMoved: a superblock with a later generation, or another log, is noticed. What was opened is shown as it was,
// but for bytes that no checksum vouches for.
func TestMoved(t *testing.T) {
	const generation, logRoot = 72, 96 // offsets in a superblock
	for name, change := range map[string]func(super []byte){
		"nothing": func([]byte) {},
		"generation": func(b []byte) {
			binary.LittleEndian.PutUint64(b[generation:], binary.LittleEndian.Uint64(b[generation:])+1)
		},
		"log": func(b []byte) { copy(b[logRoot:], b[80:88]) },
	} {
		t.Run(name, func(t *testing.T) {
			img := *fsreadtest.Load(t, "single")
			path := filepath.Join(t.TempDir(), "disk")
			all, err := os.ReadFile(img.Devices[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, all, 0o600); err != nil {
				t.Fatal(err)
			}
			img.Devices = []string{path}
			f := mustOpen(t, newRig(t, &img), Options{})
			was := f.Info().Generation
			if got, moved, err := f.Moved(t.Context()); moved || err != nil || got != was {
				t.Errorf("untouched: moved %v to %d, %v", moved, got, err)
			}
			at := ondisk.SuperblockOffsets()[0]
			super := all[at : at+ondisk.SuperblockSize]
			change(super)
			reseal(super)
			if err := os.WriteFile(path, all, 0o600); err != nil {
				t.Fatal(err)
			}
			want := name != "nothing"
			got, moved, err := f.Moved(t.Context())
			if err != nil || moved != want || (name == "generation") != (got == was+1) {
				t.Errorf("moved %v to %d, %v; want %v from %d", moved, got, err, want, was)
			}
			refused, read := 0, 0
			if err := eachFile(f, func(path string, file *File) error {
				if file.size == 0 || file.size > 64<<20 {
					return nil
				}
				_, err := file.ReadAt(t.Context(), make([]byte, file.size), 0)
				if !file.Verified() && errors.Is(err, ErrUnverifiable) {
					refused++
					return nil
				}
				read++
				return err
			}); err != nil {
				t.Error(err)
			}
			if read == 0 || (refused > 0) != want {
				t.Errorf("%d files read, %d refused", read, refused)
			}
		})
	}
}
