package fsreadtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio/imagepack"
)

// Image is an unpacked golden image.
type Image struct {
	Manifest *Manifest
	// Devices are the paths of the image files, in the order of Manifest.Devices.
	Devices []string
}

// Load unpacks testdata/images/NAME.tar.zst into a temporary directory of t. The files are
// sparse and the test's own: it may damage them.
func Load(t testing.TB, name string) *Image {
	t.Helper()
	dir := filepath.Join(moduleRoot(t), "testdata", "images")
	return LoadFrom(t, dir, name)
}

// LoadFrom is Load for an image that stands in another directory, for example the sample.
func LoadFrom(t testing.TB, dir, name string) *Image {
	t.Helper()
	m, err := ReadManifest(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := Unpack(dir, m, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &Image{Manifest: m, Devices: paths}
}

// Names lists the golden images in the order of their names.
func Names(t testing.TB) []string {
	t.Helper()
	packed, err := filepath.Glob(filepath.Join(moduleRoot(t), "testdata", "images", "*.tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, path := range packed {
		list = append(list, strings.TrimSuffix(filepath.Base(path), ".tar.zst"))
	}
	return list
}

// moduleRoot is the directory of go.mod above the test's package.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the working directory: the golden images cannot be found")
		}
		dir = up
	}
}

// ReadManifest reads dir/NAME.json.
func ReadManifest(dir, name string) (*Manifest, error) {
	f, err := os.Open(filepath.Join(dir, name+".json"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := Decode(f)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return m, nil
}

// Unpack unpacks the package of m, which stands in dir, into the directory to. It returns the
// paths of the image files in the order of m.Devices, and fails unless those are all there.
func Unpack(dir string, m *Manifest, to string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, m.Name+".tar.zst"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	paths, err := imagepack.Unpack(f, to, imagepack.Limits{})
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", m.Name, err)
	}
	if len(paths) != len(m.Devices) {
		return nil, fmt.Errorf("unpack %s: %d files, the manifest has %d devices", m.Name, len(paths), len(m.Devices))
	}
	for i, d := range m.Devices {
		info, err := os.Stat(paths[i])
		if err != nil {
			return nil, err
		}
		if filepath.Base(paths[i]) != d.File || info.Size() != d.Size {
			return nil, fmt.Errorf("unpack %s: file %d is %s of %d bytes, the manifest says %s of %d",
				m.Name, i, filepath.Base(paths[i]), info.Size(), d.File, d.Size)
		}
	}
	return paths, nil
}
