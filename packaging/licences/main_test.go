package main

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// released builds the program as packaging/build does.
func released(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "btrexport")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version=test", "-o", out, "../../cmd/btrexport")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
	return out
}

// TestReleasedBinary: what is linked in is on the list, and NOTICE and the packages name all of it; the program has no
// cgo, wants no library, and is under 20 MiB.
func TestReleasedBinary(t *testing.T) {
	binary := released(t)
	list, err := linked(binary)
	if err != nil {
		t.Fatal(err)
	}
	notice, err := os.ReadFile("../../NOTICE")
	if err != nil {
		t.Fatal(err)
	}
	var plain, debian bytes.Buffer
	writePlain(&plain, list)
	writeDebian(&debian, list)
	lines := strings.Split(string(notice), "\n")
	for _, m := range list {
		if want := m.path + ": " + m.spdx; !slices.ContainsFunc(lines, func(l string) bool { return strings.TrimSpace(l) == want }) {
			t.Errorf("NOTICE has no line %q", want)
		}
		if !strings.Contains(plain.String(), m.path+" "+m.version) || !strings.Contains(plain.String(), strings.TrimSpace(m.text)) {
			t.Errorf("%s: the archive's licences lack it or its text", m.path)
		}
		if !strings.Contains(debian.String(), "Files: vendor/"+m.path+"/*\n") || !strings.Contains(debian.String(), "\nLicense: "+m.debianName()+"\n ") {
			t.Errorf("%s: the copyright file lacks it or its licence's paragraph", m.path)
		}
	}
	for _, l := range lines {
		path, _, ok := strings.Cut(strings.TrimSpace(l), ": ")
		if ok && strings.HasPrefix(l, "  ") && !slices.ContainsFunc(list, func(m module) bool { return m.path == path }) {
			t.Errorf("NOTICE names %s, which is not linked in", path)
		}
	}
	static(t, binary)
}

func static(t *testing.T, binary string) {
	t.Helper()
	const most = 20 << 20
	st, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes", filepath.Base(binary), st.Size())
	if st.Size() >= most {
		t.Errorf("%d bytes, want less than %d", st.Size(), most)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value != "0" {
			t.Errorf("built with CGO_ENABLED=%s", s.Value)
		}
	}
	file, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if file.Section(".interp") != nil || file.Section(".dynamic") != nil {
		t.Error("the program wants a dynamic linker")
	}
}

// TestUnlisted: a module that nobody has judged, and a text that is not what the list says, end the build.
func TestUnlisted(t *testing.T) {
	m := module{path: "example.com/unknown"}
	if err := m.read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is on no list") {
		t.Errorf("an unlisted module: got %v", err)
	}
	for name, text := range map[string]string{"another licence": signs["BSD-3-Clause"], "one more": signs["MIT"] + signs["Apache-2.0"], "none": ""} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "LICENSE"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m := module{path: "github.com/beorn7/perks"} // MIT
		if err := m.read(dir); err == nil {
			t.Errorf("%s: taken for %s", name, m.spdx)
		}
	}
	if err := (&module{path: "github.com/beorn7/perks"}).read(t.TempDir()); err == nil {
		t.Error("a module without a licence is taken")
	}
}
