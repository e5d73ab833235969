package spelling

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNearest(t *testing.T) {
	names := []string{"name", "devices", "degraded", "direct_io", "workers", "cache", "path", "Größe", strings.Repeat("n", longest)}
	for word, want := range map[string]string{
		"nmae": "name", "device": "devices", "Devices": "devices", "DEVICES": "devices", "directio": "direct_io", "worker": "workers",
		"cahce": "cache", "pth": "path", "paht": "path", "größe": "Größe", "grösse": "Größe",
		"x": "", "": "", "zzzzzzz": "", "dev": "", strings.Repeat("n", longest): "",
	} {
		if got, ok := Nearest(word, names); got != want || ok != (want != "") {
			t.Errorf("Nearest(%q) = %q, %v, want %q", word, got, ok, want)
		}
	}
	for _, list := range [][]string{{"vm2", "vm3"}, {"vmx9", "vm2", "vm3"}} {
		if got, _ := Nearest("vm1", list); got != "vm2" {
			t.Errorf("Nearest(vm1, %q) = %q, want the first of the likeliest, vm2", list, got)
		}
	}
}

func TestDistanceIsAMetric(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.StringOfN(rapid.RuneFrom([]rune("abü")), 0, 8, -1)
		a, b := []rune(gen.Draw(t, "a")), []rune(gen.Draw(t, "b"))
		d := distance(a, b)
		if d != distance(b, a) || (d == 0) != (string(a) == string(b)) || d > max(len(a), len(b)) {
			t.Fatalf("distance(%q, %q) = %d, reversed %d", string(a), string(b), d, distance(b, a))
		}
	})
}

// TestNearestIsTheNearest holds the search, which skips what can't win, against all distances.
func TestNearestIsTheNearest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 1, 9, -1)
		word, names := gen.Draw(t, "word"), rapid.SliceOfN(gen, 0, 6).Draw(t, "names")
		want, at := "", 0
		for _, name := range names {
			d := distance([]rune(word), []rune(name))
			if d*3 <= max(len(word), len(name)) && (want == "" || d < at) {
				want, at = name, d
			}
		}
		if got, ok := Nearest(word, names); got != want || ok != (want != "") {
			t.Fatalf("Nearest(%q, %q) = %q, want %q", word, names, got, want)
		}
	})
}
