package fsreadtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The smallest images stand for all: unpacked, they are the bytes that the manifest names.
func TestLoad(t *testing.T) {
	for _, name := range []string{"namespaces", "raid1-2"} {
		img := Load(t, name)
		if len(img.Devices) != len(img.Manifest.Devices) {
			t.Fatalf("%s: got %d devices, want %d", name, len(img.Devices), len(img.Manifest.Devices))
		}
		for i, d := range img.Manifest.Devices {
			f, err := os.Open(img.Devices[i])
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			n, err := io.Copy(h, f)
			_ = f.Close()
			if err != nil || n != d.Size {
				t.Errorf("%s %s: got %d bytes, error %v; want %d", name, d.File, n, err, d.Size)
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != d.SHA256 {
				t.Errorf("%s %s: got SHA-256 %s, want %s", name, d.File, got, d.SHA256)
			}
		}
	}
}

// Every package has a manifest, which is what Encode makes of it: nobody edits one by hand.
func TestManifestsAreCanonical(t *testing.T) {
	names := Names(t)
	if len(names) < 20 {
		t.Fatalf("got %d golden images, want at least 20: %q", len(names), names)
	}
	for _, name := range names {
		path := moduleRoot(t) + "/testdata/images/" + name + ".json"
		want, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		m, err := Decode(bytes.NewReader(want))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got bytes.Buffer
		if err := m.Encode(&got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s (-file +encoded):\n%s", name, diff)
		}
		if m.Name != name || len(m.Devices) == 0 || len(m.Entries) == 0 {
			t.Errorf("%s: name %q, %d devices, %d entries", name, m.Name, len(m.Devices), len(m.Entries))
		}
	}
}

func TestNameJSON(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"plain", `"plain"`},
		{"<&>", `"<&>"`},
		{"ü", `"ü"`},
		{"\xff", `"base64:/w=="`},
		{"base64:x", `"base64:YmFzZTY0Ong="`},
		{"a\nb", `"a\nb"`},
	} {
		got, err := Name(c.name).MarshalJSON()
		if err != nil || string(got) != c.want {
			t.Errorf("%q: got %s, error %v; want %s", c.name, got, err, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		want := Name(rapid.SliceOf(rapid.Byte()).Draw(t, "name"))
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Name
		if err := json.Unmarshal(b, &got); err != nil || got != want {
			t.Fatalf("%q as %s: got %q, error %v", want, b, got, err)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"unknown field", `{"name":"x","colour":"red"}`},
		{"bad base64", `{"name":"x","entries":[{"path":"base64:!"}]}`},
		{"no JSON", `name: x`},
	} {
		if m, err := Decode(strings.NewReader(c.text)); err == nil {
			t.Errorf("%s: got %+v, want an error", c.name, m)
		}
	}
}

// A package that does not hold the devices of its manifest must not pass for the image.
func TestUnpackComparesDevices(t *testing.T) {
	dir := moduleRoot(t) + "/testdata/images"
	for _, c := range []struct {
		name   string
		change func(m *Manifest)
	}{
		{"one too many", func(m *Manifest) { m.Devices = append(m.Devices, Device{File: "disk9.img"}) }},
		{"other size", func(m *Manifest) { m.Devices[0].Size++ }},
		{"other name", func(m *Manifest) { m.Devices[0].File = "disk7.img" }},
	} {
		m, err := ReadManifest(dir, "namespaces")
		if err != nil {
			t.Fatal(err)
		}
		c.change(m)
		if paths, err := Unpack(dir, m, t.TempDir()); err == nil {
			t.Errorf("%s: got %q, want an error", c.name, paths)
		}
	}
}
